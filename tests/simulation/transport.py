"""One side of a simulated connection, which its protocol takes for a transport."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IConsumer, IPushProducer, ITCPTransport
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:
    from tests.simulation.network import Network
    from tests.simulation.process import Process

__all__ = ["HIGH", "End"]

HIGH = 64 * 1024
"""A writer with so much in its buffer is asked to pause."""


@implementer(ITCPTransport, IConsumer, IPushProducer)
class End:
    """One side of a connection: the transport of its protocol."""

    bufferSize = 64 * 1024  # noqa: N815

    def __init__(self, network: Network, process: Process, host: IPv4Address) -> None:
        self._network = network
        self._timeline = network.timeline
        self.process = process
        self.host = host
        self.other: End = self
        self.protocol: Any = None
        self.connected = True
        self.disconnecting = False
        self.closed = False
        """Its kernel knows it no more: what arrives is answered by a reset."""
        self.vanished = False
        """Its machine lost its power: what arrives is answered by nothing."""
        self.reading = True
        self.out: deque[bytes] = deque()
        self.size = 0
        self._fin = False
        self._under_way = False
        self.stuck = False
        self.producer: Any = None
        self._streaming = False
        self._producer_paused = False

    # -- what the protocol calls ------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if data and self.connected:
            self._network.heard(self, data)
            self.out.append(bytes(data))
            self.size += len(data)
            if self.size > HIGH and self.producer is not None and not self._producer_paused:
                self._producer_paused = True
                self.producer.pauseProducing()
            self.pump()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self._close_if_flushed()

    def abortConnection(self) -> None:
        if self.connected:
            self.disconnecting = True
            self.reset_other()
            self._lose_later(error.ConnectionAborted())

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer, self._streaming, self._producer_paused = producer, streaming, False
        if not self.connected:
            producer.stopProducing()
        elif not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None
        if self.connected and self.disconnecting:
            self._close_if_flushed()

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        if self.connected and not self.disconnecting:
            self.reading = True
            self.other.pump()

    def stopProducing(self) -> None:
        self.loseConnection()

    def getPeer(self) -> IPv4Address:
        return self.other.host

    def getHost(self) -> IPv4Address:
        return self.host

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing is ever held back."""

    def getTcpKeepAlive(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Nobody probes here."""

    def loseWriteConnection(self) -> None:
        """Nobody of ours closes one direction only."""
        raise NotImplementedError

    # -- what the network does --------------------------------------------------------------------

    def pump(self) -> None:
        """Have the next piece delivered, if there is one and the other side takes it."""
        if self._under_way or self.stuck or not (self.out or self._fin):
            return
        if not self.other.reading and not self.other.closed:
            return
        self._under_way = True
        network = self._network
        low, high = network.weather.delay
        piece = network.piece(self.size) if self.out else 0
        delay = network.rng.uniform(low, high) + piece / network.weather.bandwidth
        self._timeline.after(delay, self._timeline.world, self._deliver, piece)

    def _deliver(self, length: int) -> None:
        self._under_way = False
        other, network = self.other, self._network
        if self.stuck or (not self.out and not self._fin):
            return
        if network.parted(self.process.machine, other.process.machine):
            network.held.append(self)
            return
        if other.vanished:
            if other.process.machine.up:
                self._timeline.after(0.01, self._timeline.world, self.was_reset)
            return
        if other.closed:
            self.out.clear()
            self.size = 0
            if not self._fin and self.connected:
                # Nobody is there: what it had on its way to us may be lost with the reset.
                self._timeline.after(0.001, self._timeline.world, self.was_reset)
            return
        if not other.reading and other.connected:
            return
        if not self.out:
            self._fin = False
            other.end_of_stream()
            return
        if network.cut_now(self, length):
            return
        piece = self.take(min(length, self.size))
        network.delivered += len(piece)
        if other.connected and other.process.alive:
            self._timeline.within(other.process, other.protocol.dataReceived, piece)
        if self.connected and self.size == 0 and self.process.alive:
            self._timeline.within(self.process, self._drained)
        self.pump()

    def take(self, length: int) -> bytes:
        """The first ``length`` bytes that wait."""
        taken, left = [], length
        while left:
            first = self.out.popleft()
            if len(first) > left:
                self.out.appendleft(first[left:])
                first = first[:left]
            taken.append(first)
            left -= len(first)
        self.size -= length
        return b"".join(taken)

    def _drained(self) -> None:
        if self.producer is not None and (self._producer_paused or not self._streaming):
            self._producer_paused = False
            self.producer.resumeProducing()
        if self.connected and self.disconnecting:
            self._close_if_flushed()

    def _close_if_flushed(self) -> None:
        """The kernel takes what fits into its buffer; then the connection is over for us."""
        if self.producer is None and self.size <= HIGH:
            self._lose_later(error.ConnectionDone())
            self.closed = True
            self._fin = True
            self.pump()

    def _lose_later(self, reason: Exception) -> None:
        self._timeline.after(0.0, self.process, self.lost, reason)

    def lost(self, reason: Exception) -> None:
        """The protocol learns that the connection is gone."""
        if not self.connected:
            return
        self.connected, self.closed = False, True
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        if self.protocol is not None:  # else its maker will learn it, see `Connector._connected`
            self.protocol.connectionLost(Failure(reason))

    def end_of_stream(self) -> None:
        """Its other side has closed, and everything before that has arrived."""
        if self.connected:
            self.out.clear()
            self.size = 0
            self._timeline.within(self.process, self.lost, error.ConnectionDone())

    def was_reset(self) -> None:
        """A reset arrives: what was on its way in either direction is lost."""
        self.out.clear()
        self.size = 0
        self._fin = False
        if self.connected and self.process.alive:
            self._timeline.within(self.process, self.lost, error.ConnectionLost())
        self.closed = True

    def reset_other(self) -> None:
        """Drop what waits, and have a reset arrive at the other side."""
        self.out.clear()
        self.size = 0
        self._fin = False
        self.closed = True
        if not self._network.parted(self.process.machine, self.other.process.machine):
            delay = self._network.latency()
            self._timeline.after(delay, self._timeline.world, self.other.was_reset)

    def process_died(self, *, power: bool) -> None:
        """Its process is gone; its kernel closes the connection, unless that is gone too."""
        self.connected = False
        if power:
            self.vanished = self.closed = True
            self.out.clear()
            self.size = 0
        elif not self.closed:
            if self._network.rng.random() < 0.5:
                self.reset_other()
            else:
                self.closed = self._fin = True
                self.pump()
