"""The headers of tus 1.0.0 (tus.io/protocols/resumable-upload): read with care, written right."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate

from backupd.errors import Invalid
from backupd.interfaces import Upload
from backupd.receiver.digests import Check
from backupd.requests import Live
from backupd.web.site import StreamingRequest

__all__ = [
    "ALGORITHMS",
    "EXTENSIONS",
    "Creation",
    "as_created",
    "check_of",
    "expires",
    "is_tus",
    "offset_of",
    "read_creation",
    "standing",
    "total_of",
]

VERSION = "1.0.0"
EXTENSIONS = (
    "creation,creation-defer-length,creation-with-upload,expiration,checksum,checksum-trailer,"
    "termination,concatenation,concatenation-unfinished"
)
ALGORITHMS = ("sha1", "sha256", "md5")
MAX_HEADER = 8192
"""Characters of Upload-Metadata or Upload-Concat."""

MAX_PARTS = 100

_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+", re.ASCII)
_UPLOAD_HEADERS = ("upload-length", "upload-defer-length", "upload-offset", "upload-concat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """What a creation says: ``length`` is None when it is deferred, ``parts`` are URLs."""

    length: int | None
    metadata: str | None
    said: Mapping[str, str] = field(default_factory=dict)
    concat: str | None = None
    parts: tuple[str, ...] = ()

    @property
    def partial(self) -> bool:
        return self.concat == "partial"


def is_tus(request: StreamingRequest) -> bool:
    """Whether a client speaks tus here: PROTOCOL.md, section 3."""
    names = ("tus-resumable", *_UPLOAD_HEADERS, "upload-metadata")
    return any(request.requestHeaders.hasHeader(name) for name in names)


def _one(request: StreamingRequest, name: str) -> str | None:
    values = request.requestHeaders.getRawHeaders(name) or []
    if len(values) > 1:
        raise Invalid(name.title(), "is there twice")
    return values[0].strip() if values else None


def _number(request: StreamingRequest, name: str) -> int | None:
    said = _one(request, name)
    if said is None:
        return None
    if not _NUMBER.fullmatch(said):
        raise Invalid(name.title(), "must be a whole number of bytes")
    return int(said)


def offset_of(request: StreamingRequest) -> int:
    """Upload-Offset. Raises `Invalid`."""
    offset = _number(request, "upload-offset")
    if offset is None:
        raise Invalid("Upload-Offset", "must be there, a whole number of bytes")
    return offset


def total_of(request: StreamingRequest) -> int | None:
    """Upload-Length, when a deferred length is told later. Raises `Invalid`."""
    total = _number(request, "upload-length")
    if total == 0:
        raise Invalid("Upload-Length", "must be more than 0: a video has at least one byte")
    return total


def read_creation(request: StreamingRequest) -> Creation:
    """The headers of a creation. Raises `Invalid`."""
    concat, deferred = _one(request, "upload-concat"), _one(request, "upload-defer-length")
    length = total_of(request)
    if deferred is not None and deferred != "1":
        raise Invalid("Upload-Defer-Length", "can only be 1")
    metadata = _one(request, "upload-metadata")
    said = _metadata(metadata)
    if concat is not None and concat != "partial":
        if length is not None or deferred is not None:
            raise Invalid("Upload-Length", "of what joins parts is the sum of theirs; leave it out")
        return Creation(
            length=None, metadata=metadata, said=said, concat=concat, parts=_parts(concat)
        )
    if (length is None) == (deferred is None):
        raise Invalid("Upload-Length", "or Upload-Defer-Length must be there, and not both")
    return Creation(length=length, metadata=metadata, said=said, concat=concat)


def _parts(concat: str) -> tuple[str, ...]:
    kind, _, urls = concat.partition(";")
    parts = tuple(urls.split())
    if kind != "final" or not parts:
        raise Invalid("Upload-Concat", "must be 'partial', or 'final;' and the URLs of the parts")
    if len(parts) > MAX_PARTS or len(concat) > MAX_HEADER:
        raise Invalid("Upload-Concat", f"can name at most {MAX_PARTS} parts")
    return parts


def _metadata(header: str | None) -> dict[str, str]:
    """Keys and decoded values; bytes that are not UTF-8 are no text that we could use."""
    if not header:
        return {}
    if len(header) > MAX_HEADER:
        raise Invalid("Upload-Metadata", f"has more than {MAX_HEADER} characters")
    found: dict[str, str] = {}
    for pair in header.split(","):
        key, _, encoded = pair.strip(" ").partition(" ")
        if not _KEY.fullmatch(key) or key in found:
            raise Invalid("Upload-Metadata", "must be unique keys, each with a value in base64")
        try:
            value = base64.b64decode(encoded.strip(" "), validate=True)
        except (binascii.Error, ValueError) as error:
            raise Invalid("Upload-Metadata", f"has no base64 behind {key[:64]}") from error
        found[key] = value.decode("utf-8", "replace")
    return found


# -- checksums -------------------------------------------------------------------------------------


def _checksum(said: str) -> tuple[str, bytes]:
    algorithm, _, encoded = said.partition(" ")
    if algorithm not in ALGORITHMS:
        raise Invalid("Upload-Checksum", f"can be of {', '.join(ALGORITHMS)} only")
    try:
        digest = base64.b64decode(encoded.strip(" "), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("Upload-Checksum", "has no base64 behind its algorithm") from error
    if not digest:
        raise Invalid("Upload-Checksum", "has nothing behind its algorithm")
    return algorithm, digest


def check_of(request: StreamingRequest) -> Check | None:
    """The checksum of this body, if one came or is announced as a trailer. Raises `Invalid`."""
    said = _one(request, "upload-checksum")
    if said is not None:
        checksum = _checksum(said)
        return Check([checksum[0]], lambda: checksum)
    trailer = request.getHeader("trailer") or ""
    if "upload-checksum" not in [name.strip().lower() for name in trailer.split(",")]:
        return None

    def in_trailer() -> tuple[str, bytes]:
        values = [value for name, value in request.body.trailers if name == "upload-checksum"]
        if len(values) != 1:
            raise Invalid("Upload-Checksum", "was announced as a trailer, and must be one")
        return _checksum(values[0])

    return Check(ALGORITHMS, in_trailer)


# -- answers ---------------------------------------------------------------------------------------


def standing(request: Live, upload: Upload, received: int | None = None) -> dict[str, str]:
    """Where an upload stands, as the answer to a HEAD tells it."""
    headers = {}
    if not upload.parts or upload.whole:
        headers["Upload-Offset"] = str(upload.offset if received is None else received)
    if upload.length is not None:
        headers["Upload-Length"] = str(upload.length)
    elif not upload.parts:
        headers["Upload-Defer-Length"] = "1"
    return headers | as_created(upload.metadata, upload.concat) | expires(request)


def as_created(metadata: str | None, concat: str | None) -> dict[str, str]:
    """What a client said at creation goes back to it."""
    said = {"Upload-Metadata": metadata, "Upload-Concat": concat}
    return {name: value for name, value in said.items() if value}


def expires(request: Live) -> dict[str, str]:
    """Until when an upload is kept (RFC 9110, 5.6.7), if that is known."""
    if request.expires_at is None:
        return {}
    return {"Upload-Expires": formatdate(request.expires_at, usegmt=True)}
