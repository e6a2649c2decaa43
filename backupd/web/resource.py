"""The HTTP face as a whole: every route, behind the guard, on a site."""

from __future__ import annotations

from twisted.logger import Logger
from twisted.web.resource import IResource

from backupd.links import redacted
from backupd.service import BackupService
from backupd.web import (
    audit,
    inspection,
    keeping,
    openapi,
    operations,
    peers,
    receiver,
    restore,
    sender,
    tus,
)
from backupd.web.auth import Guard
from backupd.web.connections import Connections
from backupd.web.endpoint import Api, error_handlers
from backupd.web.forwarded import Proxies
from backupd.web.metrics import Metrics
from backupd.web.metrics import routes as metrics_routes
from backupd.web.patience import Patience
from backupd.web.routes import Routes
from backupd.web.site import BackupSite, StreamingRequest

__all__ = ["make_resource", "make_site"]

_log = Logger()
_SAID = (b"/healthz", b"/readyz", b"/metrics", b"/api/v1/backup/can-accept-backup")
"""Where a 200 needs no line: probes, and what `receiver.admission` says more of in its own."""


def make_resource(service: BackupService, metrics: Metrics) -> IResource:
    """The root of everything that is served."""
    api = Api(service)
    for room in (receiver, tus, sender, operations, inspection, keeping, restore, peers, audit):
        room.routes(api)
    openapi.routes(api)
    metrics_routes(api, metrics)
    error_handlers(service, api.app)
    return Guard(service, Routes(api.fixed, api.app.resource()))


def make_site(service: BackupService) -> BackupSite:
    """The factory of connections, with one log line for each request."""
    settings = service.settings
    connections = Connections(
        settings.max_connections,
        settings.max_connections_per_address,
        service.reactor,
        Proxies(settings.trusted_proxies).believed,
    )
    metrics = Metrics(service, connections)

    def finished(request: StreamingRequest, seconds: float) -> None:
        metrics.answered(request, seconds)
        if request.path in _SAID and request.code == 200:
            return
        _log.debug(
            "{method} {path} {status} in {seconds:.3f} s for {client}",
            method=request.method.decode("ascii", "replace"),
            path=redacted(request.path.decode("ascii", "replace")),
            status=request.code,
            seconds=seconds,
            client=request.way.address if request.way else "-",
        )

    resource = make_resource(service, metrics)
    return BackupSite(
        resource,
        reactor=service.reactor,
        on_finished=finished,
        connections=connections,
        patience=Patience(min_rate=settings.min_rate),
    )
