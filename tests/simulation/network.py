"""A network that delivers bytes in pieces, late, or not at all.

A connection is two `End` s. What one writes lies in its `out` until the network takes it, piece by
piece. A machine that lost its power answers nothing; a process that died had a kernel, which
closes what it left open.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IConnector, IListeningPort
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.simulation.transport import HIGH, End

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.timeline import Timeline

__all__ = ["LOOPBACK", "Connector", "Network", "Port", "Weather"]

LOOPBACK = "127.0.0.1"
SLOW = 1e4
"""Bytes a second below which a way is slow."""


@dataclass(slots=True)
class Weather:
    """How the network behaves at the moment: seconds until a piece arrives, bytes of a piece."""

    delay: tuple[float, float] = (0.0005, 0.01)
    bandwidth: float = 1e7
    pieces: int = 3
    """Into about so many pieces what was written at once falls apart."""

    lost: float = 0.0
    """The chance that an attempt to connect gets no answer."""


@implementer(IListeningPort)
class Port:
    """A process that listens."""

    def __init__(self, network: Network, process: Process, port: int, factory: Any) -> None:
        self._network = network
        self.process = process
        self._port = port
        self.factory = factory

    def startListening(self) -> None:
        if self._port in self._network.ports:
            raise error.CannotListenError(LOOPBACK, self._port, OSError(98, "in use"))
        self._network.ports[self._port] = self
        self.factory.doStart()

    def stopListening(self) -> None:
        if self._network.ports.pop(self._port, None) is not None:
            self.factory.doStop()

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", LOOPBACK, self._port)


@implementer(IConnector)
class Connector:
    """An attempt to connect."""

    def __init__(
        self, network: Network, process: Process, port: int, factory: Any, timeout: float
    ) -> None:
        self._network = network
        self._timeline = network.timeline
        self._process = process
        self._port = port
        self._factory = factory
        self._end: End | None = None
        self._over = False
        factory.doStart()
        factory.startedConnecting(self)
        self._limit = self._timeline.after(timeout, process, self._fail, error.TimeoutError())
        if network.rng.random() >= network.weather.lost:
            self._timeline.after(network.latency(), self._timeline.world, self._arrive)

    def _arrive(self) -> None:
        network, listening = self._network, self._network.ports.get(self._port)
        if self._over or not self._process.alive:
            return
        machine = network.machines.get(self._port)
        if machine is None or not machine.up:
            return  # nobody answers; the timeout will come
        if network.parted(self._process.machine, machine):
            self._timeline.after(3.0, self._timeline.world, self._arrive)
            return
        if listening is None:
            refused = error.ConnectionRefusedError()
            self._timeline.after(network.latency(), self._process, self._fail, refused)
            return
        self._over = True
        self._limit.cancel()
        network.connections += 1
        ours = IPv4Address("TCP", LOOPBACK, 30000 + network.connections)
        here = End(network, self._process, ours)
        there = End(network, listening.process, listening.getHost())
        here.other, there.other = there, here
        self._end = here
        network.ends.append(here)
        self._process.ends[here] = None
        listening.process.ends[there] = None
        self._timeline.within(listening.process, self._accept, listening, there)
        delay = network.latency()
        self._timeline.after(delay, self._process, self._connected, here)

    def _accept(self, listening: Port, end: End) -> None:
        end.protocol = listening.factory.buildProtocol(end.getPeer())
        end.protocol.makeConnection(end)

    def _connected(self, end: End) -> None:
        if end.closed:
            self._factory.clientConnectionFailed(self, Failure(error.ConnectionLost()))
            return
        end.protocol = self._factory.buildProtocol(end.getPeer())
        if end.protocol is None:
            end.connected = False
            end.reset_other()
            return
        end.protocol.makeConnection(end)

    def _fail(self, reason: Exception) -> None:
        if self._over:
            return
        self._over = True
        if self._limit.active():
            self._limit.cancel()
        self._factory.clientConnectionFailed(self, Failure(reason))
        self._factory.doStop()

    def stopConnecting(self) -> None:
        if self._end is None:
            self._fail(error.UserError())
        elif self._end.protocol is None:
            self._end.connected = False
            self._end.reset_other()
            self._factory.clientConnectionFailed(self, Failure(error.UserError()))

    def disconnect(self) -> None:
        if self._end is not None and self._end.protocol is not None:
            self._end.loseConnection()
        else:
            self.stopConnecting()

    def connect(self) -> None:
        """Nobody of ours tries again with the same connector."""
        raise NotImplementedError

    def getDestination(self) -> IPv4Address:
        return IPv4Address("TCP", LOOPBACK, self._port)


class Network:
    """Every connection there is, and what is wrong with the network."""

    def __init__(self, timeline: Timeline, rng: random.Random, note: Callable[[str], None]) -> None:
        self.timeline = timeline
        self.rng = rng
        self.weather = Weather()
        self.heard: Callable[[End, bytes], None] = lambda end, data: None
        """Told of everything that is written to a connection."""
        self.ports: dict[int, Port] = {}
        self.machines: dict[int, Any] = {}
        """Which machine a port belongs to, whether or not somebody listens."""
        self.ends: list[End] = []
        self.held: list[End] = []
        self.connections = 0
        self.delivered = 0
        self._note = note
        self._parted: dict[tuple[Any, Any], None] = {}
        self._cuts: list[tuple[int, bool]] = []
        self.cuts_made = 0

    def latency(self) -> float:
        """Seconds that something small is on its way."""
        return self.rng.uniform(*self.weather.delay)

    def piece(self, size: int) -> int:
        """How many of ``size`` bytes arrive together."""
        if self.weather.bandwidth < SLOW:
            # On a slow way something comes every second.
            size = min(size, max(1, int(self.weather.bandwidth)))
        if self.weather.pieces <= 1 or size < 2:
            return min(size, HIGH)
        if size <= 2048:
            # Short messages mostly come whole; now and then they fall apart anywhere.
            return size if self.rng.random() < 0.8 else self.rng.randint(1, size)
        return min(HIGH, max(1, int(size / self.weather.pieces * (0.5 + self.rng.random()))))

    # -- what goes wrong --------------------------------------------------------------------------

    def part(self, one: Any, other: Any) -> None:
        """Nothing passes between two machines."""
        self._parted[one, other] = self._parted[other, one] = None

    def heal(self, one: Any, other: Any) -> None:
        """It does again."""
        self._parted.pop((one, other), None)
        self._parted.pop((other, one), None)
        held, self.held = self.held, []
        for end in held:
            end.pump()

    def heal_all(self) -> None:
        self._cuts.clear()
        for one, other in list(self._parted):
            self.heal(one, other)

    def parted(self, one: Any, other: Any) -> bool:
        return (one, other) in self._parted

    def cut_after(self, count: int, *, silent: bool) -> None:
        """Cut the connection that carries the byte so many from now.

        ``silent``: neither side is told, as when a router forgets a connection.
        """
        self._cuts.append((self.delivered + count, silent))

    def cut_now(self, end: End, length: int) -> bool:
        """Whether this piece holds the byte at which a connection is cut; up to it all arrives."""
        for cut in self._cuts:
            at, silent = cut
            if at < self.delivered + length:
                break
        else:
            return False
        self._cuts.remove(cut)
        self.cuts_made += 1
        before = max(0, min(at - self.delivered, end.size))
        self._note(f"cut {end.process.name} -> {end.other.process.name} silent={silent}")
        other = end.other
        if before:
            piece = end.take(before)
            self.delivered += before
            if other.connected and other.process.alive:
                self.timeline.within(other.process, other.protocol.dataReceived, piece)
        if silent:
            end.stuck = other.stuck = True
        else:
            for one in (end, other):
                self.timeline.after(self.latency(), self.timeline.world, one.was_reset)
        return True
