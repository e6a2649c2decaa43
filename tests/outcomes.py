"""What a Deferred has come to, without waiting."""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["pending", "result_of"]

T = TypeVar("T")


def pending(deferred: Deferred[T]) -> bool:
    """Whether there is no outcome yet."""
    return not deferred.called or bool(deferred.paused)


def result_of(deferred: Deferred[T]) -> T:
    """The result that is there by now; raises what the Deferred has failed with."""
    outcome: list[T | Failure] = []
    deferred.addBoth(outcome.append)
    assert outcome, "there is no outcome yet"
    if isinstance(outcome[0], Failure):
        outcome[0].raiseException()
    return outcome[0]
