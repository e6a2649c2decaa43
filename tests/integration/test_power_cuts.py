"""Power cuts under uploads, on a file system that forgets what is not synced."""

from __future__ import annotations

import random
from pathlib import Path

from tests.torture.forgetful import check_power_cuts


def test_power_cuts_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Promises, offsets, backups and deletions, from the very first start on."""
    check_power_cuts(tmp_path, random.Random(7), 5, print)
