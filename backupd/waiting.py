"""Small tools for things that happen later."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger
from twisted.python.failure import Failure

from backupd.errors import BackupdError

__all__ = ["KeyedLocks", "go_on", "shielded"]

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
