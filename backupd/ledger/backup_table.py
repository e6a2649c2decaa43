"""The steps on the list of what is kept. Each runs in a transaction."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select, text, update

from backupd.errors import NoSuchBackup
from backupd.ledger import rows
from backupd.ledger.schema import backups, repairs, usage
from backupd.requests import Ask, Backup, VideoId, video_key

__all__ = [
    "backup",
    "came_from",
    "copy_of",
    "drop_backup",
    "kept_of",
    "list_backup",
    "page",
    "put_backup",
]

_b = backups.c
_LISTED = text("deleted_at IS NULL")
_IN_TRASH = text("deleted_at IS NOT NULL")
_HELD = ("deleted_at", "deleted_by", "locked_until")
"""Columns that `ILedger.change_backup` alone changes."""


def insert_backup(connection: Connection, kept: Backup) -> None:
    read = {"read_at": kept.verified_at or 0.0}
    connection.execute(insert(backups), rows.backup_row(kept) | read)
    _count(connection, kept.peer, kept.size)


def _count(connection: Connection, peer: str, size: int) -> None:
    """So many bytes more, or less, are kept of a peer."""
    more = update(usage).where(usage.c.peer == peer).values(kept=usage.c.kept + size)
    if not connection.execute(more).rowcount:
        connection.execute(insert(usage), {"peer": peer, "kept": size})


def kept_of(connection: Connection, peer: str) -> int:
    """Bytes of a peer's backups."""
    found = connection.execute(select(usage.c.kept).where(usage.c.peer == peer)).scalar()
    return 0 if found is None else int(found)


def backup(connection: Connection, backup_id: str) -> Backup:
    row = connection.execute(select(backups).where(_b.backup_id == backup_id)).one_or_none()
    if row is None:
        raise NoSuchBackup(f"There is no backup {backup_id}.")
    return rows.backup_value(row._mapping)


def page(
    connection: Connection,
    peer: str | None,
    video: VideoId | None,
    after: int,
    limit: int,
    trash: bool,
) -> list[tuple[int, Backup]]:
    query = select(backups).where(_b.seq > after).order_by(_b.seq).limit(limit)
    query = query.where(_IN_TRASH if trash else _LISTED)
    if peer is not None:
        query = query.where(_b.peer == peer)
    if video is not None:
        query = query.where(_b.video == video_key(video))
    return [(row.seq, rows.backup_value(row._mapping)) for row in connection.execute(query)]


def list_backup(connection: Connection, kept: Backup) -> bool:
    known = select(_b.seq).where(_b.backup_id == kept.backup_id)
    if connection.execute(known).first() is not None:
        return False
    insert_backup(connection, kept)
    return True


def came_from(connection: Connection, kept: Backup, ask: Ask) -> None:
    """Remember how its sender is called, and look again at damaged copies of the same video."""
    way_back = {"origin": ask.origin or None, "callback": ask.callback or None}
    connection.execute(update(backups).where(_b.backup_id == kept.backup_id).values(way_back))
    damaged = select(_b.backup_id).where(_b.video == video_key(kept.video), _b.problem.is_not(None))
    connection.execute(
        update(repairs).where(repairs.c.backup_id.in_(damaged)).values(due_at=kept.stored_at)
    )


def put_backup(connection: Connection, kept: Backup) -> bool:
    old = connection.execute(
        select(_b.peer, _b.size).where(_b.backup_id == kept.backup_id)
    ).one_or_none()
    if old is None:
        insert_backup(connection, kept)
        return True
    row = {name: one for name, one in rows.backup_row(kept).items() if name not in _HELD}
    connection.execute(update(backups).where(_b.backup_id == kept.backup_id).values(row))
    if (old.peer, old.size) != (kept.peer, kept.size):
        _count(connection, old.peer, -old.size)
        _count(connection, kept.peer, kept.size)
    return False


def drop_backup(connection: Connection, backup_id: str) -> Backup:
    kept = backup(connection, backup_id)
    connection.execute(delete(backups).where(_b.backup_id == backup_id))
    _count(connection, kept.peer, -kept.size)
    connection.execute(delete(repairs).where(repairs.c.backup_id == backup_id))
    return kept


def copy_of(connection: Connection, kept: Backup) -> Backup | None:
    same = select(backups).where(
        _b.video == video_key(kept.video),
        _b.peer == kept.peer,
        _b.size == kept.size,
        _b.sha256 == kept.sha256,
        text("problem IS NULL AND deleted_at IS NULL"),
        _b.backup_id != kept.backup_id,
    )
    row = connection.execute(same.order_by(_b.seq.desc()).limit(1)).one_or_none()
    return None if row is None else rows.backup_value(row._mapping)
