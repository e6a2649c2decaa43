"""The steps on the outbox. Each runs in a transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, not_, select, text, update

from backupd.errors import LedgerFailed, NoSuchEntry
from backupd.interfaces import Entry, Outgoing, Pick
from backupd.ledger import rows
from backupd.ledger.schema import entries
from backupd.requests import VideoId, video_key

__all__ = [
    "change_entry",
    "due",
    "enqueue",
    "entries_for",
    "entry",
    "entry_by_capability",
    "outgoing",
    "page",
    "purge",
]

_e = entries.c
_GOING = text("NOT over")
_STATES = ("ASKING", "WAITING", "READY", "SENT")


def _each_server() -> Any:
    """A question that leaps from server to server in the index, past all that goes to each."""
    first = select(func.min(_e.to).label("to")).where(_GOING)
    server = first.cte("server", recursive=True)
    following = select(func.min(_e.to)).where(_GOING, _e.to > server.c.to).scalar_subquery()
    server = server.union_all(select(following).where(server.c.to.is_not(None)))

    def due(state: str) -> Any:
        these = (_GOING, _e.to == server.c.to, _e.state == state)
        return select(func.min(_e.due_at)).where(*these).scalar_subquery().label(state)

    return select(server.c.to, *map(due, _STATES)).where(server.c.to.is_not(None))


_outgoing = _each_server()


def enqueue(connection: Connection, new: Entry) -> Entry:
    same = select(entries).where(
        _GOING, _e.video == video_key(new.video), _e.path == new.path, _e.to == new.to
    )
    row = connection.execute(same.order_by(_e.seq.desc()).limit(1)).one_or_none()
    if row is not None:
        old = rows.entry_value(row._mapping)
        if old.state != "SENT" or (old.size, old.modified_ns) == (new.size, new.modified_ns):
            return old
    connection.execute(insert(entries), rows.entry_row(new))
    return new


def _one(connection: Connection, query: Any, what: str) -> Entry:
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NoSuchEntry(what)
    return rows.entry_value(row._mapping)


def entry(connection: Connection, entry_id: str) -> Entry:
    query = select(entries).where(_e.entry_id == entry_id)
    return _one(connection, query, f"There is no outbox entry {entry_id}.")


def entry_by_capability(connection: Connection, capability: str) -> Entry:
    query = select(entries).where(_e.capability_hash == rows.capability_hash(capability))
    return _one(connection, query, "This link belongs to no video that is being sent.")


def entries_for(connection: Connection, video: VideoId, limit: int) -> list[Entry]:
    query = select(entries).where(_GOING, _e.video == video_key(video))
    found = connection.execute(query.order_by(_e.seq).limit(limit))
    return [rows.entry_value(row._mapping) for row in found]


def change_entry(connection: Connection, entry_id: str, step: Callable[[Entry], Entry]) -> Entry:
    old = entry(connection, entry_id)
    new = step(old)
    if new == old:
        return old
    changed = connection.execute(
        update(entries)
        .where(_e.entry_id == entry_id, _e.state == old.state)
        .values(rows.entry_row(new))
    )
    if changed.rowcount != 1:
        raise LedgerFailed(f"Outbox entry {entry_id} has left the state {old.state}.")
    return new


def page(
    connection: Connection, over: bool | None, after: int, limit: int
) -> list[tuple[int, Entry]]:
    query = select(entries).where(_e.seq > after).order_by(_e.seq).limit(limit)
    if over is not None:
        query = query.where(text("over") if over else _GOING)
    return [(row.seq, rows.entry_value(row._mapping)) for row in connection.execute(query)]


def outgoing(connection: Connection) -> list[Outgoing]:
    return [
        Outgoing(to, {state: at for state, at in zip(_STATES, due, strict=True) if at is not None})
        for to, *due in connection.execute(_outgoing)
    ]


def due(
    connection: Connection, picks: Sequence[Pick], now: float, without: Sequence[str]
) -> list[Entry]:
    found: list[Entry] = []
    for pick in picks:
        query = select(entries).where(
            _GOING, _e.to == pick.to, _e.state == pick.state, _e.due_at <= now
        )
        if without:
            query = query.where(_e.entry_id.not_in(list(without)))
        these = connection.execute(query.order_by(_e.due_at).limit(pick.limit))
        found += [rows.entry_value(row._mapping) for row in these]
    return found


def purge(connection: Connection, before: float, limit: int) -> int:
    """Forget what ended before then, but not that a file was stored: it would be sent again.

    Each receiver that has stored it may ask for it once more.
    """
    later = entries.alias()
    same = (later.c.path == _e.path, later.c.to == _e.to)
    newest = select(func.max(later.c.seq)).where(*same).scalar_subquery()
    stored = and_(_e.state.in_(("VERIFIED", "UNVERIFIED")), _e.seq == newest)
    old = (
        select(_e.seq)
        .where(text("entries.over"), _e.changed_at < before, not_(stored))
        .order_by(_e.changed_at)
        .limit(limit)
    )
    return connection.execute(delete(entries).where(_e.seq.in_(old))).rowcount
