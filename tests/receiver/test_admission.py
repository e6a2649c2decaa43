"""Admission never lies: what was promised fits (PROTOCOL.md, section 1)."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any, cast

import pytest
from hypothesis import settings as profile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from backupd.errors import LedgerFailed, StorageFailed
from backupd.interfaces import Allowance, IStorage
from backupd.ledger.sql import SqlLedger
from backupd.receiver.admission import Admission, Decision
from backupd.receiver.room import occupied
from backupd.requests import (
    BackupRequest,
    Cancelled,
    Offered,
    Pending,
    VideoId,
    ended,
    receiving,
    taken,
)
from backupd.settings import Settings
from tests.conformance.samples import an_upload, to_offered
from tests.ledger.offs import WhenTold, at_once
from tests.outcomes import pending, result_of
from tests.receiver.world import WorldCase, set_attribute
from tests.receiver.world import now as outcome

GB = 1024**3
PEER = "http://localhost:3002"


class Volume:
    """The room on a volume: what admission sees of a storage."""

    def __init__(self, capacity: int, used: int = 0) -> None:
        self._capacity = capacity
        self.used = used

    def capacity(self) -> int:
        return self._capacity

    def free(self) -> int:
        return self._capacity - self.used


class Desk:
    """Admission to a volume, with a ledger in memory and ids that can be read."""

    def __init__(self, volume: Volume, ledger: SqlLedger | None = None, **more: Any) -> None:
        self.volume = volume
        self.ledger_volume = 10**12
        self.lent = 0
        self.ledger = ledger or SqlLedger("sqlite://", write_off=at_once, read_off=at_once)
        self.ledger.open()
        self.clock = Clock()
        self.count = 0
        self.admission = Admission(
            ledger=self.ledger,
            storage=cast(IStorage, volume),
            settings=Settings(**({"reserved_space": GB} | more)),
            clock=self.clock,
            new_id=self.new_id,
            new_capability=lambda: f"capability-{self.count}",
            ledger_room=lambda: self.ledger_volume,
            lent=lambda: self.lent,
        )

    def new_id(self) -> str:
        self.count += 1
        return f"request-{self.count}"

    def asking(
        self, video: VideoId, size: int, peer: str = PEER, callback: str = "", **more: Any
    ) -> Deferred[Decision]:
        return Deferred.fromCoroutine(
            self.admission.ask(
                peer=peer,
                origin=peer,
                video=video,
                size=size,
                callback=callback or f"{peer}/ready",
                **more,
            )
        )

    def ask(self, video: VideoId, size: int, peer: str = PEER, **more: Any) -> Decision:
        return result_of(self.asking(video, size, peer, **more))


@pytest.fixture
def desk() -> Desk:
    """10 GB, of which 2 are used and 1 is the floor: 7 to promise."""
    return Desk(Volume(10 * GB, 2 * GB))


def test_what_is_lent_is_promised_to_nobody(desk: Desk) -> None:
    """Parts that are joined are there twice for a moment, and then it is free again."""
    desk.lent = GB
    assert refused(desk.ask(2, 7 * GB), "insufficient-space").available == 6 * GB
    desk.lent = 0
    assert desk.ask(2, 7 * GB).request is not None


def refused(decision: Decision, reason: str) -> Decision:
    assert decision.request is None
    assert decision.reason == reason
    assert decision.message.endswith(".")
    return decision


# -- yes ------------------------------------------------------------------------------------------


def test_yes(desk: Desk) -> None:
    """Yes comes with the request, PENDING and due now, and with what is left for others."""
    desk.clock.advance(100)
    decision = desk.ask(2, 3 * GB, file_name="a.mp4", content_type="video/mp4", sha256="ab" * 32)
    request = decision.request
    assert isinstance(request, Pending)
    assert request.due_at == request.ask.created_at == 100
    assert request.ask.size == 3 * GB
    assert (request.ask.file_name, request.ask.sha256) == ("a.mp4", "ab" * 32)
    assert decision.message == "Server A can accept backup"
    assert (decision.reason, decision.retry_after) == (None, None)
    assert decision.available == 4 * GB
    assert result_of(desk.ledger.request("request-1")) == request


def test_to_the_last_byte(desk: Desk) -> None:
    """What is exactly left can be promised; a byte more cannot."""
    refused(desk.ask(1, 7 * GB + 1), "insufficient-space")
    assert desk.ask(1, 7 * GB).available == 0
    refused(desk.ask(2, 1), "insufficient-space")


def test_yes_is_durable() -> None:
    """Nobody hears yes before the commit; and when that fails, nobody hears it."""
    off = WhenTold()
    ledger = SqlLedger("sqlite://", write_off=off, read_off=at_once)
    desk = Desk(Volume(10 * GB), ledger)
    answer = desk.asking(1, GB)
    assert pending(answer)
    off.run()
    assert result_of(answer).request is not None
    closing = ledger.close()
    off.run()
    result_of(closing)
    answer = desk.asking(2, GB)
    with pytest.raises(LedgerFailed):
        result_of(answer)


# -- no -------------------------------------------------------------------------------------------


def test_two_that_do_not_fit_together(desk: Desk) -> None:
    """Each would fit alone: the first is promised, the second refused, and told what is left."""
    assert desk.ask(1, 4 * GB).request is not None
    decision = refused(desk.ask(2, 4 * GB), "insufficient-space")
    assert decision.available == 3 * GB
    assert decision.retry_after is not None
    assert "needs 4 GB, and 3 GB can" in decision.message
    assert desk.ask(3, 3 * GB).request is not None


def test_two_at_the_same_time() -> None:
    """Also when both ask before either is answered."""
    off = WhenTold()
    desk = Desk(Volume(10 * GB), SqlLedger("sqlite://", write_off=off, read_off=at_once))
    answers = [desk.asking(number, 5 * GB) for number in range(4)]
    while off.waiting:
        off.run()
    said = [result_of(answer) for answer in answers]
    assert [decision.request is not None for decision in said] == [True, False, False, False]


def test_floor(desk: Desk) -> None:
    """The floor is never promised, also when the volume is below it already."""
    desk.volume.used = 9 * GB + 1
    decision = refused(desk.ask(1, 1), "insufficient-space")
    assert decision.available == 0
    desk.volume.used = 9 * GB - 1
    assert desk.ask(1, 1).request is not None


def test_no_floor() -> None:
    """Without a floor the last byte can be promised."""
    assert Desk(Volume(5), reserved_space=0).ask(1, 5).request is not None


def test_promises_outlive_other_programs(desk: Desk) -> None:
    """When others filled the disk, what is left counts as nothing, never as less."""
    desk.ask(1, 7 * GB)
    desk.volume.used = 10 * GB
    assert refused(desk.ask(2, 1), "insufficient-space").available == 0


def test_too_large(desk: Desk) -> None:
    """What the empty volume could not hold is told so, and not to come again."""
    decision = refused(desk.ask(1, 9 * GB + 1), "too-large")
    assert decision.retry_after is None
    refused(desk.ask(1, 9 * GB), "insufficient-space")


def test_too_large_with_its_folders() -> None:
    """What would fit the empty volume only without its folders and sidecar can never fit."""
    ledger = SqlLedger("sqlite://", write_off=at_once, read_off=at_once, footprint=1000)
    desk = Desk(Volume(10 * GB), ledger)
    refused(desk.ask(1, 9 * GB), "too-large")
    assert desk.ask(1, 9 * GB - 1000).available == 0
    refused(desk.ask(2, 1), "insufficient-space")


def test_growth_too_large(desk: Desk) -> None:
    """A request that grows beyond the volume is too large, however small the growth."""
    desk.ask(1, 7 * GB)
    decision = refused(desk.ask(1, 9 * GB + 1), "too-large")
    assert decision.retry_after is None


def test_queue_full() -> None:
    """Only so many wait; the rest is asked to come again, but for those that could never fit."""
    desk = Desk(Volume(10 * GB), max_pending=2)
    desk.ask(1, 1)
    desk.ask(2, 1)
    decision = refused(desk.ask(3, 1), "queue-full")
    assert decision.retry_after is not None
    assert decision.available == 9 * GB - 2
    assert desk.ask(2, 5).request is not None
    assert refused(desk.ask(3, 10 * GB), "too-large").retry_after is None


def test_draining(desk: Desk) -> None:
    """A server that is being emptied takes nothing new; what was promised stands, and who asks
    for no more than that again is told yes.
    """
    desk.ask(1, 5)
    desk.admission.draining = True
    assert refused(desk.ask(2, 1), "draining").retry_after is not None
    refused(desk.ask(1, 6), "draining")
    assert desk.ask(1, 5).request is not None
    desk.admission.draining = False
    assert desk.ask(2, 1).request is not None


def test_ledger_volume(desk: Desk) -> None:
    """A ledger without room can keep no promise: its volume has the same floor."""
    desk.ledger_volume = GB - 1
    decision = refused(desk.ask(1, 1), "insufficient-space")
    assert "ledger" in decision.message
    assert decision.retry_after is not None
    desk.ledger_volume = GB
    assert desk.ask(1, 1).request is not None


def test_a_volume_that_fails(desk: Desk) -> None:
    """A volume that cannot be asked promises nothing; the error is told as it is."""

    def fails() -> int:
        raise StorageFailed("The volume failed.")

    desk.volume.free = fails  # type: ignore[method-assign]
    with pytest.raises(StorageFailed):
        desk.ask(1, 1)
    assert result_of(desk.ledger.totals()).live == 0


# -- again ----------------------------------------------------------------------------------------


def test_asked_again(desk: Desk) -> None:
    """The same video from the same peer is the same request: no second reservation."""
    first = desk.ask(2, 3 * GB).request
    decision = desk.ask("2", 4 * GB, callback=f"{PEER}/new")
    again = decision.request
    assert first is not None
    assert again is not None
    assert again.ask.request_id == first.ask.request_id
    assert again.ask.capability == first.ask.capability
    assert (again.ask.size, again.ask.callback) == (4 * GB, f"{PEER}/new")
    assert result_of(desk.ledger.totals()).promised == 4 * GB
    other = desk.ask(2, GB, "http://localhost:3003").request
    assert other is not None
    assert other.ask.request_id != first.ask.request_id


def test_asked_again_while_offered(desk: Desk) -> None:
    """Who asks again in the middle of a turn keeps the turn."""
    desk.ask(1, GB)
    result_of(desk.ledger.change("request-1", to_offered))
    assert isinstance(desk.ask(1, GB).request, Offered)


def test_growth_that_does_not_fit(desk: Desk) -> None:
    """It is refused, and the old promise stands."""
    first = desk.ask(1, 5 * GB).request
    desk.ask(2, 2 * GB)
    decision = refused(desk.ask(1, 5 * GB + 1), "insufficient-space")
    assert decision.available == 0
    assert result_of(desk.ledger.request("request-1")) == first
    assert desk.ask(1, 5 * GB).request is not None


def test_shrinking_makes_room(desk: Desk) -> None:
    """What is not needed any more can be promised to others, and is told so at once."""
    desk.ask(1, 7 * GB)
    desk.ask(1, 3 * GB)
    assert desk.ask(2, 4 * GB).request is not None


def test_available_after_asking_again(desk: Desk) -> None:
    """What is left for a newcomer is told right in every yes."""
    assert desk.ask(1, 2 * GB).available == 5 * GB
    assert desk.ask(1, 2 * GB).available == 5 * GB
    assert desk.ask(1, 3 * GB).available == 4 * GB
    assert desk.ask(1, 1 * GB).available == 6 * GB
    assert desk.ask(2, 6 * GB).available == 0


# -- whatever order -------------------------------------------------------------------------------

CAPACITY = 1000
FLOOR = 100
sizes = st.integers(1, 700)


class AnyOrder(RuleBasedStateMachine):
    """Requests, uploads, backups and crashes in any order, on a volume that nobody else writes.

    Blocks are allocated and then marked in the ledger, unmarked and then freed; a crash may come
    between the two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.volume = Volume(CAPACITY)
        self.start()
        # Blocks of unfinished uploads, as the volume has them: request id -> bytes.
        self.blocks: dict[str, int] = {}
        self.backups: list[int] = []
        self.serial = 0

    def start(self) -> None:
        url = f"sqlite:///{self.folder}/ledger"
        ledger = SqlLedger(url, write_off=at_once, read_off=at_once)
        self.desk = Desk(self.volume, ledger, reserved_space=FLOOR, max_pending=5)

    def teardown(self) -> None:
        result_of(self.desk.ledger.close())
        shutil.rmtree(self.folder)

    def live(self) -> list[BackupRequest]:
        found = result_of(self.desk.ledger.all_live())
        return [*found]

    def change(self, request: BackupRequest, step: Any, **more: Any) -> None:
        result_of(self.desk.ledger.change(request.ask.request_id, step, **more))

    @rule(video=st.integers(0, 4), size=sizes, peer=st.sampled_from("ab"))
    def ask(self, video: int, size: int, peer: str) -> None:
        self.desk.count = self.serial = self.serial + 1
        before = result_of(self.desk.ledger.totals()).promised
        decision = self.desk.ask(video, size, peer)
        if decision.request is None:
            assert result_of(self.desk.ledger.totals()).promised == before
        else:
            # What has come stays promised, as far as the ledger knows of it.
            ask = decision.request.ask
            uploads = result_of(self.desk.ledger.uploads(ask.request_id))
            come = occupied(uploads)
            assert ask.size == max(size, come)

    @precondition(lambda self: self.live())
    @rule(data=st.data(), marked=st.booleans())
    def allocate(self, data: st.DataObject, marked: bool) -> None:
        request = data.draw(st.sampled_from(self.live()))
        name = request.ask.request_id
        have = self.blocks.get(name, 0)
        if have < request.ask.size:
            more = data.draw(st.integers(1, request.ask.size - have))
            assert self.volume.free() >= more, "promised room must be there"
            self.volume.used += more
            self.blocks[name] = have + more
        if marked:
            self.mark(request)

    def mark(self, request: BackupRequest) -> None:
        name = request.ask.request_id
        # What an earlier upload has left may be more than is asked for by now; it is nobody's part.
        allocated = min(self.blocks.get(name, 0), request.ask.size)
        put = an_upload(name, allocated=allocated, request_id=name)
        self.change(
            request,
            lambda r: receiving(taken(r, lease_until=1, expires_at=1), lease_until=1),
            put=put,
        )

    @precondition(lambda self: self.live())
    @rule(data=st.data(), freed=st.booleans())
    def give_up(self, data: st.DataObject, freed: bool) -> None:
        request = data.draw(st.sampled_from(self.live()))
        if data.draw(st.booleans()):
            self.change(request, lambda r: ended(r, Cancelled, reason="no", now=1))
        else:
            self.change(request, lambda r: r, drop=[f"upload-{request.ask.request_id}"])
        if freed:
            self.volume.used -= self.blocks.pop(request.ask.request_id, 0)

    @precondition(lambda self: self.live())
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.live()))
        self.change(request, lambda r: ended(r, Cancelled, reason="stored", now=1))
        self.backups.append(self.blocks.pop(request.ask.request_id, 0))

    @precondition(lambda self: self.backups)
    @rule()
    def delete(self) -> None:
        self.volume.used -= self.backups.pop()

    @rule()
    def crash(self) -> None:
        """Another process opens the ledger, marks what is allocated, frees what is nobody's."""
        result_of(self.desk.ledger.close())
        self.start()
        alive = {request.ask.request_id: request for request in self.live()}
        for name in list(self.blocks):
            if name in alive:
                self.mark(alive[name])
            else:
                self.volume.used -= self.blocks.pop(name)

    @invariant()
    def what_was_promised_fits(self) -> None:
        """Used, and promised on top of it, never pass capacity less the floor."""
        owed = sum(
            max(0, request.ask.size - self.blocks.get(request.ask.request_id, 0))
            for request in self.live()
        )
        assert self.volume.used + owed <= CAPACITY - FLOOR

    @invariant()
    def nothing_is_reserved_for_nobody(self) -> None:
        """When every block is marked, the ledger's sum is exactly what is owed."""
        promised = result_of(self.desk.ledger.totals()).promised
        owed = sum(
            max(0, request.ask.size - self.blocks.get(request.ask.request_id, 0))
            for request in self.live()
        )
        assert promised >= owed
        assert promised <= sum(request.ask.size for request in self.live())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = profile(max_examples=40, stateful_step_count=25, deadline=None)


class AllowanceTests(WorldCase):
    """What one peer may have."""

    def ask(self, allowance: Allowance, size: int) -> Decision:
        world = self.world
        set_attribute(self, world.admission, "_allowance", lambda peer: allowance)
        decided: Decision = outcome(
            world.admission.ask(
                peer="b", origin="http://b:1", video=1, size=size, callback="http://b:1/x"
            )
        )
        return decided

    def test_quota(self) -> None:
        """Beyond its quota a peer hears how much it may still have, and nothing is reserved."""
        decision = self.ask(Allowance(quota=1000), 1001)
        assert (decision.reason, decision.available) == ("quota-exceeded", 1000)
        assert decision.request is None
        assert outcome(self.world.ledger.totals()).live == 0
        assert self.ask(Allowance(quota=1000), 1000).request is not None

    def test_largest(self) -> None:
        """One backup is no larger than the peer may make it."""
        decision = self.ask(Allowance(max_size=1000), 1001)
        assert (decision.reason, decision.retry_after) == ("too-large", None)
        assert "at most" in decision.message
        assert self.ask(Allowance(max_size=1000), 1000).request is not None
