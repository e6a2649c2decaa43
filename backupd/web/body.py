"""A request's body as a stream: pieces, or bytes straight into a buffer of the reader's.

A reader that is slow makes the network wait. Nothing here knows twisted.web: what it needs of the
connection is in `Connection`.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from backupd.errors import TooLarge, TooSlow, UploadCut

__all__ = ["HIGH_WATER", "LOW_WATER", "OVERHEAD", "PATIENCE", "WHOLE", "Body", "Connection"]

HIGH_WATER = 1024 * 1024
"""So many bytes may wait for a reader (and one piece more) before the network has to wait."""

LOW_WATER = HIGH_WATER // 2
"""When no more than this waits, the network goes on."""

OVERHEAD = 64
"""What a piece costs beside its bytes: a million pieces of one byte are not one megabyte."""

PATIENCE = 1.0
"""Seconds after which a buffer is handed back although the network has not filled it."""

WHOLE = 30.0
"""Seconds for the whole of a small body, however slowly it trickles in."""


class Connection(Protocol):
    """What a body needs of the connection that it comes from."""

    @property
    def held(self) -> bool:
        """Nothing is taken from the network at the moment."""

    def hold(self) -> None: ...
    def release(self) -> None: ...
    def abort(self) -> None: ...
    def send_continue(self) -> None: ...

    def read_straight(self, body: Body) -> None:
        """From now on `Body.space` may be filled without a detour, where that can be done."""


class Body:
    """The body of a request as it comes in; a `backupd.interfaces.Source`.

    It outlives its request: when the connection is lost, what had arrived can still be read.
    """

    length: int | None
    """Bytes, as the client announced them; None when it sends chunks."""

    ended: bool
    """The last byte has arrived from the network, though it may not have been read."""

    trailers: list[tuple[str, str]]
    """Name, in lower case, and value of what followed a body of chunks (RFC 9112, 7.1.2)."""

    def __init__(self, connection: Connection, length: int | None, clock: IReactorTime) -> None:
        self.length = length
        self.ended = length == 0
        self.trailers = []
        self.expects_continue = False
        self._connection: Connection | None = connection
        self._clock = clock
        self._since = self._clock.seconds()
        self._segment: list[bytes] = []
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._received = 0
        self._cut: str | None = None
        self._reader: Deferred[bytes] | None = None
        self._filler: Deferred[int] | None = None
        self._buffer = memoryview(b"")
        self._filled = 0
        self._asked = 0.0
        self._deadline = 0.0

    # -- for whoever reads ------------------------------------------------------------------------

    def read(self) -> Deferred[bytes]:
        """The next piece, ``b""`` at the end.

        Fails with `UploadCut` when the connection ended before the body, or the request has been
        answered; what arrived before a cut comes first. Cancelling loses no byte. One reader at a
        time: a second one is a `RuntimeError`.
        """
        self._check_no_reader()
        reader: Deferred[bytes] = Deferred(self._forget_reader)
        self._reader = reader
        self._ask_for_more()
        self.hand_over()
        return reader

    def read_into(self, buffer: memoryview) -> Deferred[int]:
        """Fill ``buffer``; fires with the number of bytes, 0 at the end, and fails as `read` does.

        Once it is full, or the body over or cut; or, after `PATIENCE`, when some bytes came. The
        buffer is the body's until then. From a plain TCP connection the bytes come straight from
        the kernel; when it is full, the network waits until somebody reads again.
        """
        self._check_no_reader()
        filler: Deferred[int] = Deferred(self._forget_filler)
        self._filler, self._buffer, self._filled = filler, buffer, 0
        self._asked = self._clock.seconds()
        self.hand_over()
        if not filler.called:
            if self._connection is not None:
                self._connection.read_straight(self)
            self._ask_for_more()
        return filler

    def filling(self) -> int:
        """How many bytes have come into the buffer of a `read_into` that waits."""
        return self._filled

    async def read_all(self, limit: int) -> bytes:
        """The whole of a small body.

        Raises `TooLarge` as soon as it is known to have more than ``limit`` bytes, before
        anything is read if it was announced; `TooSlow` after `WHOLE` seconds; `UploadCut` as
        `read` does.
        """
        if self.length is not None and self.length > limit:
            raise TooLarge(f"The body has {self.length} bytes; {limit} are allowed.", limit)
        pieces = []
        size = 0
        self._deadline = self._clock.seconds() + WHOLE
        while piece := await self._read_in_time():
            size += len(piece)
            if size > limit:
                raise TooLarge(f"The body has more than the {limit} bytes allowed.", limit)
            pieces.append(piece)
        return b"".join(pieces)

    async def _read_in_time(self) -> bytes:
        """The next piece of a small body, before its deadline. Raises `TooSlow`."""
        reading = self.read()
        if reading.called:
            return await reading
        # A piece may be heard after the deadline, but before the timer.
        left = max(0.0, self._deadline - self._clock.seconds())
        late = self._clock.callLater(left, reading.cancel)
        try:
            return await reading
        except CancelledError:
            if late.active():
                raise
            raise TooSlow(f"The body was not here within {WHOLE:.0f} s.") from None
        finally:
            if late.active():
                late.cancel()

    @property
    def received(self) -> int:
        """Bytes that have come in so far."""
        return self._received

    def abort(self) -> None:
        """Cut the body: the connection is closed, and a waiting `read` fails with `UploadCut`.

        Does nothing when the last byte has arrived: there is nothing left to cut.
        """
        if self._connection is not None and not self.ended:
            self._connection.abort()

    def silent_for(self) -> float:
        """Seconds since the last byte; 0 when none is owed, or it is we who do not read.

        Infinite once the body is cut: no byte will ever come.
        """
        if self.ended:
            return 0.0
        if self._cut is not None:
            return inf
        if self._connection is not None and self._connection.held:
            return 0.0
        return self._clock.seconds() - self._since

    # -- for the request --------------------------------------------------------------------------

    def space(self) -> memoryview | None:
        """Where the next bytes may be put, to be told by `filled`; None while nobody waits so."""
        return None if self._filler is None else self._buffer[self._filled :]

    def filled(self, count: int) -> None:
        """So many bytes were put into `space`."""
        self._filled += count
        self._received += count
        self._since = self._clock.seconds()
        self._conclude()
        if self._filler is None and self._cut is None and self._connection is not None:
            # What came now would have to be copied.
            self._connection.hold()

    def arrived(self, data: bytes) -> None:
        """Bytes came in; `hand_over` follows when the whole segment has been parsed."""
        if self._cut is None:
            self._segment.append(data)

    def end(self) -> None:
        """The last byte came in; `hand_over` follows."""
        self.ended = self._cut is None

    def hand_over(self) -> None:
        """Give a waiting reader what there is."""
        self._keep_segment()
        if self._filler is not None:
            self._fill()
            self._conclude()
        reader = self._reader
        if reader is not None and (outcome := self._next()) is not None:
            self._reader = None
            reader.callback(outcome)

    def hold_if_full(self) -> None:
        """Let the network wait while the reader has enough, or has not yet asked for anything."""
        enough = self._waiting >= HIGH_WATER or self.expects_continue
        if enough and not self.ended and self._connection is not None:
            self._connection.hold()

    def lost(self) -> None:
        """The connection is gone."""
        self._connection = None
        if not self.ended and self._cut is None:
            self._keep_segment()
            self._cut = f"The connection ended after {self._received} bytes of the body."
        self.hand_over()

    def discard(self) -> None:
        """The request has been answered; nobody wants the rest."""
        self._cut = "The request was answered before its body ended."
        self._segment.clear()
        self._pieces.clear()
        self._waiting = 0
        self.hand_over()

    # -- within -----------------------------------------------------------------------------------

    def _check_no_reader(self) -> None:
        if self._reader is not None or self._filler is not None:
            raise RuntimeError("The body is being read already.")

    def _ask_for_more(self) -> None:
        """Have the network go on, if it was held and there is need."""
        if self._connection is not None and not self.ended:
            if self.expects_continue:
                self.expects_continue = False
                self._connection.send_continue()
            if self._connection.held and self._waiting <= LOW_WATER:
                self._since = self._clock.seconds()
                self._connection.release()

    def _fill(self) -> None:
        """Copy what waits into the reader's buffer."""
        while self._pieces and (free := len(self._buffer) - self._filled):
            piece = self._pieces.popleft()
            self._waiting -= len(piece) + OVERHEAD
            part, rest = piece[:free], piece[free:]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            if rest:
                self._put_back(rest)

    def _conclude(self) -> None:
        """Hand the buffer back if it is full, or nothing follows, or it took long enough."""
        filler, count = self._filler, self._filled
        if filler is None:
            return
        over = (self.ended or self._cut is not None) and not self._pieces
        late = count and self._clock.seconds() - self._asked >= PATIENCE
        if not (count == len(self._buffer) or over or late):
            return
        self._filler, self._buffer, self._filled = None, memoryview(b""), 0
        if not count and self._cut is not None:
            filler.errback(UploadCut(self._cut))
        else:
            filler.callback(count)

    def _put_back(self, piece: bytes) -> None:
        self._pieces.appendleft(piece)
        self._waiting += len(piece) + OVERHEAD

    def _keep_segment(self) -> None:
        """Join what one segment brought: of a chunked body it may be many small chunks."""
        if self._segment:
            piece = self._segment[0] if len(self._segment) == 1 else b"".join(self._segment)
            self._segment.clear()
            self._pieces.append(piece)
            self._waiting += len(piece) + OVERHEAD
            self._received += len(piece)
            self._since = self._clock.seconds()

    def _next(self) -> bytes | Failure | None:
        """What a read gives now; None when it has to wait."""
        if self._pieces:
            piece = self._pieces.popleft()
            self._waiting -= len(piece) + OVERHEAD
            return piece
        if self.ended:
            return b""
        return None if self._cut is None else Failure(UploadCut(self._cut))

    def _forget_reader(self, _: object) -> None:
        self._reader = None

    def _forget_filler(self, _: object) -> None:
        if self._filled:
            self._put_back(bytes(self._buffer[: self._filled]))
        self._filler, self._buffer, self._filled = None, memoryview(b""), 0
