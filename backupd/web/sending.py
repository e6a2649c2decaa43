"""Parts of a kept file on their way to a client, as fast as it takes them and no faster."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from zope.interface import implementer

from backupd.bandwidth import Pace
from backupd.errors import BackupdError, StorageFailed, UploadCut
from backupd.interfaces import IStored, IWindowed, OffThread, Window
from backupd.web.patience import TakeRate
from backupd.web.sendfile import send_window, takes_windows
from backupd.web.site import StreamingRequest

__all__ = ["READ", "Part", "Sender", "Valve"]

READ = 256 * 1024
"""Bytes that are read at once for a connection that takes no windows."""

ROOM = 2 * 1024 * 1024
SMALLEST_ROOM = 256 * 1024
"""Bytes of a file that is not in the page cache that are read at once: so many when few answers
are under way, so few when there are many."""

SHARED = 4 * 1024 * 1024
"""Bytes that all answers read at once, until each is down to the smallest room."""

CACHED = 16 * 1024 * 1024
"""Bytes of a file that is in the page cache that are looked for at once; they need no room."""

PIECE = 2 * 1024 * 1024
"""Bytes that are sent before a limit that was set meanwhile is looked at."""

AHEAD = 2
"""Windows that are made ready while one is sent."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of the file, with what goes before them on the wire."""

    before: bytes
    start: int
    stop: int


@implementer(IPushProducer)
class Valve:
    """Opens and closes with the network: `open` fires when there is room to write.

    The connection of a client that takes too little for as long as the site's timeout is cut: the
    channel's own timeout stands still while there is an answer to write. ``pace`` is how fast it
    may take.
    """

    def __init__(self, request: StreamingRequest, pace: Pace | None = None) -> None:
        self._pace = pace
        self._request = request
        site = request.channel.site
        self._clock: IReactorTime = site.reactor
        self._waiting: Deferred[None] | None = None
        self._sending: Deferred[int] | None = None
        self._paused = False
        self._stopped = False
        request.notifyFinish().addErrback(lambda _: self.stopProducing())

    def pauseProducing(self) -> None:  # noqa: N802
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802
        self._paused = False
        self._release()

    def stopProducing(self) -> None:  # noqa: N802
        self._stopped = True
        self._release()
        if self._sending is not None:
            self._sending.cancel()

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def _give_up(self) -> None:
        self._request.abort()
        self.stopProducing()

    def check(self) -> None:
        """Raises `UploadCut` when the client is gone."""
        if self._stopped:
            raise UploadCut("The client left before it had everything.")

    async def open(self) -> None:
        """Raises `UploadCut` when the client is gone, or takes nothing any more."""
        if self._paused and not self._stopped:
            self._waiting = Deferred()
            rate = self._watch()
            await self._waiting
            rate.end()
        self.check()

    async def send(self, window: Window, offset: int) -> int:
        """Send a window past the transport's buffer; how much of it could be sent.

        Raises `UploadCut` as `open` does.
        """
        if self._pace is None:
            return await self._send(window, offset)
        sent = 0
        while sent < window.length:
            count = await self.turn(min(PIECE, window.length - sent))
            data = None if window.data is None else window.data[sent : sent + count]
            moved = await self._send(Window(count, window.descriptor, data), offset + sent)
            sent += moved
            if moved < count:
                self._pace.give_back(count - moved)
                break
        return sent

    async def turn(self, most: int) -> int:
        """Wait until some bytes may go; how many, ``most`` at most."""
        return most if self._pace is None else await self._pace.turn(most)

    async def _send(self, window: Window, offset: int) -> int:
        self.check()
        rate = self._watch()
        transport = self._request.channel.transport
        self._sending = send_window(transport, window, offset, rate.passed)
        try:
            return await self._sending
        except CancelledError:
            self.check()
            raise
        finally:
            self._sending = None
            rate.end()

    def _watch(self) -> TakeRate:
        channel = self._request.channel
        over, least = channel.site.to_take
        return TakeRate(
            channel.transport, self._clock, over=over, least=least, too_slow=self._give_up
        )


class Sender:
    """Sends parts of files; many answers at once share the memory for their windows."""

    def __init__(self, off: OffThread) -> None:
        self._off = off
        self._under_way = 0

    async def send(
        self, request: StreamingRequest, stored: IStored, parts: Sequence[Part], valve: Valve
    ) -> None:
        """Write the parts, reading ahead. Raises `StorageFailed`, `UploadCut`."""
        self._under_way += 1
        try:
            if IWindowed.providedBy(stored) and takes_windows(request.channel.transport):
                await self._by_windows(request, stored, parts, valve)
            else:
                await self._by_blocks(request, stored, parts, valve)
        finally:
            self._under_way -= 1

    # -- on plain TCP -----------------------------------------------------------------------------

    async def _by_windows(
        self, request: StreamingRequest, stored: IWindowed, parts: Sequence[Part], valve: Valve
    ) -> None:
        """Each window is made ready in a thread while those before it are sent."""
        look = self._room()
        ahead: deque[tuple[Part, Deferred[Window]]] = deque()
        left = deque(parts)

        def go_ahead() -> None:
            while left and len(ahead) < AHEAD:
                part = left.popleft()
                # They end at boundaries of the file, so that no page is read twice.
                stop = (part.start + look) // SMALLEST_ROOM * SMALLEST_ROOM
                if stop < part.stop:
                    left.appendleft(Part(b"", stop, part.stop))
                    part = Part(part.before, part.start, stop)
                ahead.append((part, self._window(stored, part.start, part.stop)))

        try:
            go_ahead()
            while ahead:
                part, reading = ahead.popleft()
                window = await reading
                # Where the one is in the page cache, more may be.
                look = CACHED if window.data is None else self._room()
                go_ahead()
                at = part.start
                before = part.before
                while True:
                    try:
                        valve.check()
                        if not window.length:
                            raise _ended(at)
                        request.write(before)  # and before the first of them, the head
                        sent = await valve.send(window, at)
                    finally:
                        window.release()
                    at += sent
                    if at == part.stop:
                        break
                    if sent < window.length:
                        # What sendfile did not get: reading gets it, or tells why not.
                        data = await self._block(stored, at, part.stop)
                        window = Window(len(data), -1, memoryview(data))
                    else:
                        window = await self._window(stored, at, part.stop)
                    before = b""
        finally:
            for _, reading in ahead:
                # It still uses the file, in its thread; why it fails does not matter any more.
                with suppress(BackupdError):
                    (await reading).release()

    def _room(self) -> int:
        return min(ROOM, max(SHARED // self._under_way, SMALLEST_ROOM))

    def _window(self, stored: IWindowed, at: int, stop: int) -> Deferred[Window]:
        return self._off(stored.window, at, stop - at, self._room())

    # -- on anything else -------------------------------------------------------------------------

    async def _by_blocks(
        self, request: StreamingRequest, stored: IStored, parts: Sequence[Part], valve: Valve
    ) -> None:
        """Through the transport's buffer; one block waits there while the next one is read."""
        request.registerProducer(valve, True)
        try:
            for part in parts:
                if part.before:
                    request.write(part.before)
                at = part.start
                while at < part.stop:
                    await valve.open()
                    most = await valve.turn(min(READ, part.stop - at))
                    data = await self._block(stored, at, at + most)
                    await valve.open()
                    request.write(data)
                    at += len(data)
        finally:
            if not request._disconnected:
                request.unregisterProducer()

    async def _block(self, stored: IStored, at: int, stop: int) -> bytes:
        data = await self._off(stored.read, at, min(READ, stop - at))
        if not data:
            raise _ended(at)
        return data


def _ended(at: int) -> StorageFailed:
    return StorageFailed(
        f"The file ended at byte {at}; a verification of the backup will tell why."
    )
