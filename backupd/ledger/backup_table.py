"""The steps on the list of what is kept. Each runs in a transaction."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select, update

from backupd.errors import NoSuchBackup
from backupd.ledger import rows
from backupd.ledger.schema import backups
from backupd.requests import Backup, VideoId, video_key

__all__ = ["backup", "drop_backup", "list_backup", "page", "put_backup"]

_b = backups.c


def insert_backup(connection: Connection, kept: Backup) -> None:
    connection.execute(insert(backups), rows.backup_row(kept))


def backup(connection: Connection, backup_id: str) -> Backup:
    row = connection.execute(select(backups).where(_b.backup_id == backup_id)).one_or_none()
    if row is None:
        raise NoSuchBackup(f"There is no backup {backup_id}.")
    return rows.backup_value(row._mapping)


def page(
    connection: Connection, peer: str | None, video: VideoId | None, after: int, limit: int
) -> list[tuple[int, Backup]]:
    query = select(backups).where(_b.seq > after).order_by(_b.seq).limit(limit)
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


def put_backup(connection: Connection, kept: Backup) -> bool:
    changed = connection.execute(
        update(backups).where(_b.backup_id == kept.backup_id).values(rows.backup_row(kept))
    )
    if changed.rowcount:
        return False
    insert_backup(connection, kept)
    return True


def drop_backup(connection: Connection, backup_id: str) -> Backup:
    kept = backup(connection, backup_id)
    connection.execute(delete(backups).where(_b.backup_id == backup_id))
    return kept
