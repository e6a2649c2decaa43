"""One request with a long body, and its answer."""

from __future__ import annotations

from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from backupd.errors import PeerFailed, PeerSilent
from backupd.peer.exchange import MAX_ANSWER, NO_ANSWER, SILENCE, Exchange, Reply, parse
from tests.outcomes import pending, result_of


@implementer(IBodyProducer)
class Body:
    """A body that a test writes by hand."""

    length = 10

    def __init__(self) -> None:
        self.done: Deferred[None] = Deferred()
        self.calls: list[str] = []
        self.consumer: IConsumer | None = None

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self.consumer = consumer
        return self.done

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class Case:
    """An exchange on a transport in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.body = Body()
        self.exchange = Exchange(b"POST / HTTP/1.1\r\n\r\n", self.body, self.clock, "http://a:1")
        self.transport = StringTransport()
        cast(Any, self.exchange).makeConnection(self.transport)
        self.producer: Any = self.transport.producer
        self.replied = self.exchange.replied

    def write(self, data: bytes) -> None:
        assert self.body.consumer is not None
        self.body.consumer.write(data)

    def lost(self) -> None:
        self.exchange.connectionLost(Failure(ConnectionLost()))

    def assert_over(self) -> None:
        """Nothing is left that could happen later."""
        assert self.clock.getDelayedCalls() == []
        assert self.body.calls[-1] == "stop"
        assert self.transport.disconnecting


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-One: 1\r\n\r\n{}"
REFUSED = b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nRetry-After: 7\r\n\r\nsorry"


def test_the_body_follows_the_head_and_the_answer_the_body() -> None:
    case = Case()
    case.write(b"0123456789")
    case.body.done.callback(None)
    assert case.transport.value() == b"POST / HTTP/1.1\r\n\r\n0123456789"
    assert case.transport.producer is None
    assert pending(case.replied)
    case.exchange.dataReceived(OK)
    reply = result_of(case.replied)
    assert (reply.status, reply.headers["x-one"], reply.body) == (200, "1", b"{}")
    case.assert_over()


@pytest.mark.parametrize("cut", range(1, len(REFUSED)))
def test_an_answer_before_the_end_of_the_body_wins(cut: int) -> None:
    """However it is cut into segments, and although the connection breaks afterwards."""
    case = Case()
    case.write(b"0123")
    case.exchange.dataReceived(REFUSED[:cut])
    case.exchange.dataReceived(REFUSED[cut:])
    case.lost()
    reply = result_of(case.replied)
    assert (reply.status, reply.headers["retry-after"], reply.body) == (413, "7", b"sorry")
    case.write(b"4567")
    assert case.transport.value().endswith(b"0123")
    case.assert_over()


def test_an_answer_whose_body_is_cut_wins_over_the_broken_connection() -> None:
    case = Case()
    case.exchange.dataReceived(REFUSED[:-2])
    assert pending(case.replied)
    case.lost()
    assert result_of(case.replied).body == b"sor"


def test_a_yes_that_is_cut_is_not_believed() -> None:
    case = Case()
    case.body.done.callback(None)
    case.exchange.dataReceived(OK[:-1])
    case.lost()
    with pytest.raises(PeerFailed, match="without an answer"):
        result_of(case.replied)


def test_a_yes_before_the_last_byte_is_not_believed() -> None:
    case = Case()
    case.exchange.dataReceived(OK)
    with pytest.raises(PeerFailed, match="before it had every byte"):
        result_of(case.replied)
    case.assert_over()


def test_a_connection_that_breaks_fails_with_a_sentence() -> None:
    case = Case()
    case.lost()
    with pytest.raises(PeerFailed, match=r"http://a:1 closed the connection while"):
        result_of(case.replied)
    case.assert_over()


def test_time_runs_out_on_silence_and_not_on_length() -> None:
    case = Case()
    for _ in range(100):
        case.write(b"0")
        case.clock.advance(SILENCE - 1)
        case.producer.resumeProducing()
        case.clock.advance(SILENCE - 1)
    assert pending(case.replied)
    case.clock.advance(1)
    with pytest.raises(PeerSilent, match="took no byte for 60 s"):
        result_of(case.replied)
    case.assert_over()


def test_the_answer_may_take_its_time_but_not_for_ever() -> None:
    """The receiver is syncing."""
    case = Case()
    case.body.done.callback(None)
    case.clock.advance(NO_ANSWER - 1)
    assert pending(case.replied)
    case.clock.advance(1)
    with pytest.raises(PeerSilent, match="did not answer within 120 s"):
        result_of(case.replied)
    case.assert_over()


def test_the_network_makes_the_body_wait() -> None:
    case = Case()
    case.producer.pauseProducing()
    case.producer.resumeProducing()
    assert case.body.calls == ["pause", "resume"]
    case.replied.addErrback(lambda _: None)
    case.lost()


def test_what_the_body_fails_with_is_passed_on() -> None:
    """The file is the trouble: the connection must not look complete to the receiver."""
    case = Case()
    case.body.done.errback(Failure(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        result_of(case.replied)
    case.assert_over()


def test_it_can_be_cancelled() -> None:
    case = Case()
    case.replied.cancel()
    with pytest.raises(CancelledError):
        result_of(case.replied)
    case.assert_over()
    case.lost()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X" * MAX_ANSWER, "more than 64 KiB"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 99999999\r\n\r\n" + b"x" * MAX_ANSWER, "64 KiB"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "without an answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", "no HTTP"),
    ],
)
def test_nonsense_fails_with_a_sentence(data: bytes, why: str) -> None:
    case = Case()
    case.body.done.callback(None)
    case.exchange.dataReceived(data)
    case.lost()
    with pytest.raises(PeerFailed, match=why):
        result_of(case.replied)
    case.assert_over()


CHUNKED = b"HTTP/1.1 409 Conflict\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "closed", "status", "body"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, False, 200, b"{}"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, False, 200, b"{}"),
        (b"HTTP/1.1 204 No Content\r\nUpload-Offset: 3\r\n\r\n", False, 204, b""),
        (b"HTTP/1.0 200 OK\r\n\r\nall of it", True, 200, b"all of it"),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", False, 200, b""),
        (CHUNKED, False, 409, b"abc"),
        (CHUNKED[:-7], True, 409, b"abc"),
    ],
)
def test_answers_are_read_as_http_says(data: bytes, closed: bool, status: int, body: bytes) -> None:
    reply = parse(data, closed=closed)
    assert isinstance(reply, Reply)
    assert (reply.status, reply.body) == (status, body)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        OK[:-1],
        CHUNKED[:-7],
        b"HTTP/1.0 200 OK\r\n\r\nall of",
    ],
)
def test_an_answer_is_awaited_until_it_is_whole(data: bytes) -> None:
    assert parse(data, closed=False) is None
