"""A folder for a section, on the disk that the checkout is on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.daemons import REPOSITORY

__all__ = ["scratch"]


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Removed when all went well, or nothing could be tried; what failed is left there to be
    looked at, logs and all.
    """
    above = REPOSITORY / "build" / "torture"
    above.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=above))
    try:
        yield folder
    except AssertionError as error:
        error.add_note(f"logs and all are left in {folder}")
        raise
    except pytest.skip.Exception:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
