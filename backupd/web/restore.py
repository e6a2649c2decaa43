"""Giving back: the bytes of a kept backup, whole or in ranges (RFC 9110, sections 13 and 14),
with their digests (RFC 9530)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from werkzeug.http import (
    http_date,
    parse_date,
    parse_etags,
    parse_if_range_header,
)

from backupd.interfaces import IStored
from backupd.requests import Backup
from backupd.service import BackupService
from backupd.waiting import shielded
from backupd.web.at_once import AtOnce
from backupd.web.digest_fields import sha256_field, wants_sha256
from backupd.web.endpoint import Api, Who, refusal, write
from backupd.web.sending import READ, Part, Sender, Valve
from backupd.web.site import StreamingRequest
from backupd.web.views import seen_backup

__all__ = ["routes"]

MAX_RANGES = 16
"""More ranges than this in one request get the whole file (RFC 9110, section 14.2)."""

MAX_DIGESTED = 64 * 1024 * 1024
"""Ranges of up to so many bytes are read for their `Content-Digest`, when a client wants it."""

MAX_NAME = 200
"""Characters of a file name in a header; clients and proxies limit what a header may have."""


def routes(api: Api) -> None:
    """Register the endpoint; HEAD comes with GET."""
    service = api.service
    places = AtOnce()
    sender = Sender(service.off)

    async def content(request: StreamingRequest, backup_id: str) -> bytes:
        # Before anything is looked up: a refusal must cost next to nothing.
        places.check(request.caller.name)
        backup = await seen_backup(service, request.caller, backup_id)
        if request.method == b"GET":
            service.audit.often(
                "restored",
                peer=request.caller.name,
                address=request.way.address if request.way else None,
                what=backup_id,
                same=backup_id,
            )
        peer = request.caller.peer
        valve = Valve(request, service.bandwidth_out.of(None if peer is None else peer.name))
        # The work on the file goes on to its end when the client leaves: a step that runs in a
        # thread cannot be stopped, and what it opened or still reads has to be closed after it.
        return await shielded(give(request, backup, valve))

    async def give(request: StreamingRequest, backup: Backup, valve: Valve) -> bytes:
        with places.place(request.caller.name):
            return await in_its_place(request, backup, valve)

    async def in_its_place(request: StreamingRequest, backup: Backup, valve: Valve) -> bytes:
        stored = await service.off(service.storage.open, backup)
        try:
            valve.check()
            parts, after = await _answer(service, request, backup, stored)
            valve.check()
            await sender.send(request, stored, parts, valve)
            return after
        finally:
            await service.off(stored.close)

    api.route(
        "GET",
        "/api/v1/backups/<backup_id>/content",
        content,
        who=Who.RESTORER,
        says="The bytes, whole or in ranges; HEAD too.",
        gives="application/octet-stream",
    )


async def _answer(
    service: BackupService, request: StreamingRequest, backup: Backup, stored: IStored
) -> tuple[Sequence[Part], bytes]:
    """Set status and headers; what to send of the file, and what comes after it."""
    if not _still_right(request, backup):
        detail = "The bytes that are kept are not the ones that the condition names."
        return (), write(request, refusal(412, "PreconditionFailed", detail))
    _describe(request, backup)
    if _not_modified(request, backup):
        request.setResponseCode(304)
        return (), b""
    boundary = service.new_id()
    parts = _choose(request, backup, boundary)
    if parts is None:
        detail = f"The backup has {backup.size} bytes; the range has none of them."
        span = f"bytes */{backup.size}"
        refused = refusal(416, "RangeNotSatisfiable", detail, Content_Range=span)
        return (), write(request, refused)
    after = f"\r\n--{boundary}--\r\n".encode() if len(parts) > 1 else b""
    length = sum(len(part.before) + part.stop - part.start for part in parts) + len(after)
    request.setHeader("Content-Length", str(length))
    wanted = wants_sha256(request, "want-content-digest")
    if wanted is not False and request.code == 200:
        request.setHeader("Content-Digest", sha256_field(bytes.fromhex(backup.sha256)))
    elif wanted and length <= MAX_DIGESTED:
        digest = await service.off(_digest, stored, parts, after)
        request.setHeader("Content-Digest", sha256_field(digest))
    return ((), b"") if request.method == b"HEAD" else (parts, after)


def _digest(stored: IStored, parts: Sequence[Part], after: bytes) -> bytes:
    """SHA-256 of a whole answer's content; blocks."""
    hasher = hashlib.sha256()
    for part in parts:
        hasher.update(part.before)
        at = part.start
        while data := stored.read(at, min(READ, part.stop - at)):
            hasher.update(data)
            at += len(data)
    hasher.update(after)
    return hasher.digest()


def _describe(request: StreamingRequest, backup: Backup) -> None:
    headers = {
        # Never a page of ours, whatever its sender called it.
        "Content-Type": backup.content_type or "application/octet-stream",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
        "Content-Disposition": _disposition(backup.file_name),
        "ETag": f'"{backup.sha256}"',
        "Last-Modified": http_date(backup.stored_at),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
    }
    if wants_sha256(request, "want-repr-digest") is not False:
        headers["Repr-Digest"] = sha256_field(bytes.fromhex(backup.sha256))
    for name, value in headers.items():
        request.setHeader(name, value)


def _disposition(name: str) -> str:
    """RFC 6266: an ASCII stand-in, and the name itself in UTF-8."""
    name = _shortened(name)
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)
    safe = name.encode("utf-8", "replace").decode()
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(safe, safe='')}"


def _shortened(name: str) -> str:
    """At most `MAX_NAME` characters of a name, with its extension."""
    if len(name) <= MAX_NAME:
        return name
    stem, dot, extension = name.rpartition(".")
    end = dot + extension if stem and len(extension) <= 16 else ""
    return name[: MAX_NAME - len(end)] + end


def _still_right(request: StreamingRequest, backup: Backup) -> bool:
    """Whether If-Match, or else If-Unmodified-Since, holds (RFC 9110, section 13.2.2)."""
    if_match = request.getHeader("if-match")
    if if_match is not None:
        return parse_etags(if_match).contains(backup.sha256)
    since = parse_date(request.getHeader("if-unmodified-since"))
    return since is None or _stored(backup) <= since


def _not_modified(request: StreamingRequest, backup: Backup) -> bool:
    if_none_match = request.getHeader("if-none-match")
    if if_none_match is not None:
        return parse_etags(if_none_match).contains_weak(backup.sha256)
    since = parse_date(request.getHeader("if-modified-since"))
    return since is not None and _stored(backup) <= since


def _stored(backup: Backup) -> datetime:
    """When it was stored, in whole seconds as a header tells it."""
    return datetime.fromtimestamp(int(backup.stored_at), UTC)


def _choose(request: StreamingRequest, backup: Backup, boundary: str) -> list[Part] | None:
    """What to send, with the status set; None when no range can be satisfied."""
    whole = [Part(b"", 0, backup.size)]
    said = request.getHeader("range")
    # Only GET has ranges (RFC 9110, section 14.2).
    if said is None or request.method != b"GET" or not _if_range(request, backup):
        return whole
    wanted = _ranges(said)
    if not 0 < len(wanted) <= MAX_RANGES:
        return whole
    spans = [span for one in wanted if (span := _span(*one, backup.size)) is not None]
    if not spans:
        return None
    if sum(stop - start for start, stop in spans) > backup.size:
        return whole
    request.setResponseCode(206)
    if len(spans) == 1:
        start, stop = spans[0]
        request.setHeader("Content-Range", f"bytes {start}-{stop - 1}/{backup.size}")
        return [Part(b"", start, stop)]
    kind = backup.content_type or "application/octet-stream"
    request.setHeader("Content-Type", f"multipart/byteranges; boundary={boundary}")
    return [
        Part(
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


_RANGE = re.compile(r"([0-9]{1,19})-([0-9]{0,19})|-([0-9]{1,19})", re.ASCII)


def _ranges(said: str) -> list[tuple[int | None, int | None]]:
    """First and last byte of each range, ``(None, n)`` for the last n; empty when malformed."""
    unit, _, listed = said.partition("=")
    found: list[tuple[int | None, int | None]] = []
    for text in listed.split(",") if unit.lower() == "bytes" else ():
        if not (spec := text.strip(" \t")):
            continue
        match = _RANGE.fullmatch(spec)
        if match is None:
            return []
        first, last, suffix = match.groups()
        if suffix is not None:
            found.append((None, int(suffix)))
        elif last and int(last) < int(first):
            return []
        else:
            found.append((int(first), int(last) if last else None))
    return found


def _span(first: int | None, last: int | None, size: int) -> tuple[int, int] | None:
    """``[start, stop)`` inside the file, None when there is nothing of the range in it."""
    if first is None:
        start, stop = max(0, size - (last or 0)), size
    else:
        start, stop = first, size if last is None else min(last + 1, size)
    return (start, stop) if start < stop else None
