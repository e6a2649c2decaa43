"""The guard before the whole tree: no new route can forget it.

It finds out who is calling; what each may do is said where a route is registered, and nothing is
registered without saying so. In open mode (no peers are configured) every caller is local, so
what is left to fear is a web page: one that was rebound to this address (its ``Host`` is not
ours), or one that posts from another origin.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from backupd.errors import BackupdError, Forbidden, Invalid, Misdirected, ShuttingDown
from backupd.peer.origins import is_loopback
from backupd.service import BackupService
from backupd.trust.caller import LOCAL, OPERATOR, STRANGER, Caller, Kind
from backupd.trust.peers import Peer, token_hash
from backupd.web.cors import allow
from backupd.web.endpoint import note_refusal, problem, write
from backupd.web.forwarded import Proxies, Way
from backupd.web.site import StreamingRequest

__all__ = ["Guard"]

_READING = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class Guard(Resource):
    """Stands before ``inner`` and lets through what may pass."""

    isLeaf = True  # noqa: N815

    def __init__(self, service: BackupService, inner: IResource) -> None:
        Resource.__init__(self)
        self._service = service
        self._inner = inner
        self._proxies = Proxies(service.settings.trusted_proxies)
        self._under_way: dict[str, set[StreamingRequest]] = {}
        service.peers.watch(self._changed)

    def render(self, request: StreamingRequest) -> Any:
        _as_utf8(request)
        _override(request)
        allow(request, self._service.settings.allowed_origins)
        request.way = self._proxies.way(request)
        request.caller = self._caller(request)
        try:
            if request.caller.peer is not None:
                self._service.rates.take(request.caller.peer)
            self._check(request, request.way)
        except BackupdError as error:
            if isinstance(error, Forbidden | Misdirected):
                note_refusal(self._service, request, error)
            request.write(write(request, problem(error)))
            request.finish()
            return NOT_DONE_YET
        if request.caller.peer is not None:
            self._note(request, request.caller.peer.name)
        return self._inner.render(request)

    def _note(self, request: StreamingRequest, peer: str) -> None:
        """Remember what a peer has under way, so that it can be cut."""
        self._under_way.setdefault(peer, set()).add(request)

        def done(_: object) -> None:
            mine = self._under_way[peer]
            mine.discard(request)
            if not mine:
                del self._under_way[peer]

        request.notifyFinish().addBoth(done)

    def _changed(self, peer: Peer) -> None:
        """Whoever is out has nothing under way any more, neither up nor down."""
        if peer.state == "revoked":
            for request in list(self._under_way.get(peer.name, ())):
                request.abort()

    def _caller(self, request: StreamingRequest) -> Caller:
        """Who is calling. A wrong token is as good as none."""
        service = self._service
        scheme, _, token = (request.getHeader("authorization") or "").partition(" ")
        if scheme.lower() == "bearer":
            token = token.strip()
            if service.own.is_token(token):
                return OPERATOR
            if (peer := service.peers.by_token(token)) is not None:
                return Caller(Kind.PEER, peer, token_hash(token))
        return STRANGER if service.peers.closed else LOCAL

    def _check(self, request: StreamingRequest, way: Way) -> None:
        try:
            path = request.path.decode("ascii")
        except UnicodeDecodeError as error:
            raise Invalid("path", "has characters that must be percent-encoded") from error
        self._check_escapes(request)
        if not self._service.ready and path != "/healthz":
            raise ShuttingDown("This server is starting or stopping; try again shortly.", 2.0)
        self._check_host(request, way)
        if request.method not in _READING:
            self._check_origin(request, way)

    def _check_escapes(self, request: StreamingRequest) -> None:
        for part in request.postpath or []:
            try:
                part.decode("utf-8")
            except UnicodeDecodeError as error:
                raise Invalid("path", "is not UTF-8") from error

    def _check_host(self, request: StreamingRequest, way: Way) -> None:
        hosts = request.requestHeaders.getRawHeaders("host") or []
        if not hosts and request.clientproto == b"HTTP/1.0":
            return
        if len(hosts) != 1:
            raise Invalid("Host", "must be there once")
        # The router makes it ASCII, whatever comes of that, and does not expect to fail.
        if not _is_name(request.getRequestHostname().decode("utf-8", "replace")):
            raise Invalid("Host", "is no name of a host")
        if self._service.peers.closed:
            return  # a rebound page has no token, and so nothing to gain
        own = urlsplit(self._service.links.base).netloc
        host = way.host or hosts[0]
        if host.lower() == own.lower() or is_loopback(_hostname(host)):
            return
        raise Misdirected("This server does not answer for the host that was asked.")

    def _check_origin(self, request: StreamingRequest, way: Way) -> None:
        allowed = self._service.settings.allowed_origins
        origin = request.getHeader("origin")
        if origin is not None and origin in allowed:
            return
        if origin is not None and not self._is_own(origin, way):
            raise Forbidden(f"Pages of {origin[:200]} may not write here; see allowed_origins.")
        if request.getHeader("sec-fetch-site") == "cross-site":
            raise Forbidden("Pages of other sites may not write here; see allowed_origins.")

    def _is_own(self, origin: str, way: Way) -> bool:
        base = urlsplit(self._service.links.base)
        return origin in (f"{base.scheme}://{base.netloc}", f"{way.scheme}://{way.host}")


def _override(request: StreamingRequest) -> None:
    """The method is the one that X-HTTP-Method-Override says, if it is there (tus 1.0.0).

    Everything that follows, the check of the origin too, sees that one.
    """
    meant = (request.getHeader("x-http-method-override") or "").strip().upper()
    if re.fullmatch("[A-Z]{1,16}", meant):
        request.method = meant.encode()


def _as_utf8(request: StreamingRequest) -> None:
    """Header values that are not UTF-8 become it, read as the ISO 8859-1 that they once were.

    Whoever reads one as text further on would fail.
    """
    headers = request.requestHeaders
    for name, values in list(headers.getAllRawHeaders()):
        try:
            b"".join(values).decode("utf-8")
        except UnicodeDecodeError:
            headers.setRawHeaders(name, [value.decode("latin-1").encode() for value in values])


def _is_name(host: str) -> bool:
    """Whether this can be told from a URL: no empty label, and none of more than 63 characters."""
    try:
        host.partition(":")[0].lower().encode("idna")
    except UnicodeError:
        return False
    return True


def _hostname(netloc: str) -> str:
    """The host of a ``Host`` header; empty when it makes no sense."""
    try:
        parts = urlsplit(f"//{netloc}")
        _ = parts.port
        return "" if parts.username is not None else parts.hostname or ""
    except ValueError:
        return ""
