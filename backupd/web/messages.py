"""The messages on the wire: decoding, checking and encoding from one definition each.

JSON comes in strictly: UTF-8, at most 64 KiB and 16 levels, no duplicate keys, no NaN.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from backupd.errors import Invalid

__all__ = [
    "MAX_JSON",
    "Accepted",
    "BackupList",
    "BackupView",
    "CanAccept",
    "CanAcceptAnswer",
    "Complete",
    "Completed",
    "DamagedView",
    "EntryList",
    "EntryView",
    "Health",
    "Notice",
    "Problem",
    "Readiness",
    "Rebuilt",
    "Received",
    "RequestList",
    "RequestView",
    "Said",
    "ScrubView",
    "Send",
    "Start",
    "Started",
    "decode",
    "encode",
    "timestamp",
]

MAX_JSON = 64 * 1024
MAX_DEPTH = 16

T = TypeVar("T")

# Python's "$" also matches before a last newline, other dialects' does not: "(?!\n)" means the
# end to all of them, and these patterns go into the OpenAPI document as they stand.
_TEXT = r"^[^\x00-\x1f\x7f-\x9f]*$(?!\n)"
_HEX = r"^[0-9a-fA-F]{64}$(?!\n)"
_ASCII = r"^[\x20-\x7e]*$(?!\n)"

VideoIdField = (
    Annotated[int, Meta(ge=0, le=2**53 - 1)]
    | Annotated[str, Meta(min_length=1, max_length=128, pattern=_TEXT)]
)
Sha256 = Annotated[str, Meta(pattern=_HEX)]
MediaType = Annotated[str, Meta(max_length=255, pattern=_ASCII)]
Name = Annotated[str, Meta(max_length=4096)]
Link = Annotated[str, Meta(max_length=2048)]


class _Message(Struct, rename="camel", kw_only=True):
    """The base of all: members are camelCase, unknown ones are ignored."""


# -- what comes in ---------------------------------------------------------------------------------


class CanAccept(_Message):
    """PROTOCOL.md, section 1."""

    video_id: VideoIdField
    disk_empty_space_require: str | int
    link: Link = field(name="linkForServerAtoNoticeServerBWhenServerAIsReady")
    file_name: Name | None = None
    content_type: MediaType | None = None
    sha256: Sha256 | None = None


class Notice(_Message):
    """PROTOCOL.md, section 2: the offer. "Sever" is the original's spelling."""

    video_id: VideoIdField
    upload_link: Link = field(name="linkForServerBtoSendBackupToSeverA")
    complete_link: Link = field(name="linkForServerBtoCompleteBackupToSeverA")


class Start(_Message):
    """PROTOCOL.md, section 3: "I am starting"."""

    video_id: VideoIdField


class Complete(_Message):
    """PROTOCOL.md, section 4."""

    video_id: VideoIdField
    success: bool
    size: Annotated[int, Meta(ge=0, le=2**60)] | None = None
    sha256: Sha256 | None = None


class Send(_Message):
    """Queue a file of this server for sending; without ``path`` the catalogue finds it."""

    to: Link
    path: Name | None = None
    video_id: VideoIdField | None = None


# -- what goes out ---------------------------------------------------------------------------------


class Said(_Message):
    """Yes or no, in a sentence."""

    success: bool
    message: str


class CanAcceptAnswer(Said, omit_defaults=True):
    """PROTOCOL.md, section 1."""

    available_space: str
    required_space: str
    reason: str | None = None
    retry_after: int | None = None
    request_id: str | None = None
    status_url: str | None = None


class Started(Said):
    """PROTOCOL.md, section 3."""

    request_id: str
    upload_url: str
    reserved_bytes: int


class Received(Said):
    """PROTOCOL.md, section 3."""

    request_id: str
    size: int
    sha256: str


class Completed(Said):
    """PROTOCOL.md, section 4."""

    video_id: int | str
    backup_id: str
    size: int
    sha256: str
    content_url: str


class Lock(_Message):
    """Until when nobody deletes a backup: a date, or a time (RFC 3339)."""

    until: Annotated[str, Meta(max_length=64)]


class EventList(_Message):
    """Events of the audit log; ``next`` goes into ``after``. ``trouble`` is why it fails."""

    events: list[dict[str, Any]]
    next: str
    trouble: str | None


class BackupView(_Message):
    """A kept backup, PROTOCOL.md, section 6.

    One in the trash says since when and because of whom, and from when on it may be removed.
    """

    backup_id: str
    peer: str
    video_id: int | str
    file_name: str
    content_type: str | None
    size: int
    sha256: str
    stored_at: str
    verified_at: str | None
    content_url: str
    problem: str | None = None
    verifying: dict[str, int] | UnsetType = UNSET
    locked_until: str | UnsetType = UNSET
    deleted_at: str | UnsetType = UNSET
    deleted_by: str | UnsetType = UNSET
    removed_at: str | UnsetType = UNSET


class BackupList(_Message):
    """A page; ``next`` goes into ``after`` for the following one."""

    backups: list[BackupView]
    next: str | None


class RequestView(_Message):
    """A backup request, PROTOCOL.md, section 6.

    ``position`` is there while it waits for its turn, in lists for the first 100 of a page.
    """

    request_id: str
    peer: str
    video_id: int | str
    file_name: str | None
    state: str
    position: int | None
    reserved_bytes: int
    received_bytes: int
    progress: float
    attempts: int
    last_error: str | None
    created_at: str
    next_offer_at: str | None
    lease_until: str | None
    expires_at: str | None
    ended_at: str | None
    reason: str | None
    backup_id: str | None


class RequestList(_Message):
    """A page; ``next`` goes into ``after`` for the following one."""

    requests: list[RequestView]
    next: str | None


class EntryView(_Message):
    """An entry of the outbox."""

    entry_id: str
    path: str
    file_name: str
    size: int
    video_id: int | str
    to: str
    state: str
    sent_bytes: int
    position: int | None
    attempts: int
    last_error: str | None
    request_id: str | None
    sha256: str | None
    backup_id: str | None
    content_url: str | None
    created_at: str
    changed_at: str
    next_try_at: str | None


class EntryList(_Message):
    """A page; ``next`` goes into ``after`` for the following one."""

    entries: list[EntryView]
    next: str | None


class Accepted(Said):
    """Something was queued."""

    entry: EntryView


class Health(_Message):
    """It answers."""

    status: str


class Readiness(_Message):
    """Whether new work is taken, and how much there could be."""

    status: str
    available_space: str
    available_bytes: int
    pending: int
    in_progress: int


class ScrubView(_Message):
    """How well everything that is kept is, and how the reading of it goes.

    ``state`` is ``off``, ``resting`` or ``reading``. Rates are bytes a second; ``neededRate``
    would keep the period, and ``takesSeconds`` is in what time everything is read at ``rate``.
    ``verifiedBytes`` were read since the start.
    """

    state: str
    damaged: int
    oldest_verified_at: str | None
    verified_bytes: int
    period_seconds: float | None = None
    takes_seconds: float | None = None
    keeps_period: bool = True
    rate: int | None = None
    needed_rate: int | None = None
    next_at: str | None = None


class DamagedView(_Message):
    """Something under the root that is no whole backup."""

    path: str
    why: str


class Rebuilt(_Message):
    """What lies under the root; ``more_damaged`` counts what is left out of ``damaged``."""

    added: int
    known: int
    damaged: list[DamagedView]
    more_damaged: int


class Inspect(_Message):
    """Look whether files and list agree; with ``repair`` do what can be done where they do not."""

    repair: bool = False


class FindingView(_Message):
    """Something that is not as it should be: what a repair does about it, and what it leaves."""

    path: str
    why: str
    remedy: str
    advice: str
    repaired: bool


class InspectionView(_Message):
    """The last inspection; ``more`` counts what is left out of ``findings``, repaired or not."""

    repair: bool
    running: bool
    looked_at: int
    bytes_read: int
    findings: list[FindingView]
    more: int
    more_repaired: int
    failure: str | None


class Problem(_Message):
    """A refusal or a failure (RFC 9457), with the original's members beside."""

    type: str
    title: str
    status: int
    detail: str
    success: bool
    message: str


# -- coding ----------------------------------------------------------------------------------------


def encode(message: Any) -> bytes:
    """JSON of a message or of plain values."""
    return msgspec.json.encode(message)


def timestamp(seconds: float | None) -> str | None:
    """Seconds since the epoch as RFC 3339, in UTC, to the millisecond."""
    if seconds is None:
        return None
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def decode(body: bytes, kind: type[T]) -> T:
    """The message in ``body``. Raises `Invalid`, naming the member and what is wrong with it."""
    try:
        plain = _json().decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Invalid("body", "is not UTF-8") from error
    except RecursionError as error:
        raise Invalid("body", f"is nested more than {MAX_DEPTH} levels deep") from error
    except ValueError as error:
        raise Invalid("body", f"is not JSON: {_brief(error)}") from error
    _walk(plain, 1)
    if not isinstance(plain, dict):
        raise Invalid("body", "must be a JSON object")
    try:
        return msgspec.convert(plain, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _invalid(error) from error


@functools.cache
def _json() -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
    )


def _brief(error: ValueError) -> str:
    text = str(error)
    return "a number is too long" if "integer string conversion" in text else text[:200]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                # A lone surrogate in it could not be written into the answer.
                told = name[:64].encode("utf-8", "backslashreplace").decode("utf-8")
                raise Invalid(told, "is there twice")
            seen.add(name)
    return members


def _no_constant(text: str) -> None:
    raise Invalid("body", f"is not JSON: {text} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise Invalid("body", f"the number {text[:32]} is too large")
    return number


def _walk(value: Any, depth: int) -> None:
    """Check what the decoder lets through: depth, and text that is no Unicode."""
    if isinstance(value, str):
        if not value.isascii():
            _encodable(value)
    elif isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            raise Invalid("body", f"is nested more than {MAX_DEPTH} levels deep")
        for name in value if isinstance(value, dict) else ():
            _walk(name, depth)
        for item in value.values() if isinstance(value, dict) else value:
            _walk(item, depth + 1)


def _encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Invalid("body", "holds a lone surrogate, which is no character") from error


def _invalid(error: msgspec.ValidationError) -> Invalid:
    """msgspec's "… - at `$.videoId`" as ours."""
    what, _, where = str(error).partition(" - at `$")
    member = where.rstrip("`").lstrip(".") or _quoted(what) or "body"
    for said, ours in _SAYINGS:
        if said(what):
            return Invalid(member, ours(what))
    return Invalid(member, what[:1].lower() + what[1:])


def _quoted(what: str) -> str:
    """The member in "Object missing required field `videoId`"."""
    return what.split("`")[1] if what.startswith("Object missing required field") else ""


_Saying = tuple[Callable[[str], bool], Callable[[str], str]]
_SAYINGS: list[_Saying] = [
    (lambda what: what.startswith("Object missing"), lambda what: "is missing"),
    (lambda what: "matching regex" in what, lambda what: "has characters that it must not have"),
    (lambda what: what.startswith("Expected"), lambda what: f"must be {what[9:]}"),
]
