"""The longest turn of the reactor: measured between its waits, and told once."""

from __future__ import annotations

import select
from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from backupd.turns import TimedPoller, Turns


class FakePoller:
    """Waits for as long as it is asked, on a clock."""

    register = modify = unregister = close = fileno = None

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        self._clock.advance(timeout)
        return [(3, most)]


class TurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.turns = Turns()
        self.poller = TimedPoller(FakePoller(self.clock), self.turns.took, self.clock.seconds)

    def turn(self, seconds: float) -> None:
        """The reactor works for so long, and waits again."""
        self.clock.advance(seconds)
        assert self.poller.poll(7.0, 1) == [(3, 1)]

    def test_longest(self) -> None:
        """The longest of several turns counts, waiting does not, nor what was before the first."""
        self.turn(100.0)
        for seconds in (0.25, 0.5, 0.125):
            self.turn(seconds)
        assert self.turns.longest() == 0.5

    def test_told_once(self) -> None:
        """Asking begins anew."""
        self.turn(0.0)
        self.turn(0.5)
        assert self.turns.longest() == 0.5
        assert self.turns.longest() == 0.0
        self.turn(0.25)
        assert self.turns.longest() == 0.25

    def test_real_reactor(self) -> None:
        """A reactor that waits by epoll works on, and its turns are measured."""
        reactor: Any = EPollReactor()
        turns = Turns()
        turns.watch(reactor)
        reactor.callLater(0, select.select, [], [], [], 0.05)
        reactor.doIteration(0)
        reactor.runUntilCurrent()
        reactor.doIteration(0)
        for waker in reactor.removeAll():
            waker.connectionLost(None)
        reactor._poller.close()
        assert 0.05 <= turns.longest() < 5

    def test_other_reactors(self) -> None:
        """What does not wait by epoll is left alone."""
        before = vars(self.clock).copy()
        Turns().watch(self.clock)
        assert vars(self.clock) == before
