"""From values to what the wire shows of them."""

from __future__ import annotations

import math

from msgspec import UNSET

from backupd.errors import NoSuchBackup
from backupd.interfaces import Entry
from backupd.requests import (
    NEVER,
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
    state_name,
)
from backupd.service import BackupService
from backupd.trust.caller import Caller
from backupd.web.messages import BackupView, EntryView, RequestView, ScrubView, timestamp

__all__ = ["backup_view", "entry_view", "request_view", "scrub_view", "seen_backup"]


async def seen_backup(service: BackupService, caller: Caller, backup_id: str) -> Backup:
    """A kept backup, if the caller sees it; what is in the trash only the operator does.

    Raises `NoSuchBackup`.
    """
    backup = await service.ledger.backup(backup_id)
    if not caller.sees(backup.peer) or (backup.deleted_at is not None and not caller.operates):
        raise NoSuchBackup(f"There is no backup {backup_id}.")
    return backup


def backup_view(service: BackupService, backup: Backup) -> BackupView:
    """What is told of a kept backup."""
    checking = service.keeper.verifying.get(backup.backup_id)
    return BackupView(
        backup_id=backup.backup_id,
        peer=backup.peer,
        video_id=backup.video,
        file_name=backup.file_name,
        content_type=backup.content_type,
        size=backup.size,
        sha256=backup.sha256,
        stored_at=timestamp(backup.stored_at) or "",
        verified_at=timestamp(backup.verified_at),
        content_url=service.links.content(backup.backup_id),
        problem=backup.problem,
        verifying=(
            UNSET if checking is None else {"readBytes": checking.read, "size": checking.size}
        ),
        locked_until=timestamp(backup.locked_until) or UNSET,
        deleted_at=timestamp(backup.deleted_at) or UNSET,
        deleted_by=backup.deleted_by or UNSET,
        removed_at=timestamp(service.trash.removed_at(backup)) or UNSET,
    )


async def scrub_view(service: BackupService) -> ScrubView:
    """What is told of everything that is kept."""
    condition, scrub = await service.ledger.condition(), service.scrub.state
    view = ScrubView(
        state="off",
        damaged=condition.damaged,
        oldest_verified_at=timestamp(condition.verified_at),
        verified_bytes=service.keeper.bytes_verified,
    )
    if scrub is not None:
        view.state = "reading" if scrub.reading else "resting"
        view.period_seconds = scrub.period
        view.takes_seconds = round(scrub.takes, 1)
        view.keeps_period = scrub.needed <= scrub.rate
        view.rate = scrub.rate
        view.needed_rate = math.ceil(scrub.needed)
        view.next_at = timestamp(scrub.next_at)
    return view


async def request_view(
    service: BackupService, request: BackupRequest, *, placed: bool = True
) -> RequestView:
    """What is told of a backup request, alive or ended; ``placed`` with its place in its line."""
    ask = request.ask
    position = None
    if placed and isinstance(request, Pending):
        position = await service.ledger.position(request)
    alive = (
        request if isinstance(request, Pending | Offered | Receiving | Received | Storing) else None
    )
    got = await _received(service, request)
    return RequestView(
        request_id=ask.request_id,
        peer=ask.peer,
        video_id=ask.video,
        file_name=ask.file_name,
        state="RECEIVED" if isinstance(request, Storing) else state_name(request),
        position=position,
        reserved_bytes=ask.size if alive else 0,
        received_bytes=got,
        progress=1.0 if isinstance(request, Stored) else round(min(1.0, got / ask.size), 4),
        attempts=request.attempts if isinstance(request, Pending) else 0,
        last_error=alive.last_error if alive else None,
        created_at=timestamp(ask.created_at) or "",
        # Whose client left is not called, but waits until it is back.
        next_offer_at=(
            timestamp(request.due_at)
            if isinstance(request, Pending) and request.due_at < NEVER
            else None
        ),
        lease_until=(
            timestamp(request.lease_until) if isinstance(request, Offered | Receiving) else None
        ),
        expires_at=timestamp(alive.expires_at) if alive else None,
        ended_at=(
            timestamp(request.ended_at)
            if isinstance(request, Stored | Expired | Cancelled | Failed)
            else None
        ),
        reason=request.reason if isinstance(request, Expired | Cancelled | Failed) else None,
        backup_id=request.backup_id if isinstance(request, Stored) else None,
    )


async def _received(service: BackupService, request: BackupRequest) -> int:
    """Bytes that have arrived, as far as they are known."""
    if isinstance(request, Stored | Received):
        return request.size
    if isinstance(request, Storing):
        return request.backup.size
    if isinstance(request, Expired | Cancelled | Failed):
        return 0
    return await service.intake.arrived(request.ask.request_id)


def entry_view(service: BackupService, entry: Entry) -> EntryView:
    """What is told of an entry of the outbox; its links are secrets and not among it."""
    sent, position = service.outbox.progress(entry)
    over = entry.state in ("VERIFIED", "UNVERIFIED", "FAILED", "CANCELLED")
    return EntryView(
        entry_id=entry.entry_id,
        path=entry.path,
        file_name=entry.file_name,
        size=entry.size,
        video_id=entry.video,
        to=entry.to,
        state=entry.state,
        sent_bytes=sent,
        position=position,
        attempts=entry.attempts,
        last_error=entry.last_error,
        request_id=entry.request_id,
        sha256=entry.sha256,
        backup_id=entry.backup_id,
        content_url=entry.content_url,
        created_at=timestamp(entry.created_at) or "",
        changed_at=timestamp(entry.changed_at) or "",
        next_try_at=None if over else timestamp(entry.due_at),
    )
