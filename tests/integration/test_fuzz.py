"""Whatever is sent, over every route: no 5xx of ours, no hang, no growth, no traceback."""

from __future__ import annotations

import os
from pathlib import Path

from tests.fuzz.paired import fuzz_paired
from tests.fuzz.run import fuzz

REQUESTS = int(os.environ.get("BACKUPD_FUZZ", "3000"))
SEED = int(os.environ.get("BACKUPD_FUZZ_SEED", "1"))


def test_nothing_that_a_stranger_sends_breaks_it(tmp_path: Path) -> None:
    """The daemon's log is looked through for tracebacks and defects when it stops."""
    found = fuzz(tmp_path, REQUESTS, SEED)
    assert found.failed == []
    assert found.hung == []
    assert found.grown < 32 * 2**20
    deep = {200, 400, 401, 403, 404, 405, 409, 412, 415}
    assert deep <= set(found.statuses), "most of what was sent did not get far"


def test_nothing_that_a_peer_sends_breaks_it(tmp_path: Path) -> None:
    """Nor one that is out, or would be one, or sends notices; neither plainly nor by TLS."""
    found = fuzz_paired(tmp_path, REQUESTS, SEED)
    assert found.failed == []
    assert found.hung == []
    assert found.grown < 32 * 2**20
    deep = {200, 202, 400, 401, 403, 404, 405, 412, 415}
    assert deep <= set(found.statuses), "most of what was sent did not get far"
