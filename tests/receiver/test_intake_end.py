"""Uploads that are ended: with their request, or with the daemon."""

from __future__ import annotations

import hashlib

from backupd.errors import (
    ShuttingDown,
    UploadCut,
)
from backupd.receiver import digests
from backupd.receiver.digests import Digests
from backupd.receiver.transfer import Outcome
from backupd.requests import expired
from backupd.waiting import go_on
from tests.receiver.world import (
    ManualOff,
    WorldCase,
    logged,
    now,
    set_attribute,
    sha256,
)

DATA = bytes(range(256)) * 40


HALF = len(DATA) // 2


def digest(data: bytes) -> dict[str, bytes]:
    return {"sha-256": hashlib.sha256(data).digest()}


class EndTests(WorldCase):
    """A request that ends stops its transfer and frees its bytes."""

    def test_running(self) -> None:
        request_id = self.world.offered()
        source = self.world.source(b"12")
        done = self.world.receive(request_id, source, 4)
        now(self.world.keeper.give_up(request_id))
        self.raises(UploadCut, done)
        assert source.aborted
        assert self.world.state(request_id) == "FAILED"
        assert self.world.on_disk() == {}
        assert self.world.queue.busy() == {}
        assert now(self.world.ledger.totals()).live == 0

    def test_waits_for_the_thread(self) -> None:
        """The bytes go only when no thread writes them any more."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered()
        done = world.receive(request_id, world.source(b"12"), 4)
        off.release()
        ended = go_on(world.keeper.give_up(request_id))
        while off.waiting:
            assert "discard" not in off.names or off.names == ["discard"]
            off.release()
        now(ended)
        self.raises(UploadCut, done)
        assert world.on_disk() == {}

    def test_bytes_of_the_living_stay(self) -> None:
        """When the transfer's last bytes give the request new time, they are not discarded."""
        request_id = self.world.offered()
        self.raises(
            UploadCut,
            self.world.receive(request_id, self.world.source(b"12", UploadCut("lost")), 4),
        )
        self.clock.advance(86399)
        self.world.sweep()
        self.world.tick()
        source = self.world.source(b"3")
        done = self.world.receive(request_id, source, 2, offset=2)
        self.clock.advance(2)
        now(self.world.intake.end(request_id, lambda r: expired(r, now=self.clock.seconds())))
        assert self.world.state(request_id) in ("RECEIVING", "PENDING")
        self.world.check_accounts()
        if not source.aborted:
            source.cut()
        self.raises(UploadCut, done)
        outcome = self.world.send(request_id, b"4", offset=3)
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(b"1234")


class StopTests(WorldCase):
    """Stopping lets uploads finish for a while, then keeps what arrived."""

    def test_finishes(self) -> None:
        request_id = self.world.offered()
        source = self.world.source(b"12")
        done = self.world.receive(request_id, source, 4)
        stopped = go_on(self.world.intake.transfers.stop(30.0))
        self.clock.advance(29)
        assert not stopped.called
        source.give(b"34", b"")
        now(stopped)
        assert isinstance(now(done), Outcome)
        assert self.clock.getDelayedCalls() == []

    def test_checkpoints(self) -> None:
        request_id = self.world.offered()
        source = self.world.source(b"12")
        done = self.world.receive(request_id, source, 4)
        stopped = go_on(self.world.intake.transfers.stop(30.0))
        self.clock.advance(30)
        now(stopped)
        self.raises(UploadCut, done)
        assert self.world.uploads()[0].offset == 2

    def test_takes_no_more(self) -> None:
        request_id = self.world.offered()
        now(self.world.intake.transfers.stop(30.0))
        source = self.world.source(b"12")
        self.raises(ShuttingDown, self.world.receive(request_id, source, 4))
        assert source.reads == 0
        self.clock.advance(0)
        assert self.clock.getDelayedCalls() == []

    def test_waits_for_those_that_begin(self) -> None:
        """An upload whose room is being allocated is waited for like any other."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered()
        done = world.receive(request_id, world.source(), 4)
        assert off.names == ["_create"]
        stopped = go_on(world.intake.transfers.stop(30.0))
        assert not stopped.called
        self.clock.advance(30)
        off.release_all()
        now(stopped)
        self.raises(UploadCut, done)
        assert logged(self) == []

    def test_rereading(self) -> None:
        """Reading a kept prefix again does not keep the daemon from stopping."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered(size=100)
        first = world.receive(request_id, world.source(b"1234", UploadCut("lost")), 8)
        off.release_all()
        self.raises(UploadCut, first)
        world.intake._digests = Digests()
        set_attribute(self, digests, "REREAD", 1)
        second = world.receive(request_id, world.source(), 4, offset=4)
        off.release("reopen")
        stopped = go_on(world.intake.transfers.stop(30.0))
        self.clock.advance(30)
        off.release("read_on")
        off.release("close")
        now(stopped)
        self.raises(UploadCut, second)
        assert world.uploads()[0].offset == 4
