"""How long what is kept is kept: the trash, locks, and what falls out of retention."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, RowMapping, delete, func, insert, select, text, update

from backupd.errors import NoSuchBackup
from backupd.interfaces import Retention
from backupd.ledger import repair_table, rows
from backupd.ledger.backup_table import backup
from backupd.ledger.schema import backups, repairs, times
from backupd.requests import Backup, trashed, video_key

__all__ = ["change_backup", "has_version", "latest_seen", "outdated", "retire", "see", "trash_due"]

_b = backups.c
_GOOD = text("problem IS NULL AND deleted_at IS NULL")
_IN_TRASH = text("deleted_at IS NOT NULL")
_LATEST = "latest"


def change_backup(
    connection: Connection, backup_id: str, step: Callable[[Backup], Backup]
) -> Backup:
    old = backup(connection, backup_id)
    return _put(connection, old, step(old))


def _put(connection: Connection, old: Backup, new: Backup) -> Backup:
    this = update(backups).where(_b.backup_id == old.backup_id)
    connection.execute(
        this.values(
            deleted_at=new.deleted_at, deleted_by=new.deleted_by, locked_until=new.locked_until
        )
    )
    if new.deleted_at is not None:
        connection.execute(delete(repairs).where(repairs.c.backup_id == old.backup_id))
    elif old.deleted_at is not None and new.problem is not None:
        repair_table.damaged(connection, old.backup_id, old.deleted_at)
    return new


def outdated(
    connection: Connection,
    rule: Callable[[str], Retention],
    now: float,
    after: int,
    limit: int,
) -> tuple[list[Backup], int | None]:
    query = select(backups).where(_b.seq > after).order_by(_b.seq).limit(limit)
    page = [row._mapping for row in connection.execute(query)]
    found = [
        rows.backup_value(row) for row in page if _falls_out(connection, row, rule(row.peer), now)
    ]
    return found, page[-1]["seq"] if len(page) == limit else None


def _falls_out(connection: Connection, row: RowMapping, rule: Retention, now: float) -> bool:
    if not rule.ends or row["deleted_at"] is not None or now < row["stored_at"] + rule.age:
        return False
    if row["locked_until"] is not None and now < row["locked_until"]:
        return False
    at = row["stored_at"]
    newer = (
        select(_b.seq)
        .where(_b.peer == row["peer"], _b.video == row["video"], _GOOD, _b.stored_at >= at)
        .where((_b.stored_at > at) | (_b.seq > row["seq"]))
        .limit(rule.after)
    )
    return len(connection.execute(newer).all()) == rule.after


def retire(
    connection: Connection, backup_id: str, rule: Retention, by: str, at: float, now: float
) -> Backup | None:
    row = connection.execute(select(backups).where(_b.backup_id == backup_id)).one_or_none()
    if row is None:
        raise NoSuchBackup(f"There is no backup {backup_id}.")
    if not _falls_out(connection, row._mapping, rule, now):
        return None
    old = rows.backup_value(row._mapping)
    return _put(connection, old, trashed(old, by=by, at=at, now=now))


def has_version(connection: Connection, kept: Backup) -> bool:
    query = select(_b.seq).where(
        _b.peer == kept.peer,
        _b.video == video_key(kept.video),
        _GOOD,
        _b.backup_id != kept.backup_id,
    )
    return connection.execute(query.limit(1)).first() is not None


def trash_due(connection: Connection, before: float, limit: int) -> list[Backup]:
    query = select(backups).where(_IN_TRASH, _b.deleted_at <= before)
    found = connection.execute(query.order_by(_b.deleted_at).limit(limit))
    return [rows.backup_value(row._mapping) for row in found]


def latest_seen(connection: Connection) -> float | None:
    query = select(func.max(times.c.at)).where(times.c.name == _LATEST)
    return connection.execute(query).scalar()


def see(connection: Connection, now: float) -> None:
    latest = latest_seen(connection)
    if latest is None:
        connection.execute(insert(times), {"name": _LATEST, "at": now})
    elif now > latest:
        connection.execute(update(times).where(times.c.name == _LATEST).values(at=now))
