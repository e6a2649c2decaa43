"""Where connections to other servers are made, and so where it is decided whether they may be.

A name is looked up once; if any of its addresses may not be called, none is. The connection then
goes to an address that was checked, not to the name: a DNS server that answers differently the
second time is not asked a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from backupd.errors import CallForbidden, PeerFailed, PeerSilent
from backupd.peer.addresses import ANYWHERE, Reach, literal
from backupd.peer.origins import Place
from backupd.peer.tls import ClientTls
from backupd.waiting import go_on

__all__ = ["OPEN_ROUTE", "Connector", "Route", "Routes"]

MAX_ADDRESSES = 16
"""So many addresses of one name are tried."""


@dataclass(frozen=True, slots=True)
class Route:
    """How one place is reached: the token that is shown there and nowhere else, the public key
    that it must have (None: one that the system's authorities vouch for), and the addresses that
    it may be at.
    """

    token: str | None = field(default=None, repr=False)
    pin: str | None = None
    reach: Reach = ANYWHERE


OPEN_ROUTE = Route()
"""For a place that the operator has named, and that is no peer's."""

MAX_SAID = 256 * 1024
"""Bytes that may come over a connection for one small answer, with head and framing."""

Routes = Callable[[Place], Route]
"""How a place is reached; raises `PeerFailed` when it may not be called at all."""


@implementer(IStreamClientEndpoint)
class _Guarded:
    """Looks up, checks, and connects to what was checked. Without a log line each time."""

    def __init__(self, reactor: Any, place: Place, route: Route, tls: Any, limit: float) -> None:
        self._reactor = reactor
        self._place = place
        self._route = route
        self._tls = tls
        self._limit = limit

    def connect(self, protocolFactory: Any) -> Deferred[Any]:  # noqa: N803
        protocolFactory.noisy = False
        return go_on(self._connect(protocolFactory))

    async def _connect(self, factory: Any) -> Any:
        place = self._place
        addresses = await self._addresses()
        for address in addresses:
            why = self._route.reach.refusal(ip_address(address.host))
            if why is not None:
                raise CallForbidden(
                    f"{place.host} is at {address.host}, {why}: it is not called unless the "
                    "networks of this peer name it."
                )
        known: Any = _Known(self._reactor, addresses)
        endpoint = HostnameEndpoint(known, place.host, place.port, timeout=self._limit)
        if self._tls is not None:
            return await wrapClientTLS(self._tls, endpoint).connect(factory)
        return await endpoint.connect(factory)

    async def _addresses(self) -> list[Any]:
        host, port = self._place.host, self._place.port
        try:
            address = literal(host)
        except ValueError as error:
            raise PeerFailed(f"{self._place.origin} {error}.") from error
        if address is not None:
            kind = IPv6Address if address.version == 6 else IPv4Address
            return [kind("TCP", str(address), port)]
        gathered: Deferred[list[IAddress]] = Deferred()
        self._reactor.nameResolver.resolveHostName(_Gather(gathered), host, portNumber=port)
        found = await gathered
        if not found:
            raise PeerSilent(f"The name {host} was not found.")
        return found


@implementer(IResolutionReceiver)
class _Gather:
    """Every address of a name."""

    def __init__(self, done: Deferred[list[IAddress]]) -> None:
        self._done = done
        self._found: list[IAddress] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:  # noqa: N802, N803
        """Nothing to do."""

    def addressResolved(self, address: IAddress) -> None:  # noqa: N802
        self._found.append(address)

    def resolutionComplete(self) -> None:  # noqa: N802
        if not self._done.called:
            self._done.callback(self._found)


@implementer(IStreamClientEndpoint)
class _Bounded:
    """Cuts a connection over which more comes than an answer can have.

    Twisted's client bounds neither how many headers there are, nor how long one is that goes on
    over many lines, nor how many interim answers come before the one that counts.
    """

    def __init__(self, endpoint: IStreamClientEndpoint, origin: str) -> None:
        self._endpoint = endpoint
        self._why = f"{origin} answers more than {MAX_SAID // 1024} KiB, head included."

    def connect(self, protocolFactory: Any) -> Deferred[Any]:  # noqa: N803
        build = protocolFactory.buildProtocol
        protocolFactory.buildProtocol = lambda address: self._counting(build(address))
        return self._endpoint.connect(protocolFactory)

    def _counting(self, protocol: Any) -> Any:
        take, lost, said = protocol.dataReceived, protocol.connectionLost, 0

        def data_received(data: bytes) -> None:
            nonlocal said
            if said > MAX_SAID:
                return
            said += len(data)
            if said > MAX_SAID:
                protocol.transport.abortConnection()
            else:
                take(data)

        def connection_lost(reason: Failure) -> None:
            lost(Failure(PeerFailed(self._why)) if said > MAX_SAID else reason)

        protocol.dataReceived, protocol.connectionLost = data_received, connection_lost
        return protocol


@implementer(IReactorPluggableNameResolver)
class _Known:
    """A reactor to which a name has these addresses, and that can look up nothing else."""

    def __init__(self, reactor: Any, addresses: list[IAddress]) -> None:
        self._reactor = reactor
        self.nameResolver: IHostnameResolver = _Answer(addresses[:MAX_ADDRESSES])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:  # noqa: N802
        """Never called."""
        raise NotImplementedError


@implementer(IHostnameResolver, IHostResolution)
class _Answer:
    """The one answer, whatever is asked."""

    def __init__(self, addresses: list[IAddress]) -> None:
        self.name = "checked"
        self._addresses = addresses

    def resolveHostName(  # noqa: N802
        self,
        resolutionReceiver: IResolutionReceiver,  # noqa: N803
        hostName: str,  # noqa: N803
        portNumber: int = 0,  # noqa: N803
        addressTypes: Sequence[type[IAddress]] | None = None,  # noqa: N803
        transportSemantics: str = "TCP",  # noqa: N803
    ) -> IHostResolution:
        resolutionReceiver.resolutionBegan(self)
        for address in self._addresses:
            resolutionReceiver.addressResolved(address)
        resolutionReceiver.resolutionComplete()
        return self

    def cancel(self) -> None:
        """It has been given already."""


@implementer(IAgentEndpointFactory)
class Connector:
    """One way to connect, for small messages and uploads. ``limit`` is in seconds."""

    def __init__(self, reactor: Any, routes: Routes, tls: ClientTls, limit: float) -> None:
        self._reactor = reactor
        self._routes = routes
        self._tls = tls
        self._limit = limit

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:  # noqa: N802
        place = Place(uri.scheme.decode(), uri.host.decode(), uri.port, "/")
        return _Bounded(self.connect(place), place.origin)

    def connect(self, place: Place) -> IStreamClientEndpoint:
        """The endpoint of a place. Raises `PeerFailed` when it may not be called."""
        route = self._routes(place)
        tls = self._tls.options(place.host, route.pin) if place.scheme == "https" else None
        if tls is None and route.pin is not None:
            raise PeerFailed(f"{place.origin} is to be reached by TLS only.")
        return _Guarded(self._reactor, place, route, tls, self._limit)
