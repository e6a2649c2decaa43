"""A file as the body of a request: streamed from an offset, read off the reactor thread."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from backupd.errors import BackupdError
from backupd.interfaces import IFileSystem, OffThread
from backupd.waiting import go_on

__all__ = ["BLOCK", "FileBody", "FileChanged", "FileGone"]

BLOCK = 1024 * 1024
"""Bytes that are read at a time; one block is read ahead."""

SLICE = 128 * 1024
"""Bytes that go to the transport at a time: what it takes shows that the connection lives."""


class FileChanged(BackupdError):
    """The file is not, or no longer, the one that was to be sent."""


class FileGone(BackupdError):
    """The file does not exist any more."""


@implementer(IBodyProducer)
class FileBody:
    """The bytes of ``path`` from an offset to ``size``, and the SHA-256 of all of them from 0.

    `open` it first, `close` it in the end, whatever happened between. ``progress`` is called
    with the bytes of the file that have been handed to the transport.
    """

    length: int
    sha256: str | None = None
    """In hex; there once every byte has been read."""

    def __init__(
        self,
        path: str,
        *,
        size: int,
        modified_ns: int,
        off: OffThread,
        progress: Callable[[int], None] = lambda sent: None,
        fs: IFileSystem = os,
    ) -> None:
        self.length = size
        self._path = path
        self._size = size
        self._modified_ns = modified_ns
        self._off = off
        self._progress = progress
        self._fs = fs
        self._hasher = hashlib.sha256()
        self._fd: int | None = None
        self._read_to = 0
        self._sent = 0
        self._block = memoryview(b"")
        self._ahead: bytes | None = None
        self._reading = False
        self._idle: list[Deferred[None]] = []
        self._paused = False
        self._stopped = False
        self._going = False
        self._consumer: IConsumer | None = None
        self._done: Deferred[None] = Deferred()

    # -- before and after -------------------------------------------------------------------------

    async def open(self, offset: int = 0) -> None:
        """Open the file, and read what lies before ``offset`` for the digest.

        Raises `FileGone`, `FileChanged` when it is not the file that was recorded, and `OSError`.
        """
        self._progress(offset)
        await self._alone(self._open)
        while self._read_to < offset and not self._stopped:
            await self._alone(self._read, min(offset - self._read_to, 8 * BLOCK))
        self._sent = offset
        self.length = self._size - offset

    async def close(self) -> None:
        """Let go of the file once nothing reads it any more. Again is harmless."""
        self._stopped = True
        if self._reading:
            idle: Deferred[None] = Deferred()
            self._idle.append(idle)
            await idle
        fd, self._fd = self._fd, None
        if fd is not None:
            await self._off(self._fs.close, fd)

    async def _alone(self, work: Callable[..., bytes], *args: int) -> bytes:
        """Run ``work`` off the reactor thread; `close` waits for its end even if we do not."""
        self._reading = True
        result: Deferred[bytes] = Deferred()

        def ended(outcome: bytes | Failure) -> None:
            self._reading = False
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

    def _open(self) -> bytes:
        try:
            # Not blocking: a FIFO that took the file's place must not hold a thread for ever.
            self._fd = self._fs.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise FileGone(f"{self._path} does not exist any more.") from error
            raise
        self._check(self._fd)
        self._end_if_whole()
        return b""

    def _check(self, fd: int) -> None:
        now = self._fs.fstat(fd)
        if (now.st_size, now.st_mtime_ns) != (self._size, self._modified_ns):
            raise FileChanged(f"{self._path} has changed since it was queued.")

    def _read(self, length: int) -> bytes:
        if self._fd is None:
            raise ValueError("the file is closed")
        block = self._fs.pread(self._fd, length, self._read_to)
        if not block:
            raise FileChanged(f"{self._path} has become shorter while it was sent.")
        self._hasher.update(block)
        self._read_to += len(block)
        if self._read_to == self._size:
            self._check(self._fd)
        self._end_if_whole()
        return block

    def _end_if_whole(self) -> None:
        if self._read_to == self._size:
            self.sha256 = self._hasher.hexdigest()

    # -- IBodyProducer ----------------------------------------------------------------------------

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:  # noqa: N802
        """Write to ``consumer``; fires when every byte was, fails when the file cannot be read.

        Never fires after `stopProducing`.
        """
        self._consumer = consumer
        self._go_on()
        return self._done

    def pauseProducing(self) -> None:  # noqa: N802
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802
        self._paused = False
        self._go_on()

    def stopProducing(self) -> None:  # noqa: N802
        """End at once; `close` still has to be called."""
        self._stopped = True
        self._block, self._ahead = memoryview(b""), None

    def _go_on(self) -> None:
        """Write while the consumer takes it, and keep one block read ahead."""
        if self._going or self._consumer is None:
            return
        self._going = True
        try:
            while not (self._stopped or self._done.called):
                if not self._block and self._ahead is not None:
                    self._block, self._ahead = memoryview(self._ahead), None
                if self._ahead is None and not self._reading and self._read_to < self._size:
                    go_on(self._read_ahead())
                if self._sent == self._size:
                    self._done.callback(None)
                elif self._paused or not (self._block or self._ahead):
                    return
                else:
                    self._write(self._consumer)
        finally:
            self._going = False

    def _write(self, consumer: IConsumer) -> None:
        piece, self._block = bytes(self._block[:SLICE]), self._block[SLICE:]
        self._sent += len(piece)
        if piece:
            consumer.write(piece)
            self._progress(self._sent)

    async def _read_ahead(self) -> None:
        try:
            self._ahead = await self._alone(self._read, min(BLOCK, self._size - self._read_to))
        except Exception:
            if not self._stopped:
                self._stopped = True
                self._done.errback(Failure())
            return
        self._go_on()
