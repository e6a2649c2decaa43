"""Values for tests of the ledger: whole, and different where it matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backupd.interfaces import Entry, Room, Upload
from backupd.requests import (
    Ask,
    Backup,
    BackupRequest,
    VideoId,
    received,
    receiving,
    storing,
    taken,
)

__all__ = [
    "NOW",
    "a_kept_backup",
    "an_ask",
    "an_entry",
    "an_upload",
    "plenty",
    "to_offered",
    "to_received",
    "to_receiving",
    "to_storing",
]

NOW = 1_795_485_600.5
PEER = "http://localhost:3002"


def an_ask(
    name: str = "1", *, peer: str = PEER, video: VideoId | None = None, size: int = 50, **more: Any
) -> Ask:
    """What a sender asked for; ``name`` makes it another request, for another video."""
    ask = Ask(
        request_id=f"request-{name}",
        peer=peer,
        origin=peer,
        video=name if video is None else video,
        callback=f"{peer}/ready/{name}",
        size=size,
        capability=f"capability-{name}",
        created_at=NOW,
        file_name="holiday \N{BEACH WITH UMBRELLA}.mp4",
        content_type="video/mp4",
        sha256="ab" * 32,
    )
    return replace(ask, **more)


def an_upload(name: str = "1", request: str = "1", **more: Any) -> Upload:
    """An upload of the request that `an_ask` makes with the name ``request``."""
    upload = Upload(
        upload_id=f"upload-{name}",
        request_id=f"request-{request}",
        length=50,
        created_at=NOW,
        changed_at=NOW,
    )
    return replace(upload, **more)


def a_kept_backup(name: str = "1", **more: Any) -> Backup:
    """What is kept of the request that `an_ask` makes with the same name."""
    backup = Backup(
        backup_id=f"backup-{name}",
        request_id=f"request-{name}",
        peer=PEER,
        video=name,
        file_name="holiday \N{BEACH WITH UMBRELLA}.mp4",
        content_type=None,
        size=50,
        sha256="cd" * 32,
        stored_at=NOW + 0.125,
        verified_at=None,
        folder=f"peer/video/backup-{name}",
        name="holiday.mp4",
    )
    return replace(backup, **more)


def an_entry(name: str = "1", **more: Any) -> Entry:
    """A line of the outbox; ``name`` makes it another file of another video."""
    entry = Entry(
        entry_id=f"entry-{name}",
        path=f"/srv/videos/{name}.mp4",
        size=50,
        modified_ns=2**60 + 1,
        video=name,
        to="http://localhost:3000",
        capability=f"entry-capability-{name}",
        state="ASKING",
        created_at=NOW,
        changed_at=NOW,
        due_at=NOW,
        deadline=NOW + 86400,
        file_name=f"{name}.mp4",
    )
    return replace(entry, **more)


def plenty(promised: int, growth: int) -> Room:
    """Room for everything."""
    return Room(available=2**60)


def to_offered(request: BackupRequest) -> BackupRequest:
    """The sender has taken the offer."""
    return taken(request, lease_until=NOW + 600, expires_at=NOW + 86400)


def to_receiving(request: BackupRequest) -> BackupRequest:
    """The first byte has come."""
    return receiving(to_offered(request), lease_until=NOW + 600)


def to_received(request: BackupRequest, name: str = "1") -> BackupRequest:
    """All bytes have come, as `an_upload` of that name."""
    return received(
        to_receiving(request),
        upload_id=f"upload-{name}",
        size=50,
        sha256="cd" * 32,
        expires_at=NOW + 86400,
    )


def to_storing(request: BackupRequest, name: str = "1") -> BackupRequest:
    """On its way to its final name, as `a_kept_backup` of that name."""
    return storing(to_received(request, name), backup=a_kept_backup(name))
