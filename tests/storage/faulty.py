"""The module `os` with a fault: a call that fails, a crash, or calls that do only half the work."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from backupd.interfaces import IVolume
from backupd.requests import Backup
from backupd.storage.disk import DiskStorage
from backupd.storage.system import SYSTEM
from tests.conformance.storage import a_backup, received

__all__ = ["Crash", "FaultyFileSystem", "crashing_at", "failing", "faulty", "kept", "tree"]


class Crash(BaseException):
    """The process ended here."""


class FaultyFileSystem:
    """Has the functions of `os`, and keeps count of what a power cut could still undo.

    ``fault(number, function, path)`` is called before each call, counted from 0, and may raise;
    once it raised `Crash` every further call does, as nothing runs on after a crash.

    ``unsynced`` holds the folders whose entries, and the files whose bytes, changed since they
    were last synced. It outlives a crash: hand it to the next one. ``trace`` tells the syncs and
    renames.
    """

    def __init__(
        self,
        root: str,
        fault: Callable[[int, str, str], None] = lambda number, function, path: None,
        *,
        unsynced: set[str] | None = None,
        short: int | None = None,
    ) -> None:
        self.fault = fault
        self.unsynced: set[str] = set() if unsynced is None else unsynced
        self.trace: list[str] = []
        self.calls = 0
        self.fds: dict[int, str] = {}
        self._root = root
        self._short = short
        self._crashed = False

    def __getattr__(self, function: str) -> Callable[..., Any]:
        if function.startswith("_"):
            raise AttributeError(function)

        def call(*args: Any) -> Any:
            path = self.fds[args[0]] if isinstance(args[0], int) else self._relative(args[0])
            if self._crashed:
                raise Crash
            number, self.calls = self.calls, self.calls + 1
            try:
                self.fault(number, function, path)
            except Crash:
                self._crashed = True
                raise
            result = getattr(self, f"_{function}", getattr(SYSTEM, function))(*args)
            self._note(function, path, args, result)
            return result

        return call

    def close_all(self) -> None:
        """What the kernel does for a process that ended."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()

    def _relative(self, path: str) -> str:
        return os.path.relpath(path, self._root)

    def _pwritev(self, fd: int, pieces: Sequence[bytes], offset: int) -> int:
        if self._short is not None:
            pieces = [bytes(pieces[0][: self._short])]
        return os.pwritev(fd, pieces, offset)

    def _note(self, function: str, path: str, args: tuple[Any, ...], result: Any) -> None:
        folder = os.path.dirname(path) or "."
        match function:
            case "open":
                self.fds[result] = path
                if args[1] & os.O_CREAT:
                    self.unsynced |= {folder, path}
            case "close":
                del self.fds[args[0]]
            case "pwritev" | "ftruncate" | "posix_fallocate":
                self.unsynced.add(path)
            case "fsync" | "fdatasync":
                self.unsynced.discard(path)
                self.trace.append(f"sync {path}")
            case "mkdir":
                self.unsynced.add(folder)
            case "unlink" | "rmdir":
                self.unsynced.discard(path)
                self.unsynced.add(folder)
            case "rename":
                target = self._relative(args[1])
                if path in self.unsynced:
                    raise AssertionError(f"{path} was renamed with bytes that were not synced")
                self.unsynced |= {folder, os.path.dirname(target)}
                self.trace.append(f"rename {path} {target}")


def faulty(root: Path, fs: FaultyFileSystem) -> DiskStorage:
    """The storage under ``root``, as ``fs`` lets it be."""
    return DiskStorage(str(root), fs=cast(IVolume, fs))


def kept(storage: DiskStorage, backup_id: str = "backup-1") -> Backup:
    """A backup that is kept."""
    backup = a_backup(storage, backup_id=backup_id)
    received(storage, "upload-1")
    storage.keep("upload-1", backup)
    return backup


def tree(root: Path) -> dict[str, bytes | None]:
    """Every path below the root, with its content if it is a file."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def failing(number: int, function: str, path_end: str = "") -> Callable[[int, str, str], None]:
    """A fault: ``function`` fails with the error ``number``, on paths that end so."""

    def fault(_: int, called: str, path: str) -> None:
        if called == function and path.endswith(path_end):
            raise OSError(number, os.strerror(number))

    return fault


def crashing_at(crash: int) -> Callable[[int, str, str], None]:
    """A fault: the process ends instead of its call ``crash``."""

    def fault(number: int, function: str, path: str) -> None:
        if number == crash:
            raise Crash

    return fault
