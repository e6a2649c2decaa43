"""How long the reactor's turns take: a newcomer may have to wait for one, whatever it asks."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

__all__ = ["Turns"]


class Turns:
    """The longest turn: from the moment the reactor wakes to the moment it waits again.

    For the waits of the interpreter's lock within a turn, that is the whole truth; those before
    it, when the kernel has woken the thread and the lock is taken, are not in it.
    """

    def __init__(self) -> None:
        self._longest = 0.0

    def watch(self, reactor: Any) -> None:
        """Measure this reactor from now on, if it waits by epoll; others are left alone."""
        poller = getattr(reactor, "_poller", None)
        if isinstance(poller, select.epoll):
            reactor._poller = TimedPoller(poller, self.took, reactor.seconds)

    def took(self, seconds: float) -> None:
        """One turn is over."""
        if seconds > self._longest:
            self._longest = seconds

    def longest(self) -> float:
        """Seconds of the longest since this was last asked."""
        longest, self._longest = self._longest, 0.0
        return longest


class TimedPoller:
    """Stands in for the reactor's `select.epoll`, and tells ``took`` of the time between waits."""

    def __init__(
        self, poller: Any, took: Callable[[float], None], seconds: Callable[[], float]
    ) -> None:
        self._poll = poller.poll
        self._took = took
        self._seconds = seconds
        self._woke: float | None = None
        self.register = poller.register
        self.modify = poller.modify
        self.unregister = poller.unregister
        self.close = poller.close
        self.fileno = poller.fileno

    def poll(self, *args: Any) -> Any:
        """Wait as the reactor asks."""
        if self._woke is not None:
            self._took(self._seconds() - self._woke)
        try:
            return self._poll(*args)
        finally:
            self._woke = self._seconds()
