"""Ways to run what blocks, for tests: at once, or when the test says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred

__all__ = ["WhenTold", "at_once"]

T = TypeVar("T")
P = ParamSpec("P")


def at_once(f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """Run it here and now (`interfaces.OffThread`)."""
    return maybeDeferred(f, *args, **kwargs)


class WhenTold:
    """Keeps what is to be run until `run` (`interfaces.OffThread`)."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def __call__(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        done: Deferred[T] = Deferred()
        self.waiting.append((lambda: f(*args, **kwargs), done))
        return done

    def run(self) -> None:
        """Run what has waited longest."""
        work, done = self.waiting.pop(0)
        maybeDeferred(work).chainDeferred(done)
