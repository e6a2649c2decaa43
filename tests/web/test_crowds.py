"""Of the connections of one address, when they are very many, a few at a time are listened to."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from backupd.web.connections import Connections
from backupd.web.crowds import AT_A_TIME, CROWD, EVERY
from backupd.web.forwarded import Proxies
from backupd.web.site import BackupSite
from tests.web.connection import Handlers, Transport

ASK = b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n"


class CrowdTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.handlers = Handlers()
        self.channels: list[Any] = []
        self.site = BackupSite(
            self.handlers.app.resource(),
            reactor=self.clock,
            connections=Connections(500, 500, self.clock, Proxies(["192.0.2.7"]).believed),
        )
        self.addCleanup(self.nothing_is_left)

    def nothing_is_left(self) -> None:
        for channel in self.channels:
            if channel.transport.connected:
                channel.transport.abortConnection()
        assert self.clock.getDelayedCalls() == []

    def come(self, host: str, count: int = 1) -> list[Any]:
        """So many connections from an address."""
        came: list[Any] = []
        for _ in range(count):
            address = IPv4Address("TCP", host, 1)
            channel: Any = self.site.buildProtocol(address)
            transport: Any = Transport(peerAddress=address)
            transport.protocol = channel
            channel.makeConnection(transport)
            came.append(channel)
        self.channels += came
        return came

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.clock.advance(EVERY)

    def heard(self, channels: list[Any]) -> list[Any]:
        """Those of which the network is read."""
        return [one for one in channels if one.transport.producerState == "producing"]

    def test_a_few_are_listened_to_at_once(self) -> None:
        """What comes before there is a crowd is heard at once, and so is the next address."""
        few = self.come("192.0.2.1", CROWD)
        assert self.heard(few) == few
        (other,) = self.come("192.0.2.2")
        assert self.heard([other]) == [other]

    def test_a_crowd_waits_and_nobody_else_does(self) -> None:
        crowd = self.come("192.0.2.1", CROWD + 100)[CROWD:]
        assert self.heard(crowd) == []
        (other,) = self.come("192.0.2.2")
        assert self.heard([other]) == [other]
        self.turns(1)
        assert self.heard(crowd) == crowd[:AT_A_TIME]

    def test_everyone_of_a_crowd_gets_a_turn_in_order(self) -> None:
        crowd = self.come("192.0.2.1", CROWD + 10)[CROWD:]
        self.turns(-(-10 // AT_A_TIME))
        assert self.heard(crowd) == crowd

    def test_the_next_request_waits_again(self) -> None:
        crowd = self.come("192.0.2.1", CROWD + 4)
        self.turns(4)
        last = crowd[-1]
        last.dataReceived(ASK)
        assert self.heard([last]) == [last]
        self.handlers.answers[-1].callback(b"ok")
        assert b"ok" in last.transport.value()
        assert self.heard([last]) == []
        self.turns(1)
        assert self.heard([last]) == [last]

    def test_behind_a_trusted_proxy_is_everybody(self) -> None:
        many = self.come("192.0.2.7", 3 * CROWD)
        assert self.heard(many) == many

    def test_who_leaves_is_waited_for_no_more(self) -> None:
        crowd = self.come("192.0.2.1", CROWD + 3)[CROWD:]
        for gone in crowd[:2]:
            gone.transport.connected = False
            gone.connectionLost(Failure(ConnectionDone()))
        self.turns(1)
        assert self.heard(crowd[2:]) == crowd[2:]

    def test_who_waits_in_line_is_not_taken_for_silent(self) -> None:
        """The idle timeout stands still; a head has its own time, and so an end."""
        (last,) = self.come("192.0.2.1", CROWD + 1)[CROWD:]
        assert last.timeOut is None
        self.turns(1)
        assert last.timeOut == self.site.timeOut
