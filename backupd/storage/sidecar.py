"""``backup.json``: what a backup's files say of it, enough to list it again without a ledger.

Indented UTF-8 JSON, one object::

    {
      "format": 1,
      "backupId": "…", "requestId": "…",
      "peer": "http://localhost:3002",
      "videoId": 2,                      a number or a string, as the sender gave it
      "fileName": "holiday.mp4",         what the sender called it
      "name": "holiday.mp4",             what the file beside this one is called
      "contentType": "video/mp4",        or null
      "size": 1048576, "sha256": "…",
      "storedAt": "2026-11-24T02:07:00.123456001Z",
      "verifiedAt": null,
      "problem": null,
      "deletedAt": null, "deletedBy": null,     in the trash since then, and because of whom
      "lockedUntil": null
    }

Times are RFC 3339, UTC, with nanoseconds: the nearest of them gives back the very float that a
time since 1970 was. The folder is not said; it is where the sidecar lies.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from msgspec import Meta, MsgspecError, Struct, convert, to_builtins

from backupd.requests import Backup
from backupd.storage.names import SIDECAR, is_component

__all__ = ["MAX_SIZE", "decode", "encode"]

MAX_SIZE = 1024 * 1024
"""More bytes than any sidecar has; nothing longer is read."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", re.ASCII)


class _Sidecar(Struct, frozen=True, kw_only=True, rename="camel"):
    format: Literal[1]
    backup_id: str
    request_id: str
    peer: str
    video_id: int | str
    file_name: str
    name: str
    content_type: str | None
    size: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    stored_at: str
    verified_at: str | None
    problem: str | None = None
    deleted_at: str | None = None
    deleted_by: str | None = None
    locked_until: str | None = None


def encode(backup: Backup) -> bytes:
    """The sidecar of ``backup``."""
    sidecar = _Sidecar(
        format=1,
        backup_id=backup.backup_id,
        request_id=backup.request_id,
        peer=backup.peer,
        video_id=backup.video,
        file_name=backup.file_name,
        name=backup.name,
        content_type=backup.content_type,
        size=backup.size,
        sha256=backup.sha256,
        stored_at=_time_text(backup.stored_at),
        verified_at=_text_or_none(backup.verified_at),
        problem=backup.problem,
        deleted_at=_text_or_none(backup.deleted_at),
        deleted_by=backup.deleted_by,
        locked_until=_text_or_none(backup.locked_until),
    )
    text = json.dumps(to_builtins(sidecar), indent=2, ensure_ascii=False) + "\n"
    # Half a surrogate pair, which a client's JSON may hold, becomes its JSON escape.
    return text.encode("utf-8", "backslashreplace")


def decode(data: bytes, folder: str) -> Backup:
    """The backup that a sidecar in ``folder`` describes; `ValueError` says what is wrong."""
    try:
        sidecar = convert(json.loads(data), _Sidecar)
    except RecursionError as error:
        raise ValueError("It is nested too deeply.") from error
    except (ValueError, MsgspecError) as error:
        raise ValueError(f"It is not a backup's description: {error}.") from error
    if not is_component(sidecar.name) or sidecar.name.casefold() == SIDECAR:
        raise ValueError("It names no file that could lie beside it.")
    if sidecar.backup_id != folder.rpartition("/")[2]:
        raise ValueError(f"It describes another backup, {sidecar.backup_id!r}.")
    return Backup(
        backup_id=sidecar.backup_id,
        request_id=sidecar.request_id,
        peer=sidecar.peer,
        video=sidecar.video_id,
        file_name=sidecar.file_name,
        content_type=sidecar.content_type,
        size=sidecar.size,
        sha256=sidecar.sha256,
        stored_at=_time(sidecar.stored_at),
        verified_at=_time_or_none(sidecar.verified_at),
        folder=folder,
        name=sidecar.name,
        problem=sidecar.problem,
        deleted_at=_time_or_none(sidecar.deleted_at),
        deleted_by=sidecar.deleted_by,
        locked_until=_time_or_none(sidecar.locked_until),
    )


def _time_text(seconds: float) -> str:
    whole = math.floor(seconds)
    nanoseconds = round((seconds - whole) * 1e9)
    if nanoseconds == 1_000_000_000:
        whole, nanoseconds = whole + 1, 0
    moment = datetime.fromtimestamp(whole, UTC).replace(tzinfo=None)
    return f"{moment.isoformat()}.{nanoseconds:09}Z"


def _text_or_none(seconds: float | None) -> str | None:
    return None if seconds is None else _time_text(seconds)


def _time_or_none(text: str | None) -> float | None:
    return None if text is None else _time(text)


def _time(text: str) -> float:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time in UTC, such as 2026-11-24T02:07:00Z.")
    fraction = int((match[2] or "0").ljust(9, "0")) / 1e9
    return datetime.fromisoformat(f"{match[1]}+00:00").timestamp() + fraction
