"""Keeping: one durable backup for every request that completes, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, cast

from backupd.errors import (
    AlreadyStored,
    DigestMismatch,
    Incomplete,
    NoRoom,
    Over,
    StorageFailed,
    UploadCut,
)
from backupd.interfaces import IFileSystem
from backupd.receiver.transfer import Outcome
from backupd.receiver.transfers import SILENCE
from backupd.requests import MAX_TRIES, Backup, Pending, Received, Stored, Storing
from backupd.waiting import go_on
from tests.receiver.world import ManualOff, World, WorldCase, now, sha256
from tests.storage.faulty import Crash, FaultyFileSystem, crashing_at, failing

DATA = b"the bytes of a video" * 500


class KeepingCase(WorldCase):
    def received(self, world: World | None = None, **more: Any) -> str:
        """A request whose bytes are all there."""
        world = world or self.world
        request_id = world.offered(**more)
        world.send(request_id, DATA)
        assert world.state(request_id) == "RECEIVED"
        return request_id

    def complete(self, request_id: str, **more: Any) -> Backup:
        backup: Backup = now(self.world.keeper.complete(request_id, **more))
        return backup

    def content(self, backup: Backup, world: World | None = None) -> bytes:
        world = world or self.world
        return Path(world.root, backup.folder, backup.name).read_bytes()

    def listed(self, world: World | None = None) -> list[Backup]:
        found = now((world or self.world).ledger.backups(peer=None, video=None, after=0, limit=99))
        return [backup for _, backup in found]


class CompleteTests(KeepingCase):
    def test_stored(self) -> None:
        """The file has its own name, its description lies beside it, and the room is free."""
        request_id = self.received(
            file_name="holiday.mp4", content_type="video/mp4", size=10 * len(DATA)
        )
        backup = self.complete(request_id, size=len(DATA), sha256=sha256(DATA).upper())
        assert self.content(backup) == DATA
        assert backup.name == "holiday.mp4"
        assert (backup.size, backup.sha256) == (len(DATA), sha256(DATA))
        assert backup.content_type == "video/mp4"
        folder = Path(self.world.root, backup.folder)
        assert json.loads((folder / "backup.json").read_text())["sha256"] == sha256(DATA)
        request = self.world.request(request_id)
        assert isinstance(request, Stored)
        assert request.backup_id == backup.backup_id
        assert self.listed() == [backup]
        totals = now(self.world.ledger.totals())
        assert (totals.promised, totals.live) == (0, 0)
        assert self.world.on_disk() == {}

    def test_order(self) -> None:
        """STORING is committed before the file moves, STORED after all of it is synced."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered()
        sent = world.receive(request_id, world.source(DATA, b""), len(DATA))
        off.release_all()
        now(sent)
        done = go_on(world.keeper.complete(request_id))
        assert off.names == ["look"]
        assert isinstance(world.request(request_id), Received)
        off.release()
        assert off.names == ["keep"]
        assert isinstance(world.request(request_id), Storing)
        assert self.listed(world) == []
        assert not done.called
        off.release_all()
        assert self.listed(world) == [now(done)]

    def test_again(self) -> None:
        """Saying it again gives the same answer."""
        request_id = self.received()
        first = self.complete(request_id)
        self.clock.advance(1000)
        assert self.complete(request_id) == first
        assert self.complete(request_id, sha256="0" * 64) == first
        assert len(self.listed()) == 1

    def test_at_once(self) -> None:
        """Said several times at once there is one backup, and one answer."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered()
        sent = world.receive(request_id, world.source(DATA, b""), len(DATA))
        off.release_all()
        now(sent)
        done = [go_on(world.keeper.complete(request_id)) for _ in range(3)]
        off.release_all()
        assert len({now(one).backup_id for one in done}) == 1
        assert len(self.listed(world)) == 1

    def test_beside_a_dead_connection(self) -> None:
        """An upload whose connection is dead does not keep a whole one from being stored."""
        request_id = self.received(size=2 * len(DATA))
        dead = self.world.source(b"again")
        lost = self.world.receive(request_id, dead, len(DATA))
        self.raises(Incomplete, self.world.keeper.complete(request_id))
        assert not dead.aborted
        self.clock.advance(SILENCE)
        assert self.complete(request_id).size == len(DATA)
        self.raises(UploadCut, lost)
        self.world.check_accounts()

    def test_incomplete(self) -> None:
        """Bytes are missing: how many there are, and nothing is lost."""
        request_id = self.world.offered(size=len(DATA))
        error = self.raises(Incomplete, self.world.keeper.complete(request_id))
        assert (error.received, error.expected) == (0, None)
        source = self.world.source(DATA[:100])
        done = self.world.receive(request_id, source, len(DATA))
        error = self.raises(Incomplete, self.world.keeper.complete(request_id))
        assert (error.received, error.expected) == (100, len(DATA))
        source.cut()
        self.raises(UploadCut, done)
        error = self.raises(Incomplete, self.world.keeper.complete(request_id))
        assert (error.received, error.expected) == (100, len(DATA))
        self.world.send(request_id, DATA[100:], offset=100)
        assert self.content(self.complete(request_id)) == DATA

    def test_newest_whole_one(self) -> None:
        """Of several whole uploads the newest is stored; the others go."""
        request_id = self.received(size=4 * len(DATA))
        self.world.send(request_id, DATA[::-1])
        assert self.content(self.complete(request_id)) == DATA[::-1]
        assert self.world.on_disk() == {}

    def test_whole_beside_cut(self) -> None:
        """A whole upload can be stored though a later one was cut, also when its turn is gone."""
        for lapse in (False, True):
            world = self.make(str(lapse))
            request_id = self.received(world, size=4 * len(DATA))
            source = world.source(b"x", UploadCut("lost"))
            self.raises(UploadCut, world.receive(request_id, source, len(DATA)))
            if lapse:
                self.clock.advance(601)
                world.sweep()
                assert world.state(request_id) == "PENDING"
            backup = now(world.keeper.complete(request_id))
            assert self.content(backup, world) == DATA
            assert world.on_disk() == {}
            assert world.queue.busy() == {}

    def test_wrong_beside_cut(self) -> None:
        """The same when it is not the one that was meant."""
        request_id = self.received(size=4 * len(DATA))
        source = self.world.source(b"x", UploadCut("lost"))
        self.raises(UploadCut, self.world.receive(request_id, source, len(DATA)))
        self.clock.advance(601)
        self.world.sweep()
        self.raises(DigestMismatch, self.world.keeper.complete(request_id, size=1))
        assert self.world.state(request_id) == "PENDING"
        assert self.world.on_disk() == {}

    def test_nameless(self) -> None:
        """Without any name the file is named after its video and media type."""
        request_id = self.received(video=7, content_type="video/mp4")
        assert self.complete(request_id).name == "video-7.mp4"

    def test_hostile_name(self) -> None:
        """What the client calls it stays within its folder."""
        request_id = self.received(file_name="../../../etc/passwd")
        backup = self.complete(request_id)
        assert "/" not in backup.name
        assert backup.file_name == "../../../etc/passwd"
        assert self.content(backup) == DATA


class DisagreeTests(KeepingCase):
    """What the sender says of the bytes is not what arrived."""

    def check_back_in_line(self, request_id: str, tries: int) -> None:
        request = self.world.request(request_id)
        assert isinstance(request, Pending)
        assert (request.tries, request.accepted) == (tries, True)
        assert (self.world.uploads(), self.world.on_disk()) == ([], {})
        assert now(self.world.ledger.totals()).promised == request.ask.size
        assert self.world.queue.busy() == {}

    def test_size(self) -> None:
        request_id = self.received()
        self.raises(DigestMismatch, self.world.keeper.complete(request_id, size=len(DATA) + 1))
        self.check_back_in_line(request_id, 1)

    def test_digest(self) -> None:
        request_id = self.received()
        wrong = sha256(b"other")
        self.raises(DigestMismatch, self.world.keeper.complete(request_id, sha256=wrong))
        self.check_back_in_line(request_id, 1)

    def test_asked_again_with_another(self) -> None:
        """The digest of a later ask counts too."""
        request_id = self.received()
        self.world.admit(sha256=sha256(b"other"))
        self.raises(DigestMismatch, self.world.keeper.complete(request_id))
        self.check_back_in_line(request_id, 1)

    def test_too_often(self) -> None:
        """After five such tries it is FAILED, and its room is free."""
        request_id = self.received()
        for tries in range(1, MAX_TRIES):
            self.raises(DigestMismatch, self.world.keeper.complete(request_id, size=1))
            self.check_back_in_line(request_id, tries)
            self.world.tick()
            self.world.send(request_id, DATA)
        self.raises(DigestMismatch, self.world.keeper.complete(request_id, size=1))
        assert self.world.state(request_id) == "FAILED"
        assert self.world.on_disk() == {}
        assert now(self.world.ledger.totals()).promised == 0
        self.raises(Over, self.world.keeper.complete(request_id))

    def test_tries_add_up(self) -> None:
        """Tries at the upload's end and at ``complete-backup`` count together."""
        request_id = self.world.offered()
        for _ in range(MAX_TRIES - 1):
            work = self.world.receive(
                request_id, self.world.source(DATA, b""), digests={"sha-256": bytes(32)}
            )
            self.raises(DigestMismatch, work)
        self.world.send(request_id, DATA)
        self.raises(DigestMismatch, self.world.keeper.complete(request_id, size=1))
        assert self.world.state(request_id) == "FAILED"

    def test_right_after_wrong(self) -> None:
        request_id = self.received()
        self.raises(DigestMismatch, self.world.keeper.complete(request_id, size=1))
        self.world.tick()
        self.world.send(request_id, DATA)
        assert self.content(self.complete(request_id)) == DATA


class GivenUpTests(KeepingCase):
    def test_any_state(self) -> None:
        """``success: false``: FAILED, bytes gone, room free; again is harmless."""
        waiting = self.world.admit(1, peer="http://c:1").ask.request_id
        self.world.tick()
        offered = self.world.offered(3)
        received = self.received(video=4)
        for request_id in (waiting, offered, received):
            for _ in range(2):
                now(self.world.keeper.give_up(request_id))
                assert self.world.state(request_id) == "FAILED"
        assert self.world.on_disk() == {}
        assert self.world.queue.busy() == {}
        assert now(self.world.ledger.totals()).promised == 0

    def test_at_once(self) -> None:
        """Two that say it at the same time hear the same."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered()
        done = world.receive(request_id, world.source(b"12"), 4)
        off.release()
        both = [go_on(world.keeper.give_up(request_id)) for _ in range(2)]
        off.release_all()
        for one in both:
            now(one)
        self.raises(UploadCut, done)

    def test_after_stored(self) -> None:
        """It deletes nothing."""
        request_id = self.received()
        backup = self.complete(request_id)
        self.raises(AlreadyStored, self.world.keeper.give_up(request_id))
        assert self.content(backup) == DATA
        assert self.listed() == [backup]

    def test_after_expired(self) -> None:
        request_id = self.received()
        self.clock.advance(86401)
        self.world.sweep()
        self.raises(Over, self.world.keeper.give_up(request_id))
        self.raises(Over, self.world.keeper.complete(request_id))


class CrashTests(KeepingCase):
    """Whatever step it crashes at, it goes forward from STORING and back to RECEIVED before."""

    def crash_at(self, crash: int) -> str:
        """Crash at this call of the file system; the state found then, "" without a crash."""
        root = Path(self.folder, f"crash{crash}")
        root.mkdir()
        url = f"sqlite:///{self.folder}/ledger{crash}"
        fs = FaultyFileSystem(str(root))
        world = self.make(root.name, ledger_url=url, fs=cast(IFileSystem, fs))
        request_id = self.received(world, file_name="a.mp4")
        fs.fault = crashing_at(fs.calls + crash)
        crashed = False
        try:
            now(world.keeper.complete(request_id))
        except Crash:
            crashed = True
        now(world.ledger.close())
        fs.close_all()
        world = world.restart()
        state = world.state(request_id)
        backup = now(world.keeper.complete(request_id))
        assert self.listed(world) == [backup]
        assert self.content(backup, world) == DATA
        files = [name for _, _, names in os.walk(root) for name in names]
        assert sorted(files) == ["a.mp4", "backup.json"]
        assert now(world.ledger.totals()).live == 0
        now(world.ledger.close())
        return state if crashed else ""

    def test_every_step(self) -> None:
        states: list[str] = []
        while state := self.crash_at(len(states)):
            states.append(state)
        looks = states.index("STORED")
        assert 0 < looks < 8
        assert states == ["RECEIVED"] * looks + ["STORED"] * (len(states) - looks)
        assert len(states) > 20

    def test_before_storing(self) -> None:
        """A crash before STORING was committed leaves RECEIVED, to be completed again."""
        world = self.make("file", ledger_url=f"sqlite:///{self.folder}/ledger")
        request_id = self.received(world)
        now(world.ledger.close())
        world = world.restart()
        assert isinstance(world.request(request_id), Received)
        world.check_accounts()
        assert self.content(now(world.keeper.complete(request_id)), world) == DATA


class GoneTests(KeepingCase):
    """The bytes that were received are gone from the disk."""

    def test_before_storing(self) -> None:
        """The request goes back in line, and a new upload is stored."""
        request_id = self.received()
        for upload_id in self.world.on_disk():
            self.world.storage.discard(upload_id)
        self.raises(Incomplete, self.world.keeper.complete(request_id))
        assert self.world.state(request_id) == "PENDING"
        self.world.tick()
        now(self.world.receive(request_id, self.world.source(DATA, b""), len(DATA)))
        assert self.content(self.complete(request_id)) == DATA

    def test_while_storing(self) -> None:
        """What can never be stored is FAILED, its sender is told, and its room is free."""
        off = ManualOff()
        world = self.make("manual", off=off)
        request_id = world.offered()
        sent = world.receive(request_id, world.source(DATA, b""), len(DATA))
        off.release_all()
        now(sent)
        done = go_on(world.keeper.complete(request_id))
        off.release()
        for upload_id in world.on_disk():
            world.storage.discard(upload_id)
        off.release_all()
        self.raises(Over, done)
        assert world.state(request_id) == "FAILED"
        assert now(world.ledger.totals()).promised == 0

    def test_before_it_is_stored_at_last(self) -> None:
        """So it is when that is found where nobody waits: the sweep does not try for ever."""
        root = Path(self.folder, "faulty")
        root.mkdir()
        fs = FaultyFileSystem(str(root))
        world = self.make("faulty", fs=cast(IFileSystem, fs))
        request_id = self.received(world)
        fs.fault = failing(errno.EIO, "rename")
        self.raises(StorageFailed, world.keeper.complete(request_id))
        assert world.state(request_id) == "STORING"
        for upload_id in world.on_disk():
            world.storage.discard(upload_id)
        world.sweep()
        assert world.state(request_id) == "FAILED"
        assert now(world.ledger.totals()).promised == 0
        self.raises(Over, world.keeper.complete(request_id))


class UnknownLengthTests(KeepingCase):
    """An upload that was cut before it could tell its end."""

    def cut(self, count: int) -> str:
        request_id = self.world.offered()
        source = self.world.source(*([DATA[:count]] if count else []))
        done = self.world.receive(request_id, source, None)
        source.cut()
        self.raises(UploadCut, done)
        return request_id

    def test_size_is_told(self) -> None:
        """It is whole when its sender says so, by its size."""
        request_id = self.cut(2)
        rest = self.world.source(DATA[2:], b"")
        now(self.world.receive(request_id, rest, len(DATA) - 2, offset=2))
        self.raises(Incomplete, self.world.keeper.complete(request_id))
        backup = now(self.world.keeper.complete(request_id, size=len(DATA)))
        assert backup.sha256 == sha256(DATA)
        assert self.content(backup) == DATA

    def test_its_bytes_are_gone(self) -> None:
        """Its sender hears that nothing is there, and begins again."""
        request_id = self.cut(0)
        now(self.world.receive(request_id, self.world.source(DATA, b""), None, offset=0))
        for upload_id in self.world.on_disk():
            self.world.storage.discard(upload_id)
        complete = self.world.keeper.complete(request_id, size=len(DATA))
        assert self.raises(Incomplete, complete).received == 0
        assert self.world.uploads() == []
        self.world.check_accounts()
        now(self.world.receive(request_id, self.world.source(DATA, b""), len(DATA)))
        assert self.content(self.complete(request_id)) == DATA

    def test_length_is_told(self) -> None:
        """A continuation may bring the length of the whole."""
        request_id = self.cut(2)
        rest = self.world.source(DATA[2:], b"")
        work = self.world.intake.receive(
            request_id, rest, length=len(DATA) - 2, offset=2, total=len(DATA)
        )
        assert isinstance(now(work), Outcome)
        assert self.content(self.complete(request_id)) == DATA

    def test_a_part_is_no_video(self) -> None:
        """A continuation from 0 is not whole because it came in one piece."""
        request_id = self.cut(0)
        now(self.world.receive(request_id, self.world.source(DATA[:2], b""), 2, offset=0))
        self.raises(Incomplete, self.world.keeper.complete(request_id))
        now(self.world.receive(request_id, self.world.source(DATA[2:], b""), None, offset=2))
        assert self.content(now(self.world.keeper.complete(request_id, size=len(DATA)))) == DATA


class StuckTests(KeepingCase):
    """The volume fails while a backup is being stored."""

    def faulty(self, name: str = "faulty") -> tuple[World, FaultyFileSystem, str]:
        root = Path(self.folder, name)
        root.mkdir()
        fs = FaultyFileSystem(str(root))
        world = self.make(name, fs=cast(IFileSystem, fs))
        return world, fs, self.received(world)

    def test_next_sweep(self) -> None:
        """It stays STORING, and the next sweep brings it to its end."""
        world, fs, request_id = self.faulty()
        fs.fault = failing(errno.ENOSPC, "mkdir")
        self.raises(NoRoom, world.keeper.complete(request_id))
        assert world.state(request_id) == "STORING"
        world.sweep()
        assert world.state(request_id) == "STORING"
        self.raises(AlreadyStored, world.keeper.give_up(request_id))
        fs.fault = lambda number, function, path: None
        world.sweep()
        assert world.state(request_id) == "STORED"
        assert self.listed(world) == [now(world.keeper.complete(request_id))]

    def test_until_its_time_is_up(self) -> None:
        """What cannot be stored is FAILED then, like any other, and its room is free."""
        for number, error in ((errno.EIO, StorageFailed), (errno.ENOSPC, NoRoom)):
            world, fs, request_id = self.faulty(error.__name__)
            fs.fault = failing(number, "mkdir")
            self.raises(error, world.keeper.complete(request_id))
            self.clock.advance(86399)
            world.sweep()
            assert world.state(request_id) == "STORING"
            self.clock.advance(2)
            world.sweep()
            assert world.state(request_id) == "FAILED"
            assert now(world.ledger.totals()).promised == 0

    def test_what_is_given_up_is_not_left_behind(self) -> None:
        """Where it has its name already, and a full volume cannot remove it yet, it is removed or
        stored once that can be done: unlisted, nobody would look for it any more.
        """
        world, fs, request_id = self.faulty()
        fs.fault = failing(errno.ENOSPC, "fsync", "incoming")
        self.raises(NoRoom, world.keeper.complete(request_id))
        fs.fault = failing(errno.ENOSPC, "unlink")
        self.clock.advance(86401)
        world.sweep()
        fs.fault = lambda number, function, path: None
        world.sweep()
        there = {one.name for one in Path(world.root).iterdir()} - {".backupd"}
        assert bool(there) == bool(self.listed(world)) == (world.state(request_id) == "STORED")
        assert now(world.ledger.totals()).promised == 0

    def test_said_again(self) -> None:
        """Saying it again goes on with the same backup."""
        world, fs, request_id = self.faulty()
        fs.fault = failing(errno.EIO, "rename")
        self.raises(StorageFailed, world.keeper.complete(request_id))
        request = world.request(request_id)
        assert isinstance(request, Storing)
        fs.fault = lambda number, function, path: None
        assert now(world.keeper.complete(request_id)) == request.backup
