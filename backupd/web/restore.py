"""Giving back: the bytes of a kept backup, whole or in ranges (RFC 9110, sections 13 and 14)."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from werkzeug.http import (
    http_date,
    parse_date,
    parse_etags,
    parse_if_range_header,
    parse_range_header,
)
from zope.interface import implementer

from backupd.errors import UploadCut
from backupd.interfaces import IStored
from backupd.requests import Backup
from backupd.service import BackupService
from backupd.web.endpoint import Api, Who
from backupd.web.site import StreamingRequest

__all__ = ["routes"]

READ = 256 * 1024
MAX_RANGES = 16
"""More ranges than this in one request get the whole file (RFC 9110, section 14.2)."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Some bytes of the file, with what goes before them on the wire."""

    before: bytes
    start: int
    stop: int


def routes(api: Api) -> None:
    """Register the endpoint; HEAD comes with GET."""
    service = api.service

    async def content(request: StreamingRequest, backup_id: str) -> bytes:
        backup = await service.ledger.backup(backup_id)
        _describe(request, backup)
        if _not_modified(request, backup):
            request.setResponseCode(304)
            return b""
        boundary = service.new_id()
        parts = _choose(request, backup, boundary)
        if parts is None:
            request.setResponseCode(416)
            request.setHeader("Content-Range", f"bytes */{backup.size}")
            request.setHeader("Content-Length", "0")
            return b""
        after = f"\r\n--{boundary}--\r\n".encode() if len(parts) > 1 else b""
        length = sum(len(part.before) + part.stop - part.start for part in parts) + len(after)
        request.setHeader("Content-Length", str(length))
        if request.method == b"HEAD":
            return b""
        stored = await service.off(service.storage.open, backup)
        try:
            await _send(service, request, stored, parts)
        finally:
            await service.off(stored.close)
        return after

    api.route(
        "GET",
        "/api/v1/backups/<backup_id>/content",
        content,
        who=Who.ANYONE,
        says="The bytes, whole or in ranges; HEAD too.",
        gives="application/octet-stream",
    )


def _describe(request: StreamingRequest, backup: Backup) -> None:
    digest = base64.b64encode(bytes.fromhex(backup.sha256)).decode()
    headers = {
        # Never a page of ours, whatever its sender called it.
        "Content-Type": backup.content_type or "application/octet-stream",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
        "Content-Disposition": _disposition(backup.file_name),
        "ETag": f'"{backup.sha256}"',
        "Last-Modified": http_date(backup.stored_at),
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{digest}:",
        "Cache-Control": "private, no-cache",
    }
    for name, value in headers.items():
        request.setHeader(name, value)


def _disposition(name: str) -> str:
    """RFC 6266: an ASCII stand-in, and the name itself in UTF-8."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)[:200]
    safe = name.encode("utf-8", "replace").decode()
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(safe, safe='')}"


def _not_modified(request: StreamingRequest, backup: Backup) -> bool:
    if_none_match = request.getHeader("if-none-match")
    if if_none_match is not None:
        return parse_etags(if_none_match).contains_weak(backup.sha256)
    since = parse_date(request.getHeader("if-modified-since"))
    return since is not None and _stored(backup) <= since


def _stored(backup: Backup) -> datetime:
    """When it was stored, in whole seconds as a header tells it."""
    return datetime.fromtimestamp(int(backup.stored_at), UTC)


def _choose(request: StreamingRequest, backup: Backup, boundary: str) -> list[_Part] | None:
    """What to send, with the status set; None when no range can be satisfied."""
    whole = [_Part(b"", 0, backup.size)]
    said = request.getHeader("range")
    if said is None or not _if_range(request, backup):
        return whole
    wanted = parse_range_header(said)
    if wanted is None or wanted.units != "bytes" or len(wanted.ranges) > MAX_RANGES:
        return whole
    spans = [span for one in wanted.ranges if (span := _span(one, backup.size)) is not None]
    if not spans:
        return None
    if sum(stop - start for start, stop in spans) > backup.size:
        return whole
    request.setResponseCode(206)
    if len(spans) == 1:
        start, stop = spans[0]
        request.setHeader("Content-Range", f"bytes {start}-{stop - 1}/{backup.size}")
        return [_Part(b"", start, stop)]
    kind = backup.content_type or "application/octet-stream"
    request.setHeader("Content-Type", f"multipart/byteranges; boundary={boundary}")
    return [
        _Part(
            (
                f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n"
                f"Content-Range: bytes {start}-{stop - 1}/{backup.size}\r\n\r\n"
            ).encode(),
            start,
            stop,
        )
        for start, stop in spans
    ]


def _if_range(request: StreamingRequest, backup: Backup) -> bool:
    """Whether the range is still of the same bytes (RFC 9110, section 13.1.5)."""
    said = request.getHeader("if-range")
    if said is None:
        return True
    if said.startswith("W/"):
        return False
    condition = parse_if_range_header(said)
    if condition.date is not None:
        return condition.date == _stored(backup)
    return condition.etag == backup.sha256


def _span(wanted: tuple[int, int | None], size: int) -> tuple[int, int] | None:
    """``[start, stop)`` inside the file, None when it lies beyond."""
    start, stop = wanted
    if start < 0:
        start, stop = max(0, size + start), size
    stop = size if stop is None else min(stop, size)
    return (start, stop) if start < stop else None


@implementer(IPushProducer)
class _Valve:
    """Opens and closes with the network: `open` fires when there is room to write."""

    def __init__(self) -> None:
        self._waiting: Deferred[None] | None = None
        self._paused = False
        self._stopped = False

    def pauseProducing(self) -> None:  # noqa: N802
        self._paused = True

    def resumeProducing(self) -> None:  # noqa: N802
        self._paused = False
        self._release()

    def stopProducing(self) -> None:  # noqa: N802
        self._stopped = True
        self._release()

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    async def open(self) -> None:
        """Raises `UploadCut` when the client is gone."""
        if self._paused and not self._stopped:
            self._waiting = Deferred()
            await self._waiting
        if self._stopped:
            raise UploadCut("The client left before it had everything.")


async def _send(
    service: BackupService, request: StreamingRequest, stored: IStored, parts: Sequence[_Part]
) -> None:
    """Write the parts, reading ahead by one block, never faster than the network takes them."""
    valve = _Valve()
    request.registerProducer(valve, True)
    try:
        for part in parts:
            if part.before:
                request.write(part.before)
            at = part.start
            while at < part.stop:
                await valve.open()
                data = await service.off(stored.read, at, min(READ, part.stop - at))
                if not data:
                    raise UploadCut("The file ended early; its verification will tell why.")
                await valve.open()
                request.write(data)
                at += len(data)
    finally:
        if not request._disconnected:
            request.unregisterProducer()
