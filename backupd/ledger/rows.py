"""Where rows and values meet: the only place that knows both."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, fields
from typing import Any

import msgspec
from sqlalchemy import RowMapping

from backupd.interfaces import Entry, Upload
from backupd.requests import (
    Ask,
    Backup,
    BackupRequest,
    Cancelled,
    Expired,
    Failed,
    Offered,
    Pending,
    Received,
    Receiving,
    Stored,
    Storing,
    VideoId,
    state_name,
    video_key,
)

__all__ = [
    "OVER",
    "backup_row",
    "backup_value",
    "capability_hash",
    "entry_row",
    "entry_value",
    "request_row",
    "request_value",
    "upload_row",
    "upload_value",
]

OVER = frozenset({"VERIFIED", "UNVERIFIED", "FAILED", "CANCELLED"})
"""The states of an outbox entry that nothing follows."""

_ASK = (
    "request_id",
    "peer",
    "origin",
    "callback",
    "size",
    "capability",
    "created_at",
    "file_name",
    "content_type",
    "sha256",
    "part",
    "metadata",
    "concat",
)
_BACKUP = tuple(field.name for field in fields(Backup) if field.name != "video")
_STATE: dict[str, Any] = {
    "expires_at": None,
    "tries": 0,
    "last_error": None,
    "due_at": None,
    "attempts": 0,
    "accepted": False,
    "lease_until": None,
    "upload_id": None,
    "received_size": None,
    "received_sha256": None,
    "backup_id": None,
    "backup": None,
    "reason": None,
    "ended_at": None,
    "joined_into": None,
}


def capability_hash(capability: str) -> str:
    """What a capability is looked up by, so that no index compares the secret itself."""
    return hashlib.sha256(capability.encode("utf-8", "surrogatepass")).hexdigest()


def _video(row: RowMapping) -> VideoId:
    return int(row["video"]) if row["video_is_number"] else str(row["video"])


def _video_row(video: VideoId) -> dict[str, Any]:
    return {"video": video_key(video), "video_is_number": isinstance(video, int)}


def request_row(request: BackupRequest) -> dict[str, Any]:
    """Every column of a request but its number and what its uploads occupy."""
    ask = request.ask
    row = {name: getattr(ask, name) for name in _ASK} | _video_row(ask.video) | _STATE
    row["capability_hash"] = capability_hash(ask.capability)
    row["state"] = state_name(request)
    match request:
        case Pending():
            row.update(due_at=request.due_at, attempts=request.attempts, accepted=request.accepted)
        case Offered() | Receiving():
            row.update(lease_until=request.lease_until)
        case Received():
            row.update(
                upload_id=request.upload_id,
                received_size=request.size,
                received_sha256=request.sha256,
            )
        case Storing():
            row.update(
                upload_id=request.upload_id,
                backup_id=request.backup.backup_id,
                backup=msgspec.json.encode(request.backup).decode(),
            )
        case Stored():
            row.update(
                backup_id=request.backup_id,
                received_size=request.size,
                received_sha256=request.sha256,
                ended_at=request.ended_at,
            )
        case Expired() | Cancelled() | Failed():
            row.update(reason=request.reason, ended_at=request.ended_at)
            row.update(joined_into=request.into if isinstance(request, Cancelled) else None)
    if isinstance(request, Pending | Offered | Receiving | Received | Storing):
        row.update(
            expires_at=request.expires_at, tries=request.tries, last_error=request.last_error
        )
    return row


def request_value(row: RowMapping) -> BackupRequest:
    """The request that a row tells of."""
    ask = Ask(video=_video(row), **{name: row[name] for name in _ASK})
    alive: dict[str, Any] = {
        "ask": ask,
        "expires_at": row["expires_at"],
        "tries": row["tries"],
        "last_error": row["last_error"],
    }
    match row["state"]:
        case "PENDING":
            return Pending(
                due_at=row["due_at"],
                attempts=row["attempts"],
                accepted=row["accepted"],
                **alive,
            )
        case "OFFERED":
            return Offered(lease_until=row["lease_until"], **alive)
        case "RECEIVING":
            return Receiving(lease_until=row["lease_until"], **alive)
        case "RECEIVED":
            return Received(
                upload_id=row["upload_id"],
                size=row["received_size"],
                sha256=row["received_sha256"],
                **alive,
            )
        case "STORING":
            backup = msgspec.json.decode(row["backup"], type=Backup)
            return Storing(upload_id=row["upload_id"], backup=backup, **alive)
        case "STORED":
            return Stored(
                ask=ask,
                backup_id=row["backup_id"],
                size=row["received_size"],
                sha256=row["received_sha256"],
                ended_at=row["ended_at"],
            )
    over: dict[str, Any] = {"ask": ask, "reason": row["reason"], "ended_at": row["ended_at"]}
    if row["state"] == "CANCELLED":
        return Cancelled(into=row["joined_into"], **over)
    return Expired(**over) if row["state"] == "EXPIRED" else Failed(**over)


def upload_row(upload: Upload) -> dict[str, Any]:
    """Every column of an upload but its number."""
    row = asdict(upload)
    token = row.pop("token")
    return row | {
        "parts": " ".join(upload.parts),
        "token_hash": None if token is None else capability_hash(token),
    }


def upload_value(row: RowMapping) -> Upload:
    """The upload that a row tells of; its token is a secret that only its holder knows."""
    plain = {name: value for name, value in row.items() if name not in ("seq", "token_hash")}
    return Upload(**plain | {"parts": tuple(row["parts"].split())})


def backup_row(backup: Backup) -> dict[str, Any]:
    """Every column of a kept backup but its number."""
    return asdict(backup) | _video_row(backup.video)


def backup_value(row: RowMapping) -> Backup:
    """The kept backup that a row tells of."""
    return Backup(video=_video(row), **{name: row[name] for name in _BACKUP})


def entry_row(entry: Entry) -> dict[str, Any]:
    """Every column of an outbox entry but its number."""
    return (
        asdict(entry)
        | _video_row(entry.video)
        | {"over": entry.state in OVER, "capability_hash": capability_hash(entry.capability)}
    )


def entry_value(row: RowMapping) -> Entry:
    """The outbox entry that a row tells of."""
    left_out = ("seq", "video", "video_is_number", "over", "capability_hash")
    plain = {name: value for name, value in row.items() if name not in left_out}
    return Entry(video=_video(row), **plain)
