"""Recovery: after a crash ledger and volume agree again, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from backupd.errors import StorageFailed, UploadCut
from backupd.receiver import joining
from backupd.receiver.recovery import Rebuilt, rebuild
from backupd.receiver.resources import Described
from backupd.receiver.transfer import Outcome
from backupd.requests import Pending, Storing
from backupd.storage.disk import DiskStorage
from tests.receiver.world import KIB, World, WorldCase, now, set_attribute, sha256, sync

DATA = b"0123456789" * 1000


class RecoveryCase(WorldCase):
    def setUp(self) -> None:
        super().setUp()
        self.world = self.make("file", ledger_url=f"sqlite:///{self.folder}/ledger")

    def crash(self) -> World:
        """The process ends here; the next one has recovered."""
        now(self.world.ledger.close())
        self.world = self.world.restart()
        return self.world

    def incoming(self, upload_id: str = "") -> Path:
        return Path(self.world.root, ".backupd", "incoming", upload_id)

    def cut(self, at: int, **more: Any) -> str:
        """A request with an upload that stands at so many bytes."""
        request_id = self.world.offered(**more)
        source = self.world.source(DATA[:at] or UploadCut("lost"), UploadCut("lost"))
        self.raises(UploadCut, self.world.receive(request_id, source, len(DATA)))
        return request_id


class UploadTests(RecoveryCase):
    def test_falls_back(self) -> None:
        """Bytes that came after the last checkpoint do not count; the durable ones do."""
        request_id = self.world.offered(size=len(DATA))
        source = self.world.source(DATA[:100])
        self.world.receive(request_id, source, len(DATA))
        self.clock.advance(3)
        source.give(DATA[100:200])
        source.give(DATA[200:300])
        world = self.crash()
        (upload,) = world.uploads()
        assert upload.offset == 200
        world.check_accounts()
        assert list(world.queue.busy()) == [request_id]
        outcome = world.send(request_id, DATA[200:], offset=200)
        assert isinstance(outcome, Outcome)
        assert outcome.sha256 == sha256(DATA)

    def test_nothing_to_do(self) -> None:
        """Recovering twice changes nothing."""
        self.cut(100)
        before = self.crash().uploads()
        assert self.crash().uploads() == before
        self.world.check_accounts()

    def test_orphans(self) -> None:
        """Bytes that no upload owns are removed."""
        self.cut(100)
        self.incoming("orphan").write_bytes(b"x" * 5000)
        world = self.crash()
        assert len(world.on_disk()) == 1
        world.check_accounts()

    def test_an_orphan_that_stays(self) -> None:
        """Bytes that cannot be removed do not keep the daemon from starting."""
        request_id = self.cut(100)
        for name in ("orphan", "other"):
            self.incoming(name).write_bytes(b"x" * 5000)
        discard = DiskStorage.discard

        def faulty(storage: DiskStorage, upload_id: str) -> None:
            if upload_id == "orphan":
                raise StorageFailed("EIO")
            discard(storage, upload_id)

        set_attribute(self, DiskStorage, "discard", faulty)
        world = self.crash()
        assert set(world.on_disk()) == {"orphan", world.uploads()[0].upload_id}
        assert list(world.queue.busy()) == [request_id]

    def test_nothing_durable(self) -> None:
        """Bytes that were not durable are dropped and their room is promised again.

        The upload stands at 0: a client that knows its URL may go on with it.
        """
        request_id = self.cut(0, size=len(DATA))
        assert len(self.world.uploads()) == 1
        world = self.crash()
        [upload] = world.uploads()
        assert (upload.offset, upload.allocated, world.on_disk()) == (0, 0, {})
        assert world.state(request_id) == "RECEIVING"
        assert now(world.ledger.totals()).promised == len(DATA)

    def test_the_rest_of_the_last_block(self) -> None:
        """Parts that fit the reservation exactly go on to fit it, whatever blocks they occupy."""
        sizes = [5001, 5003, 4999]
        request_id = self.world.offered(size=sum(sizes))
        parts = [self.world.create(request_id, size).upload_id for size in sizes]
        for upload_id in parts[:2]:
            self.world.send(request_id, DATA[:100], upload_id=upload_id, offset=0)
        world = self.crash()
        world.send(request_id, DATA[:4999], upload_id=parts[2], offset=0)
        for upload_id, size in zip(parts[:2], sizes, strict=False):
            world.send(request_id, DATA[100:size], upload_id=upload_id, offset=100)
        assert [one.offset for one in world.uploads()] == sizes
        world.check_accounts()

    def test_bytes_gone(self) -> None:
        """An upload whose bytes are gone is forgotten; its request starts again."""
        request_id = self.cut(100, size=len(DATA))
        self.incoming(self.world.uploads()[0].upload_id).unlink()
        world = self.crash()
        assert world.uploads() == []
        assert world.state(request_id) == "RECEIVING"
        world.check_accounts()
        assert isinstance(world.send(request_id, DATA), Outcome)

    def test_received_bytes_gone(self) -> None:
        """RECEIVED without its bytes waits for a turn again, and says why."""
        request_id = self.world.offered(size=len(DATA))
        self.world.send(request_id, DATA)
        self.incoming(self.world.uploads()[0].upload_id).unlink()
        world = self.crash()
        request = world.request(request_id)
        assert isinstance(request, Pending)
        assert request.last_error is not None
        assert "gone" in request.last_error
        world.check_accounts()
        world.tick()
        assert isinstance(world.send(request_id, DATA), Outcome)

    def test_older_bytes_gone(self) -> None:
        """A RECEIVED request that lost another upload than its own stays RECEIVED."""
        request_id = self.cut(100, size=4 * len(DATA))
        self.world.send(request_id, DATA)
        self.incoming(self.world.uploads()[0].upload_id).unlink()
        world = self.crash()
        assert world.state(request_id) == "RECEIVED"
        assert len(world.uploads()) == 1

    def test_a_part_is_gone(self) -> None:
        """What was to join it is forgotten with it: nothing waits for a part that never comes."""

        def fails(*_: object) -> None:
            raise StorageFailed("The volume failed.")

        set_attribute(self, joining, "_copy", fails)
        for begun in (False, True):
            self.setUp()
            request_id = self.world.offered(size=200)
            parts = [self.world.create(request_id, 100, partial=True).upload_id for _ in range(2)]
            for part in parts:
                self.world.send(request_id, DATA[:100], upload_id=part, offset=0)
            now(self.world.resources.create_final(request_id, parts, Described(length=None)))
            if begun:
                self.raises(StorageFailed, self.world.join_what_waits(request_id))
            self.incoming(parts[1]).unlink()
            world = self.crash()
            assert [one.upload_id for one in world.uploads()] == ([] if begun else parts[:1])
            world.check_accounts()
            assert isinstance(world.send(request_id, DATA[:200]), Outcome)
            world.check_accounts()

    def test_accounts(self) -> None:
        """What the volume counts as used is what the ledger says is allocated."""
        self.cut(100, size=1024 * KIB)
        path = self.incoming(self.world.uploads()[0].upload_id)
        path.write_bytes(path.read_bytes()[:100])  # the blocks behind are no longer allocated
        used = path.stat().st_blocks * 512
        world = self.crash()
        assert world.uploads()[0].allocated == used
        assert now(world.ledger.totals()).promised == 1024 * KIB - used
        world.check_accounts()

    def test_allocated_but_not_recorded(self) -> None:
        """A crash between allocating and recording leaves the promise, and no bytes."""
        request_id = self.world.offered(size=len(DATA))
        upload = self.world.storage.create("id-9999")
        upload.allocate(len(DATA))
        upload.close()
        world = self.crash()
        assert world.on_disk() == {}
        assert now(world.ledger.totals()).promised == len(DATA)
        assert world.state(request_id) == "OFFERED"


class StoringTests(RecoveryCase):
    def storing(self) -> tuple[str, Storing]:
        """A request that was left in STORING."""
        request_id = self.world.offered(size=len(DATA))
        self.world.send(request_id, DATA)

        def keep(*_: object) -> None:
            raise KeyboardInterrupt

        set_attribute(self, self.world.storage, "keep", keep)
        self.raises(KeyboardInterrupt, self.world.keeper.complete(request_id))
        request = self.world.request(request_id)
        assert isinstance(request, Storing)
        return request_id, request

    def test_goes_on(self) -> None:
        request_id, request = self.storing()
        world = self.crash()
        assert world.state(request_id) == "STORED"
        assert now(world.ledger.backup(request.backup.backup_id)) == request.backup
        assert Path(world.root, request.backup.folder, request.backup.name).read_bytes() == DATA

    def test_one_cannot(self) -> None:
        """One that cannot be stored does not keep the daemon from starting, nor the others."""
        lost, request = self.storing()
        self.world = self.world.restart()  # the others go on from here
        assert self.world.state(lost) == "STORED"
        self.setUp()
        lost, request = self.storing()
        self.incoming(request.upload_id).unlink()
        self.incoming(request.upload_id).mkdir()  # nobody can say what has become of it
        now(self.world.ledger.close())
        world = self.world = self.world.restart()
        assert world.state(lost) == "STORING"
        world.sweep()
        assert world.state(lost) == "STORING"
        other = world.offered(9)
        assert isinstance(world.send(other, DATA), Outcome)

    def test_its_bytes_are_gone(self) -> None:
        """Of what there is no more, or not enough, nothing can be stored: its sender is to learn
        so.
        """
        for taken in (True, False):
            self.setUp()
            lost, request = self.storing()
            if taken:
                self.incoming(request.upload_id).unlink()
            else:
                os.truncate(self.incoming(request.upload_id), len(DATA) - 1)
            now(self.world.ledger.close())
            self.world = self.world.restart()
            assert self.world.state(lost) == "FAILED"
            assert now(self.world.ledger.totals()).promised == 0
            assert self.world.on_disk() == {}


class RebuildTests(RecoveryCase):
    """`rebuild`: the list from the files alone."""

    def rebuilt(self, world: World) -> Rebuilt:
        found: Rebuilt = now(
            rebuild(
                ledger=world.ledger,
                storage=world.storage,
                off=sync,
                now=self.clock.seconds,
            )
        )
        return found

    def listed(self, world: World) -> list[Any]:
        found = now(world.ledger.backups(peer=None, video=None, after=0, limit=99))
        return [backup for _, backup in found]

    def stored(self, video: int, **more: Any) -> Any:
        request_id = self.world.offered(video, **more)
        self.world.send(request_id, DATA)
        return now(self.world.keeper.complete(request_id))

    def test_rebuild(self) -> None:
        """Every backup is on the new list, as it was; what was known stays as it is."""
        backups = [self.stored(video, file_name=f"{video} ü.mp4") for video in (1, 2, 3)]
        world = self.make("file")  # with an empty ledger
        found = self.rebuilt(world)
        assert (found.added, found.known, found.damaged) == (3, 0, [])
        assert sorted(one.backup_id for one in self.listed(world)) == sorted(
            one.backup_id for one in backups
        )
        for one in self.listed(world):
            assert one.verified_at is None
            now(world.keeper.verify(one.backup_id))
        again = self.rebuilt(world)
        assert (again.added, again.known, again.damaged) == (0, 3, [])
        assert all(one.verified_at is not None for one in self.listed(world))

    def test_damage(self) -> None:
        """What is no whole backup is reported, and left as it is."""
        whole, short, bare = (self.stored(video) for video in (1, 2, 3))
        root = Path(self.world.root)
        os.truncate(root / short.folder / short.name, 10)
        (root / bare.folder / "backup.json").unlink()
        (root / "stray").write_bytes(b"?")
        before = sorted(root.rglob("*"))
        world = self.make("file")
        found = self.rebuilt(world)
        assert [one.backup_id for one in self.listed(world)] == [whole.backup_id]
        assert {one.path for one in found.damaged} == {
            f"{short.folder}/{short.name}",
            bare.folder,
            "stray",
        }
        assert sorted(root.rglob("*")) == before

    def test_deleted_meanwhile(self) -> None:
        """A backup that is deleted after it was found does not come back to the list."""
        backup = self.stored(1)
        other = self.stored(2)
        put = self.world.ledger.list_backup

        def late(found: Any) -> Any:
            if found.backup_id == backup.backup_id:
                now(self.world.keeper.delete(backup.backup_id))
            return put(found)

        set_attribute(self, self.world.ledger, "list_backup", late)
        found = self.rebuilt(self.world)
        assert (found.added, found.known) == (0, 1)
        assert [one.backup_id for one in self.listed(self.world)] == [other.backup_id]

    def test_restored_folder(self) -> None:
        """A backup whose folder was put back is on the list again, with its own id."""
        backup = self.stored(1)
        copy = Path(self.folder, "copy")
        shutil.copytree(Path(self.world.root, backup.folder), copy)
        now(self.world.keeper.delete(backup.backup_id))
        shutil.copytree(copy, Path(self.world.root, backup.folder))
        assert self.rebuilt(self.world).added == 1
        assert self.listed(self.world)[0].backup_id == backup.backup_id
