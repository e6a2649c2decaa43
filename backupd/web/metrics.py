"""``/metrics``: what Prometheus collects, fed by what the daemon tells everybody anyway."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from backupd.requests import BackupRequest, Cancelled, Expired, Failed, Stored, state_name
from backupd.service import BackupService
from backupd.web.connections import Connections
from backupd.web.endpoint import Api, Who, check_overseer
from backupd.web.site import StreamingRequest

__all__ = ["Metrics", "routes"]


class Metrics:
    """Counts since the start, and gauges that are read at every collection."""

    def __init__(self, service: BackupService, connections: Connections) -> None:
        self._service = service
        self._connections = connections
        self.registry = registry = CollectorRegistry()
        self._available = Gauge(
            "backupd_available_bytes", "Bytes that could still be promised", registry=registry
        )
        self._promised = Gauge(
            "backupd_promised_bytes",
            "Bytes that are promised and not yet allocated",
            registry=registry,
        )
        self._pending = Gauge(
            "backupd_requests_pending", "Requests that wait for their turn", registry=registry
        )
        self._in_progress = Gauge(
            "backupd_requests_in_progress", "Requests beyond PENDING", registry=registry
        )
        self._ended = Counter(
            "backupd_requests_ended", "Requests that ended", ["state"], registry=registry
        )
        self._stored = Counter(
            "backupd_stored_bytes", "Bytes of backups that were stored", registry=registry
        )
        self._uploads = Gauge(
            "backupd_uploads_under_way", "Uploads that bytes come in for", registry=registry
        )
        self._released = Counter(
            "backupd_released_bytes",
            "Bytes of uploads that ended without a backup and were freed",
            registry=registry,
        )
        self._connected = Gauge("backupd_connections", "Connections at once", registry=registry)
        self._refused = Counter(
            "backupd_connections_refused", "Connections there was no place for", registry=registry
        )
        self._refused_before = 0
        self._told = 0
        self._block = Gauge(
            "backupd_reactor_block_seconds_max",
            "The longest turn of the reactor since this was last collected",
            registry=registry,
        )
        self._damaged = Gauge(
            "backupd_backups_damaged", "Kept backups that have a problem", registry=registry
        )
        self._oldest = Gauge(
            "backupd_oldest_verification_age_seconds",
            "Since the whole backup that was verified longest ago was verified",
            registry=registry,
        )
        self._verified = Counter(
            "backupd_verified_bytes",
            "Bytes of kept backups that were read again, by the scrub or an operator",
            registry=registry,
        )
        self._verified_before = 0
        self._audit_failing = Gauge(
            "backupd_audit_failing", "1 while the audit log cannot be written", registry=registry
        )
        self._audit_waiting = Gauge(
            "backupd_audit_events_waiting",
            "Events of the audit log that are not on the disk yet",
            registry=registry,
        )
        self._answers = Histogram(
            "backupd_http_request_seconds",
            "From the headers of a request to its answer",
            ["method", "status"],
            registry=registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600, float("inf")),
        )
        for state in (Stored, Expired, Cancelled, Failed):
            self._ended.labels(state.__name__.upper())
        service.ledger.watch(self._observe)

    def _observe(self, request: BackupRequest) -> None:
        if isinstance(request, Stored | Expired | Cancelled | Failed):
            self._ended.labels(state_name(request)).inc()
        if isinstance(request, Stored):
            self._stored.inc(request.size)

    def answered(self, request: StreamingRequest, seconds: float) -> None:
        """One request was answered."""
        method = request.method.decode("ascii", "replace")
        known = method if method in _METHODS else "other"
        self._answers.labels(known, str(request.code)).observe(seconds)

    async def collect(self) -> bytes:
        """The text that Prometheus reads."""
        service = self._service
        totals = await service.ledger.totals()
        free = await service.off(service.storage.free)
        floor = service.settings.reserved_space
        self._block.set(service.turns.longest())
        self._available.set(max(0, free - floor - totals.promised))
        self._promised.set(totals.promised)
        self._pending.set(totals.pending)
        self._in_progress.set(totals.live - totals.pending)
        self._uploads.set(len(service.intake.transfers))
        self._released.inc(service.intake.released - self._told)
        self._told = service.intake.released
        refused = self._connections.refused
        self._connected.set(len(self._connections))
        self._refused.inc(refused - self._refused_before)
        self._refused_before = refused
        condition, now = await service.ledger.condition(), service.reactor.seconds()
        oldest = now if condition.verified_at is None else condition.verified_at
        self._damaged.set(condition.damaged)
        self._oldest.set(max(0.0, now - oldest))
        self._audit_failing.set(service.audit.trouble is not None)
        self._audit_waiting.set(service.audit.waiting)
        verified = service.keeper.bytes_verified
        self._verified.inc(verified - self._verified_before)
        self._verified_before = verified
        return generate_latest(self.registry)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def routes(api: Api, metrics: Metrics) -> None:
    """Register the endpoint."""

    async def serve(request: StreamingRequest) -> bytes:
        check_overseer(request.caller)
        body = await metrics.collect()
        request.setHeader("Content-Type", CONTENT_TYPE_LATEST)
        request.setHeader("Content-Length", str(len(body)))
        return body

    api.route("GET", "/metrics", serve, who=Who.ANYONE, says="For Prometheus.", gives="text/plain")
