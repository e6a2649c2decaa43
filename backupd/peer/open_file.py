"""A file that is read off the reactor thread, by one thread at a time."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from backupd.errors import BackupdError
from backupd.interfaces import IFileSystem, OffThread

__all__ = ["FileChanged", "FileDigest", "FileGone", "FileState", "OpenFile"]

T = TypeVar("T")

FOLLOWED = 8 * 1024 * 1024
"""Bytes that are read at a time for nothing but the digest."""


class FileChanged(BackupdError):
    """The file is not, or no longer, the one that was to be sent."""


class FileGone(BackupdError):
    """The file does not exist any more."""


@dataclass(frozen=True, slots=True)
class FileState:
    """A file as it was when it was queued."""

    path: str
    size: int
    modified_ns: int


class OpenFile:
    """`open` it first, `close` it in the end, whatever happened between."""

    def __init__(self, file: FileState, off: OffThread, fs: IFileSystem = os) -> None:
        self.file = file
        self.busy = False
        """Whether a thread is at work on it."""
        self._off = off
        self._fs = fs
        self._fd: int | None = None
        self._idle: list[Deferred[None]] = []

    async def open(self) -> None:
        """Raises `FileGone`, `FileChanged` when it is another file by now, and `OSError`."""
        await self.alone(self._open)

    async def close(self) -> None:
        """Let go of the file once nothing reads it any more. Again is harmless."""
        if self.busy:
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            await idle
        fd, self._fd = self._fd, None
        if fd is not None:
            await self._off(self._fs.close, fd)

    async def alone(self, work: Callable[..., T], *args: int) -> T:
        """Run ``work`` off the reactor thread; `close` waits for its end even if we do not."""
        self.busy = True
        result: Deferred[T] = Deferred()

        def ended(outcome: T | Failure) -> None:
            self.busy = False
            idle, self._idle = self._idle, []
            if result.called:
                pass  # whoever waited was cancelled
            elif isinstance(outcome, Failure):
                result.errback(outcome)
            else:
                result.callback(outcome)
            for waiting in idle:
                waiting.callback(None)

        self._off(work, *args).addBoth(ended)
        return await result

    # -- in a thread ------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            # Not blocking: a FIFO that took the file's place must not hold a thread for ever.
            self._fd = self._fs.open(self.file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise FileGone(f"{self.file.path} does not exist any more.") from error
            raise
        self._check(self._fd)

    def _check(self, fd: int) -> None:
        now = self._fs.fstat(fd)
        if (now.st_size, now.st_mtime_ns) != (self.file.size, self.file.modified_ns):
            raise FileChanged(f"{self.file.path} has changed since it was queued.")

    def read(self, offset: int, length: int) -> bytes:
        """At most ``length`` bytes, at least one; the last are proved to be of the same file.

        Blocks: for `alone`. Raises `FileChanged`, `OSError`.
        """
        if self._fd is None:
            raise ValueError("the file is closed")
        block = self._fs.pread(self._fd, length, offset)
        if not block:
            raise FileChanged(f"{self.file.path} has become shorter while it was sent.")
        if offset + len(block) == self.file.size:
            self._check(self._fd)
        return block


class FileDigest:
    """The SHA-256 of a file, made in order: of what passes by while it is sent, and of the rest
    by a reading of its own. It outlives a connection that broke, so nothing is read twice for it.
    """

    def __init__(self, file: FileState, off: OffThread, fs: IFileSystem = os) -> None:
        self.file = file
        self.at = 0
        """So many bytes are in it."""
        self._off = off
        self._fs = fs
        self._hasher = hashlib.sha256()

    @property
    def sha256(self) -> str | None:
        """In hex; there once it has every byte."""
        return self._hasher.hexdigest() if self.at == self.file.size else None

    def pass_by(self, offset: int, block: bytes) -> None:
        """Take what is new of a block that begins at or before `at`; runs in a thread."""
        new = self.at - offset
        if 0 <= new < len(block):
            self._hasher.update(memoryview(block)[new:] if new else block)
            self.at += len(block) - new

    async def check(self) -> None:
        """Raises what `OpenFile.open` raises, when it is another file by now."""
        file = OpenFile(self.file, self._off, self._fs)
        try:
            await file.open()
        finally:
            await file.close()

    async def follow(self, to: int) -> None:
        """Read up to there. Not while blocks pass by. Raises what `OpenFile` raises."""
        if self.at >= to:
            return
        file = OpenFile(self.file, self._off, self._fs)

        def step(offset: int, length: int) -> None:
            self.pass_by(offset, file.read(offset, length))

        try:
            await file.open()
            while self.at < to:
                await file.alone(step, self.at, min(FOLLOWED, to - self.at))
        finally:
            await file.close()
