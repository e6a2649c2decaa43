"""The one clock of a history, and what each process sees of it.

Everything that happens is a call at a moment, and belongs to a process; what belongs to a process
that has died never happens. Calls at the same moment happen in the order in which they were made,
so a history depends on its seed alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from twisted.internet.error import AlreadyCalled, AlreadyCancelled
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from zope.interface import implementer

__all__ = ["Call", "Crash", "Owner", "Timeline"]

START = 1_795_485_600.0
SOON = 1e-6


class Crash(BaseException):
    """The process ended here; nothing of it goes on."""


class Owner:
    """Whose call it is: a process, or the world itself."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.skewed = False
        """Its time is not that of the timeline: the wall clock of its machine has jumped."""

    def seconds(self) -> float:
        """What time it is for whoever has a time of its own."""
        raise NotImplementedError

    def died(self) -> None:
        """One of its calls ended in `Crash`."""
        self.alive = False


@implementer(IDelayedCall)
class Call:
    """Something that will happen, unless it is cancelled or its process dies."""

    __slots__ = ("_timeline", "args", "due", "f", "gone", "owner", "time")

    def __init__(
        self, timeline: Timeline, time: float, owner: Owner, f: Callable[..., Any], args: Any
    ) -> None:
        self._timeline = timeline
        self.time = time
        self.owner = owner
        self.f: Callable[..., Any] | None = f
        self.args = args
        self.gone: type[Exception] | None = None
        self.due: float | None = None
        """When it is, in the time of its owner."""

    def getTime(self) -> float:
        return self.time if self.due is None else self.due

    def active(self) -> bool:
        return self.gone is None

    def cancel(self) -> None:
        if self.gone is not None:
            raise self.gone()
        self.gone, self.f, self.args = AlreadyCancelled, None, ()

    def reset(self, secondsFromNow: float) -> None:  # noqa: N803
        if self.due is not None:
            self.due = self.owner.seconds() + secondsFromNow
        self._move(self._timeline.now + secondsFromNow)

    def delay(self, secondsLater: float) -> None:  # noqa: N803
        if self.due is not None:
            self.due += secondsLater
        self._move(self.time + secondsLater)

    def _move(self, time: float) -> None:
        if self.gone is not None:
            raise self.gone()
        sooner, self.time = time < self.time, time
        if sooner:
            self._timeline.push(self)


class Timeline:
    """What is to happen, in order. ``current`` is whose call is running."""

    _log = Logger()

    def __init__(self, world: Owner) -> None:
        self.now = START
        self.world = world
        self.current = world
        self.steps = 0
        self._heap: list[tuple[float, int, Call]] = []
        self._count = 0

    def push(self, call: Call) -> None:
        self._count += 1
        heapq.heappush(self._heap, (call.time, self._count, call))

    def at(self, time: float, owner: Owner, f: Callable[..., Any], *args: Any) -> Call:
        """Call ``f(*args)`` at ``time``, unless ``owner`` has died by then."""
        call = Call(self, max(time, self.now), owner, f, args)
        self.push(call)
        return call

    def after(self, delay: float, owner: Owner, f: Callable[..., Any], *args: Any) -> Call:
        """Call ``f(*args)`` in ``delay`` seconds, unless ``owner`` has died by then."""
        return self.at(self.now + delay, owner, f, *args)

    def step(self, until: float) -> bool:
        """Let the next thing happen, if it does before ``until``; else it is ``until``."""
        heap = self._heap
        while heap:
            time, _, call = heap[0]
            if call.gone is not None or not call.owner.alive:
                heapq.heappop(heap)
            elif call.time > time:  # it was put off
                heapq.heappop(heap)
                self.push(call)
            elif time > until:
                break
            else:
                heapq.heappop(heap)
                self.now = time
                if call.due is not None and call.owner.skewed:
                    left = call.due - call.owner.seconds()
                    if left > SOON:
                        # Its own time is slower than ours at the moment.
                        call.time = time + left
                        self.push(call)
                        continue
                self._run(call)
                return True
        self.now = until
        return False

    def _run(self, call: Call) -> None:
        f, call.f, call.gone = call.f, None, AlreadyCalled
        self.steps += 1
        self.within(call.owner, f, *call.args)

    def within(self, owner: Owner, f: Any, *args: Any) -> None:
        """Run ``f(*args)`` as something that ``owner`` does."""
        before, self.current = self.current, owner
        try:
            f(*args)
        except Crash:
            owner.died()
        except Exception:
            self._log.failure("a call failed by a defect")
        finally:
            self.current = before
