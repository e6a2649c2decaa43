"""Parts become one upload: the right bytes, no second room, whatever happens on the way."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.errors import (
    BackupdError,
    DigestMismatch,
    Forbidden,
    Invalid,
    NoSuchUpload,
    StorageFailed,
    UploadHeld,
)
from backupd.interfaces import IVolume, Upload
from backupd.receiver import joining
from backupd.receiver.resources import Described
from backupd.receiver.transfer import Outcome
from backupd.waiting import go_on
from tests.receiver.world import (
    KIB,
    ManualOff,
    Place,
    World,
    WorldCase,
    now,
    set_attribute,
    sha256,
)
from tests.storage.faulty import Crash, FaultyFileSystem, crashing_at, failing

DATA = os.urandom(300 * KIB)
CUTS = (0, 100 * KIB, 160 * KIB, 300 * KIB)


def send_parts(world: World, request_id: str, pieces: list[bytes]) -> list[str]:
    """Every piece as a part of its own; their ids, in order."""
    parts = []
    for piece in pieces:
        part = world.create(request_id, len(piece), partial=True)
        sent = world.send(request_id, piece, upload_id=part.upload_id, offset=0)
        assert isinstance(sent, Upload)
        assert sent.whole
        parts.append(part.upload_id)
    return parts


def final_of(world: World, request_id: str, parts: list[str]) -> Upload:
    made: Upload = now(
        world.resources.create_final(request_id, parts, Described(length=None, concat="final;…"))
    )
    return made


def join(world: World, request_id: str) -> Any:
    return now(world.join_what_waits(request_id))


def pieces_of(data: bytes, cuts: tuple[int, ...] = CUTS) -> list[bytes]:
    return [data[start:end] for start, end in itertools.pairwise(cuts)]


class Full(FaultyFileSystem):
    """A volume on which there is ``capacity`` for uploads."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self._incoming = root / ".backupd" / "incoming"
        self.capacity = 10**9

    def used(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self._incoming.iterdir())

    def statvfs(self, path: str) -> Any:
        return SimpleNamespace(f_bavail=self.capacity - self.used(), f_blocks=10**9, f_frsize=1)


class JoiningTests(WorldCase):
    def setUp(self) -> None:
        super().setUp()
        # So that a few hundred kilobytes take several strides.
        set_attribute(self, joining, "PIECE", 8 * KIB)
        set_attribute(self, joining, "STRIDE", 32 * KIB)

    def test_joined(self) -> None:
        """The whole has the parts' bytes, in the order that was said; the parts are gone."""
        request_id = self.world.offered(size=len(DATA))
        first, second, third = pieces_of(DATA)
        parts = send_parts(self.world, request_id, [third, first, second])
        final = final_of(self.world, request_id, [parts[1], parts[2], parts[0]])
        assert final.length == len(DATA)
        outcome = join(self.world, request_id)
        assert isinstance(outcome, Outcome)
        assert (outcome.size, outcome.sha256) == (len(DATA), sha256(DATA))
        assert self.world.state(request_id) == "RECEIVED"
        [whole] = self.world.uploads()
        assert whole.upload_id == final.upload_id
        backup = now(self.world.keeper.complete(request_id))
        kept = Path(self.world.root, backup.folder, backup.name).read_bytes()
        assert kept == DATA
        assert self.world.on_disk() == {}

    def test_no_second_room(self) -> None:
        """At no moment do parts and whole take more than the reservation and one stride."""
        root = Path(self.folder) / "watched"
        root.mkdir()
        fs = FaultyFileSystem(str(root))
        world = self.make("watched", fs=cast(IVolume, fs))
        request_id = world.offered(size=len(DATA))
        parts = send_parts(world, request_id, pieces_of(DATA))
        final_of(world, request_id, parts)
        most = 0

        def watch(number: int, function: str, path: str) -> None:
            nonlocal most
            incoming = root / ".backupd" / "incoming"
            most = max(most, sum(os.stat(p).st_blocks * 512 for p in incoming.iterdir()))

        fs.fault = watch
        join(world, request_id)
        assert len(DATA) <= most <= len(DATA) + 32 * KIB
        world.check_accounts()

    def test_of_what_nobody_was_promised(self) -> None:
        """What is there twice for a moment is of what is free and of no promise, or of what is
        reserved beside a video: who was promised the rest finds it there.
        """
        set_attribute(self, joining, "STRIDE", 64 * KIB)
        set_attribute(self, joining, "LEAST_STRIDE", 8 * KIB)
        for spare, most in ((-KIB, 8), (0, 8), (23 * KIB, 16), (2000 * KIB, 64)):
            at_once = self.most_at_once(f"spare-{spare}", spare)
            assert at_once == len(DATA) + most * KIB, spare

    def most_at_once(self, name: str, spare: int) -> int:
        """Bytes that parts and whole take at most; ``spare`` ones are free and not promised."""
        root = Path(self.folder) / name
        root.mkdir()
        world = self.make(name, fs=cast(IVolume, fs := Full(root)))
        request_id = world.offered(size=len(DATA))
        world.offered(video="another", size=500 * KIB)
        parts = send_parts(world, request_id, pieces_of(DATA))
        final_of(world, request_id, parts)
        fs.capacity = len(DATA) + now(world.ledger.totals()).promised + spare
        most = 0

        def watch(number: int, function: str, path: str) -> None:
            nonlocal most
            most = max(most, fs.used())

        fs.fault = watch
        join(world, request_id)
        assert world.state(request_id) == "RECEIVED"
        return most

    def test_waits_for_the_parts(self) -> None:
        """What joins parts that are still being sent is joined with the last of them."""
        request_id = self.world.offered(size=len(DATA))
        [one] = send_parts(self.world, request_id, [DATA[: 100 * KIB]])
        late = self.world.create(request_id, len(DATA) - 100 * KIB, partial=True)
        final_of(self.world, request_id, [one, late.upload_id])
        assert join(self.world, request_id) is None
        assert self.world.state(request_id) == "RECEIVING"
        self.world.send(request_id, DATA[100 * KIB :], upload_id=late.upload_id, offset=0)
        outcome = now(self.world.resources.join_with(request_id, late.upload_id))
        assert outcome.sha256 == sha256(DATA)

    def test_beside_one_that_waits(self) -> None:
        """Parts that never come keep nobody waiting but what joins them."""
        request_id = self.world.offered(size=2 * len(DATA))
        never = self.world.create(request_id, 100, partial=True)
        final_of(self.world, request_id, [never.upload_id])
        cut = 100 * KIB
        parts = send_parts(self.world, request_id, [DATA[:cut]])
        late = self.world.create(request_id, len(DATA) - cut, partial=True)
        final = final_of(self.world, request_id, [*parts, late.upload_id])
        assert now(self.world.resources.join(final)) is None
        self.world.send(request_id, DATA[cut:], upload_id=late.upload_id, offset=0)
        assert join(self.world, request_id).sha256 == sha256(DATA)

    def test_a_part_of_what_waits_and_of_what_does_not(self) -> None:
        """Its end joins what is complete by it, in whatever order they were asked for."""
        for video, waits_first in enumerate((True, False)):
            request_id = self.world.offered(video, size=2 * len(DATA))
            never = self.world.create(request_id, 100, partial=True).upload_id
            cut = 100 * KIB
            [first] = send_parts(self.world, request_id, [DATA[:cut]])
            late = self.world.create(request_id, len(DATA) - cut, partial=True).upload_id
            asked = [[never, late], [first, late]]
            for parts in asked if waits_first else reversed(asked):
                final_of(self.world, request_id, parts)
            self.world.send(request_id, DATA[cut:], upload_id=late, offset=0)
            outcome = now(self.world.resources.join_with(request_id, late))
            assert outcome.sha256 == sha256(DATA)

    def test_two_parts_that_end_at_the_same_time(self) -> None:
        """One of them joins; the other's sender is told nothing but that its bytes are here."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered(size=len(DATA))
        parts = []
        for piece in (DATA[: 100 * KIB], DATA[100 * KIB :]):
            part = world.create(request_id, len(piece), partial=True).upload_id
            sent = world.receive(
                request_id, world.source(piece, b""), len(piece), upload_id=part, offset=0
            )
            off.release_all()
            assert now(sent).whole
            parts.append(part)
        final_of(world, request_id, parts)
        one, other = (go_on(world.resources.join_with(request_id, part)) for part in parts)
        assert now(other) is None
        off.release_all()
        assert now(one).sha256 == sha256(DATA)

    def test_the_same_again(self) -> None:
        """A client whose answer was lost says the same again, and nothing is made twice."""
        request_id = self.world.offered(size=len(DATA))
        parts = send_parts(self.world, request_id, pieces_of(DATA))
        final = final_of(self.world, request_id, parts)
        assert final_of(self.world, request_id, parts) == final
        join(self.world, request_id)
        again = final_of(self.world, request_id, parts)
        assert again.upload_id == final.upload_id
        assert join(self.world, request_id) is None

    def test_a_part_of_two(self) -> None:
        """What one whole has begun to take from a part, no other can have of it."""
        root = Path(self.folder) / "faulty"
        root.mkdir()
        fs = FaultyFileSystem(str(root))
        world = self.make("faulty", fs=cast(IVolume, fs))
        request_id = world.offered(size=2 * len(DATA))
        first, shared, third = send_parts(world, request_id, pieces_of(DATA))
        one = final_of(world, request_id, [first, shared])
        other = final_of(world, request_id, [third, shared])
        given_back = False

        def fault(number: int, function: str, path: str) -> None:
            nonlocal given_back
            if given_back and function == "fdatasync":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            given_back = given_back or function == "punch_hole"

        fs.fault = fault
        self.raises(StorageFailed, world.intake.join(request_id, one.upload_id))
        fs.fault = lambda number, function, path: None
        self.raises(UploadHeld, world.intake.join(request_id, other.upload_id))
        outcome = now(world.intake.join(request_id, one.upload_id))
        assert outcome.sha256 == sha256(DATA[: 160 * KIB])

    def test_what_joins_nothing(self) -> None:
        """Of an upload with bytes of its own nothing is made, whoever asks for it to be joined: a
        direct upload may have been begun anew meanwhile.
        """
        request_id = self.world.offered(size=len(DATA))
        begun = self.world.create(request_id, len(DATA))
        assert now(self.world.intake.join(request_id, begun.upload_id)) is None
        assert self.world.uploads() == [begun]

    def test_what_is_no_part(self) -> None:
        """Only parts of the same request can be joined, each once."""
        request_id = self.world.offered(size=len(DATA))
        [part] = send_parts(self.world, request_id, [DATA[:100]])
        whole = self.world.create(request_id, 100)
        for parts, kind in (
            ([part, part], Invalid),
            ([part, "nobody"], NoSuchUpload),
            ([part, whole.upload_id], Forbidden),
        ):
            described = Described(length=None)
            self.raises(kind, self.world.resources.create_final(request_id, parts, described))

    def test_a_part_is_gone(self) -> None:
        """Whoever joins learns at once that a part was taken away; it and the whole are forgotten,
        and what is sent anew has its room.
        """
        for taken, left in ((0, [1, 2]), (1, [2]), (2, [])):
            request_id = self.world.offered(taken, size=len(DATA))
            parts = send_parts(self.world, request_id, pieces_of(DATA))
            final_of(self.world, request_id, parts)
            self.world.storage.discard(parts[taken])
            self.raises(NoSuchUpload, self.world.join_what_waits(request_id))
            uploads = now(self.world.ledger.uploads(request_id))
            assert [one.upload_id for one in uploads] == [parts[number] for number in left]
            assert set(self.world.on_disk()) == {parts[number] for number in left}
            self.world.check_accounts()
            assert isinstance(self.world.send(request_id, DATA), Outcome)
            now(self.world.keeper.complete(request_id))

    def test_part_of_a_part_is_gone(self) -> None:
        """It is the same when a part got shorter."""
        request_id = self.world.offered(size=len(DATA))
        parts = send_parts(self.world, request_id, pieces_of(DATA))
        final_of(self.world, request_id, parts)
        os.truncate(Path(self.world.root, ".backupd", "incoming", parts[2]), 20 * KIB)
        self.raises(NoSuchUpload, self.world.join_what_waits(request_id))
        assert (self.world.uploads(), self.world.on_disk()) == ([], {})
        self.world.check_accounts()

    def test_the_whole_is_gone(self) -> None:
        """What was joined already is taken away: the rest is of no use, and goes when it is in the
        way.
        """
        root = Path(self.folder) / "faulty"
        root.mkdir()
        fs = FaultyFileSystem(str(root))
        world = self.make("faulty", fs=cast(IVolume, fs))
        request_id = world.offered(size=len(DATA))
        parts = send_parts(world, request_id, pieces_of(DATA))
        final = final_of(world, request_id, parts)
        fs.fault = failing(errno.EIO, "punch_hole")
        self.raises(StorageFailed, world.join_what_waits(request_id))
        fs.fault = lambda number, function, path: None
        world.storage.discard(final.upload_id)
        self.raises(NoSuchUpload, world.join_what_waits(request_id))
        assert list(world.on_disk()) == [parts[2]]
        world.check_accounts()
        assert isinstance(world.send(request_id, DATA), Outcome)

    def test_wrong_digest(self) -> None:
        """A whole that is not what was announced goes, with all its bytes; the request stays."""
        request_id = self.world.offered(size=len(DATA), sha256="00" * 32)
        parts = send_parts(self.world, request_id, pieces_of(DATA))
        final_of(self.world, request_id, parts)
        self.raises(DigestMismatch, self.world.join_what_waits(request_id))
        assert (self.world.uploads(), self.world.on_disk()) == ([], {})
        assert self.world.state(request_id) == "RECEIVING"
        self.world.check_accounts()

    def test_ended_on_the_way(self) -> None:
        """Joining that is cut short, as by a stop, goes on where it was."""
        off = ManualOff()
        url = f"sqlite:///{self.folder}/manual.sqlite3"
        world = self.make("manual", off=off, ledger_url=url)
        request_id = world.offered(size=len(DATA))
        parts = []
        for piece in pieces_of(DATA):
            part = world.create(request_id, len(piece), partial=True)
            source = world.source(piece, b"")
            world.receive(request_id, source, len(piece), upload_id=part.upload_id, offset=0)
            off.release_all()
            parts.append(part.upload_id)
        final_of(world, request_id, parts)
        work = go_on(world.join_what_waits(request_id))
        for _ in range(12):
            off.release()
        stopped = go_on(world.intake.transfers.stop(1.0))
        self.clock.advance(1.0)
        off.release_all()
        assert self.raises(UploadHeld, work).retry_after
        now(stopped)
        [final] = [one for one in world.uploads() if one.parts]
        assert 0 < final.offset < len(DATA)
        world.check_accounts()
        now(world.ledger.close())
        again = world.restart()
        now(again.resources.go_on())
        assert again.state(request_id) == "RECEIVED"
        assert again.uploads()[0].sha256 == sha256(DATA)


class FaultTests(WorldCase):
    """Joining under a volume that crashes or fails at each of its calls in turn."""

    def setUp(self) -> None:
        super().setUp()
        set_attribute(self, joining, "PIECE", 32 * KIB)
        set_attribute(self, joining, "STRIDE", 64 * KIB)

    def prepared(
        self, name: str, cuts: tuple[int, ...] = CUTS, *, early: bool = False
    ) -> tuple[World, FaultyFileSystem, str]:
        """``early``: the whole was made before anybody knew how long its parts would be."""
        root = Path(self.folder) / name
        root.mkdir()
        fs = FaultyFileSystem(str(root))
        url = f"sqlite:///{self.folder}/{name}.sqlite3"
        world = self.make(name, fs=cast(IVolume, fs), ledger_url=url)
        request_id = world.offered(size=len(DATA))
        pieces = pieces_of(DATA, cuts)
        if early:
            parts = [world.create(request_id, None, partial=True).upload_id for _ in pieces]
            assert final_of(world, request_id, parts).length is None
            for part, piece in zip(parts, pieces, strict=True):
                world.send(request_id, piece, upload_id=part, offset=0, total=len(piece))
        else:
            final_of(world, request_id, send_parts(world, request_id, pieces))
        fs.calls = 0
        return world, fs, request_id

    def test_crash_anywhere(self) -> None:
        """Wherever the process ends, the next start joins what is left, and no byte is lost."""
        self.crash_anywhere("crash", CUTS)

    def test_crash_anywhere_with_a_length_that_came_late(self) -> None:
        """Nor where the whole was made before the lengths of its parts were known."""
        for cuts in ((0, 100 * KIB, 300 * KIB), (0, 200 * KIB, 300 * KIB)):
            self.crash_anywhere(f"late-{cuts[1]}", cuts, early=True)

    def crash_anywhere(self, name: str, cuts: tuple[int, ...], *, early: bool = False) -> None:
        for number in itertools.count():
            world, fs, request_id = self.prepared(f"{name}-{number}", cuts, early=early)
            fs.fault = crashing_at(number)
            try:
                join(world, request_id)
                break
            except Crash:
                fs.close_all()
            now(world.ledger.close())
            again = world.restart()
            again.check_accounts()
            now(again.resources.go_on())
            assert again.state(request_id) == "RECEIVED", number
            assert again.uploads()[0].sha256 == sha256(DATA)
            again.check_accounts()
        assert number > 20

    def test_a_start_on_a_volume_that_fails(self) -> None:
        """It is no reason not to start, and nothing of what was being joined is removed."""
        world, fs, request_id = self.prepared("begun")

        def renamed(number: int, function: str, path: str) -> None:
            if function == "fsync" and path.endswith("incoming"):
                raise Crash

        fs.fault = renamed
        self.raises(Crash, world.join_what_waits(request_id))
        fs.close_all()
        now(world.ledger.close())
        fs = FaultyFileSystem(world.root)
        fs.fault = failing(errno.ENOSPC, "fsync", "incoming")
        again = world.restart(fs=fs)
        fs.fault = lambda number, function, path: None
        now(again.resources.go_on())
        assert again.state(request_id) == "RECEIVED"
        assert again.uploads()[0].sha256 == sha256(DATA)
        again.check_accounts()

    def test_failure_anywhere(self) -> None:
        """Whatever call fails, joining can be tried again, and no byte is lost."""
        for number in itertools.count():
            world, fs, request_id = self.prepared(f"fail-{number}")

            def fault(n: int, function: str, path: str, at: int = number) -> None:
                if n == at and function != "close":
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

            fs.fault = fault
            try:
                join(world, request_id)
                if fs.calls <= number:
                    break
            except BackupdError:
                pass
            fs.fault = lambda number, function, path: None
            if world.state(request_id) != "RECEIVED":
                join(world, request_id)
            assert world.state(request_id) == "RECEIVED", number
            assert world.uploads()[0].sha256 == sha256(DATA)
        assert number > 20


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40 * KIB), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_any_parts(lengths: list[int], order: Any) -> None:
    """However long the parts, and in whatever order they came: the whole is theirs."""
    place = Place()
    try:
        world = place.make()
        pieces = [os.urandom(length) for length in lengths]
        request_id = world.offered(size=sum(lengths))
        arrival = list(range(len(pieces)))
        order.shuffle(arrival)
        ids = dict(
            zip(
                arrival,
                send_parts(world, request_id, [pieces[n] for n in arrival]),
                strict=True,
            )
        )
        final_of(world, request_id, [ids[n] for n in range(len(pieces))])
        outcome = join(world, request_id)
        assert outcome.sha256 == sha256(b"".join(pieces))
        assert outcome.size == sum(lengths)
        world.check_accounts()
    finally:
        place.close()
