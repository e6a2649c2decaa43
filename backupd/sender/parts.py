"""One upload in parts, several at once: each lane sends one part after the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from backupd.errors import BackupdError, PeerRefused
from backupd.peer.open_file import FileDigest
from backupd.peer.tus import GONE, Tus
from backupd.sender.lanes import Lanes, part_length
from backupd.sender.places import Part, Places
from backupd.waiting import go_on

__all__ = ["InParts", "PartsGone"]

LINE = 6000
"""Characters that the names of all parts may have together: they go in one header line."""


class PartsGone(BackupdError):
    """The receiver does not know a part any more."""


class InParts:
    """Sends what is missing of ``places`` and of the file behind them.

    ``send`` sends a part from an offset on, and tells how far in the file it is and, by when it
    began, of the bytes that have arrived; ``record`` makes a new part durable here, ``progress``
    is told of the bytes that are sent in all.
    """

    def __init__(
        self,
        places: Places,
        *,
        tus: Tus,
        digest: FileDigest,
        lanes: Lanes,
        clock: IReactorTime,
        send: Callable[
            [Part, int, Callable[[int], None], Callable[[float, int], None]], Awaitable[None]
        ],
        record: Callable[[Places], Awaitable[None]],
        progress: Callable[[int], None],
    ) -> None:
        self.places = places
        self.lanes = lanes
        self._tus = tus
        self._digest = digest
        self._clock = clock
        self._send = send
        self._record = record
        self._progress = progress
        self._waiting = list(places.parts)
        self._whole: set[str] = set()
        self._reached: dict[str, int] = {}
        self._active = 0
        self._nothing_left = False
        self._running: list[Deferred[None]] = []
        self._following: Deferred[None] | None = None
        self._choosing = DeferredLock()
        self._over: Deferred[None] = Deferred()

    async def run(self) -> None:
        """Until every part is there, and in the digest. Raises what sending raises, `PartsGone`."""
        try:
            self._more()
            await self._over
            if self._following is not None:
                await self._following
            await self._digest.follow(self._digest.file.size)
        except BaseException:
            running = [*self._running, *filter(None, [self._following])]
            for work in running:
                work.cancel()
            for work in running:
                with suppress(Exception):
                    await work
            raise

    # -- lanes ------------------------------------------------------------------------------------

    def _more(self) -> None:
        """As many lanes as are wanted."""
        while self._active < self.lanes.wanted and not (self._over.called or self._nothing_left):
            self._active += 1
            lane = go_on(self._lane())
            if not lane.called:
                self._running.append(lane)
            lane.addBoth(self._ended, lane)

    def _ended(self, outcome: object, lane: Deferred[None]) -> None:
        self._active -= 1
        if lane in self._running:
            self._running.remove(lane)
        if self._over.called:
            return
        if isinstance(outcome, Failure):
            self._over.errback(outcome)
        elif not self._active:
            self._over.callback(None)

    async def _lane(self) -> None:
        while self._active <= self.lanes.wanted and not self._over.called:
            part, offset = await self._next()
            if part is None:
                self._nothing_left = True
                return
            await self._send(part, offset, partial(self._sent, part), self._arrived)
            self._sent(part, part.end)
            self._whole.add(part.url)
            self._follow()

    async def _next(self) -> tuple[Part | None, int]:
        """A part that is not whole yet, and its offset; None when there is nothing left."""
        if self._waiting:
            part = self._waiting.pop(0)
            return part, await self._standing(part)
        await self._choosing.acquire()
        try:
            size, start = self._digest.file.size, self.places.end
            if start == size:
                return None, 0
            return await self._made(start, self._length(size, start)), 0
        finally:
            self._choosing.release()

    async def _standing(self, part: Part) -> int:
        try:
            return await self._tus.standing(part.url)
        except PeerRefused as error:
            if error.status in GONE:
                raise PartsGone(str(error)) from error
            raise

    def _length(self, size: int, start: int) -> int:
        rest = size - start
        names = sum(len(part.url) for part in self.places.parts)
        if self.places.parts and names + 2 * len(self.places.parts[-1].url) > LINE:
            return rest
        return part_length(size, rest, self.lanes)

    async def _made(self, start: int, length: int) -> Part:
        begun = self._clock.seconds()
        url = await self._tus.create(self.places.link, length, {}, partial=True)
        took = self._clock.seconds() - begun
        self.lanes.round_trip = min(self.lanes.round_trip, took / 2)
        part = Part(start, length, url)
        self.places = self.places.also(part)
        await self._record(self.places)
        return part

    # -- what they tell ---------------------------------------------------------------------------

    def _sent(self, part: Part, to: int) -> None:
        """Of ``part``, everything before the place ``to`` of the file has been sent."""
        self._reached[part.url] = to - part.start
        self._progress(sum(self._reached.values()))

    def _arrived(self, began: float, length: int) -> None:
        """So many bytes of a part, since then."""
        self.lanes.arrived(began, self._clock.seconds(), length)
        self._more()

    def _follow(self) -> None:
        """Take into the digest what has been sent without a gap: it is in memory still."""
        following = self._following
        if following is not None and not (following.called and following.result is None):
            return
        if self._digest.at < self._front() and not self._over.called:
            self._following = go_on(self._follow_front())

    async def _follow_front(self) -> None:
        while self._digest.at < (front := self._front()):
            await self._digest.follow(front)

    def _front(self) -> int:
        front = 0
        for part in self.places.parts:
            if part.url not in self._whole:
                break
            front = part.end
        return front
