"""A stretch of a file as the body of a request, read off the reactor thread."""

from __future__ import annotations

import os
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from backupd.bandwidth import Pace
from backupd.interfaces import IFileSystem, OffThread
from backupd.peer.open_file import FileDigest, FileState, OpenFile
from backupd.waiting import go_on

__all__ = ["BLOCK", "SLICE", "FileBody"]

BLOCK = 2 * 1024 * 1024
"""Bytes that are read at a time; one block is read ahead."""

SLICE = 128 * 1024
"""Bytes that go to the transport at a time at first: what it takes shows that the connection
lives. A network that takes them at once gets more at a time, up to a whole block."""

QUICK, SLOW = 0.1, 5.0
"""Seconds for a slice, below and above which the next is larger or smaller."""


@implementer(IBodyProducer)
class FileBody:
    """The bytes of a file from an offset to an end.

    `open` it first, `close` it in the end, whatever happened between. ``progress`` is called
    with the place in the file up to which bytes have been handed to the transport; ``digest``
    gets what is read, ``pace`` is how fast it goes.
    """

    length: int

    def __init__(
        self,
        file: FileState,
        *,
        off: OffThread,
        clock: IReactorTime,
        digest: FileDigest | None = None,
        progress: Callable[[int], None] = lambda sent: None,
        fs: IFileSystem = os,
        pace: Pace | None = None,
    ) -> None:
        self.length = file.size
        self._pace = pace
        self._turn = 0
        self._file = OpenFile(file, off, fs)
        self._clock = clock
        self._digest = digest
        self._progress = progress
        self._sent = self._read_to = 0
        self._end = file.size
        self._block = b""
        self._at = 0
        self._ahead: bytes | None = None
        self._slice = SLICE
        self._written_at = 0.0
        self._paused = False
        self._stopped = False
        self._going = self._waiting = False
        self._consumer: IConsumer | None = None
        self._done: Deferred[None] = Deferred()

    # -- before and after -------------------------------------------------------------------------

    async def open(self, start: int = 0, end: int | None = None) -> None:
        """Open the file for its bytes from ``start`` to ``end``, or to its own end.

        Raises `FileGone`, `FileChanged` when it is not the file that was recorded, and `OSError`.
        """
        self._end = self._file.file.size if end is None else end
        self._sent = self._read_to = start
        self.length = self._end - start
        self._progress(start)
        await self._file.open()

    async def close(self) -> None:
        """Let go of the file once nothing reads it any more. Again is harmless."""
        self._stopped = True
        await self._file.close()

    def _read(self, offset: int, length: int) -> bytes:
        """In a thread."""
        block = self._file.read(offset, length)
        if self._digest is not None:
            self._digest.pass_by(offset, block)
        return block

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
        if self._paused:
            took = self._clock.seconds() - self._written_at
            if took < QUICK:
                self._slice = min(2 * self._slice, BLOCK)
            elif took > SLOW:
                self._slice = SLICE
        self._paused = False
        self._go_on()

    def stopProducing(self) -> None:  # noqa: N802
        """End at once; `close` still has to be called."""
        self._stopped = True
        self._block, self._ahead = b"", None

    def _go_on(self) -> None:
        """Write while the consumer takes it, and keep one block read ahead."""
        if self._going or self._consumer is None:
            return
        self._going = True
        try:
            while not (self._stopped or self._done.called):
                if self._at == len(self._block) and self._ahead is not None:
                    self._block, self._at, self._ahead = self._ahead, 0, None
                if self._ahead is None and not self._file.busy and self._read_to < self._end:
                    go_on(self._read_ahead())
                if self._sent == self._end:
                    self._done.callback(None)
                elif self._paused or (self._at == len(self._block) and self._ahead is None):
                    return
                elif self._pace is not None and not self._turn:
                    if not self._waiting:
                        self._waiting = True
                        go_on(self._wait_for_turn(self._pace))
                    if self._waiting:
                        return
                else:
                    self._write(self._consumer)
        finally:
            self._going = False

    def _write(self, consumer: IConsumer) -> None:
        # Of bytes this is the same object when it is all of them, and no copy.
        most = self._slice if self._pace is None else min(self._slice, self._turn)
        piece = self._block[self._at : self._at + most]
        if self._pace is not None:
            self._turn -= len(piece)
        self._at += len(piece)
        self._sent += len(piece)
        if piece:
            self._written_at = self._clock.seconds()
            consumer.write(piece)
            self._progress(self._sent)

    async def _wait_for_turn(self, pace: Pace) -> None:
        self._turn = await pace.turn(self._slice)
        self._waiting = False
        if self._stopped:
            pace.give_back(self._turn)
        self._go_on()

    async def _read_ahead(self) -> None:
        offset = self._read_to
        try:
            block = await self._file.alone(self._read, offset, min(BLOCK, self._end - offset))
        except Exception:
            if not self._stopped:
                self._stopped = True
                self._done.errback(Failure())
            return
        self._read_to += len(block)
        self._ahead = block
        self._go_on()
