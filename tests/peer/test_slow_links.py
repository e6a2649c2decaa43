"""An upload over a link that has become slow: told apart from one that has died."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.testing import MemoryReactorClock
from twisted.protocols.tls import TLSMemoryBIOFactory

from backupd.errors import PeerFailed
from backupd.peer.exchange import LOOK, NO_ANSWER, SILENCE, Exchange
from backupd.unsent import unsent
from tests.outcomes import pending, result_of
from tests.peer.test_exchange import OK, Body
from tests.slow_link import Link

SLICE = 2 * 1024 * 1024
"""What a fast link gets at a time."""


class Slow:
    """An exchange that has just given a fast link a whole slice."""

    def __init__(self, *, tls: bool = False) -> None:
        self.reactor = MemoryReactorClock()
        self.body = Body()
        self.exchange = Exchange(b"head", self.body, self.reactor, "http://a:1")
        self.replied = self.exchange.replied
        self.link = Link()
        protocol: Any = self.exchange
        if tls:
            options = optionsForClientTLS("a.example")
            inner = Factory.forProtocol(lambda: self.exchange)
            factory = TLSMemoryBIOFactory(options, True, inner, self.reactor)
            protocol = factory.buildProtocol(None)
        protocol.makeConnection(self.link)
        self.write(bytes(SLICE))

    def write(self, data: bytes) -> None:
        assert self.body.consumer is not None
        self.body.consumer.write(data)

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.reactor.advance(1)


@pytest.mark.parametrize("tls", [False, True])
def test_a_link_that_takes_a_byte_a_minute_lives(tls: bool) -> None:
    """Of a slice that it took at once when it was fast; it is let go when no byte has left."""
    slow = Slow(tls=tls)
    for _ in range(60):
        slow.wait(SILENCE - 1)
        slow.link.take(1)
    slow.wait(SILENCE - 1)
    assert pending(slow.replied)
    slow.wait(LOOK + 1)
    with pytest.raises(PeerFailed, match="took no byte for 60 s"):
        result_of(slow.replied)
    assert slow.reactor.getDelayedCalls() == []


def test_what_tls_keeps_to_itself_counts() -> None:
    """Until its handshake is over, and small writes for a turn of the reactor."""
    slow = Slow(tls=True)
    slow.reactor.advance(0)
    before = unsent(slow.exchange.transport)
    assert before > SLICE
    slow.write(bytes(100))
    assert unsent(slow.exchange.transport) == before + 100
    slow.reactor.advance(0)
    assert unsent(slow.exchange.transport) == before + 100
    slow.replied.addErrback(lambda _: None)
    slow.replied.cancel()


def test_what_the_body_adds_is_no_sign_that_bytes_left() -> None:
    """Nor are bytes that have only come nearer to the network."""
    slow = Slow()
    slow.wait(SILENCE - 1)
    assert pending(slow.replied)
    slow.wait(1)
    with pytest.raises(PeerFailed, match="took no byte"):
        result_of(slow.replied)


def test_the_answer_is_awaited_from_the_last_byte_that_left() -> None:
    """And not from the last that was written: a slice of it may still lie in the buffer."""
    slow = Slow()
    slow.body.done.callback(None)
    for _ in range(60):
        slow.wait(NO_ANSWER - 1)
        slow.link.take(1)
    slow.link.take(SLICE)
    slow.wait(NO_ANSWER - 1)
    assert pending(slow.replied)
    slow.exchange.dataReceived(OK)
    assert result_of(slow.replied).status == 200


def test_the_answer_is_not_awaited_for_ever_behind_a_slow_link() -> None:
    slow = Slow()
    slow.body.done.callback(None)
    slow.link.take(SLICE)
    slow.wait(NO_ANSWER + LOOK)
    with pytest.raises(PeerFailed, match="did not answer within 120 s"):
        result_of(slow.replied)


def filled(near: socket.socket) -> int:
    """Send until the kernel takes no more; how much it took."""
    sent = 0
    while True:
        try:
            sent += near.send(bytes(SLICE))
        except BlockingIOError:
            return sent


def test_what_lies_in_the_kernel_has_not_been_taken() -> None:
    """A fast link leaves megabytes there; they count until the other side has them."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
    with near, far:
        link = Link()
        link.fileno = near.fileno  # type: ignore[method-assign]
        near.setblocking(False)
        sent = filled(near)
        assert 0 < unsent(link) < sent
        near.setblocking(True)
        near.shutdown(socket.SHUT_WR)
        while far.recv(SLICE):
            pass
        far.close()
        assert near.recv(1) == b""
        assert unsent(link) == 0
        near.close()
        assert unsent(link) == 0


def test_what_is_no_socket_holds_what_its_buffer_holds() -> None:
    link = Link()
    link.write(b"12")
    with open(os.devnull, "rb") as file:
        link.fileno = file.fileno  # type: ignore[method-assign]
        assert unsent(link) == 2
    assert unsent(object()) == 0
