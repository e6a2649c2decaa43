"""What time it has been, and what all that is alive waits for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, case, func, insert, select, text, update

from backupd.ledger.schema import entries, lines, repairs, requests, times
from backupd.requests import NEVER

__all__ = ["latest_seen", "own_time", "see", "set_back"]

_e, _l, _p, _r = entries.c, lines.c, repairs.c, requests.c
# These repeat the conditions of the partial indexes, or the indexes are not used.
_LIVE = text("ended_at IS NULL")
_GOING = text("NOT over")
_DUE = text("due_at IS NOT NULL")

_LATEST = "latest"
_OWN = "own"


def _noted(connection: Connection, name: str) -> float | None:
    query = select(func.max(times.c.at)).where(times.c.name == name)
    return connection.execute(query).scalar()


def _note(connection: Connection, name: str, at: float) -> None:
    this = update(times).where(times.c.name == name).values(at=at)
    if connection.execute(this).rowcount == 0:
        connection.execute(insert(times), {"name": name, "at": at})


def latest_seen(connection: Connection) -> float | None:
    return _noted(connection, _LATEST)


def own_time(connection: Connection) -> float | None:
    return _noted(connection, _OWN)


def see(connection: Connection, now: float, own: float) -> None:
    latest = latest_seen(connection)
    if latest is None or now > latest:
        _note(connection, _LATEST, now)
    _note(connection, _OWN, own)


def set_back(connection: Connection, by: float, own: float) -> None:
    """See `ILedger.set_back`."""

    def earlier(*columns: Column[Any]) -> dict[str, Any]:
        return {one.name: case((one < NEVER, one - by), else_=one) for one in columns}

    for step in (
        update(requests).where(_LIVE).values(earlier(_r.due_at, _r.lease_until, _r.expires_at)),
        update(lines).values(earlier(_l.resting_until, _l.ready_at, _l.gives_up_at)),
        update(entries).where(_GOING).values(earlier(_e.due_at, _e.deadline)),
        update(repairs).where(_DUE).values(earlier(_p.due_at)),
    ):
        connection.execute(step)
    _note(connection, _OWN, own)
