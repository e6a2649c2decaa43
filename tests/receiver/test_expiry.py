"""What time ends: no turn is held for ever, and no room."""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import Any

from backupd.errors import LedgerFailed, NoSuchRequest, StorageFailed, UploadCut
from backupd.receiver import digests, expiry
from backupd.receiver.digests import Digests
from backupd.receiver.expiry import AT_ONCE
from backupd.receiver.transfer import Outcome
from backupd.requests import Live, Pending, Receiving, state_name
from backupd.waiting import go_on
from tests.receiver.world import (
    ManualOff,
    World,
    WorldCase,
    logged,
    now,
    set_attribute,
    sha256,
)

LEASE = 600.0
DAY = 86400.0


class LeaseTests(WorldCase):
    """OFFERED or RECEIVING without a byte for a whole lease gives its turn to another."""

    def test_offered(self) -> None:
        """Back in line, room and links kept, and no new deadline."""
        request_id = self.world.offered()
        deadline = self.world.request(request_id)
        self.clock.advance(LEASE - 1)
        self.world.sweep()
        assert self.world.state(request_id) == "OFFERED"
        self.clock.advance(1)
        self.world.sweep()
        request = self.world.request(request_id)
        assert isinstance(request, Pending)
        assert request.expires_at == getattr(deadline, "expires_at", None)
        assert self.world.queue.busy() == {}
        assert now(self.world.ledger.totals()).promised == request.ask.size

    def test_turn_goes_to_another(self) -> None:
        world = self.make("one", {"max_concurrent_transfers": 1})
        first = world.offered(1)
        world.admit(2, peer="http://c:1")
        self.clock.advance(LEASE)
        world.sweep()
        world.tick()
        assert world.state(first) == "PENDING"
        assert len(world.offers.to("http://c:1")) == 1

    def test_announced(self) -> None:
        """ "I am starting" holds the turn for one lease, not for ever."""
        request_id = self.world.offered()
        self.clock.advance(LEASE - 1)
        now(self.world.intake.announce(request_id))
        self.clock.advance(LEASE - 1)
        self.world.sweep()
        assert self.world.state(request_id) == "RECEIVING"
        self.clock.advance(1)
        self.world.sweep()
        assert self.world.state(request_id) == "PENDING"

    def test_cut(self) -> None:
        """After a cut the bytes are kept, and the upload goes on when it has a turn again."""
        request_id = self.world.offered()
        source = self.world.source(b"12", UploadCut("lost"))
        self.raises(UploadCut, self.world.receive(request_id, source, 4))
        self.clock.advance(LEASE)
        self.world.sweep()
        assert self.world.state(request_id) == "PENDING"
        assert self.world.uploads()[0].offset == 2
        self.world.check_accounts()
        outcome = self.world.send(request_id, b"34", offset=2)
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(b"1234")

    def test_silent(self) -> None:
        """A connection that stays open without a byte loses its turn; what came is kept."""
        request_id = self.world.offered()
        source = self.world.source(b"12")
        done = self.world.receive(request_id, source, 4)
        self.clock.advance(LEASE)
        self.world.sweep()
        self.raises(UploadCut, done)
        assert self.world.state(request_id) == "PENDING"
        assert self.world.queue.busy() == {}
        assert self.world.uploads()[0].offset == 2

    def reread(self, off: ManualOff) -> tuple[World, str]:
        """A request of which two bytes are kept, that have to be read again to go on."""
        world = self.make("manual", off=off)
        request_id = world.offered(size=100)
        first = world.receive(request_id, world.source(b"12", UploadCut("lost")), 4)
        off.release_all()
        self.raises(UploadCut, first)
        world.intake._digests = Digests()
        return world, request_id

    def test_one_is_silent_and_one_was_cut(self) -> None:
        """The one that was there a moment ago counts: its lease is not taken for the other's."""
        request_id = self.world.offered(size=100)
        silent, cut = self.world.source(b"12"), self.world.source(b"34")
        parts = [self.world.create(request_id, 50, partial=True) for _ in range(2)]
        works = [
            self.world.receive(request_id, source, 50, upload_id=part.upload_id, offset=0)
            for source, part in zip((silent, cut), parts, strict=True)
        ]
        self.clock.advance(LEASE)
        set_attribute(self, cut, "silent_for", lambda: inf)
        now(go_on(self.world.intake.lapse(request_id)))
        for work in works:
            self.raises(UploadCut, work)
        assert self.world.state(request_id) == "RECEIVING"
        self.clock.advance(LEASE)
        self.world.sweep()
        assert self.world.state(request_id) == "PENDING"

    def test_cut_and_not_over_yet(self) -> None:
        """The sender was there a moment ago, and has its lease, however slow our disk is."""
        off = ManualOff()
        world, request_id = self.reread(off)
        source = world.source(UploadCut("lost"))
        done = world.receive(request_id, source, 2, offset=2)
        off.release()
        set_attribute(self, source, "silent_for", lambda: inf)
        lapsing = go_on(world.intake.lapse(request_id))
        assert source.aborted, "it is not read to its end for a sender that has gone"
        assert not lapsing.called
        off.release_all()
        self.raises(UploadCut, done)
        now(lapsing)
        assert world.state(request_id) == "RECEIVING"
        self.clock.advance(LEASE)
        now(go_on(world.intake.lapse(request_id)))
        assert world.state(request_id) == "PENDING"

    def test_cut_when_its_time_was_over(self) -> None:
        """Being cut is no sign of life: nobody gets a new lease for it."""
        off = ManualOff()
        world, request_id = self.reread(off)
        source = world.source(UploadCut("lost"))
        done = world.receive(request_id, source, 2, offset=2)
        off.release()
        set_attribute(self, source, "silent_for", lambda: inf)
        self.clock.advance(LEASE)
        lapsing = go_on(world.intake.lapse(request_id))
        off.release_all()
        self.raises(UploadCut, done)
        now(lapsing)
        assert world.state(request_id) == "PENDING"

    def test_trickle(self) -> None:
        """Bytes that come hold the turn, however few, and whether or not they are durable yet."""
        request_id = self.world.offered()
        source = self.world.source()
        done = self.world.receive(request_id, source, 100)
        for _ in range(100):
            self.clock.advance(LEASE - 1)
            self.world.sweep()
            source.give(b"x")
            self.world.sweep()
            assert self.world.state(request_id) == "RECEIVING"
        source.end()
        assert isinstance(now(done), Outcome)

    def test_rereading(self) -> None:
        """Nor is the turn lost while it is we who read a kept prefix again."""
        off = ManualOff()
        world, request_id = self.reread(off)
        set_attribute(self, digests, "REREAD", 1)
        source = world.source(b"34", b"")
        done = world.receive(request_id, source, 2, offset=2)
        for _ in range(3):
            off.release()
            self.clock.advance(LEASE)
            world.sweep()
            assert world.state(request_id) == "RECEIVING"
        off.release_all()
        assert now(done).sha256 == sha256(b"1234")

    def test_while_room_is_made(self) -> None:
        """A lease that runs out while room is being allocated is not lost to another."""
        off = ManualOff()
        world = self.make("manual", {"max_concurrent_transfers": 1}, off=off)
        request_id = world.offered(1)
        world.admit(2, peer="http://c:1")
        source = world.source(b"1234", b"")
        done = world.receive(request_id, source, 4)
        assert off.names == ["_create"]
        request = world.request(request_id)
        assert not isinstance(request, Pending)
        self.clock.advance(LEASE)
        sweeping = go_on(world.expiry.sweep())
        world.tick()
        assert world.offers.to("http://c:1") == []
        off.release_all()
        now(sweeping)
        assert isinstance(now(done), Outcome)

    def test_lease_begins_anew(self) -> None:
        """Bytes that became durable begin a new lease."""
        request_id = self.world.offered()
        source = self.world.source()
        done = self.world.receive(request_id, source, 4)
        self.clock.advance(500)
        source.give(b"12")
        request = self.world.request(request_id)
        assert isinstance(request, Receiving)
        assert request.lease_until == self.clock.seconds() + LEASE
        source.cut()
        self.raises(UploadCut, done)


class ExpiryTests(WorldCase):
    """What has not ended a day after its last byte has: EXPIRED, and its room is free."""

    def check_expired(self, request_id: str, world: World | None = None) -> None:
        world = world or self.world
        assert world.state(request_id) == "EXPIRED"
        assert (world.uploads(), world.on_disk()) == ([], {})
        totals = now(world.ledger.totals())
        assert (totals.promised, totals.live) == (0, 0)
        assert world.queue.busy() == {}

    def check_expires(self, request_id: str, seconds: float, state: str) -> None:
        """After so many seconds, and not before: until then it is in that state."""
        self.clock.advance(seconds - 1)
        self.world.sweep()
        assert self.world.state(request_id) == state
        self.clock.advance(1)
        self.world.sweep()
        self.check_expired(request_id)

    def test_cut(self) -> None:
        """A day after its last byte, its bytes go."""
        request_id = self.world.offered()
        self.clock.advance(300)
        source = self.world.source(b"12", UploadCut("lost"))
        self.raises(UploadCut, self.world.receive(request_id, source, 4))
        self.check_expires(request_id, DAY, "PENDING")

    def test_received(self) -> None:
        """RECEIVED too, when nobody completes it."""
        request_id = self.world.offered()
        self.world.send(request_id, b"1234")
        self.check_expires(request_id, DAY, "RECEIVED")

    def test_offered(self) -> None:
        """One that is offered again and again, and never sends, ends too."""
        request_id = self.world.offered()
        for _ in range(300):
            self.clock.advance(300)
            self.world.sweep()
            self.world.tick()
        self.check_expired(request_id)

    def at_the_last_moment(self) -> str:
        """A request that was offered again and again, five seconds before it expires."""
        request_id = self.world.offered()
        for _ in range(143):
            self.clock.advance(LEASE)
            self.world.sweep()
            self.world.tick()
        self.clock.advance(LEASE - 5)
        request = self.world.request(request_id)
        assert isinstance(request, Live)
        assert request.expires_at == self.clock.seconds() + 5
        return request_id

    def test_begun_at_the_last_moment(self) -> None:
        """Who comes for its turn just before has it for a lease, and not longer."""
        request_id = self.at_the_last_moment()
        now(self.world.intake.announce(request_id))
        self.check_expires(request_id, LEASE, "RECEIVING")

    def test_no_lease_is_given_for_ever(self) -> None:
        """A new one with each body that comes to nothing keeps it for one lease in all."""
        request_id = self.at_the_last_moment()
        for _ in range(9):
            empty = self.world.receive(request_id, self.world.source(UploadCut("lost")), 4)
            self.raises(UploadCut, empty)
            request = self.world.request(request_id)
            assert isinstance(request, Receiving)
            assert request.lease_until == self.clock.seconds() + LEASE
            self.clock.advance(LEASE / 10)
            self.world.sweep()
        assert self.world.state(request_id) == "RECEIVING"
        self.clock.advance(LEASE / 10 + 5)
        self.world.sweep()
        self.check_expired(request_id)

    def test_a_short_expiry_counts_from_the_last_byte(self) -> None:
        """Also where it is shorter than the lease that came with that byte."""
        world = self.make("short", {"upload_expiry": 20.0})
        request_id = world.offered()
        source = world.source(b"12", UploadCut("lost"))
        self.raises(UploadCut, world.receive(request_id, source, 4))
        self.clock.advance(19)
        world.sweep()
        assert world.state(request_id) == "RECEIVING"
        self.clock.advance(1)
        world.sweep()
        self.check_expired(request_id, world)

    def test_it_ends_in_one_step(self) -> None:
        """Nobody whose time is up is put back in line first: that would be offered once more."""
        world = self.make("short", {"upload_expiry": LEASE})
        request_id = world.offered()
        seen: list[str] = []
        world.ledger.watch(lambda request: seen.append(state_name(request)))
        self.clock.advance(LEASE)
        world.sweep()
        assert seen == ["EXPIRED"]
        self.check_expired(request_id, world)

    def test_bytes_that_are_not_durable_yet(self) -> None:
        """They count: who sends them is not cut, and has its time from them on."""
        world = self.make("short", {"upload_expiry": 20.0})
        request_id = world.offered()
        source = world.source()
        done = world.receive(request_id, source, 4)
        self.clock.advance(1)
        source.give(b"12")
        assert world.uploads()[0].offset == 0
        self.clock.advance(19)
        world.sweep()
        assert (world.state(request_id), source.aborted) == ("RECEIVING", False)
        source.give(b"34", b"")
        assert isinstance(now(done), Outcome)

    def test_bytes_at_the_last_moment(self) -> None:
        """With bytes that have come and are not durable yet it has a day more."""
        request_id = self.at_the_last_moment()
        source = self.world.source()
        done = self.world.receive(request_id, source, 1000)
        for _ in range(2):
            source.give(b"x")
            self.clock.advance(LEASE - 1)
            self.world.sweep()
            assert self.world.state(request_id) == "RECEIVING"
        source.cut()
        self.raises(UploadCut, done)

    def test_bytes_beside_a_whole_upload(self) -> None:
        """They are the last byte too: what was acknowledged is not thrown away under its sender."""
        world = self.make("short", {"upload_expiry": 20.0})
        request_id = world.offered(size=2000)
        one, other = (world.create(request_id, 1000) for _ in range(2))
        source = world.source()
        done = world.receive(request_id, source, 1000, upload_id=other.upload_id, offset=0)
        world.send(request_id, b"x" * 1000, upload_id=one.upload_id, offset=0)
        for _ in range(5):
            self.clock.advance(5)
            source.give(b"x")
            world.sweep()
            assert world.state(request_id) == "RECEIVED"
        source.cut()
        self.raises(UploadCut, done)

    def test_bytes_keep_it(self) -> None:
        """A slow upload lives as long as bytes come."""
        request_id = self.world.offered()
        source = self.world.source()
        done = self.world.receive(request_id, source, 1000)
        for _ in range(400):
            self.clock.advance(400)
            source.give(b"x")
            self.world.sweep()
            assert self.world.state(request_id) == "RECEIVING"
        source.cut()
        self.raises(UploadCut, done)


class SweepTests(WorldCase):
    def test_one_fails(self) -> None:
        """One that cannot be ended does not keep the others."""
        ids = [self.world.offered(video, peer=f"http://p{video}:1") for video in range(3)]
        change = self.world.ledger.change

        errors = [LedgerFailed("EIO"), ValueError("a defect")]

        def faulty(request_id: str, *args: Any, **more: Any) -> Any:
            if request_id == ids[0]:
                raise errors[0]
            return change(request_id, *args, **more)

        set_attribute(self, self.world.ledger, "change", faulty)
        while errors:
            self.clock.advance(LEASE)
            self.world.sweep()
            errors.pop(0)
        assert len(logged(self)) == 1
        assert [self.world.state(one) for one in ids] == ["OFFERED", "PENDING", "PENDING"]

    def test_bytes_cannot_go(self) -> None:
        """Bytes that cannot be removed keep neither their request nor the others."""
        ids = [self.world.offered(video) for video in (1, 2)]
        for request_id in ids:
            self.world.send(request_id, b"1234")

        def discard(_: str) -> None:
            raise StorageFailed("EIO")

        set_attribute(self, self.world.storage, "discard", discard)
        self.clock.advance(DAY)
        self.world.sweep()
        assert [self.world.state(one) for one in ids] == ["EXPIRED", "EXPIRED"]

    def test_one_is_slow(self) -> None:
        """One whose bytes go slowly keeps neither the others nor the next sweep."""
        off = ManualOff()
        world = self.make("manual", off=off)
        slow = world.offered(1)
        done = world.receive(slow, world.source(b"1234", b""), 4)
        off.release_all()
        now(done)
        self.clock.advance(DAY - LEASE)
        other = world.offered(2, peer="http://c:1")
        self.clock.advance(LEASE)
        world.sweep()
        assert off.names == ["discard"]
        assert world.state(other) == "PENDING"
        again = world.admit(3, peer="http://d:1").ask.request_id
        world.tick()
        self.clock.advance(LEASE)
        world.sweep()
        assert world.state(again) == "PENDING"
        assert off.names == ["discard"]
        off.release_all()
        assert world.state(slow) == "EXPIRED"

    def test_some_at_once(self) -> None:
        """Of many only a few are ended at the same time; as one has ended, the next begins."""
        off = ManualOff()
        world = self.make("manual", off=off)
        ids = []
        for video in range(2 * AT_ONCE):
            ids.append(world.offered(video, peer=f"http://p{video}:1"))
            done = world.receive(ids[-1], world.source(b"1234", b""), 4)
            off.release_all()
            now(done)
        self.clock.advance(DAY)
        world.sweep()
        assert off.names == ["discard"] * AT_ONCE
        off.release()
        assert off.names == ["discard"] * AT_ONCE
        stopping = go_on(world.expiry.stop())
        world.sweep()
        assert not stopping.called
        off.release_all()
        now(stopping)
        states = Counter(world.state(one) for one in ids)
        assert states == {"EXPIRED": AT_ONCE + 1, "RECEIVED": AT_ONCE - 1}

    def test_being_stored(self) -> None:
        """What a `complete` is storing right now is left to it, and keeps no place."""
        off = ManualOff()
        world = self.make("manual", off=off)
        ids, completing = [], []
        for video in range(AT_ONCE):
            ids.append(world.offered(video, peer=f"http://p{video}:1"))
            done = world.receive(ids[-1], world.source(b"1234", b""), 4)
            off.release_all()
            now(done)
        for request_id in ids:
            completing.append(go_on(world.keeper.complete(request_id)))
            while off.names[-1] != "keep":
                off.release(off.names[-1])
        assert off.names == ["keep"] * AT_ONCE
        other = world.offered(99, peer="http://c:1")
        self.clock.advance(LEASE)
        world.sweep()
        assert world.state(other) == "PENDING"
        now(world.expiry.stop())
        off.release_all()
        for one in completing:
            now(one)

    def test_those_that_fail_hide_no_others(self) -> None:
        """However many cannot be ended, the sweep comes to those behind them."""
        set_attribute(self, expiry, "LOOK", 2)
        ids = [self.world.offered(video, peer=f"http://p{video}:1") for video in range(4)]
        change = self.world.ledger.change

        def faulty(request_id: str, *args: Any, **more: Any) -> Any:
            if request_id != ids[3]:
                raise LedgerFailed("EIO")
            return change(request_id, *args, **more)

        set_attribute(self, self.world.ledger, "change", faulty)
        self.clock.advance(LEASE)
        self.world.sweep()
        self.world.sweep()
        assert self.world.state(ids[3]) == "PENDING"

    def test_history(self) -> None:
        """What ended is remembered for `history`, then forgotten."""
        request_id = self.world.offered()
        now(self.world.keeper.give_up(request_id))
        self.clock.advance(90 * DAY - 1)
        self.world.sweep()
        assert self.world.state(request_id) == "FAILED"
        self.clock.advance(3600)
        self.world.sweep()
        self.raises(NoSuchRequest, self.world.ledger.request(request_id))

    def test_a_short_history(self) -> None:
        """It is kept to when it is shorter than the time between two looks, too."""
        world = self.make("short", {"history": 60.0})
        for _ in range(3):
            request_id = world.offered()
            now(world.keeper.give_up(request_id))
            world.sweep()
            self.clock.advance(61)
            world.sweep()
            self.raises(NoSuchRequest, world.ledger.request(request_id))
