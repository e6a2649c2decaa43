"""``backupctl doctor``, before there is a daemon."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from backupd.control import Api
from backupd.doctor import examine


def test_it_makes_nothing(tmp_path: Path) -> None:
    """A root that root has made is one that the daemon's user cannot write."""
    environ = {"BACKUPD_CONFIG": os.devnull, "BACKUPD_ROOT": str(tmp_path / "a" / "root")}
    found = {one.what: one for one in examine(environ, Api("http://127.0.0.1:9", None), None)}
    assert list(tmp_path.iterdir()) == []
    assert not found["root"].well
    assert "not there yet" in found["root"].told
    assert "start the daemon" in found["root"].advice


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(b"")
    environ = {"BACKUPD_CONFIG": os.devnull, "BACKUPD_ROOT": str(tmp_path / "root")}
    found = {one.what: one for one in examine(environ, Api("http://127.0.0.1:9", None), None)}
    assert "cannot be written" in found["root"].told


def test_a_volume_that_is_full_is_not_one_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What helps is room, and the rest is looked at all the same."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    environ = {"BACKUPD_CONFIG": os.devnull, "BACKUPD_ROOT": str(tmp_path)}
    found = {one.what: one for one in examine(environ, Api("http://127.0.0.1:9", None), None)}
    assert not found["root"].well
    assert "free some space" in found["root"].advice
    assert {"space", "control token"} <= found.keys()
