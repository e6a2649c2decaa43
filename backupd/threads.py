"""Threads for what blocks: started with the service, never before it daemonises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from backupd.errors import ShuttingDown

__all__ = ["Threads"]

T = TypeVar("T")
P = ParamSpec("P")


class Threads:
    """At most ``size`` threads that run what is called on this (`interfaces.OffThread`).

    Once stopped it runs nothing more: a call fails with `ShuttingDown`.
    """

    def __init__(self, reactor: Any, size: int, name: str) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, size, name)

    def __call__(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        if self._pool.joined:
            # The pool itself would drop it, and whoever waits would do so for ever.
            return fail(ShuttingDown("This server is stopping; go on when it is back.", 5.0))
        done: Deferred[T] = deferToThreadPool(self._reactor, self._pool, f, *args, **kwargs)
        return done

    def start(self) -> None:
        """Make the threads that are needed, as they are needed."""
        if not self._pool.started:
            self._pool.start()

    def stop(self) -> None:
        """Wait for what runs, and end the threads."""
        if self._pool.started and not self._pool.joined:
            self._pool.stop()
