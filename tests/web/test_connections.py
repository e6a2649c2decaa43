"""Who may be connected: in all, and from one address; the idle make way."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from backupd.web.connections import Connections
from backupd.web.forwarded import Proxies


def at(host: str) -> IPv4Address | IPv6Address:
    kind = IPv6Address if ":" in host else IPv4Address
    return kind("TCP", host, 1)


class Guest:
    def __init__(self) -> None:
        self.left = 0

    def let_go(self) -> None:
        self.left += 1


class PlacesTests(SynchronousTestCase):
    def setUp(self) -> None:
        proxies = Proxies(["192.0.2.7"])
        self.places = Connections(4, 2, Clock(), proxies.believed)

    def come(self, host: str, *, busy: bool = True) -> Guest | None:
        guest = Guest()
        if not self.places.come(guest, at(host)):
            return None
        if busy:
            self.places.busy(guest)
        return guest

    def test_no_more_than_so_many_in_all(self) -> None:
        assert all(self.come(f"192.0.2.{n}") for n in range(4))
        assert self.come("192.0.2.9") is None
        assert (len(self.places), self.places.refused) == (4, 1)

    def test_no_more_than_so_many_from_one_address(self) -> None:
        first = self.come("192.0.2.1")
        assert first
        assert self.come("192.0.2.1")
        assert self.come("192.0.2.1") is None
        assert self.come("192.0.2.2")
        self.places.gone(first)
        self.places.gone(first)
        assert self.come("192.0.2.1")
        assert self.come("192.0.2.1") is None

    def test_addresses_that_cost_nothing_count_as_one(self) -> None:
        """One customer has a whole /64; an IPv4 address may come mapped."""
        assert self.come("2001:db8::1")
        assert self.come("2001:db8::ffff:1")
        assert self.come("2001:db8::2") is None
        assert self.come("::ffff:192.0.2.1")
        assert self.come("192.0.2.1")
        self.places = Connections(9, 2, Clock())
        assert self.come("::ffff:192.0.2.1")
        assert self.come("192.0.2.1")
        assert self.come("192.0.2.1") is None

    def test_a_proxy_is_everybody(self) -> None:
        assert all(self.come("192.0.2.7") for _ in range(4))

    def test_a_socket_in_the_file_system_has_no_address(self) -> None:
        assert all(self.places.come(Guest(), UNIXAddress(b"/x")) for _ in range(4))

    def test_who_is_idle_for_longest_makes_way(self) -> None:
        guests = [self.come(f"192.0.2.{n}", busy=False) for n in range(4)]
        first, second, *_ = guests
        assert first
        assert second
        self.places.busy(first)
        self.places.idle(first)  # and so it is the last of them now
        assert self.come("192.0.2.9")
        assert [one.left for one in guests if one] == [0, 1, 0, 0]
        assert len(self.places) == 4

    def test_who_has_gone_is_not_idle(self) -> None:
        guests = [self.come(f"192.0.2.{n}") for n in range(4)]
        assert guests[0]
        self.places.gone(guests[0])
        self.places.idle(guests[0])
        assert self.come("192.0.2.9")
        assert self.come("192.0.2.10") is None
        assert guests[0].left == 0
