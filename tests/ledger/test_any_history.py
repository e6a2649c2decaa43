"""Whatever happens in whatever order, the sums and the lines agree with the rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backupd.errors import BackupdError, LedgerFailed
from backupd.interfaces import Room, Totals
from backupd.ledger.request_table import RequestTable
from backupd.ledger.sql import SqlLedger
from backupd.requests import (
    BackupRequest,
    Cancelled,
    Expired,
    Failed,
    Offered,
    Pending,
    Receiving,
    Stored,
    ended,
    expired,
    lapsed,
    offer_failed,
    progressed,
    received,
    receiving,
    rejected,
    stored,
    storing,
    taken,
)
from tests.conformance.samples import NOW, a_kept_backup, an_ask, an_upload
from tests.ledger.offs import at_once
from tests.outcomes import result_of

PEERS = ("a", "b", "c")
CAPACITY = 1000
peers = st.sampled_from(PEERS)
videos = st.integers(0, 3)
sizes = st.integers(1, 500)
waits = st.sampled_from([0, 1, 5, 60, 600])


class AnyHistory(RuleBasedStateMachine):
    """Peers ask, take, deliver and give up at any time, and steps fail."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = SqlLedger("sqlite://", write_off=at_once, read_off=at_once)
        self.ledger.open()
        self.now = NOW
        self.asked = 0
        self.known: list[str] = []
        self.offsets: dict[str, int] = {}
        # What the rule of back-off says of each line: failures in a row, and until when it rests.
        self.rests: dict[tuple[str, str], tuple[int, float]] = {}
        self.turns: dict[str, int] = {}
        self.turn = 0

    def teardown(self) -> None:
        result_of(self.ledger.close())

    # what happens

    def room(self, promised: int, growth: int) -> Room:
        left = CAPACITY - promised
        return Room(available=left, reason=None if growth <= left else "insufficient-space")

    @rule(peer=peers, video=videos, size=sizes, other_origin=st.booleans())
    def ask(self, peer: str, video: int, size: int, other_origin: bool) -> None:
        self.asked += 1
        origin = f"{peer}2" if other_origin else peer
        ask = an_ask(str(self.asked), peer=peer, video=video, size=size, origin=origin)
        same = result_of(self.ledger.live_for(video, peer, 1))
        request, room = result_of(self.ledger.admit(ask, self.room, now=self.now, max_pending=6))
        assert (request is None) == (room.reason is not None)
        if request is not None and request.ask.request_id not in self.known:
            self.known.append(request.ask.request_id)
        if request is not None and same and isinstance(same[0], Pending):
            # Whoever asks again is there: its lines need not rest any longer.
            for line in ((peer, same[0].ask.origin), (peer, origin)):
                self.rests[line] = self.rests.get(line, (0, 0.0))[0], 0.0

    @precondition(lambda self: self.known)
    @rule(data=st.data(), wait=waits)
    def step(self, data: st.DataObject, wait: float) -> None:
        request_id = data.draw(st.sampled_from(self.known))
        later = self.now + wait
        number = request_id.removeprefix("request-")
        steps: list[Any] = [
            lambda r: r,
            lambda r: offer_failed(r, due_at=later, expires_at=NOW + 3000, why="refused"),
            lambda r: taken(r, lease_until=later, expires_at=NOW + 3000),
            lambda r: receiving(r, lease_until=later),
            lambda r: progressed(r, lease_until=later, expires_at=NOW + 3000),
            lambda r: received(r, upload_id="u", size=1, sha256="", expires_at=self.now + 3000),
            lambda r: rejected(r, why="other bytes", now=self.now),
            lambda r: lapsed(r, now=self.now),
            lambda r: storing(r, backup=a_kept_backup(number)),
            lambda r: stored(r, now=self.now),
            lambda r: expired(r, now=self.now),
            lambda r: ended(r, Cancelled, reason="taken back", now=self.now),
        ]
        step = data.draw(st.sampled_from(steps))
        put = None
        if data.draw(st.booleans()):
            name = f"{number}-{data.draw(st.integers(0, 1))}"
            put = an_upload(
                name,
                number,
                offset=data.draw(st.integers(0, 3)),
                allocated=data.draw(st.integers(0, 600)),
            )
        drop = [f"upload-{number}-{n}" for n in data.draw(st.sets(st.integers(0, 1), max_size=1))]
        before = result_of(self.ledger.request(request_id))
        try:
            after = result_of(self.ledger.change(request_id, step, put=put, drop=drop))
        except LedgerFailed:
            assert put is not None
            assert put.offset < self.offsets[put.upload_id], "only an offset may be refused"
            after = before
            put, drop = None, []
        except BackupdError:
            after = before
            put, drop = None, []
        assert result_of(self.ledger.request(request_id)) == after
        self.follow(before, after)
        if put is not None:
            self.offsets[put.upload_id] = put.offset
        for upload_id in drop:
            self.offsets.pop(upload_id, None)
        if isinstance(after, Stored | Expired | Cancelled | Failed):
            for name in [name for name in self.offsets if name.startswith(f"upload-{number}-")]:
                del self.offsets[name]

    def follow(self, before: BackupRequest, after: BackupRequest) -> None:
        line = before.ask.peer, before.ask.origin
        if isinstance(before, Pending) and isinstance(after, Offered):
            self.rests[line] = 0, 0.0
            self.turn += 1
            self.turns[before.ask.peer] = self.turn
        failed = (
            isinstance(before, Pending)
            and isinstance(after, Pending)
            and (after.attempts > before.attempts)
        )
        if failed and isinstance(after, Pending):
            failures, _ = self.rests.get(line, (0, 0.0))
            self.rests[line] = failures + 1, after.due_at

    @rule(wait=waits)
    def wait(self, wait: float) -> None:
        self.now += wait

    @rule()
    def purge(self) -> None:
        result_of(self.ledger.purge(before=NOW - 1, limit=9))

    # what must be true

    @invariant()
    def sums_agree_with_the_rows(self) -> None:
        """Promised is what live requests asked for and is not allocated, and nothing else."""
        live = result_of(self.ledger.all_live())
        allocated: dict[str, int] = {}
        for upload in result_of(self.ledger.uploads(None)):
            allocated[upload.request_id] = allocated.get(upload.request_id, 0) + upload.allocated
        assert allocated.keys() <= {request.ask.request_id for request in live}
        totals = Totals(
            promised=sum(
                max(0, request.ask.size - allocated.get(request.ask.request_id, 0))
                for request in live
            ),
            pending=sum(isinstance(request, Pending) for request in live),
            active=sum(isinstance(request, Offered | Receiving) for request in live),
            live=len(live),
        )
        assert result_of(self.ledger.totals()) == totals

    @invariant()
    def recounting_changes_nothing(self) -> None:
        """What is counted anew at a start is what was kept."""
        assert self.ledger._writer is not None
        anew = RequestTable()
        anew.recount(self.ledger._writer)
        kept = self.ledger._committed
        assert replace(anew.sums, turn=0) == replace(kept, turn=0)
        assert anew.sums.turn <= kept.turn

    @invariant()
    def one_live_request_for_a_video_of_a_peer(self) -> None:
        """There is no second reservation."""
        live = result_of(self.ledger.all_live())
        assert len({(r.ask.peer, r.ask.video) for r in live}) == len(live)

    @invariant()
    def lines_are_those_with_something_due(self) -> None:
        """A line shows when, and only when, a pending request in it is due and it does not rest;
        those that answer come in the order of their peers' last turns.
        """
        due: dict[tuple[str, str], list[Pending]] = {}
        for request in result_of(self.ledger.all_live()):
            if isinstance(request, Pending) and request.due_at <= self.now:
                due.setdefault((request.ask.peer, request.ask.origin), []).append(request)
        wanted = {
            key: tuple(sorted(heads, key=lambda r: (r.due_at, int(r.ask.request_id[8:]))))
            for key, heads in due.items()
            if self.rests.get(key, (0, 0.0))[1] <= self.now
        }
        lines = result_of(self.ledger.lines(now=self.now, limit=99, heads=99))
        assert {(line.peer, line.origin): line.heads for line in lines} == wanted
        for line in lines:
            assert line.failures == self.rests.get((line.peer, line.origin), (0, 0.0))[0]
        answering = [line for line in lines if line.failures == 0]
        turns = [self.turns.get(line.peer, 0) for line in answering]
        assert turns == sorted(turns)
        assert lines[: len(answering)] == answering
        failing = [line.ready_at for line in lines if line.failures]
        assert failing == sorted(failing)

    @invariant()
    def offsets_stand(self) -> None:
        """Every durable offset is the last that was acknowledged."""
        found = {u.upload_id: u.offset for u in result_of(self.ledger.uploads(None))}
        assert found == self.offsets


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
