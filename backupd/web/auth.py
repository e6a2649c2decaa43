"""The guard before the whole tree: no new route can forget it.

In open mode (no peers are configured) every caller is local, so what is left to fear is a web
page: one that was rebound to this address (its ``Host`` is not ours), or one that posts from
another origin.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from backupd.errors import BackupdError, Forbidden, Invalid, Misdirected, ShuttingDown
from backupd.peer.origins import is_loopback
from backupd.service import BackupService
from backupd.web.endpoint import problem, write
from backupd.web.forwarded import Caller, Proxies
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

    def render(self, request: StreamingRequest) -> Any:
        _as_utf8(request)
        request.caller = self._proxies.caller(request)
        try:
            self._check(request, request.caller)
        except BackupdError as error:
            request.write(write(request, problem(error)))
            request.finish()
            return NOT_DONE_YET
        return self._inner.render(request)

    def _check(self, request: StreamingRequest, caller: Caller) -> None:
        try:
            path = request.path.decode("ascii")
        except UnicodeDecodeError as error:
            raise Invalid("path", "has characters that must be percent-encoded") from error
        self._check_escapes(request)
        if not self._service.ready and path != "/healthz":
            raise ShuttingDown("This server is starting or stopping; try again shortly.", 2.0)
        self._check_host(request, caller)
        if request.method not in _READING:
            self._check_origin(request, caller)

    def _check_escapes(self, request: StreamingRequest) -> None:
        for part in request.postpath or []:
            try:
                part.decode("utf-8")
            except UnicodeDecodeError as error:
                raise Invalid("path", "is not UTF-8") from error

    def _check_host(self, request: StreamingRequest, caller: Caller) -> None:
        hosts = request.requestHeaders.getRawHeaders("host") or []
        if not hosts and request.clientproto == b"HTTP/1.0":
            return
        if len(hosts) != 1:
            raise Invalid("Host", "must be there once")
        own = urlsplit(self._service.links.base).netloc
        host = caller.host or hosts[0]
        if host.lower() == own.lower() or is_loopback(_hostname(host)):
            return
        raise Misdirected("This server does not answer for the host that was asked.")

    def _check_origin(self, request: StreamingRequest, caller: Caller) -> None:
        allowed = self._service.settings.allowed_origins
        origin = request.getHeader("origin")
        if origin is not None and origin in allowed:
            return
        if origin is not None and not self._is_own(origin, caller):
            raise Forbidden(f"Pages of {origin[:200]} may not write here; see allowed_origins.")
        if request.getHeader("sec-fetch-site") == "cross-site":
            raise Forbidden("Pages of other sites may not write here; see allowed_origins.")

    def _is_own(self, origin: str, caller: Caller) -> bool:
        base = urlsplit(self._service.links.base)
        return origin in (f"{base.scheme}://{base.netloc}", f"{caller.scheme}://{caller.host}")


def _override(request: StreamingRequest) -> None:
    """Where a network lets no PATCH through, a POST says what it means (tus 1.0.0)."""
    meant = (request.getHeader("x-http-method-override") or "").upper()
    if request.method == b"POST" and meant in ("PATCH", "DELETE", "HEAD"):
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


def _hostname(netloc: str) -> str:
    """The host of a ``Host`` header; empty when it makes no sense."""
    try:
        parts = urlsplit(f"//{netloc}")
        _ = parts.port
        return "" if parts.username is not None else parts.hostname or ""
    except ValueError:
        return ""
