"""How long what is kept is kept: the trash, locks, and what falls out of retention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, exists, select, text, update

from backupd.interfaces import Retention
from backupd.ledger import repair_table, rows
from backupd.ledger.backup_table import backup
from backupd.ledger.schema import backups, repairs
from backupd.requests import Backup, trashed, video_key

__all__ = ["change_backup", "has_version", "outdated", "retire", "trash_due"]

_newer = backups.alias("newer")
_b, _n = backups.c, _newer.c
_GOOD = text("problem IS NULL AND deleted_at IS NULL")
_IN_TRASH = text("deleted_at IS NOT NULL")


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
    query = select(_b.seq, _b.peer).where(_b.seq > after).order_by(_b.seq).limit(limit)
    page = connection.execute(query).all()
    if not page:
        return [], None
    last = page[-1].seq
    peers: dict[Retention, set[str]] = {}
    for name in {row.peer for row in page}:
        peers.setdefault(rule(name), set()).add(name)
    found: list[Row[Any]] = []
    for one, names in peers.items():
        mine = select(backups).where(_b.seq > after, _b.seq <= last, _b.peer.in_(sorted(names)))
        found += connection.execute(_falling_out(mine, one, now)) if one.ends else ()
    found.sort(key=lambda row: int(row.seq))
    return [rows.backup_value(row._mapping) for row in found], last if len(page) == limit else None


def _falling_out(query: Select[Any], rule: Retention, now: float) -> Select[Any]:
    """Those of ``query`` that fall out of ``rule``: as many good ones as it says are newer."""
    newer = (
        select(_n.seq)
        .where(_n.peer == _b.peer, _n.video == _b.video, _n.stored_at >= _b.stored_at)
        .where((_n.stored_at > _b.stored_at) | (_n.seq > _b.seq))
        .where(_n.problem.is_(None), _n.deleted_at.is_(None))
        .correlate(backups)
        .limit(1)
        .offset(rule.after - 1)
    )
    return query.where(
        _b.deleted_at.is_(None),
        _b.stored_at <= now - rule.age,
        _b.locked_until.is_(None) | (_b.locked_until <= now),
        exists(newer),
    )


def retire(
    connection: Connection, backup_id: str, rule: Retention, by: str, at: float, now: float
) -> Backup | None:
    old = backup(connection, backup_id)
    this = select(backups).where(_b.backup_id == backup_id)
    if not rule.ends or connection.execute(_falling_out(this, rule, now)).first() is None:
        return None
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
