"""The callback guard: nothing is connected to but what was looked up once and may be called.

The DNS server is the test's own, and may answer the second question differently from the first.
"""

# mypy: disable-error-code="untyped-decorator,no-untyped-call"

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import maybeDeferred, succeed
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.names import dns
from twisted.names.client import Resolver
from twisted.names.server import DNSServerFactory
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from backupd.errors import PeerFailed
from backupd.peer.addresses import ANYWHERE, LOOPBACK, PUBLIC, Reach
from backupd.peer.client import PeerClient, make_client
from backupd.peer.connector import Route
from backupd.peer.origins import Place
from tests.peer.plain import Connection, Plain, answer


class Zone:
    """A DNS server's mind: each question gets the next of ``answers``, then the last again."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    def query(self, query: Any, timeout: object = None) -> Any:
        self.asked += 1
        found = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        records = []
        for address in found:
            kind = dns.AAAA if ":" in address else dns.A
            payload = (dns.Record_AAAA if ":" in address else dns.Record_A)(address, ttl=0)
            records.append(dns.RRHeader(query.name.name, kind, ttl=0, payload=payload))
        return succeed((records, [], []))


class Names:
    """Looks names up with that server, whatever kind of record it answers with."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    def resolveHostName(self, receiver: Any, host: str, portNumber: int = 0, *_: Any) -> Any:  # noqa: N803
        receiver.resolutionBegan(self)

        def resolved(found: Any) -> None:
            for record in found[0]:
                text = record.payload.dottedQuad() if record.type == dns.A else None
                if text is not None:
                    receiver.addressResolved(IPv4Address("TCP", text, portNumber))
                else:
                    six = str(ip_address(record.payload.address))
                    receiver.addressResolved(IPv6Address("TCP", six, portNumber))

        done = self._resolver.lookupAddress(host).addCallbacks(resolved, lambda _: None)
        done.addCallback(lambda _: receiver.resolutionComplete())
        return self


@implementer(IReactorPluggableNameResolver)
class Network:
    """The reactor, with those names; it notes whom it connects to.

    Every address is a port of this machine, so that there are "public" ones to call.
    """

    def __init__(self, names: Names, port: int) -> None:
        self.connected: list[str] = []
        self.nameResolver = names
        self._port = port

    def installNameResolver(self, resolver: Any) -> Any:
        raise NotImplementedError

    def connectTCP(self, host: str, port: int, factory: Any, *args: Any, **named: Any) -> Any:
        self.connected.append(host)
        real: Any = reactor
        return real.connectTCP("127.0.0.1", self._port, factory, *args, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


@asynccontextmanager
async def network(zone: Zone, port: int) -> AsyncIterator[Network]:
    real: Any = reactor
    factory = DNSServerFactory(clients=[zone])
    factory.noisy = False
    protocol = dns.DNSDatagramProtocol(factory)
    protocol.noisy = False
    listening = real.listenUDP(0, protocol, interface="127.0.0.1")
    resolver = Resolver(servers=[("127.0.0.1", listening.getHost().port)], timeout=(5,))
    try:
        yield Network(Names(resolver), port)
    finally:
        await maybeDeferred(listening.stopListening)


def yes(connection: Connection) -> None:
    connection.read()
    connection.say(answer("200 OK", b'{"success": true}'))


def client(network: Any, reach: Reach, **route: Any) -> PeerClient:
    return make_client(network, lambda place: Route(reach=reach, **route))


@pytest_twisted.ensureDeferred
async def test_what_was_checked_is_what_is_connected_to() -> None:
    """The name moves to this machine after it was looked up: too late, nobody asks again."""
    zone = Zone(["8.8.8.8"], ["127.0.0.1"])
    with Plain(yes) as plain:
        async with network(zone, plain.port) as net:
            said = await client(net, PUBLIC).offer("http://b.example/x", b"{}", {})
    assert said.status == 200
    assert net.connected == ["8.8.8.8"]
    assert zone.asked == 1


@pytest_twisted.ensureDeferred
async def test_a_name_that_has_moved_to_this_machine_is_not_called() -> None:
    """Zero connections, on a small message and on an upload's way alike."""
    zone = Zone(["8.8.8.8"], ["127.0.0.1"])
    with Plain(yes) as plain:
        async with network(zone, plain.port) as net:
            peer = client(net, PUBLIC)
            assert (await peer.offer("http://b.example/x", b"{}", {})).status == 200
            net.connected.clear()
            with pytest.raises(PeerFailed, match=r"b\.example is at 127\.0\.0\.1, a loopback"):
                await peer.offer("http://b.example/x", b"{}", {})
            with pytest.raises(PeerFailed, match="a loopback address"):
                await peer.send("http://b.example/x", Nothing(), content_type=None, file_name="x")
    assert net.connected == []


@implementer(IBodyProducer)
class Nothing:
    """A body that nobody may ask for."""

    length = 0

    def startProducing(self, consumer: Any) -> Any:
        raise AssertionError("it was sent")

    def pauseProducing(self) -> None:
        pass

    resumeProducing = stopProducing = pauseProducing  # noqa: N815


@pytest.mark.parametrize(
    "found",
    [
        ["8.8.8.8", "10.0.0.1"],
        ["10.0.0.1", "8.8.8.8"],
        ["8.8.8.8", "fd00::1"],
        ["64:ff9b::a00:1"],
        ["168.63.129.16"],
        ["100.64.0.1"],
    ],
)
@pytest_twisted.ensureDeferred
async def test_one_address_that_may_not_be_called_is_enough(found: list[str]) -> None:
    """A name that is here and there at once belongs to somebody who tries something."""
    zone = Zone(found)
    with Plain(yes) as plain:
        async with network(zone, plain.port) as net:
            with pytest.raises(PeerFailed, match="is not called unless the networks"):
                await client(net, PUBLIC).offer("http://b.example/x", b"{}", {})
    assert net.connected == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "10.0.0.1",
        "169.254.169.254",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "0177.0.0.1",
        "127.1",
        "localhost.",
        "127.0.0.1.",
        "0",
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_address_in_the_link_is_checked_too(host: str) -> None:
    """However it is written, and without a look-up."""
    zone = Zone(["8.8.8.8"])
    with Plain(yes) as plain:
        async with network(zone, plain.port) as net:
            with pytest.raises(PeerFailed):
                await client(net, PUBLIC).offer(f"http://{host}:{plain.port}/x", b"{}", {})
    assert net.connected == []
    assert zone.asked == 0


@pytest_twisted.ensureDeferred
async def test_what_the_peers_networks_name_is_called() -> None:
    zone = Zone(["192.168.7.9"])
    with Plain(yes) as plain:
        async with network(zone, plain.port) as net:
            named = client(net, Reach.naming(["192.168.7.0/24"]))
            assert (await named.offer("http://b.example/x", b"{}", {})).status == 200
            assert net.connected == ["192.168.7.9"]
            with pytest.raises(PeerFailed, match="no loopback address"):
                await client(net, LOOPBACK).offer("http://8.8.8.8/x", b"{}", {})


@pytest_twisted.ensureDeferred
async def test_a_name_without_an_address_is_told_as_such() -> None:
    async with network(Zone([]), 1) as net:
        with pytest.raises(PeerFailed, match=r"^The name b\.example was not found\.$"):
            await client(net, PUBLIC).offer("http://b.example/x", b"{}", {})


# -- where a token goes ----------------------------------------------------------------------------


def shown(connection: Connection) -> str | None:
    return connection.headers.get("authorization")


@pytest_twisted.ensureDeferred
async def test_a_token_goes_to_its_own_place_and_follows_no_redirect() -> None:
    """The one it belongs to gets it, with every kind of message; whoever that sends us to does
    not, nor any other port or scheme of it.
    """
    tokens: dict[str, list[str | None]] = {"friend": [], "other": []}

    def other(connection: Connection) -> None:
        tokens["other"].append(shown(connection))
        yes(connection)

    with Plain(other) as elsewhere:

        def friend(connection: Connection) -> None:
            tokens["friend"].append(shown(connection))
            connection.read()
            away = f"Location: {elsewhere.url}/stolen"
            connection.say(answer("307 Temporary Redirect", b"{}", away))

        with Plain(friend) as here:

            def routes(place: Place) -> Route:
                mine = place.origin == here.url
                return Route(token="their-token" if mine else None, reach=ANYWHERE)

            peer = make_client(reactor, routes)
            assert (await peer.offer(f"{here.url}/x", b"{}", {})).status == 307
            for ask in (
                lambda: peer.ask(here.url, {}),
                lambda: peer.status(f"{here.url}/x"),
                lambda: peer.complete(f"{here.url}/x", {}),
            ):
                with pytest.raises(PeerFailed, match="answered 307"):
                    await ask()
            await peer.ask(elsewhere.url, {})
    assert tokens["friend"] == ["Bearer their-token"] * 4
    assert tokens["other"] == [None]


@pytest_twisted.ensureDeferred
async def test_what_must_be_tls_is_never_plain() -> None:
    with Plain(yes) as plain:
        pinned = make_client(reactor, lambda place: Route(pin="sha256//" + "A" * 43 + "="))
        with pytest.raises(PeerFailed, match="by TLS only"):
            await pinned.offer(f"{plain.url}/x", b"{}", {})
        with pytest.raises(PeerFailed, match="by TLS only"):
            await pinned.send(f"{plain.url}/x", Nothing(), content_type=None, file_name="x")
    assert plain.lines == []


@pytest_twisted.ensureDeferred
async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Plain(yes) as proxy, Plain(yes) as plain:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert (await make_client(reactor).offer(f"{plain.url}/x", b"{}", {})).status == 200
    assert proxy.lines == []


@pytest_twisted.ensureDeferred
async def test_an_answer_is_bounded() -> None:
    def much(connection: Connection) -> None:
        connection.read()
        connection.say(answer("200 OK", b'"' + b"x" * 70_000 + b'"'))

    with Plain(much) as plain, pytest.raises(PeerFailed, match="longer than 64 KiB"):
        await make_client(reactor).offer(f"{plain.url}/x", b"{}", {})
