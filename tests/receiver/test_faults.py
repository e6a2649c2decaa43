"""The volume is full or fails: what was acknowledged stays, nothing leaks, and it goes on."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, fail

from backupd.errors import BackupdError, LedgerFailed, NoRoom, StorageFailed, UploadCut
from backupd.interfaces import IFileSystem, Upload
from backupd.receiver import blocks
from backupd.receiver.blocks import SYNC_SECONDS
from backupd.receiver.digests import Digests
from backupd.receiver.transfer import Outcome
from tests.receiver.world import KIB, World, WorldCase, logged, now, set_attribute, sha256
from tests.storage.faulty import FaultyFileSystem, failing

DATA = os.urandom(20_000)


class FaultCase(WorldCase):
    def setUp(self) -> None:
        super().setUp()
        self.root = Path(self.folder) / "faulty"
        self.root.mkdir()
        self.fs = FaultyFileSystem(str(self.root))
        self.world: World = self.make("faulty", fs=cast(IFileSystem, self.fs))

    def fail_from(self, number: int, function: str, times: int = 1) -> None:
        """``function`` fails so often from its call ``number`` on, counted from 1 now."""
        calls = 0

        def fault(_: int, called: str, path: str) -> None:
            nonlocal calls
            if called == function:
                calls += 1
                if number <= calls < number + times:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

        self.fs.fault = fault

    def well(self) -> None:
        """The volume works again."""
        self.fs.fault = lambda number, function, path: None

    def check_closed(self) -> None:
        assert self.fs.fds == {}, "a descriptor was left open"


class FullTests(FaultCase):
    def test_allocate(self) -> None:
        """No room to allocate: the request stands as it stood, and can try again."""
        request_id = self.world.offered(size=len(DATA))
        for number in (errno.ENOSPC, errno.EDQUOT):
            self.fs.fault = failing(number, "posix_fallocate")
            source = self.world.source(DATA, b"")
            self.raises(NoRoom, self.world.receive(request_id, source, len(DATA)))
            assert source.reads == 0
            assert self.world.state(request_id) == "OFFERED"
            assert (self.world.uploads(), self.world.on_disk()) == ([], {})
            assert now(self.world.ledger.totals()).promised == len(DATA)
            self.check_closed()
        self.well()
        assert isinstance(self.world.send(request_id, DATA), Outcome)
        self.world.check_accounts()
        self.check_closed()

    def test_allocate_without_a_turn(self) -> None:
        """A turn that was claimed for it is given back."""
        request_id = self.world.admit().ask.request_id
        self.fs.fault = failing(errno.ENOSPC, "posix_fallocate")
        self.raises(NoRoom, self.world.receive(request_id, self.world.source(), 4))
        assert self.world.queue.busy() == {}
        assert self.world.state(request_id) == "PENDING"

    def test_write(self) -> None:
        """A volume that cannot promise blocks may be full later: what was durable is kept."""
        request_id = self.world.offered(size=len(DATA))
        source = self.world.source(DATA[:100])
        done = self.world.receive(request_id, source, len(DATA))
        self.clock.advance(SYNC_SECONDS)
        source.give(DATA[100:200])
        assert self.world.uploads()[0].offset == 200
        self.fs.fault = failing(errno.ENOSPC, "pwritev")
        source.give(DATA[200:], b"")
        self.raises(NoRoom, done)
        self.check_closed()
        assert self.world.uploads()[0].offset == 200
        self.world.check_accounts()
        self.well()
        outcome = self.world.send(request_id, DATA[200:], offset=200)
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(DATA)
        assert logged(self) == []

    def test_write_after_cut(self) -> None:
        """When the last bytes before a cut find no room, the client hears of the cut only."""
        request_id = self.world.offered(size=len(DATA))
        self.fs.fault = failing(errno.ENOSPC, "pwritev")
        source = self.world.source(DATA[:100], UploadCut("lost"))
        self.raises(UploadCut, self.world.receive(request_id, source, len(DATA)))
        assert self.world.uploads()[0].offset == 0
        self.check_closed()
        assert logged(self) == []


class UncertainTests(FaultCase):
    def test_a_disk_that_cannot_say(self) -> None:
        """A disk that fails to say whether the bytes are there has not lost them."""
        request_id = self.world.offered(size=len(DATA))
        self.world.send(request_id, DATA)
        for function in ("lstat", "open", "pread"):
            self.fs.fault = failing(errno.EIO, function)
            self.raises(StorageFailed, self.world.keeper.complete(request_id))
            assert self.world.state(request_id) == "RECEIVED"
        self.well()
        assert now(self.world.keeper.complete(request_id)).sha256 == sha256(DATA)
        self.check_closed()

    def test_what_cannot_be_removed(self) -> None:
        """Bytes that cannot be removed are no reason for a request to live on; a sweep does it.

        Where removing writes anew, as on Btrfs and ZFS, a full volume cannot do it either.
        """
        for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            request_id = self.world.offered(number, size=len(DATA))
            self.world.send(request_id, DATA)
            self.fs.fault = failing(number, "unlink")
            now(self.world.keeper.give_up(request_id))
            assert self.world.state(request_id) == "FAILED"
            assert len(self.world.on_disk()) == 1
            self.world.sweep()
            assert len(self.world.on_disk()) == 1
            self.well()
            self.world.sweep()
            assert self.world.on_disk() == {}

    def test_what_is_begun_anew(self) -> None:
        """An upload that could not be begun, nor removed, is not removed once it is begun."""
        request_id = self.world.offered(size=len(DATA))
        upload = self.world.create(request_id, len(DATA))
        self.fs.fault = failing(errno.EIO, "lstat")
        source = self.world.source(DATA, b"")
        begun = {"upload_id": upload.upload_id, "offset": 0}
        self.raises(StorageFailed, self.world.receive(request_id, source, len(DATA), **begun))
        self.well()
        source = self.world.source(DATA[:100], UploadCut("lost"))
        self.raises(UploadCut, self.world.receive(request_id, source, len(DATA), **begun))
        self.world.sweep()
        go_on = {"upload_id": upload.upload_id, "offset": 100}
        outcome = self.world.send(request_id, DATA[100:], **go_on)
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(DATA)

    def test_what_cannot_be_begun_anew_takes_no_room(self) -> None:
        """It had some, and its bytes are gone: what it needs is promised to it again in full."""
        request_id = self.world.offered(size=len(DATA))
        upload = self.world.create(request_id, len(DATA))
        begun = {"upload_id": upload.upload_id, "offset": 0}
        self.fs.fault = failing(errno.ENOSPC, "pwritev")
        source = self.world.source(DATA, b"")
        self.raises(NoRoom, self.world.receive(request_id, source, len(DATA), **begun))
        assert self.world.uploads()[0].allocated
        self.fs.fault = failing(errno.EMFILE, "open")
        source = self.world.source(DATA, b"")
        self.raises(StorageFailed, self.world.receive(request_id, source, len(DATA), **begun))
        self.well()
        assert [one.allocated for one in self.world.uploads()] == [0]
        assert self.world.on_disk() == {}
        self.world.check_accounts()
        outcome = self.world.send(request_id, DATA, **begun)
        assert isinstance(outcome, Outcome)


class BrokenTests(FaultCase):
    def test_last_sync(self) -> None:
        """EIO at the last sync: no answer of success, the offset stays, the rest goes on."""
        request_id = self.world.offered(size=len(DATA))
        source = self.world.source(DATA[:5000])
        done = self.world.receive(request_id, source, len(DATA))
        self.clock.advance(SYNC_SECONDS)
        source.give(DATA[5000:6000])
        assert self.world.uploads()[0].offset == 6000
        self.fs.fault = failing(errno.EIO, "fdatasync")
        source.give(DATA[6000:], b"")
        self.raises(StorageFailed, done)
        assert self.fs.trace.count("sync .backupd/incoming/id-0002") == 1
        self.well()
        assert self.world.state(request_id) == "RECEIVING"
        (upload,) = self.world.uploads()
        assert (upload.offset, upload.sha256) == (6000, None)
        self.world.check_accounts()
        self.check_closed()
        outcome = self.world.send(request_id, DATA[6000:], offset=6000)
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(DATA)
        assert logged(self) == []

    def test_sync_on_the_way(self) -> None:
        """EIO at a sync between: the upload fails, and its descriptor is not synced again."""
        request_id = self.world.offered(size=len(DATA))
        source = self.world.source(DATA[:5000])
        done = self.world.receive(request_id, source, len(DATA))
        syncs: list[str] = []

        def fault(_: int, called: str, path: str) -> None:
            if called in ("fdatasync", "fsync"):
                syncs.append(path)
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        self.fs.fault = fault
        self.clock.advance(SYNC_SECONDS)
        source.give(DATA[5000:6000])
        self.clock.advance(SYNC_SECONDS)
        source.give(DATA[6000:7000])
        self.raises(StorageFailed, done)
        assert len(syncs) == 1
        assert self.world.uploads()[0].offset == 0
        self.check_closed()
        assert logged(self) == []

    def test_sync_and_cut(self) -> None:
        """The same when the connection breaks before the failure was noticed."""
        request_id = self.world.offered(size=len(DATA))
        source = self.world.source(DATA[:5000])
        done = self.world.receive(request_id, source, len(DATA))
        self.fs.fault = failing(errno.EIO, "fdatasync")
        self.clock.advance(SYNC_SECONDS)
        source.give(DATA[5000:6000])
        source.cut()
        self.raises(UploadCut, done)
        assert self.world.uploads()[0].offset == 0
        assert not [step for step in self.fs.trace if step.startswith("sync .backupd/incoming/")]
        assert logged(self) == []

    def test_hole(self) -> None:
        """A write that failed once leaves no hole that counts as received."""
        set_attribute(self, blocks, "BLOCK", 1000)
        set_attribute(self, blocks, "SYNC_BYTES", 1000)
        request_id = self.world.offered(size=len(DATA))
        self.fail_from(3, "pwritev")
        pieces = [DATA[at : at + 1000] for at in range(0, len(DATA), 1000)]
        source = self.world.source(*pieces, b"")
        self.raises(StorageFailed, self.world.receive(request_id, source, len(DATA)))
        self.well()
        self.world.intake._digests = Digests()
        (upload,) = self.world.uploads()
        assert upload.offset <= 2000
        outcome = self.world.send(request_id, DATA[upload.offset :], offset=upload.offset)
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(DATA)

    def test_create(self) -> None:
        """An upload that cannot be created leaves neither a file nor a record."""
        request_id = self.world.offered()
        for function in ("open", "fstat"):
            self.fs.fault = failing(errno.EIO, function)
            self.raises(StorageFailed, self.world.receive(request_id, self.world.source(), 4))
            self.well()
            assert (self.world.uploads(), self.world.on_disk()) == ([], {})
            self.check_closed()

    def test_name(self) -> None:
        """Bytes whose file's name could not be made durable are not acknowledged; the next upload
        begins with a file of its own."""
        request_id = self.world.offered(size=len(DATA))
        self.fs.fault = failing(errno.EIO, "fsync", "incoming")
        done = self.world.receive(request_id, self.world.source(DATA, b""), len(DATA))
        self.raises(StorageFailed, done)
        assert self.world.uploads()[0].offset == 0
        self.check_closed()
        self.well()
        assert self.world.send(request_id, DATA).sha256 == sha256(DATA)
        assert ".backupd/incoming" not in self.fs.unsynced

    def test_every_call_fails_once(self) -> None:
        """Whichever call fails, no offset is ahead of the disk, nothing leaks, and it goes on."""
        functions = ("open", "posix_fallocate", "pwritev", "fdatasync", "fsync", "lstat", "pread")
        for function in functions:
            for number in range(1, 4):
                case = f"{function}{number}"
                (Path(self.folder) / case).mkdir()
                self.fs = FaultyFileSystem(str(Path(self.folder) / case))
                self.world = self.make(case, fs=cast(IFileSystem, self.fs))
                self.upload_in_parts(function, number)
        assert logged(self) == []

    def upload_in_parts(self, function: str, number: int) -> None:
        world, at = self.world, 0
        request_id = world.offered(size=len(DATA))
        self.fail_from(number, function)
        outcome: Any = None
        for _ in range(20):
            offset = world.uploads()[-1].offset if world.uploads() else None
            at = offset or 0
            part = DATA[at : at + 7000]
            end: bytes | Exception = b"" if at + 7000 >= len(DATA) else UploadCut("lost")
            length = len(DATA) if offset is None else None
            try:
                outcome = now(
                    world.receive(request_id, world.source(part, end), length, offset=offset)
                )
                break
            except UploadCut:
                assert world.uploads()[-1].offset >= at
            except BackupdError:
                world.check_accounts()
            self.check_closed()
            world.intake._digests = Digests()
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(DATA)
        world.check_accounts()


class LedgerTests(FaultCase):
    """The ledger cannot commit: nothing of the step has happened."""

    def failing(self, times: int) -> None:
        change, left = self.world.ledger.change, [times]

        def faulty(*args: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                raise LedgerFailed("The ledger could not commit.")
            return change(*args, **more)

        set_attribute(self, self.world.ledger, "change", faulty)

    def test_start(self) -> None:
        """No record, no bytes, no turn."""
        request_id = self.world.offered()
        self.failing(1)
        self.raises(LedgerFailed, self.world.receive(request_id, self.world.source(), 4))
        assert (self.world.uploads(), self.world.on_disk()) == ([], {})
        self.check_closed()
        self.world.check_accounts()
        assert isinstance(self.world.send(request_id, b"1234"), Outcome)

    def test_finish(self) -> None:
        """Bytes that the ledger does not know of are not acknowledged; they can be sent again."""
        request_id = self.world.offered(size=4 * KIB)
        source = self.world.source(b"12")
        done = self.world.receive(request_id, source, 4)
        self.failing(1)
        source.give(b"34", b"")
        self.raises(LedgerFailed, done)
        assert self.world.uploads()[0].offset == 0
        self.check_closed()
        outcome = self.world.send(request_id, b"1234", offset=0)
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(b"1234")

    def test_what_is_left(self) -> None:
        """A sweep to which the ledger does not answer forgets nothing that is to be removed."""
        request_id = self.world.offered(size=len(DATA))
        self.world.send(request_id, DATA)
        self.fs.fault = failing(errno.EIO, "unlink")
        now(self.world.keeper.give_up(request_id))
        self.well()
        answers, errors = self.world.ledger.uploads, [LedgerFailed("The ledger is closed.")]

        def uploads(request_id: str | None) -> Deferred[list[Upload]]:
            return fail(errors.pop()) if errors else answers(request_id)

        set_attribute(self, self.world.ledger, "uploads", uploads)
        self.world.sweep()
        assert len(self.world.on_disk()) == 1
        self.world.sweep()
        assert self.world.on_disk() == {}
        assert logged(self) == []

    def test_what_ends_while_it_looks(self) -> None:
        """What could not be begun at first, and ends while a sweep asks, was known a moment ago."""
        request_id = self.world.offered(size=len(DATA))
        upload = self.world.create(request_id, len(DATA))
        begun = {"upload_id": upload.upload_id, "offset": 0}
        self.fs.fault = failing(errno.EIO, "lstat")
        source = self.world.source(DATA, b"")
        self.raises(StorageFailed, self.world.receive(request_id, source, len(DATA), **begun))
        self.well()
        self.world.send(request_id, DATA, **begun)
        self.fs.fault = failing(errno.EIO, "unlink")
        answers, slow = self.world.ledger.uploads, Deferred[list[Upload]]()
        set_attribute(self, self.world.ledger, "uploads", lambda _: slow)
        self.world.sweep()
        found = now(answers(None))
        set_attribute(self, self.world.ledger, "uploads", answers)
        now(self.world.keeper.give_up(request_id))
        self.well()
        slow.callback(found)
        self.world.sweep()
        assert self.world.on_disk() == {}

    def test_what_comes_while_it_looks(self) -> None:
        """What cannot be removed while a sweep asks the ledger waits for the next sweep."""
        ids = [self.world.offered(video, size=len(DATA)) for video in (1, 2)]
        for request_id in ids:
            self.world.send(request_id, DATA)
        self.fs.fault = failing(errno.EIO, "unlink")
        now(self.world.keeper.give_up(ids[0]))
        answers, slow = self.world.ledger.uploads, Deferred[list[Upload]]()
        set_attribute(self, self.world.ledger, "uploads", lambda _: slow)
        self.world.sweep()
        found = now(answers(None))
        set_attribute(self, self.world.ledger, "uploads", answers)
        now(self.world.keeper.give_up(ids[1]))
        self.well()
        slow.callback(found)
        assert len(self.world.on_disk()) == 1
        self.world.sweep()
        assert self.world.on_disk() == {}
        asked: list[str | None] = []
        set_attribute(self, self.world.ledger, "uploads", asked.append)
        self.world.sweep()
        assert asked == [], "nothing is left"

    def test_cut(self) -> None:
        """An offset that could not be committed is not told, and its digest not remembered."""
        request_id = self.world.offered()
        source = self.world.source(b"12")
        done = self.world.receive(request_id, source, 4)
        self.failing(1)
        source.cut()
        self.raises(UploadCut, done)
        assert self.world.uploads()[0].offset == 0
        outcome = self.world.send(request_id, b"1234", offset=0)
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(b"1234")
