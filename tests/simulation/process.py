"""One life of a daemon, from its start to its stop or crash: its reactor and its threads."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import (
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from backupd.errors import ShuttingDown
from backupd.own_time import OwnTime
from tests.simulation.network import LOOPBACK, Connector, Network, Port
from tests.simulation.timeline import Call, Crash, Owner, Timeline
from tests.simulation.transport import End

__all__ = ["Host", "Process", "Threads"]

T = TypeVar("T")
P = ParamSpec("P")


class Host(Protocol):
    """What a process wants of the machine that it runs on."""

    up: bool
    jumped: bool
    """Whether its wall clock was ever set."""

    def wall(self) -> float:
        """What its wall clock says."""

    def crashed(self, process: Process) -> None:
        """A call of the process ended in `Crash`."""

    def ended(self) -> None:
        """The process is over, by itself."""

    def job_done(self) -> None:
        """A thread has done something."""

    def note(self, text: str) -> None:
        """A line of the trace."""


class _Names:
    """Everybody is on the loopback address."""

    def resolveHostName(
        self,
        receiver: Any,
        name: str,
        portNumber: int = 0,  # noqa: N803
        **_: Any,
    ) -> None:
        receiver.resolutionBegan(None)
        receiver.addressResolved(IPv4Address("TCP", LOOPBACK, portNumber))
        receiver.resolutionComplete()


@implementer(IReactorTime, IReactorTCP, IReactorPluggableNameResolver)
class Process(Owner):
    """A life of a machine's daemon; what it sees as its reactor.

    Once it has died nothing that its objects do has any effect.
    """

    nameResolver = _Names()  # noqa: N815

    def __init__(self, name: str, timeline: Timeline, network: Network, machine: Host) -> None:
        super().__init__(name)
        self.timeline = timeline
        self.network = network
        self.machine = machine
        self.ends: dict[End, None] = {}
        self.running = True
        self._own = OwnTime(machine.wall, lambda: timeline.now)
        self._latest = 0.0
        self.skewed = machine.jumped

    def died(self) -> None:
        self.machine.crashed(self)

    # -- IReactorTime -----------------------------------------------------------------------------

    def seconds(self) -> float:
        """The daemon's own time, which in production its reactor is given too."""
        if not self.skewed:
            return self.timeline.now
        now = self._own()
        if now < self._latest:
            raise AssertionError(f"the daemon's own time went back by {self._latest - now} s")
        self._latest = now
        return now

    def before_jump(self) -> None:
        """The wall clock of its machine is about to be set."""
        self._own()
        self.skewed = True

    def begin_time(self, latest: float | None) -> None:
        """What it remembers of the life before."""
        if self.skewed:
            self._own.begin(latest)

    def callLater(
        self,
        delay: float,
        callable: Callable[..., Any],  # noqa: A002
        *args: object,
        **kwargs: object,
    ) -> Call:
        if kwargs:
            inner = callable
            call = self.timeline.after(delay, self, lambda: inner(*args, **kwargs))
        else:
            call = self.timeline.after(delay, self, callable, *args)
        call.due = self.seconds() + delay
        return call

    def getDelayedCalls(self) -> list[Call]:
        return []

    # -- IReactorTCP ------------------------------------------------------------------------------

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Port:
        listening = Port(self.network, self, port, factory)
        if self.alive:
            listening.startListening()
        return listening

    def connectTCP(
        self,
        host: str,
        port: int,
        factory: Any,
        timeout: float = 30,
        bindAddress: Any = None,  # noqa: N803
    ) -> Connector:
        return Connector(self.network, self, port, factory, timeout)

    def installNameResolver(self, resolver: Any) -> Any:
        raise NotImplementedError

    # -- the end ----------------------------------------------------------------------------------

    def addSystemEventTrigger(self, phase: str, kind: str, f: Any, *args: Any) -> None:
        """What a process does at its very end does not matter here."""

    def stop(self) -> None:
        """It ends itself; whoever watches over it starts it again."""
        self.timeline.after(0.0, self, self.machine.ended)


class Threads:
    """At most ``size`` jobs at a time, each of which takes a while (`interfaces.OffThread`).

    A job happens at one moment; whoever waits for it learns so at a later one. Between the two
    the process may die: what was done is done. ``tells``: a job may change what is kept.
    """

    def __init__(
        self,
        process: Process,
        size: int,
        rng: random.Random,
        takes: Callable[[], float],
        *,
        tells: bool = True,
    ) -> None:
        self._process = process
        self._timeline = process.timeline
        self._size = size
        self._rng = rng
        self._takes = takes
        self._tells = tells
        self._waiting: deque[tuple[Callable[[], Any], Deferred[Any]]] = deque()
        self._busy = 0
        self._stopped = False

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._busy

    def __call__(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        if self._stopped:
            return fail(ShuttingDown("This server is stopping; go on when it is back.", 5.0))
        takes = self._takes()
        if takes == 0.0 and not self._busy:
            return maybeDeferred(f, *args, **kwargs)
        done: Deferred[T] = Deferred(_nothing)
        self._waiting.append(((lambda: f(*args, **kwargs)), done))
        self._next()
        return done

    def _next(self) -> None:
        while self._waiting and self._busy < self._size:
            self._busy += 1
            job, done = self._waiting.popleft()
            self._timeline.after(self._takes(), self._process, self._do, job, done)

    def _do(self, job: Callable[[], Any], done: Deferred[Any]) -> None:
        outcome: Any
        try:
            outcome = job()
        except Crash:
            raise
        except BaseException:
            outcome = Failure()
        if self._tells:
            self._process.machine.job_done()
        if not self._process.alive:
            return
        if self._rng.random() < 0.5:
            self._told(done, outcome)
        else:
            self._timeline.after(
                self._rng.random() * 0.001, self._process, self._told, done, outcome
            )

    def _told(self, done: Deferred[Any], outcome: Any) -> None:
        self._busy -= 1
        if not done.called:
            done.callback(outcome)
        self._next()

    def start(self) -> None:
        """It runs from the beginning."""

    def stop(self) -> None:
        """Nothing more is taken."""
        self._stopped = True


def _nothing(_: object) -> None:
    """Cancelling gives up the result; the job runs on."""
