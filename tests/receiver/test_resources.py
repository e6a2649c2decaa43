"""Upload resources: made before a byte comes, many under one request, and ended."""

from __future__ import annotations

import gc
import hashlib
import os

import pytest
from twisted.internet.defer import Deferred

from backupd.errors import (
    Busy,
    ChecksumMismatch,
    Invalid,
    NoSuchUpload,
    NotYourTurn,
    OffsetMismatch,
    TooLarge,
    UploadCut,
    UploadHeld,
)
from backupd.interfaces import Upload
from backupd.receiver import blocks, resources, transfers
from backupd.receiver.digests import Check
from backupd.receiver.intake import PATIENCE
from backupd.receiver.resources import Described
from backupd.receiver.transfer import Outcome
from backupd.requests import NEVER, BackupRequest, Live, Pending, wanted
from tests.receiver.world import KIB, World, WorldCase, now, set_attribute, sha256

DATA = os.urandom(1000)


def sha1_of(data: bytes) -> Check:
    return Check(["sha1"], lambda: ("sha1", hashlib.sha1(data, usedforsecurity=False).digest()))


class CreationTests(WorldCase):
    def test_takes_nothing(self) -> None:
        """A creation takes neither a turn nor room: it may be all that ever comes."""
        request_id = self.world.admit(size=1024 * KIB).ask.request_id
        before = now(self.world.ledger.totals())
        upload = self.world.create(request_id, 1024 * KIB)
        assert (upload.offset, upload.allocated) == (0, 0)
        assert self.world.state(request_id) == "PENDING"
        assert self.world.on_disk() == {}
        assert now(self.world.ledger.totals()) == before

    def test_beyond_the_reservation(self) -> None:
        """No upload is announced longer than what was reserved."""
        request_id = self.world.offered(size=1000)
        described = Described(length=1001)
        error = self.raises(TooLarge, self.world.resources.create(request_id, described))
        assert error.limit == 1000

    def test_not_without_bound(self) -> None:
        """One request has a bounded number of uploads."""
        set_attribute(self, resources, "MAX_UPLOADS", 2)
        request_id = self.world.offered()
        for _ in range(2):
            self.world.create(request_id, 10)
        self.raises(Busy, self.world.resources.create(request_id, Described(length=10)))

    def test_survives_a_restart(self) -> None:
        """An upload whose URL a client has is there after a crash, also with nothing in it."""
        world = self.make("durable", ledger_url=f"sqlite:///{self.folder}/durable.sqlite3")
        request_id = world.offered(size=len(DATA))
        upload = world.create(request_id, len(DATA), metadata="filename YQ==")
        now(world.ledger.close())
        again = world.restart()
        assert now(again.resources.find(request_id, upload.upload_id)) == upload
        assert isinstance(
            again.send(request_id, DATA, upload_id=upload.upload_id, offset=0), Outcome
        )


class ManyTests(WorldCase):
    def test_side_by_side(self) -> None:
        """Several uploads of one request are received at the same time."""
        request_id = self.world.offered(size=len(DATA))
        one = self.world.create(request_id, 500, partial=True)
        two = self.world.create(request_id, 500, partial=True)
        sources = [self.world.source(), self.world.source()]
        works = [
            self.world.receive(request_id, source, 500, upload_id=upload.upload_id, offset=0)
            for source, upload in zip(sources, (one, two), strict=True)
        ]
        sources[0].give(DATA[:200])
        sources[1].give(DATA[500:700])
        assert self.world.intake.transfers.under_way(request_id) == 400
        assert now(self.world.intake.arrived(request_id)) == 400
        sources[1].give(DATA[700:], b"")
        sources[0].give(DATA[200:500], b"")
        assert [now(work).offset for work in works] == [500, 500]
        self.world.check_accounts()

    def test_not_all_at_once(self) -> None:
        """A bounded number is received at once."""
        set_attribute(self, transfers, "AT_ONCE", 1)
        request_id = self.world.offered(size=len(DATA))
        one, two = (self.world.create(request_id, 500, partial=True) for _ in range(2))
        source = self.world.source()
        first = self.world.receive(request_id, source, 500, upload_id=one.upload_id, offset=0)
        refused = self.world.receive(
            request_id, self.world.source(), 500, upload_id=two.upload_id, offset=0
        )
        self.raises(Busy, refused)
        source.cut()
        self.raises(UploadCut, first)

    def test_within_the_reservation(self) -> None:
        """Together they stay within the reservation: what is being sent is not pushed out."""
        request_id = self.world.offered(size=len(DATA))
        one = self.world.create(request_id, 600, partial=True)
        two = self.world.create(request_id, 600, partial=True)
        source = self.world.source(DATA[:10])
        first = self.world.receive(request_id, source, 600, upload_id=one.upload_id, offset=0)
        refused = self.world.receive(
            request_id, self.world.source(), 600, upload_id=two.upload_id, offset=0
        )
        self.raises(UploadHeld, refused)
        source.give(DATA[10:600], b"")
        assert now(first).offset == 600
        self.world.check_accounts()

    def test_nobody_sends_the_oldest(self) -> None:
        """An unfinished upload that nobody sends gives way to one that is being sent."""
        request_id = self.world.offered(size=len(DATA))
        one = self.world.create(request_id, 600)
        source = self.world.source(DATA[:10], UploadCut("lost"))
        self.raises(
            UploadCut,
            self.world.receive(request_id, source, 600, upload_id=one.upload_id, offset=0),
        )
        two = self.world.create(request_id, len(DATA))
        sent = self.world.send(request_id, DATA, upload_id=two.upload_id, offset=0)
        assert isinstance(sent, Outcome)
        assert [upload.upload_id for upload in self.world.uploads()] == [two.upload_id]
        self.world.check_accounts()

    def test_a_dead_connection(self) -> None:
        """A connection that is silent gives an upload free at once to the one that goes on."""
        request_id = self.world.offered(size=len(DATA))
        upload = self.world.create(request_id, len(DATA))
        dead = self.world.source(DATA[:300])
        lost = self.world.receive(request_id, dead, len(DATA), upload_id=upload.upload_id, offset=0)
        self.clock.advance(1)
        now(self.world.intake.transfers.make_way_if_silent(upload.upload_id))
        assert not dead.aborted
        self.clock.advance(transfers.SILENCE)
        now(self.world.intake.transfers.make_way_if_silent(upload.upload_id))
        self.raises(UploadCut, lost)
        [stands] = self.world.uploads()
        assert stands.offset == 300
        sent = self.world.send(request_id, DATA[300:], upload_id=upload.upload_id, offset=300)
        assert isinstance(sent, Outcome)
        assert sent.sha256 == sha256(DATA)

    def test_deferred(self) -> None:
        """A length that is told with the last bytes makes the upload whole."""
        request_id = self.world.offered(size=len(DATA))
        upload = self.world.create(request_id, None)
        first = self.world.send(request_id, DATA[:300], upload_id=upload.upload_id, offset=0)
        assert isinstance(first, Upload)
        assert (first.offset, first.length) == (300, None)
        too_short = self.world.receive(
            request_id,
            self.world.source(),
            0,
            upload_id=upload.upload_id,
            offset=300,
            total=299,
        )
        self.raises(TooLarge, too_short)
        last = self.world.send(
            request_id, DATA[300:], upload_id=upload.upload_id, offset=300, total=len(DATA)
        )
        assert isinstance(last, Outcome)
        assert last.sha256 == sha256(DATA)


class CheckTests(WorldCase):
    def setUp(self) -> None:
        super().setUp()
        self.request_id = self.world.offered(size=len(DATA))
        self.upload = self.world.create(self.request_id, len(DATA))

    def send(self, data: bytes, offset: int, check: Check | None = None) -> Outcome | Upload:
        return self.world.send(
            self.request_id, data, upload_id=self.upload.upload_id, offset=offset, check=check
        )

    def test_agrees(self) -> None:
        """What a checksum agrees with counts."""
        first = self.send(DATA[:300], 0, sha1_of(DATA[:300]))
        assert isinstance(first, Upload)
        assert first.offset == 300
        last = self.send(DATA[300:], 300, sha1_of(DATA[300:]))
        assert isinstance(last, Outcome)
        assert last.sha256 == sha256(DATA)

    def test_disagrees(self) -> None:
        """Nothing of a body with a wrong checksum counts, neither its bytes nor its digest."""
        self.send(DATA[:300], 0)
        with pytest.raises(ChecksumMismatch):
            self.send(DATA[300:600], 300, sha1_of(b"other"))
        [stands] = self.world.uploads()
        assert stands.offset == 300
        last = self.send(DATA[300:], 300)
        assert isinstance(last, Outcome)
        assert last.sha256 == sha256(DATA)

    def test_cut(self) -> None:
        """The offset moves once the checksum has agreed, also when the body is cut, or long."""
        set_attribute(self, blocks, "BLOCK", 10)
        source = self.world.source(DATA[:50])
        work = self.world.receive(
            self.request_id,
            source,
            300,
            upload_id=self.upload.upload_id,
            offset=0,
            check=sha1_of(DATA[:300]),
        )
        self.clock.advance(10)
        source.give(DATA[50:100])
        self.clock.advance(10)
        source.give(DATA[100:150])
        [stands] = self.world.uploads()
        assert stands.offset == 0
        source.cut()
        self.raises(UploadCut, work)
        [stands] = self.world.uploads()
        assert stands.offset == 0
        whole = self.send(DATA, 0)
        assert isinstance(whole, Outcome)
        assert whole.sha256 == sha256(DATA)

    def test_promised_and_not_there(self) -> None:
        """A checksum that was announced as a trailer and did not come lets nothing count."""

        def missing() -> tuple[str, bytes]:
            raise Invalid("Upload-Checksum", "was announced")

        with pytest.raises(Invalid):
            self.send(DATA[:300], 0, Check(["sha1", "md5"], missing))
        [stands] = self.world.uploads()
        assert stands.offset == 0


class TerminationTests(WorldCase):
    def test_frees(self) -> None:
        """An upload that is ended gives its bytes back, and is not found any more."""
        request_id = self.world.offered(size=len(DATA))
        upload = self.world.create(request_id, len(DATA))
        source = self.world.source(DATA[:10])
        work = self.world.receive(
            request_id, source, len(DATA), upload_id=upload.upload_id, offset=0
        )
        now(self.world.resources.terminate(upload))
        self.raises(UploadCut, work)
        assert (self.world.uploads(), self.world.on_disk()) == ([], {})
        self.raises(NoSuchUpload, self.world.resources.find(request_id, upload.upload_id))
        assert self.world.state(request_id) == "RECEIVING"
        self.world.check_accounts()

    def test_a_whole_one(self) -> None:
        """Without its whole upload a RECEIVED request, which holds no turn, is back in line."""
        request_id = self.world.offered(size=len(DATA))
        upload = self.world.create(request_id, len(DATA))
        self.world.send(request_id, DATA, upload_id=upload.upload_id, offset=0)
        assert self.world.state(request_id) == "RECEIVED"
        now(self.world.resources.terminate(upload))
        assert self.world.state(request_id) == "PENDING"
        self.world.check_accounts()

    def test_a_part(self) -> None:
        """With a part goes what would have joined it."""
        request_id = self.world.offered(size=len(DATA))
        part = self.world.create(request_id, 10, partial=True)
        described = Described(length=None)
        now(self.world.resources.create_final(request_id, [part.upload_id], described))
        now(self.world.resources.terminate(part))
        assert self.world.uploads() == []


class DirectTests(WorldCase):
    """Uploads without a callback: nobody is called, their client is there."""

    def begin(self, world: World, video: int | None, size: int = 100) -> tuple[str, Upload]:
        request = world.direct(video, size=size)
        made = world.create(
            request.ask.request_id,
            size,
            partial=video is None,
            token=request.ask.capability if video is None else None,
        )
        world.tick()
        return request.ask.request_id, made

    def test_its_turn_comes_without_a_call(self) -> None:
        """Admission and offer are one step: no server is called."""
        request_id, _ = self.begin(self.world, 1)
        assert self.world.state(request_id) == "OFFERED"
        assert self.world.offers.sent == []

    def test_waits_for_its_turn(self) -> None:
        """While all turns are taken its client waits, unread, and goes on when one is free."""
        world = self.make("one", {"max_concurrent_transfers": 1})
        first, one = self.begin(world, 1)
        second, two = self.begin(world, 2)
        assert world.state(second) == "PENDING"
        source = world.source(b"x" * 100, b"")
        work = world.receive(second, source, 100, upload_id=two.upload_id, offset=0)
        world.tick()
        assert source.reads == 0
        world.send(first, b"y" * 100, upload_id=one.upload_id, offset=0)
        world.tick()
        assert isinstance(now(work), Outcome)

    def test_does_not_wait_for_ever(self) -> None:
        """After a while it is told to come back."""
        world = self.make("one", {"max_concurrent_transfers": 1})
        self.begin(world, 1)
        second, two = self.begin(world, 2)
        work = world.receive(second, world.source(), 100, upload_id=two.upload_id, offset=0)
        self.clock.advance(PATIENCE)
        self.raises(NotYourTurn, work)
        assert world.state(second) == "PENDING"

    def test_its_time_is_over_before_it_waits(self) -> None:
        """A ledger that takes longer than anybody waits leaves no failure behind that is nobody's:
        one that turns up later would be told as a defect."""
        request_id, made = self.begin(self.world, 1)
        self.clock.advance(600.0)
        self.world.sweep()
        assert self.world.state(request_id) == "PENDING"
        change, slow = self.world.ledger.change, Deferred[BackupRequest]()
        set_attribute(self, self.world.ledger, "change", lambda *args, **more: slow)
        source = self.world.source(b"x" * 100, b"")
        work = self.world.receive(request_id, source, 100, upload_id=made.upload_id, offset=0)
        self.clock.advance(PATIENCE)
        set_attribute(self, self.world.ledger, "change", change)
        now(change(request_id, lambda r: wanted(r, now=self.clock.seconds())))
        self.world.tick()
        assert self.world.state(request_id) == "OFFERED"
        slow.callback(self.world.request(request_id))
        assert isinstance(now(work), Outcome)
        gc.collect()  # then it would be logged, and the test fail

    def test_lapsed(self) -> None:
        """One whose client left has no turn before it is back."""
        request_id, upload = self.begin(self.world, 1)
        self.clock.advance(self.world.settings.offer_lease)
        self.world.sweep()
        request = self.world.request(request_id)
        assert isinstance(request, Pending)
        assert request.due_at == NEVER
        self.world.tick()
        assert self.world.state(request_id) == "PENDING"
        work = self.world.receive(
            request_id,
            self.world.source(b"x" * 100, b""),
            100,
            upload_id=upload.upload_id,
            offset=0,
        )
        self.world.tick()
        assert isinstance(now(work), Outcome)

    def test_parts_share_a_turn(self) -> None:
        """The parts that one peer sends at once take one turn together."""
        world = self.make("one", {"max_concurrent_transfers": 1, "max_per_peer": 1})
        begun = [self.begin(world, None) for _ in range(3)]
        assert [world.state(request_id) for request_id, _ in begun] == ["OFFERED"] * 3
        other, _ = self.begin(world, 7)
        assert world.state(other) == "PENDING"

    def test_a_part_stands_in_no_line(self) -> None:
        """A part whose peer sends others has their turn, however many wait for one."""
        world = self.make("one", {"max_concurrent_transfers": 1, "max_per_peer": 1})
        self.begin(world, None)
        for video in range(5):
            waiting, _ = self.begin(world, video)
            assert world.state(waiting) == "PENDING"
        late, part = self.begin(world, None)
        sent = world.send(late, b"x" * 100, upload_id=part.upload_id, offset=0)
        assert isinstance(sent, Upload)
        assert sent.whole

    def join(self) -> tuple[list[str], list[Upload], Live]:
        """A whole that joins two parts: what asked for these, they, and what asks for it."""
        request_ids, parts = [], []
        for data in (DATA[:400], DATA[400:]):
            request_id, part = self.begin(self.world, None, len(data))
            self.world.send(request_id, data, upload_id=part.upload_id, offset=0)
            request_ids.append(request_id)
            parts.append(now(self.world.resources.find(request_id, part.upload_id)))
        self.before = now(self.world.ledger.totals())
        ask = self.world.admission.direct_ask(peer="local", video=9, size=len(DATA))
        request, final = now(
            self.world.resources.join_direct(ask, parts, Described(length=None, concat="final;"))
        )
        assert final.request_id == request.ask.request_id
        return request_ids, parts, request

    def test_joined_while_a_part_is_being_sent(self) -> None:
        """Who sends it goes on: it is the whole's from then on (concatenation-unfinished)."""
        (one, first), (other, second) = (self.begin(self.world, None, size) for size in (400, 600))
        self.world.send(one, DATA[:400], upload_id=first.upload_id, offset=0)
        source = self.world.source(DATA[400:500])
        work = self.world.receive(other, source, 600, upload_id=second.upload_id, offset=0)
        parts = [now(self.world.resources.find(one, first.upload_id)), second]
        ask = self.world.admission.direct_ask(peer="local", video=9, size=len(DATA))
        request, final = now(
            self.world.resources.join_direct(ask, parts, Described(length=None, concat="final;"))
        )
        assert now(self.world.resources.join(final)) is None
        self.world.tick()
        source.give(DATA[500:], b"")
        sent = now(work)
        assert isinstance(sent, Upload)
        outcome = now(self.world.resources.join_with(sent.request_id, sent.upload_id))
        assert outcome.sha256 == sha256(DATA)
        assert outcome.request.ask.request_id == request.ask.request_id
        self.world.check_accounts()

    def test_joined_from_parts(self) -> None:
        """What joins parts takes over what was reserved for them, and nothing more."""
        request_ids, _, request = self.join()
        after = now(self.world.ledger.totals())
        assert (after.promised, after.live) == (self.before.promised, self.before.live - 1)
        assert [self.world.state(one) for one in request_ids] == ["CANCELLED"] * 2
        self.world.tick()
        outcome = now(self.world.join_what_waits(request.ask.request_id))
        assert outcome.sha256 == sha256(DATA)
        self.world.check_accounts()

    def test_a_part_of_it_is_gone(self) -> None:
        """When one of the parts was taken away nothing stays, and all can be sent anew."""
        for taken in (0, 1):
            _, parts, request = self.join()
            self.world.storage.discard(parts[taken].upload_id)
            self.world.tick()
            self.raises(NoSuchUpload, self.world.join_what_waits(request.ask.request_id))
            assert (self.world.uploads(), self.world.on_disk()) == ([], {})
            self.world.check_accounts()
        _, _, request = self.join()
        self.world.tick()
        assert now(self.world.join_what_waits(request.ask.request_id)).sha256 == sha256(DATA)
        self.world.check_accounts()

    def test_its_end_stores_it(self) -> None:
        """Nobody says complete-backup: a sweep stores what a crash left RECEIVED."""
        request_id, upload = self.begin(self.world, 1, len(DATA))
        self.world.send(request_id, DATA, upload_id=upload.upload_id, offset=0)
        assert self.world.state(request_id) == "RECEIVED"
        self.world.sweep()
        assert self.world.state(request_id) == "STORED"

    def test_begun_anew(self) -> None:
        """A new creation for the same video takes the place of the one that nobody sends."""
        request_id, upload = self.begin(self.world, 1, len(DATA))
        source = self.world.source(DATA[:10])
        work = self.world.receive(
            request_id, source, len(DATA), upload_id=upload.upload_id, offset=0
        )
        again = self.world.direct(1, size=len(DATA))
        assert again.ask.request_id == request_id
        described = Described(length=len(DATA))
        self.raises(UploadHeld, self.world.resources.create_direct(request_id, described))
        source.cut()
        self.raises(UploadCut, work)
        made = now(self.world.resources.create_direct(request_id, described))
        assert [one.upload_id for one in self.world.uploads()] == [made.upload_id]
        assert now(self.world.resources.direct(request_id)) == made
        late = self.world.receive(
            request_id, self.world.source(), 5, upload_id=made.upload_id, offset=10
        )
        self.raises(OffsetMismatch, late)

    def test_expires(self) -> None:
        """One that nobody goes on with expires, and its room is free: logged and counted."""
        request_id, upload = self.begin(self.world, 1, len(DATA))
        source = self.world.source(DATA[:10], UploadCut("lost"))
        self.raises(
            UploadCut,
            self.world.receive(request_id, source, len(DATA), upload_id=upload.upload_id, offset=0),
        )
        self.clock.advance(self.world.settings.upload_expiry)
        self.world.sweep()
        assert self.world.state(request_id) == "EXPIRED"
        assert (self.world.uploads(), self.world.on_disk()) == ([], {})
        assert now(self.world.ledger.totals()).promised == 0
        assert self.world.intake.released == len(DATA)
