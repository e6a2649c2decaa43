"""Restores through the transport's buffer, as by TLS, to clients that take them slowly."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from backupd.web.patience import Patience
from tests.slow_link import Link
from tests.web.test_restore import GET, SIZE, RestoreCase

LAST = b"Connection: close\r\n"


class SlowFixture(RestoreCase):
    """A restore to a client that is as slow as the test says."""

    patience = Patience(min_rate=1024)

    def setUp(self) -> None:
        super().setUp()
        self.channel = self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self.link = Link()
        self.channel.makeConnection(self.link)
        self.addCleanup(self.lose)

    def lose(self) -> None:
        self.channel.connectionLost(Failure(ConnectionDone()))

    def seconds(self, count: int, rate: int) -> None:
        """So long the client takes so many bytes in a second."""
        for _ in range(count):
            self.clock.advance(1)
            if not self.link.aborted:
                self.link.take(rate)

    def takes_all(self, rate: int) -> None:
        before = self.link.taken
        while self.link.taken - before < SIZE:
            taken = self.link.taken
            self.seconds(60, rate)
            assert self.link.taken > taken, f"it was cut after {taken} bytes"
        assert not self.link.aborted
        assert self.file.closed == self.file.opened


class RateTests(SlowFixture):
    """With a least rate it may be that slow, and no slower."""

    def test_a_client_at_the_least_rate_gets_everything(self) -> None:
        """Its blocks may each take minutes, and the last one no less."""
        self.send(GET % b"")
        self.takes_all(1100)
        self.send(GET % b"")
        self.takes_all(1100)

    def test_so_does_one_that_asked_for_nothing_more(self) -> None:
        self.send(GET % LAST)
        self.takes_all(1100)

    def test_a_client_below_it_is_cut(self) -> None:
        self.send(GET % b"")
        self.seconds(59, 1000)
        assert not self.link.aborted
        self.seconds(1, 1000)
        assert self.link.aborted
        assert self.file.closed == 1

    def test_also_in_the_middle(self) -> None:
        self.send(GET % b"")
        self.seconds(400, 1100)
        assert not self.link.aborted
        self.seconds(120, 900)
        assert self.link.aborted

    def test_also_at_the_end(self) -> None:
        """When all has been written, and the last block waits to be taken."""
        self.ends_too_slowly(b"")

    def test_also_at_the_end_of_a_connection(self) -> None:
        self.ends_too_slowly(LAST)

    def ends_too_slowly(self, more: bytes) -> None:
        self.send(GET % more)
        while self.file.closed == 0:
            self.seconds(1, 5000)
        self.seconds(59, 900)
        assert not self.link.aborted
        self.seconds(61, 900)
        assert self.link.aborted


class OffTests(SlowFixture):
    """Without one, it may be as slow as it likes, as long as it takes anything."""

    patience = Patience(min_rate=0)

    def test_a_byte_a_minute_is_something(self) -> None:
        self.send(GET % b"")
        self.lives_on_a_byte_a_minute()

    def test_also_at_the_end(self) -> None:
        self.send(GET % LAST)
        while self.file.closed == 0:
            self.seconds(1, 5000)
        self.lives_on_a_byte_a_minute()

    def lives_on_a_byte_a_minute(self) -> None:
        for _ in range(60):
            self.seconds(58, 0)
            self.seconds(1, 1)
        assert not self.link.aborted
        self.seconds(120, 0)
        assert self.link.aborted
        assert self.file.closed == 1

    def test_also_of_an_answer_that_waits_for_nothing_more(self) -> None:
        """What is short is written whole, and the connection waits for the next request."""
        self.send(GET % b"Range: bytes=0-59999\r\n")
        assert self.file.closed == 1
        for _ in range(60):
            self.seconds(58, 0)
            self.seconds(1, 1)
        assert not self.link.disconnecting
        self.seconds(120 + 15, 0)
        assert self.link.aborted

    def test_an_idle_client_that_took_everything_has_the_usual_time(self) -> None:
        self.send(GET % b"Range: bytes=0-59999\r\n")
        self.seconds(1, SIZE)
        self.clock.advance(58)
        assert not self.link.disconnecting
        self.clock.advance(1)
        assert self.link.disconnecting
