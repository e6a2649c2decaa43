"""Whether what is kept is still right, and what is done about what is not."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text, update

from backupd.interfaces import Condition, Repair
from backupd.ledger import rows
from backupd.ledger.backup_table import backup
from backupd.ledger.schema import backups, repairs
from backupd.requests import Backup

__all__ = [
    "begin_reading",
    "condition",
    "damaged",
    "due",
    "kept",
    "longest_unread",
    "put",
    "verified",
]

_b, _p = backups.c, repairs.c
_LISTED = text("deleted_at IS NULL")
_WELL = text("problem IS NULL AND deleted_at IS NULL")
_DAMAGED = text("problem IS NOT NULL AND deleted_at IS NULL")


def longest_unread(connection: Connection, before: float) -> Backup | None:
    query = select(backups).where(_b.read_at < before).order_by(_b.read_at).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else rows.backup_value(row._mapping)


def begin_reading(connection: Connection, backup_id: str, now: float) -> None:
    connection.execute(update(backups).where(_b.backup_id == backup_id).values(read_at=now))


def verified(connection: Connection, backup_id: str, problem: str | None, now: float) -> Backup:
    this = update(backups).where(_b.backup_id == backup_id)
    if problem is None:
        connection.execute(this.values(read_at=now, problem=None, verified_at=now))
        connection.execute(delete(repairs).where(_p.backup_id == backup_id))
    else:
        connection.execute(this.values(read_at=now, problem=problem))
        damaged(connection, backup_id, now)
    return backup(connection, backup_id)


def damaged(connection: Connection, backup_id: str, now: float) -> None:
    """Its sender is to be told, if it can be and is not being told already."""
    callback = select(_b.callback).where(_b.backup_id == backup_id, _LISTED)
    if connection.execute(callback).scalar() is None:
        return
    known = select(_p.backup_id).where(_p.backup_id == backup_id)
    if connection.execute(known).first() is None:
        values = {"backup_id": backup_id, "tries": 0, "due_at": now}
        connection.execute(insert(repairs), values)


def kept(connection: Connection) -> tuple[int, int]:
    query = select(func.count(), func.coalesce(func.sum(_b.size), 0))
    count, size = connection.execute(query.select_from(backups)).one()
    return int(count), int(size)


def condition(connection: Connection) -> Condition:
    bad = connection.execute(select(func.count(_b.seq)).where(_DAMAGED)).scalar_one()
    oldest = (
        select(func.coalesce(_b.verified_at, _b.stored_at))
        .where(_WELL)
        .order_by(_b.verified_at.nulls_first())
        .limit(1)
    )
    return Condition(damaged=bad, verified_at=connection.execute(oldest).scalar())


def due(connection: Connection, now: float, limit: int) -> list[Repair]:
    query = (
        select(backups, _p.request_id.label("repair"), _p.tries)
        .join(repairs, _p.backup_id == _b.backup_id)
        .where(_p.due_at <= now)
        .order_by(_p.due_at)
        .limit(limit)
    )
    return [
        Repair(
            backup=rows.backup_value(row._mapping),
            origin=row.origin,
            callback=row.callback,
            request_id=row.repair,
            tries=row.tries,
        )
        for row in connection.execute(query)
    ]


def put(connection: Connection, backup_id: str, values: dict[str, Any]) -> None:
    connection.execute(update(repairs).where(_p.backup_id == backup_id).values(values))
