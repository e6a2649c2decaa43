"""The HTTP face as a whole: every route, behind the guard, on a site."""

from __future__ import annotations

from klein import Klein
from twisted.logger import Logger
from twisted.web.resource import IResource

from backupd.links import redacted
from backupd.service import BackupService
from backupd.web import operations, receiver, restore, sender
from backupd.web.auth import Guard
from backupd.web.endpoint import error_handlers
from backupd.web.site import BackupSite, StreamingRequest

__all__ = ["make_resource", "make_site"]

_log = Logger()
_PROBES = (b"/healthz", b"/readyz")


def make_resource(service: BackupService) -> IResource:
    """The root of everything that is served."""
    app = Klein()
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    for room in (receiver, sender, operations, restore):
        room.routes(app, service)
    error_handlers(app)
    return Guard(service, app.resource())


def make_site(service: BackupService) -> BackupSite:
    """The factory of connections, with one log line for each request."""

    def finished(request: StreamingRequest, seconds: float) -> None:
        if request.path in _PROBES and request.code == 200:
            return
        _log.debug(
            "{method} {path} {status} in {seconds:.3f} s",
            method=request.method.decode("ascii", "replace"),
            path=redacted(request.path.decode("ascii", "replace")),
            status=request.code,
            seconds=seconds,
        )

    return BackupSite(make_resource(service), reactor=service.reactor, on_finished=finished)
