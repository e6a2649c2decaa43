"""The receiver's own sense of time, for what is deleted because time has passed.

A clock can jump: a dead battery, a wrong time server, somebody with a stolen password. What was
locked or thrown away seconds ago must not be gone because it is suddenly years later.
"""

from __future__ import annotations

from collections.abc import Callable

from backupd.own_time import SaysTime

__all__ = ["SeenTime"]

CATCH_UP = 2.0
"""Seconds that may pass here in one second of a clock that cannot be set."""


class SeenTime:
    """Follows the clock, forward at most twice as fast as time goes.

    ``steady`` is a clock that nobody sets. After a stop, time goes on from where it was and
    catches up; so a server that was off for a week keeps everything for a week longer at most.
    """

    def __init__(self, clock: SaysTime, steady: Callable[[], float]) -> None:
        self._clock = clock
        self._steady = steady
        self._latest = float("-inf")
        self._at = steady()

    def begin(self, latest: float | None) -> None:
        """Go on from the latest time that was seen; None believes the clock."""
        self._latest = self._clock.seconds() if latest is None else latest
        self._at = self._steady()

    def latest(self) -> float:
        """The latest time that has been, to go on from after a restart."""
        steady = self._steady()
        elapsed, self._at = max(0.0, steady - self._at), steady
        ahead = min(self._clock.seconds(), self._latest + CATCH_UP * elapsed)
        self._latest = max(self._latest, ahead)
        return self._latest

    def now(self) -> float:
        """What time it is at least: what may be deleted after some time is judged by this."""
        return min(self._clock.seconds(), self.latest())

    def stamp(self) -> float:
        """What time it is at most: from when on something is kept is noted by this."""
        return max(self._clock.seconds(), self.latest())

    @property
    def behind(self) -> float:
        """Seconds by which the clock is ahead of what has been seen to pass."""
        return max(0.0, self._clock.seconds() - self.latest())
