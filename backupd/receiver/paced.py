"""A source that is read no faster than its peer may send: the network waits meanwhile."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from backupd.bandwidth import Pace
from backupd.interfaces import Source, StraightSource
from backupd.waiting import go_on

__all__ = ["paced"]


class _Paced:
    """Each piece is paid for before the next one is read."""

    def __init__(self, source: Source, pace: Pace) -> None:
        self._source = source
        self._pace = pace
        self._owed = 0

    def read(self) -> Deferred[bytes]:
        if not self._pace.limits:
            self._owed = 0
            return self._source.read()
        return go_on(self._read())

    async def _read(self) -> bytes:
        while self._owed:
            self._owed -= await self._pace.turn(self._owed)
        piece = await self._source.read()
        self._owed = len(piece)
        return piece

    def abort(self) -> None:
        self._source.abort()

    def silent_for(self) -> float:
        return self._source.silent_for()


class _PacedStraight(_Paced):
    """Of a buffer only so much is filled as may come now."""

    def __init__(self, source: StraightSource, pace: Pace) -> None:
        super().__init__(source, pace)
        self._straight = source

    def read_into(self, buffer: memoryview) -> Deferred[int]:
        if not self._pace.limits:
            return self._straight.read_into(buffer)
        return go_on(self._read_into(buffer))

    async def _read_into(self, buffer: memoryview) -> int:
        most = await self._pace.turn(len(buffer))
        count = 0
        try:
            count = await self._straight.read_into(buffer[:most])
        finally:
            if count < most:
                self._pace.give_back(most - count)
        return count

    def filling(self) -> int:
        return self._straight.filling()


def paced(source: Source, pace: Pace | None) -> Source:
    """``source`` at this pace; as it is when there is none."""
    if pace is None:
        return source
    if isinstance(source, StraightSource):
        return _PacedStraight(source, pace)
    return _Paced(source, pace)
