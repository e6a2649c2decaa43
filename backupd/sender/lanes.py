"""How many connections an upload is worth: found out while it goes, from bytes and time alone."""

from __future__ import annotations

__all__ = ["LONG", "MOST", "Lanes", "part_length"]

MIB = 1024 * 1024

LONG = 0.02
"""Seconds of round trip below which no connection is held up by the length of the way."""

MOST = 4
"""Connections at once for one upload."""

FAST = 100 * MIB
"""Bytes per second of one connection that nothing seems to limit."""

WARM = 1.0
WARM_ROUNDS = 10
"""Seconds, and round trips, until a new connection is at its speed and the buffers are full."""

WINDOW = 2.0
"""Seconds for which a number of connections is measured."""

BETTER = 1.25
"""More connections stay if they bring so many times the bytes."""

LEAST = 4 * MIB
"""Bytes of a part at least."""


class Lanes:
    """Begins with ``wanted`` connections and doubles them as long as that brings more.

    `look` is told again and again how much has been sent in all.
    """

    def __init__(self, round_trip: float, wanted: int = 1) -> None:
        self.wanted = wanted
        self.settled = wanted > 1
        self.round_trip = round_trip
        self._before = 0
        self._best = 0.0
        self._since: float | None = None
        self._mark: tuple[float, int] | None = None

    def look(self, now: float, sent: int) -> int:
        """The connections that there should be from ``now`` on."""
        if self.settled:
            return self.wanted
        if self.round_trip < LONG:
            return self._settle(1)
        if self._since is None:
            self._since = now
        if now - self._since < max(WARM, WARM_ROUNDS * self.round_trip):
            return self.wanted
        if self._mark is None:
            self._mark = now, sent
        then, had = self._mark
        if now - then >= WINDOW:
            self._measured((sent - had) / (now - then))
        return self.wanted

    def _measured(self, rate: float) -> None:
        self._since = self._mark = None
        if self.wanted == 1 and rate > FAST:
            self._settle(1)
        elif self.wanted > 1 and rate < BETTER * self._best:
            self._settle(self._before)
        elif self.wanted == MOST:
            self._settle(MOST)
        else:
            self._best, self._before = rate, self.wanted
            self.wanted = min(2 * self.wanted, MOST)

    def _settle(self, wanted: int) -> int:
        self.wanted, self.settled = wanted, True
        return wanted


def part_length(size: int, rest: int, lanes: Lanes) -> int:
    """Bytes of the next part, when ``rest`` of the file's ``size`` are in none yet.

    Large at first and smaller towards the end, so that all lanes end at about the same time; the
    whole rest once one lane is all. A file makes 36 parts at most.
    """
    if lanes.settled and lanes.wanted == 1:
        return rest
    least = max(LEAST, size // 256)
    length = max(least, rest // (2 * (lanes.wanted if lanes.settled else MOST)))
    return rest if rest - length < least else length
