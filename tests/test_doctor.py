"""``backupctl doctor``, before there is a daemon."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from backupd.control import Api
from backupd.doctor import Finding, examine
from backupd.interfaces import Remembered
from backupd.ledger import opening


def test_it_makes_nothing(tmp_path: Path) -> None:
    """A root that root has made is one that the daemon's user cannot write."""
    environ = {"BACKUPD_CONFIG": os.devnull, "BACKUPD_ROOT": str(tmp_path / "a" / "root")}
    found = {one.what: one for one in examine(environ, Api("http://127.0.0.1:9", None), None)}
    assert list(tmp_path.iterdir()) == []
    assert not found["root"].well
    assert "not there yet" in found["root"].told
    assert "start the daemon" in found["root"].advice


@pytest.mark.parametrize("url", ["http://x:abc", "http://[::1", "x"])
def test_another_server_whose_url_is_none(tmp_path: Path, url: str) -> None:
    """That it does not answer would send people to look after it."""
    environ = {"BACKUPD_CONFIG": os.devnull, "BACKUPD_ROOT": str(tmp_path)}
    found = {one.what: one for one in examine(environ, Api("http://127.0.0.1:9", None), url)}
    assert "is no URL of a server" in found["other server"].told
    assert not found["other server"].well


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


def looked(root: Path) -> dict[str, Finding]:
    """What is found by what it is about."""
    environ = {"BACKUPD_CONFIG": os.devnull, "BACKUPD_ROOT": str(root)}
    return {one.what: one for one in examine(environ, Api("http://127.0.0.1:9", None), None)}


def test_a_wrong_root_is_all_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is said would be said of another place."""
    monkeypatch.setattr(opening, "remembered", lambda url: Remembered("another"))
    found = looked(tmp_path)
    assert list(found) == ["settings", "root"]
    assert "has lost its mark" in found["root"].told
    assert "accept-root" in found["root"].advice


def test_a_mark_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / ".backupd" / "root-mark").mkdir(parents=True)
    found = looked(tmp_path)
    assert found["root"].told.startswith("cannot be read (Is a directory)")
    assert "the user that backupd runs as" in found["root"].advice


def test_a_ledger_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """And the rest is looked at all the same."""
    (tmp_path / ".backupd").mkdir()
    (tmp_path / ".backupd" / "ledger.sqlite3").write_bytes(b"no database" * 100)
    found = looked(tmp_path)
    assert "could not be opened" in found["ledger"].told
    assert "docs/recovery.md" in found["ledger"].advice
    assert {"root", "space"} <= found.keys()
