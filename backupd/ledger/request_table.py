"""The steps on requests, their uploads, and the lines they wait in. Each runs in a transaction.

Every step that changes a request goes through `RequestTable._replace`, which names the state
that it leaves and keeps the sums and the lines right; there is no other way to change one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)

from backupd.errors import LedgerFailed, NoSuchRequest, UploadHeld
from backupd.interfaces import Allowance, Line, Room, Totals, Upload, Usage
from backupd.ledger import rows
from backupd.ledger.backup_table import came_from, kept_of, put_backup
from backupd.ledger.known import Standing
from backupd.ledger.prepared import Prepared
from backupd.ledger.schema import lines, requests, uploads
from backupd.requests import (
    Ask,
    BackupRequest,
    Live,
    Offered,
    Pending,
    Received,
    Receiving,
    Stored,
    Storing,
    VideoId,
    asked_again,
    joined,
    live,
    state_name,
    video_key,
)

__all__ = ["KEPT_TURNS", "RequestTable", "Sums"]

_r, _l, _u = requests.c, lines.c, uploads.c
# These repeat the conditions of the partial indexes, or the indexes are not used.
_LIVE = text("ended_at IS NULL")
_PENDING = text("state = 'PENDING'")
_ACTIVE = text("state IN ('OFFERED', 'RECEIVING')")
_STORING = text("state = 'STORING'")

KEPT_TURNS = 1000
"""Empty lines are forgotten once so many turns were given after their last."""

_ANSWERING = {"failures": 0, "resting_until": 0.0}


@dataclass(slots=True)
class Sums:
    """What admission and the tick need without reading every request.

    ``footprint`` is what every request occupies beside its video, in bytes.
    """

    promised: int = 0
    pending: int = 0
    active: int = 0
    live: int = 0
    turn: int = 0
    footprint: int = 0

    def count(self, request: BackupRequest, allocated: int, sign: int) -> None:
        """Add (``sign`` 1) or take away (-1) what ``request`` stands for."""
        if not isinstance(request, Pending | Offered | Receiving | Received | Storing):
            return
        self.promised += sign * (max(0, request.ask.size - allocated) + self.footprint)
        self.live += sign
        self.pending += sign * isinstance(request, Pending)
        self.active += sign * isinstance(request, Offered | Receiving)

    def totals(self) -> Totals:
        return Totals(
            promised=self.promised, pending=self.pending, active=self.active, live=self.live
        )


_by_id = select(requests).where(_r.request_id == bindparam("id"))
_of_request = select(_u.upload_id).where(_u.request_id == bindparam("id"))
_live_video = select(requests).where(
    _LIVE, _r.video == bindparam("video"), _r.peer == bindparam("peer")
)
_usage = select(
    func.coalesce(func.sum(_r.size), 0),
    func.coalesce(func.sum(case((_r.state == "PENDING", 1), else_=0)), 0),
).where(_LIVE, _r.peer == bindparam("peer"))
# What every admission and every block of an upload runs is prepared.
_is_live = Prepared(
    select(_r.seq).where(_LIVE, _r.video == bindparam("video"), _r.peer == bindparam("peer"))
)
_columns = [column.name for column in requests.c if column.name != "seq"]
_insert = Prepared(insert(requests), _columns)
_update = Prepared(
    update(requests).where(
        _r.request_id == bindparam("was_id"), _r.state == bindparam("was_state")
    ),
    _columns,
)
_allocated = Prepared(
    select(func.coalesce(func.sum(_u.allocated), literal_column("0")), func.count()).where(
        _u.request_id == bindparam("id")
    )
)
_drop_uploads = Prepared(delete(uploads).where(_u.request_id == bindparam("id")))
_drop_upload = Prepared(delete(uploads).where(_u.upload_id == bindparam("id")))
_put_upload = Prepared(insert(uploads), [c.name for c in uploads.c if c.name != "seq"])
_first_due = Prepared(
    select(func.min(_r.due_at)).where(
        _PENDING, _r.peer == bindparam("peer"), _r.origin == bindparam("origin")
    )
)
_line = Prepared(
    select(_l.failures, _l.resting_until, _l.gives_up_at).where(
        _l.peer == bindparam("peer"), _l.origin == bindparam("origin")
    )
)
_move_line = Prepared(
    update(lines)
    .where(_l.peer == bindparam("at_peer"), _l.origin == bindparam("at_origin"))
    .values(
        {name: bindparam(name) for name in ("failures", "resting_until", "ready_at", "gives_up_at")}
    )
)
_serve = Prepared(
    update(lines).where(_l.peer == bindparam("at_peer")).values(last_turn=bindparam("turn"))
)
_rested = case((_l.resting_until > bindparam("due"), _l.resting_until), else_=bindparam("due"))
_join_line = Prepared(
    update(lines)
    .where(_l.peer == bindparam("at_peer"), _l.origin == bindparam("at_origin"))
    .values(
        ready_at=case((_l.ready_at < _rested, _l.ready_at), else_=_rested),
        # Those for whom it was too late have ended, or will; this one begins anew.
        gives_up_at=case((_l.gives_up_at <= bindparam("due"), null()), else_=_l.gives_up_at),
    )
)
_upsert_upload = Prepared(
    update(uploads)
    .where(_u.upload_id == bindparam("id"), _u.offset <= bindparam("at_least"))
    .values(
        length=bindparam("length"),
        offset=bindparam("offset"),
        allocated=bindparam("allocated"),
        sha256=bindparam("sha256"),
        changed_at=bindparam("changed_at"),
        file_name=bindparam("file_name"),
        content_type=bindparam("content_type"),
    )
)


_CHANGING = ("length", "offset", "allocated", "sha256", "changed_at", "file_name", "content_type")


class RequestTable:
    """The steps, with the sums they keep and the changes they leave for the watchers."""

    def __init__(self, footprint: int = 0) -> None:
        self.sums = Sums(footprint=footprint)
        self.changed: list[BackupRequest] = []
        self.standing: list[Standing] = []

    def recount(self, connection: Connection) -> None:
        """Count the sums anew from the rows.

        What uploads occupy is counted anew where there is or was something to count: a million
        rows are not written for nothing.
        """
        allocated = (
            select(func.coalesce(func.sum(_u.allocated), 0))
            .where(_u.request_id == _r.request_id)
            .scalar_subquery()
        )
        uploading = or_(_r.allocated != 0, _r.request_id.in_(select(_u.request_id)))
        connection.execute(update(requests).where(_LIVE, uploading).values(allocated=allocated))
        owed = case((_r.size > _r.allocated, _r.size - _r.allocated), else_=0)
        by_state = {
            row.state: row
            for row in connection.execute(
                select(_r.state, func.count().label("n"), func.sum(owed).label("owed"))
                .where(_LIVE)
                .group_by(_r.state)
            )
        }
        self.sums = Sums(
            promised=sum(int(row.owed) + row.n * self.sums.footprint for row in by_state.values()),
            live=sum(row.n for row in by_state.values()),
            pending=by_state["PENDING"].n if "PENDING" in by_state else 0,
            active=sum(by_state[s].n for s in ("OFFERED", "RECEIVING") if s in by_state),
            turn=connection.execute(select(func.max(_l.last_turn))).scalar() or 0,
            footprint=self.sums.footprint,
        )

    # -- steps ------------------------------------------------------------------------------------

    def admit(
        self,
        connection: Connection,
        ask: Ask,
        room: Callable[[int, int], Room],
        now: float,
        max_pending: int,
        expires_at: float | None,
        fresh: bool,
        allowance: Allowance,
    ) -> tuple[Live | None, Room]:
        key = {"video": video_key(ask.video), "peer": ask.peer}
        if _is_live.rows(connection, key):
            row = connection.execute(_live_video, key).one()
            old = rows.request_value(row._mapping)
            if fresh:
                return live(old, "asked for"), room(self.sums.promised, 0)
            new = asked_again(old, ask=ask, now=now)
            # What has come stays promised, and counts.
            least = min(row.allocated, old.ask.size)
            if new.ask.size < least:
                new = replace(new, ask=replace(new.ask, size=least))
            growth = max(0, new.ask.size - row.allocated) - max(0, old.ask.size - row.allocated)
            found = room(self.sums.promised, growth)
            more = new.ask.size - old.ask.size
            found = _within(connection, ask.peer, allowance, more, found, new=False)
            if found.reason is not None and more > 0:
                return None, found
            self._replace(connection, row, old, new, asked=True)
            return new, replace(found, reason=None)
        found = room(self.sums.promised, ask.size + self.sums.footprint)
        if found.reason is None and self.sums.pending >= max_pending:
            found = replace(found, reason="queue-full")
        found = _within(connection, ask.peer, allowance, ask.size, found, new=True)
        if found.reason is not None:
            return None, found
        request = Pending(ask=ask, due_at=now, expires_at=expires_at)
        self._add(connection, request)
        return request, found

    def _add(self, connection: Connection, request: Pending) -> None:
        ask, now = request.ask, request.due_at
        _insert.run(connection, rows.request_row(request) | {"allocated": 0})
        at = {"at_peer": ask.peer, "at_origin": ask.origin}
        if _join_line.run(connection, at | {"due": now}) == 0:
            line = {"peer": ask.peer, "origin": ask.origin}
            self._open_line(connection, line | _ANSWERING | {"ready_at": now})
        self.sums.count(request, 0, 1)
        self.changed.append(request)

    def join(
        self, connection: Connection, ask: Ask, final: Upload, now: float, expires_at: float
    ) -> Live:
        """See `ILedger.join`."""
        row = connection.execute(
            _live_video, {"video": video_key(ask.video), "peer": ask.peer}
        ).one_or_none()
        if row is None:
            request: Live = Pending(ask=ask, due_at=now, expires_at=expires_at)
            self._add(connection, Pending(ask=ask, due_at=now, expires_at=expires_at))
        else:
            old = rows.request_value(row._mapping)
            if connection.execute(_of_request, {"id": row.request_id}).first() is not None:
                raise UploadHeld("An upload of this video is there already; end it first.", 5.0)
            request = asked_again(old, ask=ask, now=now)
            self._replace(connection, row, old, request, asked=True)
        request_id = request.ask.request_id
        for part in final.parts:
            owner = connection.execute(
                select(_u.request_id).where(_u.upload_id == part, _u.partial)
            ).scalar()
            if owner is None:
                raise NoSuchRequest("One of the parts is gone, or is none.")
            connection.execute(
                update(uploads).where(_u.upload_id == part).values(request_id=request_id)
            )
            self.change(connection, owner, lambda r: joined(r, into=request_id, now=now), None, ())
        # What the parts occupy counts for the new request from here on.
        self.change(connection, request_id, lambda r: r, replace(final, request_id=request_id), ())
        return live(self.request(connection, request_id), "joined")

    def change(
        self,
        connection: Connection,
        request_id: str,
        step: Callable[[BackupRequest], BackupRequest],
        put: Upload | Sequence[Upload] | None,
        drop: Sequence[str],
    ) -> BackupRequest:
        row = self._row(connection, request_id)
        old = rows.request_value(row._mapping)
        new = step(old)
        for upload in [put] if isinstance(put, Upload) else put or ():
            self._put_upload(connection, upload)
        for upload_id in drop:
            _drop_upload.run(connection, {"id": upload_id})
        if new != old or put or drop:
            self._replace(connection, row, old, new)
        return new

    def _replace(
        self,
        connection: Connection,
        row: Row[Any],
        old: BackupRequest,
        new: BackupRequest,
        *,
        asked: bool = False,
    ) -> None:
        request_id = old.ask.request_id
        ended = isinstance(new, Stored) or not isinstance(
            new, Pending | Offered | Receiving | Received | Storing
        )
        if ended:
            _drop_uploads.run(connection, {"id": request_id})
            allocated = count = 0
        else:
            ((allocated, count),) = _allocated.rows(connection, {"id": request_id})
        values = rows.request_row(new) | {"allocated": allocated}
        where = {"was_id": request_id, "was_state": state_name(old)}
        if _update.run(connection, values | where) != 1:
            raise LedgerFailed(f"Request {request_id} has left the state {state_name(old)}.")
        if isinstance(old, Storing) and isinstance(new, Stored):
            # A rebuild from the files may have listed it already.
            put_backup(connection, old.backup)
            came_from(connection, old.backup, old.ask)
        self.sums.count(old, row.allocated, -1)
        self.sums.count(new, allocated, 1)
        self._move_in_line(connection, old, new, asked)
        self.standing.append((new, count))
        if new != old:
            self.changed.append(new)

    def _move_in_line(
        self, connection: Connection, old: BackupRequest, new: BackupRequest, asked: bool
    ) -> None:
        """Keep the line right when a request joins, leaves, is served or is refused."""
        if not isinstance(old, Pending) and not isinstance(new, Pending):
            return
        failed = (
            isinstance(old, Pending) and isinstance(new, Pending) and new.attempts > old.attempts
        )
        # Whoever uses its link before it has answered the offer has its turn all the same.
        served = isinstance(old, Pending) and isinstance(new, Offered | Receiving)
        for origin in dict.fromkeys((old.ask.origin, new.ask.origin)):
            key = {"peer": old.ask.peer, "origin": origin}
            known = _line.rows(connection, key)
            failures, resting, gives_up_at = known[0] if known else (0, 0.0, None)
            if failed and isinstance(new, Pending) and origin == new.ask.origin:
                failures, resting = failures + 1, new.due_at
                gives_up_at = new.expires_at if gives_up_at is None else gives_up_at
            elif served:
                failures, resting, gives_up_at = 0, 0.0, None
            elif asked:
                # Whoever asks is there: its next probe need not wait, and its time begins anew.
                resting, gives_up_at = 0.0, None
            ((first,),) = _first_due.rows(connection, key)
            if first is None:
                gives_up_at = None  # whoever comes next has its whole time
            values = {
                "failures": failures,
                "resting_until": resting,
                "ready_at": None if first is None else max(first, resting),
                "gives_up_at": gives_up_at,
            }
            if not known:
                self._open_line(connection, key | values)
            else:
                at = {"at_peer": old.ask.peer, "at_origin": origin}
                _move_line.run(connection, at | values)
        if served:
            self.sums.turn += 1
            _serve.run(connection, {"at_peer": old.ask.peer, "turn": self.sums.turn})

    def _open_line(self, connection: Connection, values: dict[str, Any]) -> None:
        """A new line stands where its peer's others do: turns are given to peers."""
        turns = select(func.max(_l.last_turn)).where(_l.peer == values["peer"])
        last_turn = connection.execute(turns).scalar() or 0
        connection.execute(insert(lines), values | {"last_turn": last_turn})

    def _put_upload(self, connection: Connection, upload: Upload) -> None:
        values = rows.upload_row(upload)
        changed = {name: values[name] for name in _CHANGING}
        keys = {"id": upload.upload_id, "at_least": upload.offset}
        if _upsert_upload.run(connection, changed | keys):
            return
        known = connection.execute(
            select(_u.offset).where(_u.upload_id == upload.upload_id)
        ).scalar()
        if known is not None:
            raise LedgerFailed(
                f"Upload {upload.upload_id} stands at {known} and cannot go back to "
                f"{upload.offset}."
            )
        _put_upload.run(connection, values)

    def purge(self, connection: Connection, before: float, limit: int) -> int:
        old = select(_r.seq).where(_r.ended_at < before).limit(limit)
        # A line that was served lately keeps its place behind those that were not.
        idle = _l.last_turn <= self.sums.turn - KEPT_TURNS
        connection.execute(
            delete(lines).where(_l.ready_at.is_(None), _l.resting_until < before, idle)
        )
        return connection.execute(delete(requests).where(_r.seq.in_(old))).rowcount

    # -- queries ----------------------------------------------------------------------------------

    def _row(self, connection: Connection, request_id: str) -> Row[Any]:
        row = connection.execute(_by_id, {"id": request_id}).one_or_none()
        if row is None:
            raise NoSuchRequest(f"There is no backup request {request_id}.")
        return row

    def request(self, connection: Connection, request_id: str) -> BackupRequest:
        return rows.request_value(self._row(connection, request_id)._mapping)


def usage_of(connection: Connection, peer: str) -> Usage:
    reserved, pending = connection.execute(_usage, {"peer": peer}).one()
    kept = kept_of(connection, peer)
    return Usage(kept=kept, reserved=int(reserved), pending=int(pending))


def _within(
    connection: Connection, peer: str, allowance: Allowance, growth: int, found: Room, *, new: bool
) -> Room:
    """The room that there is, less what the peer may not have of it."""
    if found.reason is not None or (allowance.quota is None and allowance.max_pending is None):
        return found
    has = usage_of(connection, peer)
    reason, available = has.obstacle(allowance, growth, new=new), found.available
    if allowance.quota is not None:
        available = min(available, max(0, allowance.quota - has.kept - has.reserved))
    return Room(available=available, reason=reason)


def by_capability(connection: Connection, capability: str) -> BackupRequest:
    row = connection.execute(
        select(requests).where(_r.capability_hash == rows.capability_hash(capability))
    ).one_or_none()
    if row is None:
        raise NoSuchRequest("This link belongs to no backup request.")
    return rows.request_value(row._mapping)


def _values(connection: Connection, query: Any) -> list[Any]:
    return [rows.request_value(row._mapping) for row in connection.execute(query)]


def live_for(connection: Connection, video: VideoId, peer: str | None, limit: int) -> list[Live]:
    query = select(requests).where(_LIVE, _r.video == video_key(video))
    if peer is not None:
        query = query.where(_r.peer == peer)
    return _values(connection, query.order_by(_r.seq).limit(limit))


def last_ended(connection: Connection, video: VideoId, peer: str | None) -> BackupRequest:
    query = select(requests).where(text("ended_at IS NOT NULL"), _r.video == video_key(video))
    if peer is not None:
        query = query.where(_r.peer == peer)
    row = connection.execute(query.order_by(_r.ended_at.desc()).limit(1)).one_or_none()
    if row is None:
        raise NoSuchRequest(f"No backup request for video {video} is alive.")
    return rows.request_value(row._mapping)


def page(
    connection: Connection, live: bool | None, peer: str | None, after: int, limit: int
) -> list[tuple[int, BackupRequest]]:
    query = select(requests).where(_r.seq > after).order_by(_r.seq).limit(limit)
    if live is not None:
        query = query.where(_LIVE if live else _r.ended_at.is_not(None))
    if peer is not None:
        query = query.where(_r.peer == peer)
    return [(row.seq, rows.request_value(row._mapping)) for row in connection.execute(query)]


def position(connection: Connection, request: Pending) -> int:
    seq = connection.execute(select(_r.seq).where(_r.request_id == request.ask.request_id)).scalar()
    before: ColumnElement[bool] = or_(
        _r.due_at < request.due_at, and_(_r.due_at == request.due_at, _r.seq < (seq or 0))
    )
    count = (
        select(func.count())
        .select_from(requests)
        .where(_PENDING, _r.peer == request.ask.peer, _r.origin == request.ask.origin, before)
    )
    return int(connection.execute(count).scalar_one()) + 1


def all_live(connection: Connection) -> list[Live]:
    return _values(connection, select(requests).where(_LIVE).order_by(_r.seq))


def in_progress(connection: Connection) -> list[Live]:
    # RECEIVED has no index of its own; such a request has uploads, of which there are few.
    uploading = select(_u.request_id)
    asked = [
        select(requests).where(_ACTIVE),
        select(requests).where(_STORING),
        select(requests).where(_r.request_id.in_(uploading), _r.state == "RECEIVED"),
    ]
    found = [row for query in asked for row in connection.execute(query)]
    found.sort(key=lambda row: row.seq)
    values: list[Any] = [rows.request_value(row._mapping) for row in found]
    return values


def overdue(connection: Connection, now: float, limit: int) -> list[Live]:
    asked = [
        select(requests).where(_ACTIVE, _r.lease_until <= now).order_by(_r.lease_until),
        select(requests).where(_LIVE, _r.expires_at <= now).order_by(_r.expires_at),
        select(requests).where(_STORING).order_by(_r.seq),
    ]
    found: dict[str, Live] = {}
    for query in asked:
        for request in _values(connection, query.limit(limit)):
            found.setdefault(request.ask.request_id, request)
    return list(found.values())


def given_up(connection: Connection, now: float, limit: int) -> list[Pending]:
    """Requests that wait behind offers which have failed for as long as offers are repeated.

    Each has its line's time in ``expires_at``, if it has none of its own.
    """
    dead = select(lines).where(text("gives_up_at IS NOT NULL"), _l.gives_up_at <= now).limit(limit)
    found: list[Pending] = []
    for line in connection.execute(dead):
        waiting = select(requests).where(_PENDING, _r.peer == line.peer, _r.origin == line.origin)
        for request in _values(connection, waiting.order_by(_r.due_at).limit(limit)):
            until = request.expires_at
            found.append(replace(request, expires_at=line.gives_up_at if until is None else until))
    return found


def uploads_of(connection: Connection, request_id: str | None) -> list[Upload]:
    query = select(uploads).order_by(_u.seq)
    if request_id is not None:
        query = query.where(_u.request_id == request_id)
    return [rows.upload_value(row._mapping) for row in connection.execute(query)]


def upload_by_token(connection: Connection, token: str) -> Upload:
    row = connection.execute(
        select(uploads).where(_u.token_hash == rows.capability_hash(token))
    ).one_or_none()
    if row is None:
        raise NoSuchRequest("This link belongs to no upload.")
    return rows.upload_value(row._mapping)


def unkept(connection: Connection, limit: int) -> list[Live]:
    direct = select(requests).where(text("state = 'RECEIVED' AND callback = ''"))
    return _values(connection, direct.order_by(_r.seq).limit(limit))


_due_line = (
    select(_l.peer, _l.origin, _l.failures, _l.ready_at, _l.last_turn)
    .where(_l.ready_at <= bindparam("now"))
    .limit(bindparam("limit"))
    .offset(literal_column("0"))
)
# Prepared, since the queue looks whenever something new waits.
_answering = Prepared(_due_line.where(text("failures = 0")).order_by(_l.last_turn, _l.ready_at))
_failing = Prepared(_due_line.where(text("failures > 0")).order_by(_l.ready_at))


def due_lines(connection: Connection, now: float, limit: int, heads: int) -> list[Line]:
    asked = {"now": now, "limit": limit}
    due = [line for which in (_answering, _failing) for line in which.rows(connection, asked)]
    found = []
    for peer, origin, failures, ready_at, last_turn in due:
        first = _values(
            connection,
            select(requests)
            .where(_PENDING, _r.peer == peer, _r.origin == origin, _r.due_at <= now)
            .order_by(_r.due_at, _r.seq)
            .limit(heads),
        )
        if not first:
            continue  # it was served between the two queries
        found.append(
            Line(
                peer=peer,
                origin=origin,
                failures=failures,
                ready_at=ready_at,
                last_turn=last_turn,
                heads=tuple(first),
            )
        )
    return found
