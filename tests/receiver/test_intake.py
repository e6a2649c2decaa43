"""Intake: the bytes of a video, durable before they are acknowledged, and nothing left behind."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.errors import (
    AlreadyStored,
    DigestMismatch,
    Invalid,
    NotYourTurn,
    OffsetMismatch,
    Over,
    ShuttingDown,
    TooLarge,
    UploadCut,
    UploadHeld,
)
from backupd.interfaces import Upload
from backupd.receiver import transfer
from backupd.receiver.intake import SILENCE
from backupd.receiver.transfer import Digests, Outcome
from backupd.requests import MAX_TRIES, Received, Receiving, Storing
from backupd.waiting import go_on
from tests.receiver.world import (
    KIB,
    ManualOff,
    Place,
    World,
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


class WholeTests(WorldCase):
    """An upload in one piece."""

    def check_received(self, world: World, request_id: str, outcome: object) -> None:
        assert isinstance(outcome, Outcome)
        assert (outcome.size, outcome.sha256) == (len(DATA), sha256(DATA))
        request = world.request(request_id)
        assert isinstance(request, Received)
        assert (request.size, request.sha256) == (len(DATA), sha256(DATA))
        (upload,) = world.uploads(request_id)
        assert (upload.offset, upload.length, upload.sha256) == (
            len(DATA),
            len(DATA),
            sha256(DATA),
        )
        handle = world.storage.reopen(upload.upload_id)
        assert handle.read(0, len(DATA)) == DATA
        handle.close()
        world.check_accounts()

    def test_sized(self) -> None:
        """Every byte in, durable, digest agreed: RECEIVED."""
        request_id = self.world.offered(size=len(DATA))
        outcome = self.world.send(request_id, DATA, digests=digest(DATA))
        self.check_received(self.world, request_id, outcome)

    def test_chunked(self) -> None:
        """Without a length all that was reserved is allocated; it ends where the body ends."""
        request_id = self.world.offered()
        source = self.world.source(DATA[:HALF], DATA[HALF:])
        done = self.world.receive(request_id, source)
        assert self.world.uploads()[0].allocated == 1024 * KIB
        self.world.check_accounts()
        source.end()
        self.check_received(self.world, request_id, now(done))

    def test_names(self) -> None:
        """File name and media type of the upload are kept, also when they come with the body."""
        request_id = self.world.offered()
        names: list[str] = []
        source = self.world.source()
        done = self.world.receive(
            request_id, source, 2, file_name=lambda: names[0], content_type="video/mp4"
        )
        names.append("a.mp4")
        source.give(b"12", b"")
        now(done)
        (upload,) = self.world.uploads()
        assert (upload.length, upload.sha256) == (2, sha256(b"12"))

    def test_allocated_before_the_first_read(self) -> None:
        """The reservation has become blocks, and the request RECEIVING, before a byte is read."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered(size=100 * KIB)
        source = world.source(b"x")
        done = world.receive(request_id, source, 100 * KIB)
        assert off.names == ["_create"]
        assert world.state(request_id) == "OFFERED"
        off.release()
        assert world.state(request_id) == "RECEIVING"
        assert now(world.ledger.totals()).promised == 0
        world.check_accounts()
        source.cut()
        off.release_all()
        self.raises(UploadCut, done)

    def test_progress(self) -> None:
        """How far a running transfer is can be told; a finished one is gone."""
        request_id = self.world.offered()
        source = self.world.source(b"123")
        done = self.world.receive(request_id, source, 5)
        assert self.world.intake.under_way(request_id) == 3
        source.give(b"45", b"")
        now(done)
        assert self.world.intake.under_way(request_id) is None

    def test_again_after_received(self) -> None:
        """A new upload starts at 0; what was whole stays as long as there is room for both."""
        request_id = self.world.offered(size=2 * len(DATA))
        self.world.send(request_id, DATA)
        self.world.send(request_id, DATA[::-1])
        assert [upload.sha256 for upload in self.world.uploads()] == [
            sha256(DATA),
            sha256(DATA[::-1]),
        ]
        request = self.world.request(request_id)
        assert isinstance(request, Received)
        assert request.sha256 == sha256(DATA[::-1])
        self.world.check_accounts()

    def test_announced(self) -> None:
        """ "I am starting": OFFERED becomes RECEIVING; again is harmless."""
        request_id = self.world.offered()
        for _ in range(2):
            now(self.world.intake.announce(request_id))
            assert self.world.state(request_id) == "RECEIVING"
        self.world.send(request_id, DATA)
        now(self.world.intake.announce(request_id))
        assert self.world.state(request_id) == "RECEIVED"


class RefusedTests(WorldCase):
    """Refusals come before the body is read, and leave nothing behind."""

    def refused(self, kind: type[Exception], request_id: str, length: int | None = 4) -> Any:
        source = self.world.source(b"1234", b"")
        before = self.world.uploads()
        error = self.raises(kind, self.world.receive(request_id, source, length))
        assert source.reads == 0
        assert self.world.uploads() == before
        self.world.check_accounts()
        return error

    def test_too_large(self) -> None:
        """More than was reserved; the error names the limit."""
        request_id = self.world.offered(size=3)
        assert self.refused(TooLarge, request_id).limit == 3
        assert self.world.state(request_id) == "OFFERED"

    def test_ended(self) -> None:
        request_id = self.world.offered()
        now(self.world.keeper.give_up(request_id))
        self.refused(Over, request_id)

    def test_stored(self) -> None:
        request_id = self.world.offered()
        self.world.send(request_id, DATA)
        now(self.world.keeper.complete(request_id))
        self.refused(AlreadyStored, request_id)

    def test_held(self) -> None:
        """Another upload is alive: bytes came, or it is we who do not read."""
        request_id = self.world.offered()
        source = self.world.source(b"12")
        done = self.world.receive(request_id, source, 4)
        self.clock.advance(SILENCE - 0.1)
        assert self.refused(UploadHeld, request_id).retry_after == SILENCE
        source.give(b"34", b"")
        assert isinstance(now(done), Outcome)

    def test_not_your_turn(self) -> None:
        """No room is allocated for one who has no turn."""
        for video in (1, 2):
            self.world.offered(video)
        request_id = self.world.admit(3).ask.request_id
        self.refused(NotYourTurn, request_id)
        assert self.world.state(request_id) == "PENDING"

    def test_received_and_not_your_turn(self) -> None:
        """A whole upload is not given up for one that cannot begin."""
        request_id = self.world.offered(1, size=4)
        self.world.send(request_id, b"1234")
        for video in (2, 3):
            self.world.offered(video)
        self.refused(NotYourTurn, request_id)
        assert self.world.state(request_id) == "RECEIVED"

    def test_body_too_long(self) -> None:
        """A body that turns out longer is cut off, and nothing of it is kept."""
        for length in (None, 4):
            world = self.make(str(length))
            request_id = world.offered(size=4)
            source = world.source(b"12", b"345")
            assert self.raises(TooLarge, world.receive(request_id, source, length)).limit == 4
            assert source.reads == 2
            assert world.uploads() == []
            world.check_accounts()
            assert world.state(request_id) == "RECEIVING"
            world.send(request_id, b"1234")

    def test_no_whole_form(self) -> None:
        """A form that is cut in the middle leaves nothing."""
        request_id = self.world.offered()
        source = self.world.source(b"12", Invalid("body", "is no whole form"))
        self.raises(Invalid, self.world.receive(request_id, source))
        assert self.world.uploads() == []
        self.world.check_accounts()


class ResumeTests(WorldCase):
    """A cut connection keeps what arrived, and the upload goes on there."""

    def cut(self, world: World, *, length: int | None = len(DATA)) -> str:
        """A request, half of whose bytes arrived before the connection broke."""
        request_id = world.offered(size=2 * len(DATA))
        source = world.source(DATA[:HALF], UploadCut("lost"))
        self.raises(UploadCut, world.receive(request_id, source, length))
        (upload,) = world.uploads(request_id)
        assert (upload.offset, upload.sha256) == (HALF, None)
        world.check_accounts()
        return request_id

    def test_goes_on(self) -> None:
        """The rest makes it whole, with the digest of all, without reading the first half again."""
        request_id = self.cut(self.world)
        reads = self.count_reads(self.world)
        outcome = self.world.send(request_id, DATA[HALF:], offset=HALF, digests=digest(DATA))
        assert isinstance(outcome, Outcome)
        assert (outcome.size, outcome.sha256) == (len(DATA), sha256(DATA))
        assert reads == []
        self.world.check_accounts()

    def count_reads(self, world: World) -> list[int]:
        """The offsets that are read from the uploads from now on."""
        found: list[int] = []
        reopen = world.storage.reopen

        def counting(upload_id: str) -> Any:
            handle = reopen(upload_id)
            read = handle.read

            def noted(at: int, size: int) -> bytes:
                found.append(at)
                data: bytes = read(at, size)
                return data

            set_attribute(self, handle, "read", noted)
            return handle

        set_attribute(self, world.storage, "reopen", counting)
        return found

    def test_goes_on_after_restart(self) -> None:
        """With the digest forgotten, what is kept is read again."""
        world = self.make("file", ledger_url=f"sqlite:///{self.folder}/ledger")
        request_id = self.cut(world)
        now(world.ledger.close())
        world = world.restart()
        (upload,) = world.uploads()
        assert upload.offset == HALF
        reads = self.count_reads(world)
        outcome = world.send(request_id, DATA[HALF:], offset=HALF, digests=digest(DATA))
        assert isinstance(outcome, Outcome)
        assert (outcome.sha256, reads) == (sha256(DATA), [0])
        world.check_accounts()

    def test_step_by_step(self) -> None:
        """Part after part; each answer is durable and tells where it stands."""
        request_id = self.cut(self.world)
        at = HALF
        for _ in range(3):
            upload = self.world.send(request_id, DATA[at : at + 7], offset=at)
            assert isinstance(upload, Upload)
            at += 7
            assert upload.offset == at
            assert self.world.uploads()[0].offset == at
        source = self.world.source(DATA[at : at + 3], UploadCut("lost"))
        self.raises(UploadCut, self.world.receive(request_id, source, offset=at))
        at += 3
        outcome = self.world.send(request_id, DATA[at:], offset=at)
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(DATA)

    def test_nothing_more(self) -> None:
        """A cut before the first byte of a resumption moves nothing."""
        request_id = self.cut(self.world)
        source = self.world.source(UploadCut("lost"))
        self.raises(UploadCut, self.world.receive(request_id, source, offset=HALF))
        assert self.world.uploads()[0].offset == HALF
        assert isinstance(self.world.send(request_id, DATA[HALF:], offset=HALF), Outcome)

    def test_offset_mismatch(self) -> None:
        """Going on elsewhere is refused before a byte is read, and tells where it stands."""
        request_id = self.cut(self.world)
        for offset in (0, HALF - 1, HALF + 1):
            source = self.world.source(b"x")
            error = self.raises(
                OffsetMismatch, self.world.receive(request_id, source, 1, offset=offset)
            )
            assert (error.offset, source.reads) == (HALF, 0)
        other = self.world.offered(7)
        source = self.world.source(b"x")
        assert (
            self.raises(OffsetMismatch, self.world.receive(other, source, 1, offset=5)).offset == 0
        )

    def test_declares_too_much(self) -> None:
        """More than the upload's length is refused at once, and nothing is lost."""
        request_id = self.cut(self.world)
        source = self.world.source(DATA)
        self.raises(
            TooLarge, self.world.receive(request_id, source, len(DATA) - HALF + 1, offset=HALF)
        )
        assert source.reads == 0
        assert self.world.uploads()[0].offset == HALF

    def test_turns_out_too_long(self) -> None:
        """What was acknowledged before is not lost by a resumption that is too long."""
        request_id = self.cut(self.world)
        source = self.world.source(DATA[HALF:], b"more")
        self.raises(TooLarge, self.world.receive(request_id, source, offset=HALF))
        (upload,) = self.world.uploads()
        assert upload.offset >= HALF
        self.world.check_accounts()
        rest = DATA[upload.offset :]
        outcome = self.world.send(request_id, rest, offset=upload.offset)
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(DATA)

    def test_lease(self) -> None:
        """Going on takes the request out of line again, and begins a new lease."""
        request_id = self.cut(self.world)
        self.clock.advance(599)
        source = self.world.source()
        done = self.world.receive(request_id, source, HALF, offset=HALF)
        request = self.world.request(request_id)
        assert isinstance(request, Receiving)
        assert request.lease_until == self.clock.seconds() + 600
        source.give(DATA[HALF:], b"")
        now(done)

    def test_lapsed(self) -> None:
        """After its lease ran out an upload goes on, its bytes kept, when there is a turn."""
        request_id = self.cut(self.world)
        self.clock.advance(601)
        self.world.sweep()
        assert self.world.state(request_id) == "PENDING"
        for video in (11, 12):
            now(self.world.queue.take_turn(self.world.admit(video)))
        source = self.world.source(DATA[HALF:], b"")
        self.raises(NotYourTurn, self.world.receive(request_id, source, HALF, offset=HALF))
        self.world.queue.give_back(next(iter(self.world.queue.busy())))
        outcome = self.world.send(request_id, DATA[HALF:], offset=HALF)
        assert isinstance(outcome, Outcome)

    def test_unknown_length(self) -> None:
        """A body without a length that was cut cannot know its end when it goes on."""
        request_id = self.cut(self.world, length=None)
        upload = self.world.send(request_id, DATA[HALF:], offset=HALF)
        assert isinstance(upload, Upload)
        assert self.world.state(request_id) == "RECEIVING"

    def test_bytes_are_gone(self) -> None:
        """Kept bytes that cannot be read any more fail the upload, not its successor."""
        request_id = self.cut(self.world)
        self.world.intake._digests = Digests()
        (upload,) = self.world.uploads()
        path = f"{self.world.root}/.backupd/incoming/{upload.upload_id}"
        with open(path, "r+b") as file:
            file.truncate(HALF - 1)
        source = self.world.source(DATA[HALF:], b"")
        with pytest.raises(Exception, match="can be read"):
            now(self.world.receive(request_id, source, HALF, offset=HALF))
        assert isinstance(self.world.send(request_id, DATA), Outcome)

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.integers(0, 300), max_size=8), st.binary(min_size=1, max_size=700))
    def test_any_history(self, cuts: list[int], data: bytes) -> None:
        """However often it is cut and wherever, the whole has the digest of the whole."""
        place = Place()
        try:
            world = place.make()
            request_id = world.offered(size=700)
            at = 0
            for number, size in enumerate(cuts):
                source = world.source(data[at : at + size] or UploadCut("lost"), UploadCut("lost"))
                offset = at if number and world.uploads() else None
                length = len(data) if offset is None else None
                if at + size >= len(data):
                    break
                self.raises(UploadCut, world.receive(request_id, source, length, offset=offset))
                at += len(data[at : at + size])
                assert world.uploads()[0].offset == at
                if size % 2:
                    world.intake._digests = Digests()
            offset = at if world.uploads() else None
            outcome = world.send(request_id, data[at:], offset=offset)
            assert isinstance(outcome, Outcome)
            assert outcome.sha256 == sha256(data)
            world.check_accounts()
        finally:
            place.close()


class SuccessorTests(WorldCase):
    """A newer upload ends one that is dead or silent, and waits for its thread."""

    def test_silent(self) -> None:
        request_id = self.world.offered()
        source = self.world.source(b"12")
        first = self.world.receive(request_id, source, 4)
        self.clock.advance(SILENCE)
        second = self.world.receive(request_id, self.world.source(b"abcd", b""), 4)
        assert source.aborted
        self.raises(UploadCut, first)
        outcome = now(second)
        assert outcome.sha256 == sha256(b"abcd")
        assert [upload.offset for upload in self.world.uploads()] == [2, 4]
        self.world.check_accounts()

    def test_silent_and_resumed(self) -> None:
        """The successor may go on where the one it ended stopped."""
        request_id = self.world.offered()
        first = self.world.receive(request_id, self.world.source(b"12"), 4)
        self.clock.advance(SILENCE)
        second = self.world.receive(request_id, self.world.source(b"34", b""), 2, offset=2)
        self.raises(UploadCut, first)
        assert now(second).sha256 == sha256(b"1234")

    def test_waits_for_the_thread(self) -> None:
        """Nothing is begun while a thread still writes for the predecessor."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered()
        first = world.receive(request_id, world.source(b"12"), 4)
        off.release()
        self.clock.advance(SILENCE)
        second = world.receive(request_id, world.source(b"abcd", b""), 4)
        assert sorted(off.names) == ["_update", "write"]
        off.release("_update")
        off.release("write")
        assert off.names == ["sync"]
        off.release()
        assert off.names == ["close"]
        off.release()
        self.raises(UploadCut, first)
        assert off.names == ["_create"]
        off.release_all()
        assert now(second).size == 4

    def test_ending_is_not_cut(self) -> None:
        """One whose last byte is in is waited for."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered()
        source = world.source(b"1234", b"")
        first = world.receive(request_id, source, 4)
        off.release()
        second = world.receive(request_id, world.source(b"abcd", b""), 4)
        off.release_all()
        assert now(first).sha256 == sha256(b"1234")
        assert now(second).sha256 == sha256(b"abcd")

    def test_rereading_is_ended(self) -> None:
        """A dead upload that reads its kept part again does not hold the link till the end."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered(size=100)
        first = world.receive(request_id, world.source(b"1234", UploadCut("lost")), 8)
        off.release_all()
        self.raises(UploadCut, first)
        world.intake._digests = Digests()
        set_attribute(self, transfer, "REREAD", 1)
        source = world.source()
        set_attribute(self, source, "silent_for", lambda: SILENCE)
        second = world.receive(request_id, source, 4, offset=4)
        off.release("reopen")
        off.release("read_on")
        third = world.receive(request_id, world.source(b"5678", b""), 4, offset=4)
        off.release("read_on")
        assert off.names == ["close"]
        off.release_all()
        self.raises(UploadCut, second)
        assert now(third).sha256 == sha256(b"12345678")


class RoomTests(WorldCase):
    """All uploads of a request stay within its reservation."""

    def cut(self, request_id: str, length: int) -> str:
        source = self.world.source(b"x" * (length // 2), UploadCut("lost"))
        self.raises(UploadCut, self.world.receive(request_id, source, length))
        return self.world.uploads(request_id)[-1].upload_id

    def test_oldest_first(self) -> None:
        """Unfinished ones that nobody sends are dropped, oldest first, only if they must."""
        request_id = self.world.offered(size=100 * KIB)
        first, second, third = (self.cut(request_id, size * KIB) for size in (40, 30, 20))
        self.world.check_accounts()
        fourth = self.cut(request_id, 10 * KIB)
        assert [one.upload_id for one in self.world.uploads()] == [first, second, third, fourth]
        fifth = self.cut(request_id, 20 * KIB)
        assert [one.upload_id for one in self.world.uploads()] == [second, third, fourth, fifth]
        self.world.check_accounts()

    def test_whole_ones_last(self) -> None:
        """A whole upload goes only when unfinished ones are not enough."""
        request_id = self.world.offered(size=100 * KIB)
        self.world.send(request_id, b"w" * 40 * KIB)
        whole = self.world.uploads()[0].upload_id
        self.cut(request_id, 50 * KIB)
        third = self.cut(request_id, 60 * KIB)
        assert [one.upload_id for one in self.world.uploads()] == [whole, third]
        fourth = self.cut(request_id, 100 * KIB)
        assert [one.upload_id for one in self.world.uploads()] == [fourth]
        assert self.world.state(request_id) == "RECEIVING"
        self.world.check_accounts()

    def test_within_the_limits(self) -> None:
        """Also while the old bytes go, a request that was RECEIVED has only the turn it took."""
        world = self.world = self.make("few", {"max_concurrent_transfers": 1})
        request_id = world.offered(size=4)
        world.send(request_id, b"1234")
        world.send(request_id, b"5678")
        assert world.queue.busy() == {}
        assert [one.sha256 for one in world.uploads()] == [sha256(b"5678")]


class DigestTests(WorldCase):
    """The bytes must be those that the sender meant."""

    def test_mismatch(self) -> None:
        """They are dropped, the turn stays, and it counts as a try."""
        request_id = self.world.offered()
        for tries in range(1, MAX_TRIES):
            work = self.world.receive(
                request_id, self.world.source(DATA, b""), len(DATA), digests=digest(b"other")
            )
            self.raises(DigestMismatch, work)
            request = self.world.request(request_id)
            assert isinstance(request, Receiving)
            assert request.tries == tries
            assert self.world.uploads() == []
            self.world.check_accounts()
        work = self.world.receive(
            request_id, self.world.source(DATA, b""), len(DATA), digests=digest(b"other")
        )
        self.raises(DigestMismatch, work)
        assert self.world.state(request_id) == "FAILED"
        assert now(self.world.ledger.totals()).promised == 0
        self.world.check_accounts()

    def test_failed_takes_all_bytes_with_it(self) -> None:
        """Unfinished uploads beside it do not stay on the disk."""
        request_id = self.world.offered(size=100 * KIB)
        source = self.world.source(b"x", UploadCut("lost"))
        self.raises(UploadCut, self.world.receive(request_id, source, 30 * KIB))
        for _ in range(MAX_TRIES):
            work = self.world.receive(
                request_id, self.world.source(b"1", b""), 1, digests=digest(b"other")
            )
            self.raises(DigestMismatch, work)
        assert self.world.state(request_id) == "FAILED"
        assert self.world.on_disk() == {}

    def test_asked(self) -> None:
        """The digest that came with the ask is checked too."""
        request_id = self.world.offered(sha256=sha256(b"other"))
        work = self.world.receive(request_id, self.world.source(DATA, b""), len(DATA))
        self.raises(DigestMismatch, work)
        assert self.world.uploads() == []

    def test_right_at_last(self) -> None:
        request_id = self.world.offered(sha256=sha256(DATA))
        work = self.world.receive(request_id, self.world.source(b"other", b""), 5)
        self.raises(DigestMismatch, work)
        assert isinstance(self.world.send(request_id, DATA), Outcome)


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
        self.world.sweep()
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
        stopped = go_on(self.world.intake.stop(30.0))
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
        stopped = go_on(self.world.intake.stop(30.0))
        self.clock.advance(30)
        now(stopped)
        self.raises(UploadCut, done)
        assert self.world.uploads()[0].offset == 2

    def test_takes_no_more(self) -> None:
        request_id = self.world.offered()
        now(self.world.intake.stop(30.0))
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
        stopped = go_on(world.intake.stop(30.0))
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
        set_attribute(self, transfer, "REREAD", 1)
        second = world.receive(request_id, world.source(), 4, offset=4)
        off.release("reopen")
        stopped = go_on(world.intake.stop(30.0))
        self.clock.advance(30)
        off.release("read_on")
        off.release("close")
        now(stopped)
        self.raises(UploadCut, second)
        assert world.uploads()[0].offset == 4


class StoringTests(WorldCase):
    def test_nothing_is_added(self) -> None:
        """While a backup is being stored nothing can be added."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered()
        done = world.receive(request_id, world.source(b"1234", b""), 4)
        off.release_all()
        now(done)
        complete = go_on(world.keeper.complete(request_id))
        assert isinstance(world.request(request_id), Storing)
        off.release(error=OSError("a defect"))
        self.raises(OSError, complete)
        source = world.source(b"x")
        self.raises(AlreadyStored, world.receive(request_id, source, 1))
        assert source.reads == 0
