"""How slow a client may be, and how much it may ask without taking it: on a clock."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred

from backupd.errors import TooSlow, UploadCut
from backupd.web.body import HIGH_WATER
from backupd.web.connections import Connections
from backupd.web.patience import Patience
from tests.web.connection import CHUNKED, SIZED, SiteCase, Transport

SLOW = b"HTTP/1.1 408 Request Timeout\r\n"


class HeadTests(SiteCase):
    def test_a_head_that_trickles_in_is_cut_after_its_time(self) -> None:
        """However often a byte comes: the time runs from the first one."""
        self.send(b"GET /up HTTP/1.1\r\nHost: a\r\n")
        for _ in range(19):
            self.clock.advance(1)
            self.send(b"X-a: b\r\n")
        assert self.transport.connected
        self.clock.advance(1)
        assert not self.transport.connected
        assert self.transport.value().startswith(SLOW)
        assert self.handlers.requests == []

    def test_not_even_a_request_line_may_trickle(self) -> None:
        for _ in range(20):
            assert self.transport.connected
            self.send(b"G")
            self.clock.advance(1)
        assert not self.transport.connected

    def test_who_connects_and_says_nothing_has_as_long(self) -> None:
        self.clock.advance(19.9)
        assert self.transport.connected
        self.clock.advance(0.1)
        assert not self.transport.connected

    def test_the_next_request_has_its_own_time(self) -> None:
        self.begin(b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
        self.answer()
        self.clock.advance(50)
        self.send(b"GET /up HTTP/1.1\r\n")
        self.clock.advance(19.9)
        assert self.transport.connected
        self.send(b"Host: a\r\n\r\n")
        self.clock.advance(100)
        assert self.transport.connected
        assert len(self.handlers.requests) == 2

    def test_an_idle_connection_is_closed(self) -> None:
        self.begin(b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
        self.answer()
        self.clock.advance(59.9)
        assert self.transport.connected
        self.clock.advance(0.1)
        assert not self.transport.connected

    def test_a_head_that_came_whole_starts_no_clock(self) -> None:
        self.begin(SIZED % 9)
        assert self.channel._late_head is None


class BodyTests(SiteCase):
    patience = Patience(min_rate=10, over=60)

    def test_a_body_below_the_rate_is_cut_and_kept(self) -> None:
        """A byte now and then does not help it; what came is there to be read."""
        request = self.begin(SIZED % 9000)
        for _ in range(6):
            assert self.transport.connected
            self.clock.advance(10)
            self.send(b"x" * 99)
        assert self.transport.value().startswith(SLOW)
        assert self.read(request) == b"x" * 99
        assert self.handlers.cancelled == 1

    def test_a_body_at_the_rate_goes_on(self) -> None:
        self.begin(SIZED % 90000)
        for _ in range(60):
            self.send(b"x" * 100)
            self.clock.advance(10)
        assert self.transport.connected

    def test_chunks_have_the_same_rate(self) -> None:
        self.begin(CHUNKED)
        for _ in range(60):
            self.send(b"1\r\nx\r\n")
            self.clock.advance(1)
        assert not self.transport.connected

    def test_while_we_do_not_read_it_is_not_the_client_that_is_slow(self) -> None:
        request = self.begin(SIZED % (HIGH_WATER * 9), b"x" * HIGH_WATER)
        assert self.channel.held
        for _ in range(100):
            self.clock.advance(10)
        assert self.transport.connected
        self.read(request)
        reading = request.body.read()  # from here on its time runs
        for _ in range(20):
            self.clock.advance(10)
            self.send(b"x")
        assert not self.transport.connected
        assert self.successResultOf(reading) == b"x"

    def test_zero_is_no_such_rule(self) -> None:
        self.site.patience = Patience(min_rate=0)
        self.begin(SIZED % 9000)
        for _ in range(100):
            self.clock.advance(59)
            self.send(b"x")
        assert self.transport.connected

    def test_a_small_body_has_a_deadline_whatever_its_rate(self) -> None:
        request = self.begin(SIZED % 9000)
        whole = Deferred.fromCoroutine(request.body.read_all(9000))
        for _ in range(30):
            self.assertNoResult(whole)
            self.send(b"x" * 100)
            self.clock.advance(1)
        self.failureResultOf(whole, TooSlow)

    def test_a_small_body_in_time_leaves_no_clock(self) -> None:
        request = self.begin(SIZED % 4, b"ab")
        whole = Deferred.fromCoroutine(request.body.read_all(10))
        self.clock.advance(29)
        self.send(b"cd")
        assert self.successResultOf(whole) == b"abcd"

    def test_a_cut_while_a_small_body_comes_is_a_cut(self) -> None:
        request = self.begin(SIZED % 4, b"ab")
        whole = Deferred.fromCoroutine(request.body.read_all(10))
        self.cut()
        self.failureResultOf(whole, UploadCut)


class NotTakenTests(SiteCase):
    """A client that asks and asks, and does not take the answers."""

    GET = b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n"

    def test_no_answer_is_begun_before_the_last_has_been_taken(self) -> None:
        self.send(self.GET * 3)
        self.channel.pauseProducing()  # the transport has more than it likes
        self.answer()
        assert len(self.handlers.requests) == 1
        self.channel.resumeProducing()
        assert len(self.handlers.requests) == 2
        self.answer()
        assert len(self.handlers.requests) == 3

    def test_one_that_takes_nothing_is_let_go(self) -> None:
        self.send(self.GET * 3)
        self.channel.pauseProducing()
        self.answer()
        self.clock.advance(59)
        self.send(b"more")
        assert self.transport.connected
        self.clock.advance(1)
        assert not self.transport.connected

    def test_one_that_took_it_late_goes_on(self) -> None:
        self.send(self.GET)
        self.channel.pauseProducing()
        self.answer()
        self.clock.advance(59)
        self.channel.resumeProducing()
        self.clock.advance(59)
        assert self.transport.connected
        self.begin(self.GET)
        self.answer()


class PlacesTests(SiteCase):
    def connect(self, host: str = "127.0.0.1") -> Any:
        channel: Any = self.site.buildProtocol(None)
        transport: Any = Transport(peerAddress=IPv4Address("TCP", host, 1))
        transport.protocol = channel
        channel.makeConnection(transport)
        self.addCleanup(lambda: transport.connected and transport.abortConnection())
        return transport

    def test_one_too_many_hears_so_and_is_closed(self) -> None:
        mine = [self.connect("192.0.2.1") for _ in range(10)]
        late = self.connect("192.0.2.1")
        assert late.value().startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: " in late.value()
        assert not late.connected
        assert all(one.connected for one in mine)

    def test_a_place_is_free_again_when_its_connection_is_gone(self) -> None:
        mine = [self.connect("192.0.2.1") for _ in range(10)]
        mine[0].loseConnection()
        assert self.connect("192.0.2.1").connected

    def test_between_two_requests_a_connection_makes_way(self) -> None:
        self.site.connections = Connections(2, 9, self.clock)
        working, idle = self.connect(), self.connect()
        working.protocol.dataReceived(SIZED % 9)
        idle.protocol.dataReceived(b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
        assert not self.connect().connected  # both are at work
        self.answer()
        assert self.connect().connected
        assert (working.connected, idle.connected) == (True, False)
