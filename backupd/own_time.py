"""The daemon's own time: the wall clock, without its jumps.

A reactor's time is the wall clock, and all timers stand on it: set back by five hours, a loop of
five seconds would stand still for five hours, and set forth every lease would run out at once. So
the reactor is given this time. Only what is agreed with others (signatures), what people plan by
(times of day) and what they read in the audit log asks the wall clock itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["OwnTime", "SaysTime", "WallClock"]

SLEW = 0.05
"""By this part faster or slower than time goes, it follows a wall clock that has jumped."""

LOOK_EVERY = 1.0
"""Seconds between two looks at the wall clock."""


class SaysTime(Protocol):
    """A reactor, or any other clock."""

    def seconds(self) -> float: ...


class WallClock:
    """The wall clock, for whoever takes a clock."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self.seconds = seconds


class OwnTime:
    """Begins as the wall clock, goes on as ``steady`` does, and never goes back.

    A wall clock that departs from it is followed slowly, an hour within a day. Calling it tells
    what time it is.
    """

    def __init__(self, wall: Callable[[], float], steady: Callable[[], float]) -> None:
        self._wall = wall
        self._steady = steady
        self._now = wall()
        self._at = steady()
        self._apart = 0.0

    def __call__(self) -> float:
        elapsed = max(0.0, self._steady() - self._at)
        most = SLEW * elapsed
        now = self._now + elapsed + max(-most, min(self._apart, most))
        if elapsed >= LOOK_EVERY:
            self._now, self._at = now, self._at + elapsed
            self._apart = self._wall() - now
        return now

    def begin(self, latest: float | None) -> None:
        """It has been ``latest`` before: a clock that went back during a stop is not believed."""
        now = self()
        if latest is not None and latest > now:
            self._now, self._at = latest, self._steady()
            self._apart = self._wall() - latest
