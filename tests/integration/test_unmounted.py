"""A start without the volume: with the ledger on another disk nothing is taken for gone."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.integration.daemons import Daemon, call, run
from tests.integration.plain import PlainSender
from tests.integration.tus import Tus, direct

DATA = bytes(range(256)) * 2000
HALF = len(DATA) // 2


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    """A daemon whose ledger does not lie under its root."""
    other = tmp_path / "other disk"
    other.mkdir()
    return Daemon(tmp_path, ledger=f"sqlite:///{other}/ledger.sqlite3")


def filled(daemon: Daemon) -> tuple[str, Tus, str]:
    """A stored backup and half an upload: where the one is got, and the other goes on."""
    with PlainSender() as sender:
        stored = sender.back_up(daemon.url, 1, DATA)["contentUrl"]
    tus = direct(daemon, 2, len(DATA))
    upload = tus.create(len(DATA))
    assert tus.patch(upload, 0, DATA[:HALF]).status == 204
    return stored, tus, upload


def is_refused(daemon: Daemon) -> None:
    """Exit code 1, and one line that says what is missing where, and what to do."""
    done = run([*daemon.program, *daemon.command], daemon.environment, cwd=daemon.folder)
    told = done.out + done.err
    assert (done.code, "Traceback" in told) == (1, False), told
    (line,) = [one for one in told.splitlines() if re.search(r"^(.*#error\] )?backupd: ", one)]
    for words in ("lost its mark", str(daemon.root), "mount it", "`backupctl accept-root`"):
        assert words in line
    looked = daemon.ctl("doctor")
    assert looked.code == 1
    assert "✗ root: has lost its mark" in looked.out


def test_nothing_is_made_and_all_is_there_again(daemon: Daemon) -> None:
    """A mount point that is not there, or is an empty folder, stays as it is; once the volume is
    back, so is all that was acknowledged.
    """
    with daemon:
        stored, tus, upload = filled(daemon)
    away = daemon.root.rename(daemon.folder / "unmounted")
    is_refused(daemon)
    assert not daemon.root.exists()
    daemon.root.mkdir()
    is_refused(daemon)
    assert os.listdir(daemon.root) == []
    daemon.root.rmdir()
    away.rename(daemon.root)
    with daemon:
        assert call("GET", stored).body == DATA
        assert tus.offset(upload) == HALF
        assert tus.patch(upload, HALF, DATA[HALF:]).status == 204
        assert tus.kept() == DATA
        well = daemon.ctl("doctor")
        assert well.code == 0, well.out


def test_a_disk_that_is_lost(daemon: Daemon) -> None:
    """Once the operator has said so, the new one is the root; what was on the old one is told as
    lost, and the old one is refused from then on.
    """
    with daemon:
        filled(daemon)
    lost = daemon.root.rename(daemon.folder / "lost")
    daemon.root.mkdir()
    is_refused(daemon)
    accepted = daemon.ctl("accept-root")
    assert (accepted.code, str(daemon.root) in accepted.out) == (0, True), accepted.err
    with daemon:
        assert daemon.incoming == []
        told = daemon.ctl("doctor")
        assert (told.code, "Not one of the 1 listed backups is there" in told.out) == (1, True)
        assert "there is nothing to accept" in daemon.ctl("accept-root").out
    daemon.root.rename(daemon.folder / "new")
    lost.rename(daemon.root)
    done = run([*daemon.program, *daemon.command], daemon.environment, cwd=daemon.folder)
    assert (done.code, "has another mark" in done.out + done.err) == (1, True)
