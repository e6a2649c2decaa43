"""What one server says to another: one method per message of PROTOCOL.md.

No redirect is followed. Messages for the user show the other server's origin and never a link,
which may hold a capability.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any, cast
from urllib.parse import quote

from OpenSSL import SSL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet import defer
from twisted.internet import error as network
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IConsumer, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    HTTPConnectionPool,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from backupd.errors import PeerFailed, PeerSilent
from backupd.peer.answers import Answer, accepted, answer_of, place_called, refusal, shown
from backupd.peer.connector import OPEN_ROUTE, Connector, Routes
from backupd.peer.exchange import MAX_ANSWER, Exchange
from backupd.peer.origins import Place
from backupd.peer.tls import ClientTls
from backupd.waiting import go_on

__all__ = [
    "TIMEOUT",
    "Connect",
    "PeerClient",
    "make_client",
    "make_http",
]

TIMEOUT = 15.0
"""Seconds for a small message and its whole answer."""

STORING = 120.0
"""Seconds for the answer to ``complete-backup``: the receiver syncs before it says yes."""

NEVER_MIND = frozenset({409, 410})
"""What a HEAD on an upload link may be refused with; anything else means "not known here"."""

Connect = Callable[[Place], IStreamClientEndpoint]


class PeerClient:
    """Speaks to other servers. ``connect`` makes the endpoints of uploads.

    A token goes to the place that ``routes`` has it for, and nowhere else: no redirect is followed.
    """

    def __init__(
        self,
        http: HTTPClient,
        clock: IReactorTime,
        connect: Connect,
        routes: Routes = lambda place: OPEN_ROUTE,
    ) -> None:
        self._http = http
        self._clock = clock
        self._connect = connect
        self._routes = routes

    def _authority(self, place: Place) -> dict[str, str]:
        token = self._routes(place).token
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    # -- messages ---------------------------------------------------------------------------------

    async def ask(self, to: str, message: Mapping[str, object]) -> dict[str, object]:
        """Ask the server at ``to`` for room; yes and no are both answers.

        Raises `PeerRefused` when it did not take the question, `PeerFailed` without an answer:
        `PeerSilent` when it was waited for in vain.
        """
        url = f"{to.rstrip('/')}/api/v1/backup/can-accept-backup"
        answer = accepted(url, await self._message("POST", url, message))
        if not isinstance(answer.body.get("success"), bool):
            raise PeerFailed(f"{shown(url)} answered neither yes nor no.", answer.retry_after)
        return answer.body

    async def tell(self, method: str, url: str, message: Mapping[str, object]) -> dict[str, object]:
        """A message about the pairing itself. Raises `PeerRefused`, `PeerFailed`."""
        return accepted(url, await self._message(method, url, message)).body

    async def offer(self, link: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Tell a sender that it is its turn. Raises `PeerFailed` when there is no answer."""
        return await self.small("POST", link, body, {"Content-Type": "application/json"} | headers)

    async def status(self, url: str) -> dict[str, object]:
        """What the other server tells of a request, or us. Raises `PeerRefused`, `PeerFailed`."""
        return accepted(url, await self.small("GET", url)).body

    async def standing(self, link: str) -> int | None:
        """The offset at which an upload goes on; None when the receiver does not tell.

        Raises `PeerRefused` with status 409 when the backup is stored already and 410 when the
        request is over, `PeerFailed` without an answer.
        """
        answer = await self.small("HEAD", link, None, {"Tus-Resumable": "1.0.0"})
        if answer.status in NEVER_MIND:
            raise refusal(link, answer)
        offset = answer.body.get("receivedBytes")
        return offset if answer.status < 300 and isinstance(offset, int) else None

    async def complete(self, link: str, message: Mapping[str, object]) -> dict[str, object]:
        """Say that an upload is whole, or given up. Raises `PeerRefused`, `PeerFailed`."""
        return accepted(link, await self._message("POST", link, message, STORING)).body

    # -- uploads ----------------------------------------------------------------------------------

    async def send(
        self,
        link: str,
        body: IBodyProducer,
        *,
        content_type: str | None,
        file_name: str,
        sha256: str | None = None,
    ) -> dict[str, object]:
        """Upload a whole file by POST, with its SHA-256 (RFC 9530) if that is known already.

        Raises `PeerRefused`, `PeerFailed`, what ``body`` raises.
        """
        name = quote(file_name.encode("utf-8", "replace"), safe="")
        headers = {
            "Content-Type": content_type or "application/octet-stream",
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
        }
        if sha256 is not None:
            digest = b64encode(bytes.fromhex(sha256)).decode()
            headers["Repr-Digest"] = f"sha-256=:{digest}:"
        return await self.upload("POST", link, body, headers)

    async def resume(self, link: str, offset: int, body: IBodyProducer) -> dict[str, object]:
        """Upload what lies behind ``offset`` by PATCH (tus 1.0.0). Raises as `send`."""
        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(offset),
        }
        return await self.upload("PATCH", link, body, headers)

    async def upload(
        self, method: str, link: str, body: IBodyProducer, headers: Mapping[str, str]
    ) -> dict[str, object]:
        """One request with a long body. Raises `PeerRefused`, `PeerFailed`, what it raises."""
        place = place_called(link)
        lines = [f"{method} {place.target} HTTP/1.1", f"Host: {place.netloc}"]
        sent = {"User-Agent": "backupd", "Accept": "application/json", "Connection": "close"}
        sent |= {"Content-Length": str(body.length)} | dict(headers) | self._authority(place)
        lines += [f"{name}: {value}" for name, value in sent.items()]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        exchange = Exchange(head, body, self._clock, place.origin)
        try:
            await connectProtocol(self._connect(place), exchange)
        except Exception as error:
            raise _failed(place, error) from error
        reply = await exchange.replied
        answer = answer_of(
            reply.status, dict(reply.headers.items()), reply.body, self._clock.seconds()
        )
        return accepted(link, answer).body

    # -- small messages ---------------------------------------------------------------------------

    async def _message(
        self, method: str, url: str, message: Mapping[str, object], limit: float = TIMEOUT
    ) -> Answer:
        body = json.dumps(message).encode()
        return await self.small(method, url, body, {"Content-Type": "application/json"}, limit)

    async def small(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: float = TIMEOUT,
    ) -> Answer:
        """One request and its whole answer, within ``limit`` seconds. Raises `PeerFailed`."""
        place = place_called(url)
        sent = Headers({"User-Agent": ["backupd"], "Accept": ["application/json"]})
        for name, value in (dict(headers or {}) | self._authority(place)).items():
            sent.setRawHeaders(name, [value])

        async def exchange() -> tuple[IResponse, bytes]:
            response = await self._http.request(
                method,
                url,
                headers=sent,
                data=body,
                allow_redirects=False,
                unbuffered=True,
                reactor=cast(Any, self._clock),
            )
            return response, await _collect(response)

        going, late = go_on(exchange()), False

        def give_up() -> None:
            nonlocal late
            late = True
            going.cancel()

        limiter = self._clock.callLater(limit, give_up)
        try:
            response, content = await going
        except Exception as error:
            if late:
                raise PeerSilent(f"{place.origin} did not answer within {limit:.0f} s.") from error
            raise _failed(place, error) from error
        finally:
            if limiter.active():
                limiter.cancel()
        told = response.headers.getAllRawHeaders()
        named = {name.decode("latin-1"): values[-1].decode("latin-1") for name, values in told}
        return answer_of(response.code, named, content, self._clock.seconds())


def _failed(place: Place, error: BaseException) -> PeerFailed | CancelledError:
    """A sentence for what the network did; a cancellation stays one."""
    origin = place.origin
    wrappers = (ResponseFailed, ResponseNeverReceived, RequestTransmissionFailed)
    while isinstance(error, wrappers) and error.reasons:
        error = error.reasons[-1].value
    match error:
        case PeerFailed() | CancelledError():
            return error
        case network.ConnectionRefusedError():
            why = f"{origin} refused the connection."
        case network.DNSLookupError() | network.UnknownHostError():
            return PeerSilent(f"The name {place.host} was not found.")
        case network.TimeoutError() | network.ConnectingCancelledError():
            return PeerSilent(f"{origin} did not answer within {TIMEOUT:.0f} s.")
        case network.ConnectionDone() | network.ConnectionLost() | network.ConnectionAborted():
            why = f"{origin} closed the connection without an answer."
        case SSL.Error():
            why = (
                f"{origin} does not prove that it is who was meant, or does not speak TLS 1.2 or "
                "newer; no word was said to it."
            )
        case network.ConnectError():
            return PeerSilent(f"{origin} could not be reached ({type(error).__name__}).")
        case _:
            # Its text may quote the link.
            why = f"The exchange with {origin} failed ({type(error).__name__})."
    return PeerFailed(why)


class _Collector(Protocol):
    """Gathers a bounded body; ends the connection when it is longer, or nobody waits for it."""

    def __init__(self) -> None:
        self.body: Deferred[bytes] = Deferred(lambda _: self._hang_up())
        self._data = b""

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        self._data += data
        if len(self._data) > MAX_ANSWER and not self.body.called:
            self._hang_up()
            self.body.errback(PeerFailed("The other server's answer is longer than 64 KiB."))

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        if self.body.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.body.callback(self._data)
        else:
            self.body.errback(reason)

    def _hang_up(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


def _collect(response: IResponse) -> Deferred[bytes]:
    collector = _Collector()
    response.deliverBody(collector)
    return collector.body


# -- what it stands on -----------------------------------------------------------------------------


@implementer(IAgent)
class _Plain:
    """Asks for no content coding, and takes none: 64 KiB of gzip can be 64 MiB."""

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,  # noqa: N803
    ) -> Deferred[IResponse]:
        headers = Headers() if headers is None else headers.copy()
        headers.removeHeader(b"accept-encoding")
        done = self._agent.request(method, uri, headers, bodyProducer)
        return done.addCallback(self._uncoded)

    def _uncoded(self, response: IResponse) -> IResponse:
        response.headers.removeHeader(b"content-encoding")
        return response


@implementer(IBodyProducer)
class _Whole:
    """A small body, written at once: Twisted's own needs the global reactor's turns."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:  # noqa: N802
        consumer.write(self._data)
        return defer.succeed(None)

    def pauseProducing(self) -> None:  # noqa: N802
        """It is too late."""

    resumeProducing = stopProducing = pauseProducing  # noqa: N815


def make_http(agent: IAgent) -> HTTPClient:
    """A client that keeps no cookies and decodes nothing."""
    nothing = DefaultCookiePolicy(allowed_domains=[])
    return HTTPClient(_Plain(agent), IndexableCookieJar(nothing), _Whole)


def make_client(
    reactor: Any,
    routes: Routes = lambda place: OPEN_ROUTE,
    tls: ClientTls | None = None,
) -> PeerClient:
    """A client on the network of ``reactor``: one connection per message.

    ``routes`` says how each place is reached.
    """
    connector = Connector(reactor, routes, tls or ClientTls(), TIMEOUT)
    pool = HTTPConnectionPool(reactor, persistent=False)
    agent = Agent.usingEndpointFactory(reactor, connector, pool)
    return PeerClient(make_http(agent), reactor, connector.connect, routes)
