"""``X-Forwarded-*`` counts only when a proxy that the settings list says it."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from klein import Klein
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock

from backupd.errors import SettingsError
from backupd.links import Links
from backupd.settings import Settings, load
from backupd.trust.audit import Audit
from backupd.trust.registry import InMemory, Peers
from backupd.web.auth import Guard
from backupd.web.forwarded import Way
from backupd.web.site import BackupSite, StreamingRequest
from tests.receiver.fakes import sync
from tests.web.connection import SiteCase, Transport

PUBLIC = "backup.example.org"
PROXY = IPv4Address("TCP", "10.1.2.3", 4711)
LOCAL_PROXY = UNIXAddress(b"")


class Echo:
    """Answers everything that the guard lets through, and remembers who asked."""

    app = Klein()

    def __init__(self) -> None:
        self.ways: list[Way | None] = []

    @app.route("/up", methods=["GET", "POST"])
    def up(self, request: StreamingRequest) -> bytes:
        self.ways.append(request.way)
        return b"let through"


class ForwardedCase(SiteCase):
    """A site behind proxies; ``trusted`` is what the settings say."""

    trusted: tuple[str, ...] = ("10.1.0.0/16", "fd00::/8", "unix")

    def ask(self, peer: Any, *lines: str, method: str = "GET") -> tuple[int, Way | None]:
        """The status of one request from ``peer``, and whom the handler saw."""
        service: Any = SimpleNamespace(
            audit=Audit(None, sync, Clock()),
            ready=True,
            reactor=self.clock,
            links=Links(f"https://{PUBLIC}/behind/a/path"),
            settings=Settings(trusted_proxies=self.trusted),
            peers=Peers(InMemory(), sync),
        )
        echo = Echo()
        site = BackupSite(Guard(service, echo.app.resource()), reactor=self.clock)
        channel: Any = site.buildProtocol(PROXY)
        transport: Any = Transport(peerAddress=peer)
        transport.protocol = channel
        channel.makeConnection(transport)
        head = [f"{method} /up HTTP/1.1", "Connection: close", *lines, "", ""]
        channel.dataReceived("\r\n".join(head).encode())
        status = int(transport.value().split(b" ")[1])
        transport.abortConnection()
        return status, echo.ways[0] if echo.ways else None

    def way(self, peer: Any, *lines: str) -> Way:
        status, way = self.ask(peer, "Host: localhost", *lines)
        assert status == 200
        assert way is not None
        return way


class TrustedCase(ForwardedCase):
    """Some proxies are believed."""

    # -- the client's address -----------------------------------------------------------------

    def test_the_client_of_a_believed_proxy(self) -> None:
        """The proxy's word for its client counts, with or without a port, in both families."""
        for said, address in (
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7:5000", "192.0.2.7"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]:5000", "2001:db8::7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
        ):
            for proxy in (PROXY, LOCAL_PROXY, IPv6Address("TCP", "::ffff:10.1.2.3", 1)):
                assert self.way(proxy, f"X-Forwarded-For: {said}").address == address

    def test_what_the_client_itself_wrote(self) -> None:
        """Proxies append: what stands before the first stranger is the stranger's invention."""
        lie = "X-Forwarded-For: 203.0.113.9, 192.0.2.7, 10.1.0.5"
        assert self.way(PROXY, lie).address == "192.0.2.7"
        lines = ("X-Forwarded-For: 203.0.113.9", "X-Forwarded-For: 192.0.2.7")
        assert self.way(PROXY, *lines).address == "192.0.2.7"

    def test_a_chain_of_believed_proxies_only(self) -> None:
        """The first of it is the client: a machine of the proxies' own network."""
        assert self.way(PROXY, "X-Forwarded-For: 10.1.0.9, 10.1.0.5").address == "10.1.0.9"

    def test_nonsense_is_not_believed(self) -> None:
        """Nor what stands before it; the last that made sense is as far as we know."""
        assert self.way(PROXY, "X-Forwarded-For: 192.0.2.7, unknown").address == "10.1.2.3"
        line = "X-Forwarded-For: 192.0.2.7, unknown, 10.1.0.5"
        assert self.way(PROXY, line).address == "10.1.0.5"
        assert self.way(PROXY, "X-Forwarded-For:").address == "10.1.2.3"

    def test_without_the_headers(self) -> None:
        """It is the proxy itself that asks."""
        assert self.way(PROXY) == Way("10.1.2.3", "http", "localhost")
        assert self.way(LOCAL_PROXY).address == "unix"

    # -- host and scheme ----------------------------------------------------------------------

    def test_a_host_that_a_proxy_hides(self) -> None:
        """The forwarded host is the one that is checked, wherever the proxy itself sent it."""
        hidden = ("Host: internal-name",)
        assert self.ask(PROXY, *hidden)[0] == 421
        assert self.ask(PROXY, *hidden, f"X-Forwarded-Host: {PUBLIC}")[0] == 200
        assert self.ask(PROXY, "Host: localhost", "X-Forwarded-Host: evil.example")[0] == 421
        # Two proxies: the nearer one has the last word.
        both = "X-Forwarded-Host: evil.example, localhost"
        assert self.ask(PROXY, *hidden, both)[0] == 200

    def test_a_page_of_our_own_writes_through_the_proxy(self) -> None:
        """An origin is compared with what the browser asked, not with what the proxy did."""
        own = ("Host: localhost:8443", "Origin: https://localhost:8443")
        assert self.ask(PROXY, *own, method="POST")[0] == 403
        assert self.ask(PROXY, *own, "X-Forwarded-Proto: https", method="POST")[0] == 200
        assert self.ask(PROXY, *own, "X-Forwarded-Proto: HTTPS", method="POST")[0] == 200
        assert self.ask(PROXY, *own, "X-Forwarded-Proto: gopher", method="POST")[0] == 403

    def test_the_public_url_may_have_a_path(self) -> None:
        """Its origin is ours, whatever the proxy says."""
        line = f"Origin: https://{PUBLIC}"
        assert self.ask(PROXY, f"Host: {PUBLIC}", line, method="POST")[0] == 200

    # -- strangers ----------------------------------------------------------------------------

    def test_strangers_are_not_believed(self) -> None:
        """From any other address the headers are as if they were not there."""
        forged = (
            "X-Forwarded-For: 192.0.2.7",
            "X-Forwarded-Proto: https",
            f"X-Forwarded-Host: {PUBLIC}",
        )
        for peer, here in (
            (IPv4Address("TCP", "10.2.0.1", 1), "10.2.0.1"),
            (IPv6Address("TCP", "::1", 1), "::1"),
        ):
            assert self.way(peer, *forged) == Way(here, "http", "localhost")
            assert self.ask(peer, "Host: evil.example", *forged)[0] == 421
            own = ("Host: localhost:8443", "Origin: https://localhost:8443")
            assert self.ask(peer, *own, *forged, method="POST")[0] == 403


class UntrustedCase(ForwardedCase):
    """By default no proxy is believed, not even one on this machine."""

    trusted = ()

    def test_loopback_is_no_proxy_by_itself(self) -> None:
        """Every local program connects from there."""
        line = "X-Forwarded-For: 192.0.2.7"
        loopback = IPv4Address("TCP", "127.0.0.1", 1)
        for peer, here in ((loopback, "127.0.0.1"), (LOCAL_PROXY, "unix"), (PROXY, "10.1.2.3")):
            assert self.way(peer, line).address == here


@pytest.mark.parametrize("value", ["localhost", "10.0.0.1/8", "unix:", [7], "10.0.0.0/40"])
def test_a_proxy_is_an_address_a_network_or_unix(value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, {"trusted_proxies": value})
    assert caught.value.name == "trusted_proxies"


def test_several_proxies() -> None:
    given = "127.0.0.1 ::1 10.0.0.0/8 unix"
    assert load({}, {"trusted_proxies": given}).trusted_proxies == tuple(given.split())
