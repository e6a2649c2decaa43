"""Going on: after a cut, a restart, or a predecessor that does not end."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.errors import (
    NoSuchUpload,
    NotYourTurn,
    OffsetMismatch,
    TooLarge,
    UploadCut,
)
from backupd.interfaces import Upload
from backupd.receiver import digests
from backupd.receiver.digests import Digests
from backupd.receiver.transfer import Outcome
from backupd.receiver.transfers import SILENCE
from backupd.requests import Receiving
from tests.receiver.world import (
    ManualOff,
    Place,
    World,
    WorldCase,
    now,
    set_attribute,
    sha256,
)

DATA = bytes(range(256)) * 40


HALF = len(DATA) // 2


def digest(data: bytes) -> dict[str, bytes]:
    return {"sha-256": hashlib.sha256(data).digest()}


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
        work = self.world.receive(request_id, source, HALF, offset=HALF)
        assert self.raises(OffsetMismatch, work).offset == 0
        assert self.world.uploads() == []
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


class GoneTests(WorldCase):
    """Bytes that somebody took away while we ran: the upload begins anew, and nobody is stuck."""

    def cut(self, world: World) -> tuple[str, Upload]:
        request_id = world.offered(size=len(DATA))
        upload = world.create(request_id, len(DATA))
        source = world.source(DATA[:HALF], UploadCut("lost"))
        work = world.receive(request_id, source, HALF, upload_id=upload.upload_id, offset=0)
        self.raises(UploadCut, work)
        return request_id, upload

    def test_the_file(self) -> None:
        """A resource whose file is gone is no more; a new one is as good."""
        request_id, upload = self.cut(self.world)
        self.world.storage.discard(upload.upload_id)
        source, named = self.world.source(), upload.upload_id
        error = self.raises(
            NoSuchUpload,
            self.world.receive(request_id, source, HALF, upload_id=named, offset=HALF),
        )
        assert "begin anew" in str(error)
        assert self.world.uploads() == []
        self.world.check_accounts()
        again = self.world.create(request_id, len(DATA))
        sent = self.world.send(request_id, DATA, upload_id=again.upload_id, offset=0)
        assert isinstance(sent, Outcome)

    def test_the_newest(self) -> None:
        """On the link itself the upload then stands at 0."""
        request_id, upload = self.cut(self.world)
        self.world.storage.discard(upload.upload_id)
        work = self.world.receive(request_id, self.world.source(), HALF, offset=HALF)
        assert self.raises(OffsetMismatch, work).offset == 0
        assert self.world.uploads() == []

    def test_the_end_of_it(self) -> None:
        """A kept prefix that has become shorter is found out as soon as it is read again."""
        world = self.make("file", ledger_url=f"sqlite:///{self.folder}/ledger")
        request_id, upload = self.cut(world)
        now(world.ledger.close())
        world = world.restart()
        [file] = Path(world.root).rglob(f"{upload.upload_id}*")
        os.truncate(file, HALF - 1)
        work = world.receive(
            request_id, world.source(), HALF, upload_id=upload.upload_id, offset=HALF
        )
        self.raises(NoSuchUpload, work)
        assert (world.uploads(), world.on_disk()) == ([], {})
        world.check_accounts()


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
        assert off.names == ["_hash_or_write"]
        off.release("_hash_or_write")
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
        set_attribute(self, digests, "REREAD", 1)
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
