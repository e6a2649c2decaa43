"""Volumes that others fill, and that take no write any more; torture tries more of it.

What must hold is in `tests.torture.disks`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.torture.disks import trial


@pytest.mark.parametrize(
    ("kind", "what", "only_ledger"),
    [
        ("tmpfs", "full before", True),
        ("tmpfs", "full during", False),
        ("ext4", "full before", False),
        ("ext4", "full at the end", False),
        ("ext4", "killed while full", False),
        ("ext4", "without inodes", False),
        ("ext4", "read-only", False),
    ],
)
def test_what_was_acknowledged_survives_and_the_rest_goes_on_by_itself(
    tmp_path: Path, kind: str, what: str, only_ledger: bool
) -> None:
    trial(tmp_path, kind, what, random.Random(3), only_ledger=only_ledger)
