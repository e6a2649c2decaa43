"""How many connections an upload is worth: found out while it goes, from bytes and time alone."""

from __future__ import annotations

__all__ = ["LEAST", "LONG", "MOST", "Lanes", "part_length"]

MIB = 1024 * 1024

LONG = 0.02
"""Seconds of round trip below which no connection is held up by the length of the way."""

MOST = 4
"""Connections at once for one upload."""

FAST = 100 * MIB
"""Bytes per second of one connection that nothing seems to limit."""

BETTER = 1.25
"""More connections stay if they bring so many times the bytes."""

LEAST = 4 * MIB
"""Bytes of a part at least."""

TRIAL = 16 * MIB
"""Bytes of a part at most, at first, as long as it is not known how many connections there should
be. While one arrives in less than `TELLING` seconds and `ROUNDS` round trips, which tells more of
its beginning and its end than of what is between, the next one has `LARGER` times as many.
"""

TELLING = 2.0
ROUNDS = 10
LARGER = 4


class Lanes:
    """Begins with one connection and doubles them as long as that brings more.

    `arrived` is told of all bytes that have arrived, by parts or pieces of them. What was merely
    handed to the network says little: at a part's beginning buffers on the way swallow seconds of
    it, and at its end they empty while nothing follows.
    """

    def __init__(self, round_trip: float) -> None:
        self.wanted = 1
        self.settled = round_trip < LONG
        self.round_trip = round_trip
        self.trial = TRIAL
        self._before = 0
        self._best = 0.0
        self._since = float("-inf")
        self._rates: list[float] = []

    def again(self) -> None:
        """The connections have broken, and there will be new ones; what was found out counts."""
        self.settled |= self.wanted > 1
        self._rates.clear()

    def arrived(self, began: float, now: float, length: int) -> int:
        """``length`` bytes have, from ``began`` to ``now``: how many connections there should be.

        What is left of a part that was begun before says little.
        """
        if self.settled or length < LEAST or began < self._since:
            return self.wanted
        if self.round_trip < LONG:
            return self._settle(1)
        telling = max(TELLING, ROUNDS * self.round_trip)
        if self.wanted == 1 and now - began < telling and length >= self.trial:
            self.trial *= LARGER
            return self.wanted
        self._rates.append(length / max(now - began, 0.001))
        if len(self._rates) == self.wanted:
            self._measured(sum(self._rates), now)
        return self.wanted

    def _measured(self, rate: float, now: float) -> None:
        self._since = now
        self._rates.clear()
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

    Small while it is being tried how many lanes there should be. Then large at first and smaller
    towards the end, so that all lanes end at about the same time; the whole rest once one lane is
    all.
    """
    if lanes.settled and lanes.wanted == 1:
        return rest
    if lanes.settled:
        least = max(LEAST, size // 128)
        length = max(least, rest // (2 * lanes.wanted))
    else:
        least = LEAST
        length = max(least, min(rest // (2 * MOST), lanes.trial))
    return rest if rest - length < least else length
