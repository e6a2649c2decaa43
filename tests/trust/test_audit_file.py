"""The audit log on the disk: only added to, durable, bounded, and readable to nobody else."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backupd.errors import StorageFailed
from backupd.trust.audit_file import AuditFile

Lines = list[dict[str, Any]]


def events(first: int, last: int) -> Lines:
    return [{"event": f"e{number}"} for number in range(first, last + 1)]


def numbers(found: Lines) -> list[int]:
    return [one["n"] for one in found]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_lines_are_json_and_numbered(path: Path) -> None:
    """Also by the process after this one."""
    AuditFile(str(path)).append(events(1, 2))
    AuditFile(str(path)).append([{"event": "e3", "why": "line\nbreak \N{SNOWMAN}\ud800"}])
    lines = [json.loads(line) for line in path.read_text("ascii").splitlines()]
    assert [(one["n"], one["event"]) for one in lines] == [(1, "e1"), (2, "e2"), (3, "e3")]


def test_nobody_else_reads_it(path: Path) -> None:
    before = os.umask(0)
    try:
        AuditFile(str(path), max_size=1).append(events(1, 1))
        AuditFile(str(path), max_size=1).append(events(2, 2))
    finally:
        os.umask(before)
    assert sorted(one.name for one in path.parent.iterdir()) == ["audit.jsonl", "audit.jsonl.1"]
    for one in path.parent.iterdir():
        assert stat.S_IMODE(one.stat().st_mode) == 0o600


def test_it_is_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before `append` returns, the folder when the file is new in it."""
    synced: list[str] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    log = AuditFile(str(path))
    log.append(events(1, 1))
    assert synced == [path.parent.name, path.name]
    log.append(events(2, 2))
    assert synced[2:] == [path.name]


def test_it_is_bounded(path: Path) -> None:
    """So many files of so much; the oldest goes, the numbers go on."""
    log = AuditFile(str(path), max_size=200, files=3)
    for number in range(1, 101):
        log.append(events(number, number))
    files = list(path.parent.iterdir())
    assert len(files) == 3
    assert all(one.stat().st_size <= 200 for one in files)
    assert numbers(log.read(None, 5)) == [96, 97, 98, 99, 100]
    kept = numbers(log.read(0, 1000))
    assert kept == list(range(kept[0], 101))
    assert numbers(AuditFile(str(path), max_size=200, files=3).read(98, 9)) == [99, 100]


@pytest.mark.parametrize("max_size", [10**9, 700])
def test_reading_goes_on_where_it_was(path: Path, max_size: int) -> None:
    """After any number, by any page, over all files."""
    log = AuditFile(str(path), max_size=max_size, files=99)
    for number in range(1, 101, 4):
        log.append(events(number, number + 3))
    for after in range(101):
        assert numbers(log.read(after, 7)) == list(range(after + 1, min(after + 8, 101)))
    assert numbers(log.read(None, 1000)) == list(range(1, 101))
    assert AuditFile(f"{path}x").read(None, 5) == []


def test_a_line_that_a_crash_cut(path: Path) -> None:
    """It is left out, and nothing is written behind it on the same line."""
    AuditFile(str(path)).append(events(1, 2))
    with path.open("ab") as file:
        file.write(b'{"n": 3, "eve')
    log = AuditFile(str(path))
    log.append(events(3, 3))
    assert [one["event"] for one in log.read(0, 9)] == ["e1", "e2", "e3"]
    assert path.read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_what_failed_is_not_there_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It is taken out again, and another file descriptor is used from then on: the same one is
    never synced again.
    """
    log = AuditFile(str(path))
    log.append(events(1, 1))
    used: list[int] = []

    def broken(after: Callable[..., Any]) -> Callable[..., Any]:
        def failing(fd: int, *more: Any) -> Any:
            used.append(fd)
            after(fd, *more)
            raise OSError(5, "Input/output error")

        return failing

    with monkeypatch.context() as patch:
        patch.setattr(os, call, broken(getattr(os, call)))
        with pytest.raises(StorageFailed, match="Input/output error"):
            log.append(events(2, 3))
    assert numbers(log.read(0, 9)) == [1]
    assert len(used) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(used[0])
    log.append(events(2, 3))
    assert [one["event"] for one in log.read(0, 9)] == ["e1", "e2", "e3"]


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    path.symlink_to(other)
    with pytest.raises(StorageFailed):
        AuditFile(str(path)).append(events(1, 1))
    assert not other.exists()
