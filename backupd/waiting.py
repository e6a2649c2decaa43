"""Small tools for things that happen later."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from backupd.errors import BackupdError

__all__ = ["KeyedLocks", "Round", "go_on", "shielded"]

T = TypeVar("T")
_log = Logger()


def go_on(work: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
    """Start ``work``; the Deferred fires with its outcome."""
    return Deferred.fromCoroutine(work)


def shielded(work: Coroutine[Deferred[Any], Any, T]) -> Deferred[T]:
    """Start ``work`` so that it goes on to its end even if nobody waits for it any more.

    Cancelling the result only stops waiting: Klein does that when a client leaves. A defect is
    logged even then; what is foreseen (`BackupdError`) concerned only the one who waited.
    """
    result: Deferred[T] = Deferred(lambda _: None)

    def success(value: T) -> None:
        if not result.called:
            result.callback(value)

    def failure(reason: Failure) -> None:
        if not result.called:
            result.errback(reason)
        elif reason.check(BackupdError, CancelledError) is None:
            _log.failure("work that nobody waited for failed by a defect", reason)

    go_on(work).addCallbacks(success, failure)
    return result


class KeyedLocks:
    """One lock per key, for as long as somebody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[DeferredLock, int]] = {}
        self._idle: list[Deferred[None]] = []

    def __contains__(self, key: str) -> bool:
        """Whether somebody holds or awaits the lock of ``key``."""
        return key in self._locks

    def __len__(self) -> int:
        """How many keys are held."""
        return len(self._locks)

    def when_idle(self) -> Deferred[None]:
        """Fires once nobody holds or awaits any lock."""
        idle: Deferred[None] = Deferred()
        if self._locks:
            self._idle.append(idle)
        else:
            idle.callback(None)
        return idle

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Hold the lock of ``key``; waiters come in order."""
        lock, users = self._locks.get(key, (DeferredLock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            await lock.acquire()
            try:
                yield
            finally:
                lock.release()
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)
            if not self._locks:
                waiting, self._idle = self._idle, []
                for idle in waiting:
                    idle.callback(None)


class Round:
    """A job of a loop: it never overlaps itself and never fails, and waits for no other job.

    Asked for while it is under way, it is done once more afterwards.
    """

    def __init__(self, job: Callable[[], Coroutine[Any, Any, None]], clock: IReactorTime) -> None:
        self._job = job
        self._clock = clock
        self._going = self._again = self._stopped = False
        self._next: IDelayedCall | None = None
        self._waiting: list[Deferred[None]] = []

    def run(self) -> None:
        """Do it, now or once it has ended; never raises."""
        if self._stopped or self._next is not None:
            return
        if self._going:
            self._again = True
            return
        self._going = True
        go_on(self._careful()).addBoth(self._done)

    async def _careful(self) -> None:
        try:
            await self._job()
        except BackupdError as error:
            _log.error("the loop goes on after: {why}", why=str(error))

    def _done(self, result: object) -> None:
        if isinstance(result, Failure):
            _log.failure("the loop goes on after a defect", result)
        self._going = False
        again, self._again = self._again, False
        if again and not self._stopped:
            self._next = self._clock.callLater(0, self._once_more)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.callback(None)

    def _once_more(self) -> None:
        self._next = None
        self.run()

    def stop(self) -> Deferred[None]:
        """Do it no more; fires once it has ended."""
        self._stopped = True
        if self._next is not None:
            self._next.cancel()
            self._next = None
        waiter: Deferred[None] = Deferred()
        if self._going:
            self._waiting.append(waiter)
        else:
            waiter.callback(None)
        return waiter
