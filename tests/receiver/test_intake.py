"""Intake: the bytes of a video, durable before they are acknowledged, and nothing left behind."""

from __future__ import annotations

import hashlib
from typing import Any

from backupd.errors import (
    AlreadyStored,
    DigestMismatch,
    Invalid,
    NotYourTurn,
    Over,
    TooLarge,
    UploadCut,
    UploadHeld,
)
from backupd.receiver.transfer import Outcome
from backupd.receiver.transfers import SILENCE
from backupd.requests import MAX_TRIES, Received, Receiving, Storing
from backupd.waiting import go_on
from tests.receiver.world import (
    KIB,
    ManualOff,
    World,
    WorldCase,
    now,
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
        assert self.world.intake.transfers.under_way(request_id) == 3
        source.give(b"45", b"")
        now(done)
        assert self.world.intake.transfers.under_way(request_id) is None

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

    def test_whole_gives_way_to_bytes_only(self) -> None:
        """What was acknowledged as whole stays until the first byte of what replaces it."""
        request_id = self.world.offered(size=4)
        self.world.send(request_id, b"1234")
        silent = self.world.source()
        done = self.world.receive(request_id, silent, 4)
        silent.cut()
        self.raises(UploadCut, done)
        assert self.world.state(request_id) == "RECEIVED"
        assert now(self.world.keeper.complete(request_id)).size == 4

    def test_whole_is_replaced(self) -> None:
        """A sender may send again what had arrived, with other bytes too."""
        request_id = self.world.offered(size=4)
        self.world.send(request_id, b"1234")
        self.world.send(request_id, b"5678")
        assert now(self.world.keeper.complete(request_id)).sha256 == sha256(b"5678")

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

    def test_empty(self) -> None:
        """A video has at least one byte."""
        request_id = self.world.offered()
        self.raises(Invalid, self.world.receive(request_id, self.world.source(b"")))
        assert self.world.uploads() == []
        self.world.check_accounts()

    def test_no_whole_form(self) -> None:
        """A form that is cut in the middle leaves nothing."""
        request_id = self.world.offered()
        source = self.world.source(b"12", Invalid("body", "is no whole form"))
        self.raises(Invalid, self.world.receive(request_id, source))
        assert self.world.uploads() == []
        self.world.check_accounts()


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
        off.release()
        assert isinstance(world.request(request_id), Storing)
        off.release(error=OSError("a defect"))
        self.raises(OSError, complete)
        source = world.source(b"x")
        self.raises(AlreadyStored, world.receive(request_id, source, 1))
        assert source.reads == 0
