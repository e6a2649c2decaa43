"""Two things at once on one request: no byte that counts is lost, and no other bytes count."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

from twisted.internet.defer import Deferred, succeed

from backupd.errors import AlreadyStored, Busy, Invalid, Over, StorageFailed, UploadCut, UploadHeld
from backupd.interfaces import Upload
from backupd.receiver import joining, transfers
from backupd.receiver.resources import Described
from backupd.receiver.transfer import Outcome
from backupd.requests import BackupRequest, Live
from backupd.waiting import go_on
from tests.receiver.test_joining import final_of, pieces_of
from tests.receiver.world import (
    KIB,
    ManualOff,
    World,
    WorldCase,
    logged,
    now,
    set_attribute,
    sha256,
)

DATA = os.urandom(300 * KIB)


class WholeTests(WorldCase):
    def test_two_whole_uploads(self) -> None:
        """Two uploads of one link that end one after the other are whole; the newest counts."""
        request_id = self.world.offered(size=200)
        sources, works = [], []
        for _ in range(2):
            upload = self.world.create(request_id, 100)
            source = self.world.source()
            sources.append(source)
            works.append(
                self.world.receive(request_id, source, 100, upload_id=upload.upload_id, offset=0)
            )
        for source, byte in zip(sources, (b"a", b"b"), strict=True):
            source.give(byte * 100, b"")
        assert all(isinstance(now(work), Outcome) for work in works)
        backup = now(self.world.keeper.complete(request_id))
        assert backup.sha256 == sha256(b"b" * 100)

    def test_a_creation_does_not_end_what_is_whole(self) -> None:
        """A direct upload that is whole and not stored yet does not give way to a new creation."""
        request_id = self.world.direct(1, size=100).ask.request_id
        upload = self.world.create(request_id, 100)
        self.world.tick()
        self.world.send(request_id, b"x" * 100, upload_id=upload.upload_id, offset=0)
        assert self.world.direct(1, size=100).ask.request_id == request_id
        again = self.world.resources.create_direct(request_id, Described(length=100))
        self.raises(UploadHeld, again)
        backup = now(self.world.keeper.keep_direct(request_id))
        assert backup.sha256 == sha256(b"x" * 100)

    def test_what_is_being_stored_is_not_ended(self) -> None:
        """An upload that is to be stored, and could not be yet, is not ended any more."""
        request_id = self.world.offered(size=100)
        upload = self.world.create(request_id, 100)
        self.world.send(request_id, b"x" * 100, upload_id=upload.upload_id, offset=0)

        with patch.object(self.world.storage, "keep", side_effect=StorageFailed("broken")):
            self.raises(StorageFailed, self.world.keeper.complete(request_id))
        self.raises(AlreadyStored, self.world.resources.terminate(upload))
        assert now(self.world.keeper.complete(request_id)).sha256 == sha256(b"x" * 100)


class JoinTests(WorldCase):
    def setUp(self) -> None:
        super().setUp()
        set_attribute(self, joining, "PIECE", 8 * KIB)
        set_attribute(self, joining, "STRIDE", 16 * KIB)

    def half_joined(self) -> tuple[World, ManualOff, str, Upload, list[str], Any]:
        """The second of three parts is being joined, and has given some of its bytes back."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered(size=len(DATA))
        parts = []
        for piece in pieces_of(DATA):
            part = world.create(request_id, len(piece), partial=True)
            source = world.source(piece, b"")
            world.receive(request_id, source, len(piece), upload_id=part.upload_id, offset=0)
            off.release_all()
            parts.append(part.upload_id)
        final = final_of(world, request_id, parts)
        work = go_on(world.join_what_waits(request_id))
        while off.names.count("give_back") == 0:
            off.release()
        off.release("give_back")
        return world, off, request_id, final, parts, work

    def test_parts_in_use(self) -> None:
        """Parts that are being joined stay, as what is being sent does."""
        world, off, request_id, _, _, work = self.half_joined()
        other = world.create(request_id, 100 * KIB)
        refused = world.receive(
            request_id, world.source(), 100 * KIB, upload_id=other.upload_id, offset=0
        )
        off.release_all()
        self.raises(UploadHeld, refused)
        outcome = now(work)
        assert (outcome.size, outcome.sha256) == (len(DATA), sha256(DATA))

    def test_what_is_left_of_a_part_is_no_part(self) -> None:
        """With a join that is ended goes the part that has given some of its bytes to it."""
        world, off, _, final, parts, work = self.half_joined()
        ended = go_on(world.resources.terminate(final))
        off.release_all()
        now(ended)
        self.raises(UploadHeld, work)
        assert [one.upload_id for one in world.uploads()] == parts[2:]
        world.check_accounts()

    def test_the_last_two_parts_at_once(self) -> None:
        """Of two parts that end together the second is not refused because the first joins them."""
        world, off, request_id, _, parts, work = self.half_joined()
        assert now(world.resources.join_with(request_id, parts[2])) is None
        off.release_all()
        assert isinstance(now(work), Outcome)


class BeginningTests(WorldCase):
    def direct(self, video: int | None = 1) -> tuple[Live, Upload]:
        request = self.world.direct(video, size=100)
        return request, self.world.create(request.ask.request_id, 100, partial=video is None)

    def test_its_turn_came_meanwhile(self) -> None:
        """A direct upload does not wait for a turn that came just after it was looked up."""
        request, upload = self.direct()
        self.world.tick()
        assert self.world.state(request.ask.request_id) == "OFFERED"
        self.clock.advance(0)
        real = self.world.ledger.request
        stale: list[Deferred[BackupRequest]] = [succeed(request)]

        def late(request_id: str) -> Deferred[BackupRequest]:
            return stale.pop() if stale else real(request_id)

        with patch.object(self.world.ledger, "request", late):
            sent = self.world.send(
                request.ask.request_id, b"x" * 100, upload_id=upload.upload_id, offset=0
            )
        assert isinstance(sent, Outcome)
        assert self.clock.getDelayedCalls() == []

    def test_its_end_came_meanwhile(self) -> None:
        """Nothing is left of the wait for a turn of a request that had just ended."""
        request, upload = self.direct()
        now(self.world.resources.terminate(upload))
        with patch.object(self.world.ledger, "request", return_value=succeed(request)):
            refused = self.world.receive(
                request.ask.request_id, self.world.source(), upload_id=upload.upload_id, offset=0
            )
            self.raises(Over, refused)
        assert self.clock.getDelayedCalls() == []

    def test_offered_after_its_end(self) -> None:
        """A direct request that ends while its turn is being given is no defect."""
        request, upload = self.direct(1)
        self.direct(2)
        lines = now(self.world.ledger.lines(now=self.clock.seconds(), limit=9, heads=9))
        now(self.world.resources.terminate(upload))
        with patch.object(self.world.ledger, "lines", return_value=succeed(lines)):
            self.world.tick()
        assert logged(self) == []
        assert self.world.state(request.ask.request_id) == "CANCELLED"

    def test_no_more_than_may_be(self) -> None:
        """However many begin in the same moment, only so many of a turn are under way."""
        set_attribute(self, transfers, "AT_ONCE", 2)
        off = ManualOff()
        self.world = self.make("manual", off=off)
        begun = [self.direct(None) for _ in range(3)]
        self.world.tick()
        sources = [self.world.source() for _ in begun]
        works = [
            self.world.receive(
                request.ask.request_id, source, 100, upload_id=upload.upload_id, offset=0
            )
            for source, (request, upload) in zip(sources, begun, strict=True)
        ]
        self.raises(Busy, works[2])
        off.release_all()
        for source in sources[:2]:
            source.give(b"x" * 100, b"")
        off.release_all()
        assert [now(work).offset for work in works[:2]] == [100, 100]

    def test_nobody_waits_for_the_first_byte(self) -> None:
        """While a repeated upload is silent, what it would replace can be stored."""
        request_id = self.world.offered(size=100)
        self.world.send(request_id, b"x" * 100)
        silent = self.world.source()
        again = self.world.receive(request_id, silent, 100)
        assert silent.reads == 1
        assert self.world.queue.busy() == {}
        assert now(self.world.keeper.complete(request_id)).sha256 == sha256(b"x" * 100)
        silent.give(b"y" * 100, b"")
        self.raises(AlreadyStored, again)

    def test_a_silent_one_gives_way(self) -> None:
        """A repeated upload of which no byte came does not hold up the next."""
        request_id = self.world.offered(size=100)
        self.world.send(request_id, b"x" * 100)
        silent = self.world.source()
        again = self.world.receive(request_id, silent, 100)
        sent = self.world.send(request_id, b"y" * 100)
        assert isinstance(sent, Outcome)
        silent.cut()
        self.raises(UploadCut, again)
        assert now(self.world.keeper.complete(request_id)).sha256 == sha256(b"y" * 100)

    def test_an_empty_one_ends_nothing(self) -> None:
        """A repeated upload that turns out to be empty takes nothing away."""
        request_id = self.world.offered(size=100)
        self.world.send(request_id, b"x" * 100)
        self.raises(Invalid, self.world.receive(request_id, self.world.source(b"")))
        assert now(self.world.keeper.complete(request_id)).sha256 == sha256(b"x" * 100)

    def test_a_stop_does_not_wait_for_the_first_byte(self) -> None:
        """A stop cuts it after its grace."""
        request_id = self.world.offered(size=100)
        self.world.send(request_id, b"x" * 100)
        again = self.world.receive(request_id, self.world.source(), 100)
        stopped = go_on(self.world.intake.transfers.stop(1.0))
        self.clock.advance(1.0)
        now(stopped)
        self.raises(UploadCut, again)
