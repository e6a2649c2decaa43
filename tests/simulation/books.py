"""What the in-memory ledger has written: the records, and the steps on them.

The same rules as `backupd.ledger.request_table` and its neighbours, on plain dictionaries. A
step either happens whole or raises before it has changed anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from backupd.errors import (
    LedgerFailed,
    NoSuchRequest,
    UploadHeld,
)
from backupd.interfaces import Allowance, Entry, Line, Room, Totals, Upload, Usage
from backupd.requests import (
    NEVER,
    Ask,
    Backup,
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
    same_video,
)
from tests.simulation.kept_books import KeptBooks
from tests.simulation.sent_books import OVER, SentBooks

__all__ = ["Books", "Row"]

KEPT_TURNS = 1000
_CHANGING = ("length", "offset", "allocated", "sha256", "changed_at", "file_name", "content_type")
ALIVE = (Pending, Offered, Receiving, Received, Storing)


@dataclass(slots=True)
class Row:
    """A request, its number, and what its uploads occupy."""

    seq: int
    request: BackupRequest
    allocated: int = 0


@dataclass(slots=True)
class _Lane:
    """A line, as the ledger keeps it."""

    peer: str
    origin: str
    last_turn: int
    failures: int = 0
    resting_until: float = 0.0
    ready_at: float | None = None
    gives_up_at: float | None = None


class Books(KeptBooks, SentBooks):
    """Everything that has been committed. ``changed`` gathers what watchers are to be told."""

    def __init__(self, footprint: int) -> None:
        KeptBooks.__init__(self, self._number)
        SentBooks.__init__(self, self._number)
        self.footprint = footprint
        self.root: str | None = None
        self.changed: list[BackupRequest] = []
        self._seq = 0
        self._turn = 0
        self.rows: dict[str, Row] = {}
        self.alive: dict[str, Row] = {}
        self._capabilities: dict[str, str] = {}
        self.lanes: dict[tuple[str, str], _Lane] = {}
        self.uploads: dict[str, tuple[int, Upload]] = {}
        self._tokens: dict[str, str] = {}

    def take(
        self,
        requests: list[tuple[int, BackupRequest]],
        uploads: list[Upload],
        backups: list[tuple[int, Backup]],
        entries: list[tuple[int, Entry]],
    ) -> None:
        """Have what another ledger has."""
        self.uploads = {one.upload_id: (number, one) for number, one in enumerate(uploads)}
        for number, one in backups:
            self.put_backup(one, number)
        self.entries = {one.entry_id: (number, one) for number, one in entries}
        self.going = {one.entry_id: None for _, one in entries if one.state not in OVER}
        for seq, request in requests:
            request_id = request.ask.request_id
            row = self.rows[request_id] = Row(seq, request)
            if isinstance(request, ALIVE):
                row.allocated = sum(one.allocated for one in self.uploads_of(request_id))
                self.alive[request_id] = row

    def _number(self) -> int:
        self._seq += 1
        return self._seq

    # -- sums -------------------------------------------------------------------------------------

    def owed(self, row: Row) -> int:
        return max(0, row.request.ask.size - row.allocated) + self.footprint

    def totals(self) -> Totals:
        rows = self.alive.values()
        return Totals(
            promised=sum(self.owed(row) for row in rows),
            pending=sum(isinstance(row.request, Pending) for row in rows),
            active=sum(isinstance(row.request, Offered | Receiving) for row in rows),
            live=len(rows),
        )

    # -- steps on requests ------------------------------------------------------------------------

    def row(self, request_id: str) -> Row:
        row = self.rows.get(request_id)
        if row is None:
            raise NoSuchRequest(f"There is no backup request {request_id}.")
        return row

    def by_capability(self, capability: str) -> BackupRequest:
        request_id = self._capabilities.get(capability)
        if request_id is None:
            raise NoSuchRequest("This link belongs to no backup request.")
        return self.rows[request_id].request

    def _same(self, ask: Ask) -> Row | None:
        """The live request of the same peer for the same video."""
        for row in self.alive.values():
            old = row.request.ask
            if old.peer == ask.peer and same_video(old.video, ask.video):
                return row
        return None

    def usage(self, peer: str) -> Usage:
        """What a peer has: see `ILedger.usage`."""
        mine = [row.request for row in self.alive.values() if row.request.ask.peer == peer]
        return Usage(
            kept=sum(
                one.size for one in [kept for _, kept in self.backups.values()] if one.peer == peer
            ),
            reserved=sum(one.ask.size for one in mine),
            pending=sum(isinstance(one, Pending) for one in mine),
        )

    def _within(
        self, peer: str, allowance: Allowance, growth: int, found: Room, *, new: bool
    ) -> Room:
        if found.reason is not None or (allowance.quota is None and allowance.max_pending is None):
            return found
        has = self.usage(peer)
        available = found.available
        if allowance.quota is not None:
            available = min(available, max(0, allowance.quota - has.kept - has.reserved))
        return Room(available=available, reason=has.obstacle(allowance, growth, new=new))

    def admit(
        self,
        ask: Ask,
        room: Callable[[int, int], Room],
        now: float,
        max_pending: int,
        expires_at: float | None,
        fresh: bool,
        allowance: Allowance,
    ) -> tuple[Live | None, Room]:
        totals, row = self.totals(), self._same(ask)
        if row is not None:
            old = row.request
            if fresh:
                return live(old, "asked for"), room(totals.promised, 0)
            new = asked_again(old, ask=ask, now=now)
            least = min(row.allocated, old.ask.size)
            new = replace(new, ask=replace(new.ask, size=max(new.ask.size, least)))
            owed = max(0, old.ask.size - row.allocated)
            growth = max(0, new.ask.size - row.allocated) - owed
            found = room(totals.promised, growth)
            more = new.ask.size - old.ask.size
            found = self._within(ask.peer, allowance, more, found, new=False)
            if found.reason is not None and more > 0:
                return None, found
            self._replace(row, new, asked=True)
            return new, replace(found, reason=None)
        found = room(totals.promised, ask.size + self.footprint)
        if found.reason is None and totals.pending >= max_pending:
            found = replace(found, reason="queue-full")
        found = self._within(ask.peer, allowance, ask.size, found, new=True)
        if found.reason is not None:
            return None, found
        request = Pending(ask=ask, due_at=now, expires_at=expires_at)
        self._add(request)
        return request, found

    def _add(self, request: Pending) -> None:
        ask, now = request.ask, request.due_at
        row = self.rows[ask.request_id] = Row(self._number(), request)
        self.alive[ask.request_id] = row
        self._capabilities[ask.capability] = ask.request_id
        lane = self.lanes.get((ask.peer, ask.origin))
        if lane is None:
            lane = self._lane(ask.peer, ask.origin)
            lane.ready_at = now
        else:
            rested = max(lane.resting_until, now)
            lane.ready_at = rested if lane.ready_at is None else min(lane.ready_at, rested)
            if lane.gives_up_at is not None and lane.gives_up_at <= now:
                lane.gives_up_at = None
        self.changed.append(request)

    def join(self, ask: Ask, final: Upload, now: float, expires_at: float) -> Live:
        """See `ILedger.join`."""
        owners = []
        for part in final.parts:
            found = self.uploads.get(part)
            if found is None or not found[1].partial:
                raise NoSuchRequest("One of the parts is gone, or is none.")
            owner = self.rows[found[1].request_id]
            owners.append((part, owner, joined(owner.request, into=ask.request_id, now=now)))
        row = self._same(ask)
        if row is None:
            self._add(Pending(ask=ask, due_at=now, expires_at=expires_at))
            row = self.rows[ask.request_id]
        else:
            if self.uploads_of(row.request.ask.request_id):
                raise UploadHeld("An upload of this video is there already; end it first.", 5.0)
            self._replace(row, asked_again(row.request, ask=ask, now=now), asked=True)
        request_id = row.request.ask.request_id
        for part, owner, over in owners:
            number, upload = self.uploads[part]
            self.uploads[part] = number, replace(upload, request_id=request_id)
            into = replace(over, reason=f"It became a part of request {request_id}.")
            self._replace(owner, into)
        self.change(request_id, lambda r: r, replace(final, request_id=request_id), ())
        return live(row.request, "joined")

    def change(
        self,
        request_id: str,
        step: Callable[[BackupRequest], BackupRequest],
        put: Upload | Sequence[Upload] | None,
        drop: Sequence[str],
    ) -> BackupRequest:
        row = self.row(request_id)
        new = step(row.request)
        uploads = [put] if isinstance(put, Upload) else list(put or ())
        for one in uploads:
            _, known = self.uploads.get(one.upload_id, (0, one))
            if one.offset < known.offset:
                raise LedgerFailed(
                    f"Upload {one.upload_id} stands at {known.offset} and cannot go back to "
                    f"{one.offset}."
                )
        for one in uploads:
            self._put_upload(one)
        for upload_id in drop:
            self.uploads.pop(upload_id, None)
        if new != row.request or uploads or drop:
            self._replace(row, new)
        return new

    def _put_upload(self, upload: Upload) -> None:
        number, known = self.uploads.get(upload.upload_id, (0, None))
        if upload.token is not None and known is None:
            self._tokens[upload.token] = upload.upload_id
        if known is not None:
            changing = {name: getattr(upload, name) for name in _CHANGING}
            upload = replace(known, **changing)
        self.uploads[upload.upload_id] = number or self._number(), replace(upload, token=None)

    def _replace(self, row: Row, new: BackupRequest, *, asked: bool = False) -> None:
        old, row.request = row.request, new
        request_id = new.ask.request_id
        if isinstance(new, ALIVE):
            row.allocated = sum(one.allocated for one in self.uploads_of(request_id))
        else:
            self.alive.pop(request_id, None)
            row.allocated = 0
            for one in self.uploads_of(request_id):
                del self.uploads[one.upload_id]
        if isinstance(old, Storing) and isinstance(new, Stored):
            self.put_backup(old.backup)
            self.came_from(old.backup, old.ask)
        self._move_in_line(old, new, asked)
        if new != old:
            self.changed.append(new)

    def _move_in_line(self, old: BackupRequest, new: BackupRequest, asked: bool) -> None:
        if not isinstance(old, Pending) and not isinstance(new, Pending):
            return
        failed = (
            isinstance(old, Pending) and isinstance(new, Pending) and new.attempts > old.attempts
        )
        served = isinstance(old, Pending) and isinstance(new, Offered | Receiving)
        peer = old.ask.peer
        for origin in dict.fromkeys((old.ask.origin, new.ask.origin)):
            lane = self.lanes.get((peer, origin)) or self._lane(peer, origin)
            if failed and isinstance(new, Pending) and origin == new.ask.origin:
                lane.failures, lane.resting_until = lane.failures + 1, new.due_at
                if lane.gives_up_at is None:
                    lane.gives_up_at = new.expires_at
            elif served:
                lane.failures, lane.resting_until, lane.gives_up_at = 0, 0.0, None
            elif asked:
                lane.resting_until, lane.gives_up_at = 0.0, None
            first = min((one.due_at for one in self._waiting(peer, origin)), default=None)
            lane.ready_at = None if first is None else max(first, lane.resting_until)
            if first is None:
                lane.gives_up_at = None
        if served:
            self._turn += 1
            for lane in self.lanes.values():
                if lane.peer == peer:
                    lane.last_turn = self._turn

    def _lane(self, peer: str, origin: str) -> _Lane:
        turns = (lane.last_turn for lane in self.lanes.values() if lane.peer == peer)
        lane = self.lanes[peer, origin] = _Lane(peer, origin, max(turns, default=0))
        return lane

    def _waiting(self, peer: str, origin: str) -> list[Pending]:
        """Those that wait in a line, first come first."""
        return [
            row.request
            for row in self.alive.values()
            if isinstance(row.request, Pending)
            and (row.request.ask.peer, row.request.ask.origin) == (peer, origin)
        ]

    def purge(self, before: float, limit: int) -> int:
        for key, lane in list(self.lanes.items()):
            idle = lane.last_turn <= self._turn - KEPT_TURNS
            if lane.ready_at is None and lane.resting_until < before and idle:
                del self.lanes[key]
        old = [
            request_id
            for request_id, row in self.rows.items()
            if not isinstance(row.request, ALIVE) and row.request.ended_at < before
        ][:limit]
        for request_id in old:
            row = self.rows.pop(request_id)
            self._capabilities.pop(row.request.ask.capability, None)
        return len(old) + self.purge_entries(before, limit)

    def set_back(self, by: float, own: float) -> None:
        """See `ILedger.set_back`."""

        def earlier(one: object, *names: str) -> dict[str, Any]:
            waits = {name: getattr(one, name, None) for name in names}
            return {name: at - by for name, at in waits.items() if at is not None and at < NEVER}

        for row in self.alive.values():
            waits = earlier(row.request, "due_at", "lease_until", "expires_at")
            row.request = replace(row.request, **waits)
        for lane in self.lanes.values():
            for name, at in earlier(lane, "resting_until", "ready_at", "gives_up_at").items():
                setattr(lane, name, at)
        self.set_entries_back(by)
        self.set_repairs_back(by)
        self.own_time = own

    # -- questions about requests -----------------------------------------------------------------

    def page(
        self, live: bool | None, peer: str | None, after: int, limit: int
    ) -> list[tuple[int, BackupRequest]]:
        found = [
            (row.seq, row.request)
            for row in self.rows.values()
            if row.seq > after
            and live in (None, isinstance(row.request, ALIVE))
            and peer in (None, row.request.ask.peer)
        ]
        return found[:limit]

    def all_live(self) -> list[Live]:
        return [row.request for row in self.alive.values() if isinstance(row.request, ALIVE)]

    def live_for(self, video: VideoId, peer: str | None, limit: int) -> list[Live]:
        found = [
            one
            for one in self.all_live()
            if same_video(one.ask.video, video) and peer in (None, one.ask.peer)
        ]
        return found[:limit]

    def last_ended(self, video: VideoId, peer: str | None) -> BackupRequest:
        ended = [
            row.request
            for row in self.rows.values()
            if not isinstance(row.request, ALIVE)
            and same_video(row.request.ask.video, video)
            and peer in (None, row.request.ask.peer)
        ]
        if not ended:
            raise NoSuchRequest(f"No backup request for video {video} is alive.")
        return max(ended, key=lambda one: getattr(one, "ended_at", 0.0))

    def position(self, request: Pending) -> int:
        mine = self.rows.get(request.ask.request_id)
        before = 0
        for one in self._waiting(request.ask.peer, request.ask.origin):
            seq = self.rows[one.ask.request_id].seq
            earlier = one.due_at < request.due_at
            same = one.due_at == request.due_at and seq < (mine.seq if mine else 0)
            before += earlier or same
        return before + 1

    def lines(self, now: float, limit: int, heads: int) -> list[Line]:
        due = [
            one for one in self.lanes.values() if one.ready_at is not None and one.ready_at <= now
        ]
        if not due:
            return []
        answering = [one for one in due if not one.failures]
        failing = [one for one in due if one.failures]
        answering.sort(key=lambda one: (one.last_turn, one.ready_at or 0.0))
        failing.sort(key=lambda one: one.ready_at or 0.0)
        found = []
        for lane in (*answering[:limit], *failing[:limit]):
            waiting = [one for one in self._waiting(lane.peer, lane.origin) if one.due_at <= now]
            waiting.sort(key=lambda one: one.due_at)
            if waiting:
                line = Line(
                    peer=lane.peer,
                    origin=lane.origin,
                    failures=lane.failures,
                    ready_at=lane.ready_at or 0.0,
                    last_turn=lane.last_turn,
                    heads=tuple(waiting[:heads]),
                )
                found.append(line)
        return found

    def overdue(self, now: float, limit: int) -> list[Live]:
        if not self.alive:
            return []
        live = self.all_live()
        leases = [
            one for one in live if isinstance(one, Offered | Receiving) and one.lease_until <= now
        ]
        leases.sort(key=lambda one: one.lease_until)
        times = [one for one in live if one.expires_at is not None and one.expires_at <= now]
        times.sort(key=lambda one: one.expires_at or 0.0)
        storing = [one for one in live if isinstance(one, Storing)]
        found: dict[str, Live] = {}
        for group in (leases, times, storing):
            for one in group[:limit]:
                found.setdefault(one.ask.request_id, one)
        return list(found.values())

    def given_up(self, now: float, limit: int) -> list[Pending]:
        found: list[Pending] = []
        for lane in self.lanes.values():
            if lane.gives_up_at is None or lane.gives_up_at > now:
                continue
            waiting = sorted(self._waiting(lane.peer, lane.origin), key=lambda one: one.due_at)
            for one in waiting[:limit]:
                until = lane.gives_up_at if one.expires_at is None else one.expires_at
                found.append(replace(one, expires_at=until))
        return found

    def uploads_of(self, request_id: str | None) -> list[Upload]:
        return [one for _, one in self.uploads.values() if request_id in (None, one.request_id)]

    def upload_by_token(self, token: str) -> Upload:
        upload_id = self._tokens.get(token, "")
        if upload_id not in self.uploads:
            raise NoSuchRequest("This link belongs to no upload.")
        return self.uploads[upload_id][1]

    def unkept(self, limit: int) -> list[Live]:
        if not self.alive:
            return []
        found: list[Live] = []
        for one in self.all_live():
            if isinstance(one, Received) and one.ask.direct:
                found.append(one)
        return found[:limit]
