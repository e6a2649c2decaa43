"""Threads: in order, each result to its caller on the reactor thread, woken once for many."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from backupd.errors import ShuttingDown
from backupd.threads import Threads

WAIT = 10.0


class Reactor:
    """Calls what threads hand over when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.woken = threading.Semaphore(0)

    def callFromThread(self, f: Callable[[], None]) -> None:
        self.calls.append(f)
        self.woken.release()

    def turn(self) -> None:
        """Wait until a thread has called, and do what it wants."""
        assert self.woken.acquire(timeout=WAIT)
        self.calls.pop(0)()


class ThreadsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.before = threading.active_count()

    def threads(self, size: int) -> Threads:
        threads = Threads(self.reactor, size, "test")
        self.addCleanup(threads.stop)
        return threads

    def test_result(self) -> None:
        """What the function returns goes to the caller, in a turn of the reactor."""
        threads = self.threads(1)
        threads.start()
        done = threads("{} {b}".format, 1, b=2)
        assert not done.called
        self.reactor.turn()
        assert self.successResultOf(done) == "1 2"

    def test_error(self) -> None:
        """What it raises does too, and the thread works on."""
        threads = self.threads(1)
        threads.start()
        failed, done = threads(lambda: 1 // 0), threads(lambda: 1)
        while not done.called:
            self.reactor.turn()
        self.failureResultOf(failed, ZeroDivisionError)
        assert self.successResultOf(done) == 1

    def test_woken_once(self) -> None:
        """However many results wait, the reactor is woken for the first of them only."""
        threads = self.threads(1)
        threads.start()
        calls = [threads(lambda: 1) for _ in range(5)]
        threads.stop()
        assert len(self.reactor.calls) == 1
        self.reactor.turn()
        assert [self.successResultOf(done) for done in calls] == [1] * 5

    def test_cancelled(self) -> None:
        """A late result of a call that was given up is no error."""
        threads = self.threads(1)
        threads.start()
        done = threads(lambda: 1)
        done.addErrback(lambda _: None)
        done.cancel()
        self.reactor.turn()
        assert self.flushLoggedErrors() == []

    def test_size(self) -> None:
        """So many run side by side and no more; the others wait."""
        threads = self.threads(2)
        both, more = threading.Barrier(3), threading.Event()

        def meet(_: Any = None) -> None:
            both.wait(WAIT)
            more.wait(WAIT)

        threads.start()
        waiting = [threads(meet), threads(meet)]
        third = threads(lambda: None)
        both.wait(WAIT)
        assert threading.active_count() == self.before + 2
        more.set()
        while not (third.called and all(done.called for done in waiting)):
            self.reactor.turn()

    def test_not_before_the_start(self) -> None:
        """No thread is made before the start; what was called by then runs after it."""
        threads = self.threads(1)
        done = threads(lambda: 1)
        assert threading.active_count() == self.before
        threads.start()
        self.reactor.turn()
        assert self.successResultOf(done) == 1

    def test_stop(self) -> None:
        """Stopping runs what was called before, ends the threads, and takes nothing more."""
        threads = self.threads(3)
        threads.start()
        done = [threads(lambda: 1) for _ in range(9)]
        threads.stop()
        assert threading.active_count() == self.before
        while self.reactor.calls:
            self.reactor.turn()
        assert all(one.called for one in done)
        with pytest.raises(ShuttingDown):
            self.failureResultOf(threads(lambda: 1)).raiseException()
