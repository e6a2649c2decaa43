"""Threads for what blocks: started with the service, never before it daemonises."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from backupd.errors import ShuttingDown

__all__ = ["Threads"]

T = TypeVar("T")
P = ParamSpec("P")


class Threads:
    """At most ``size`` threads that run what is called on this (`interfaces.OffThread`).

    Once stopped it runs nothing more: a call fails with `ShuttingDown`.

    Results wait in one row, and the reactor is woken for the first of them only: a wake-up is two
    system calls and a turn. Twisted's pool wakes it for each, and hands each call over with a
    handful of locks; every block of an upload and every step of the ledger pays for that.
    """

    def __init__(self, reactor: Any, size: int, name: str) -> None:
        self._reactor = reactor
        self._size = size
        self._name = name
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Deferred[Any]] | None] = SimpleQueue()
        self._results: deque[tuple[Deferred[Any], Any]] = deque()
        self._woken = False
        self._under_way = 0
        self._threads: list[threading.Thread] = []
        self._running = self._stopped = False

    def __call__(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        if self._stopped:
            # Nobody would run it, and whoever waits would do so for ever.
            return fail(ShuttingDown("This server is stopping; go on when it is back.", 5.0))
        # Cancelling it gives up the result: a late one is not an error.
        done: Deferred[T] = Deferred()
        self._under_way += 1
        self._jobs.put((lambda: f(*args, **kwargs), done))
        self._grow()
        return done

    def start(self) -> None:
        """Make the threads that are needed, as they are needed."""
        if not self._stopped:
            self._running = True
            self._grow()

    def stop(self) -> None:
        """Wait for what runs, and end the threads."""
        if self._stopped or not self._running:
            return
        self._stopped = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _grow(self) -> None:
        while self._running and len(self._threads) < min(self._under_way, self._size):
            number = len(self._threads) + 1
            thread = threading.Thread(target=self._work, name=f"{self._name}-{number}")
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        """In a thread: one job after the other."""
        while (job := self._jobs.get()) is not None:
            run, done = job
            try:
                result = run()
            except BaseException:
                result = Failure()
            self._results.append((done, result))
            # The result is in the row first: a turn that is still to come will find it.
            if not self._woken:
                self._woken = True
                self._reactor.callFromThread(self._deliver)
            # Nothing of this job, which may hold megabytes, is kept until the next one comes.
            del job, run, done, result

    def _deliver(self) -> None:
        """On the reactor thread: give out what there is."""
        self._woken = False
        for _ in range(len(self._results)):
            done, result = self._results.popleft()
            self._under_way -= 1
            done.callback(result)
