"""A folder for each test, and a storage in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupd.storage.disk import DiskStorage


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def storage(root: Path) -> DiskStorage:
    storage = DiskStorage(str(root))
    storage.prepare()
    return storage
