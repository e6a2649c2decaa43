"""Inspection: nothing good is deleted, everything is told, and what can be mended is.

Each test damages what was right, sees that a look tells it and changes nothing, and what a repair
makes of it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from backupd.errors import Busy, StorageFailed
from backupd.receiver import inspection, joining
from backupd.receiver.inspection import SLACK, Inspection, Report
from backupd.receiver.recovery import rebuild
from backupd.receiver.resources import Described
from backupd.requests import Backup, Pending, Storing
from tests.receiver.world import WorldCase, now, set_attribute, sync

DATA = b"0123456789" * 1000


class InspectionCase(WorldCase):
    def setUp(self) -> None:
        super().setUp()
        self.ledger_file = Path(self.folder, "ledger")
        self.world = self.make("file", ledger_url=f"sqlite:///{self.ledger_file}")
        self.root = Path(self.world.root)

    def stored(self, video: Any, **more: Any) -> Backup:
        request_id = self.world.offered(video, **more)
        self.world.send(request_id, DATA)
        backup: Backup = now(self.world.keeper.complete(request_id))
        return backup

    def inspection(self, off: Any = sync) -> Inspection:
        world = self.world
        return Inspection(
            ledger=world.ledger,
            storage=world.storage,
            keeper=world.keeper,
            intake=world.intake,
            clock=self.clock,
            off=off,
            now=self.clock.seconds,
        )

    def look(self, *, repair: bool = False) -> Report:
        report = self.inspection().begin(repair=repair)
        assert not report.running
        assert report.failure is None
        return report

    def told(self, report: Report) -> dict[str, str]:
        return {one.path: one.why for one in report.findings}

    def files(self) -> dict[str, bytes | None]:
        """Everything that lies under the root, but for the daemon's own."""
        return {
            str(path.relative_to(self.root)): path.read_bytes() if path.is_file() else None
            for path in self.root.rglob("*")
            if ".backupd" not in path.parts
        }

    def listed(self) -> dict[str, Backup]:
        page = now(self.world.ledger.backups(peer=None, video=None, after=0, limit=99))
        return {one.backup_id: one for _, one in page}

    def tells(self, *paths: str) -> None:
        """A look tells of just these, and changes nothing."""
        files, listed = self.files(), self.listed()
        assert sorted(self.told(self.look())) == sorted(paths)
        assert (self.files(), self.listed()) == (files, listed)

    def repaired(self, *paths: str) -> None:
        """A repair mends all of these, and then all is well."""
        report = self.look(repair=True)
        assert sorted(self.told(report)) == sorted(paths)
        assert all(one.repaired for one in report.findings), report.findings
        self.tells()

    def left(self, *paths: str) -> Report:
        """A repair mends nothing of these, and touches no file; it tells what to do about each."""
        files = self.files()
        report = self.look(repair=True)
        assert sorted(self.told(report)) == sorted(paths)
        assert not any(one.repaired for one in report.findings)
        assert all(one.advice for one in report.findings)
        assert self.files() == files
        return report


class LedgerTests(InspectionCase):
    def test_all_is_well(self) -> None:
        """Nothing is told, of what is stored, waits or is on its way, or lies in the trash."""
        self.stored(1)
        gone = self.stored(2)
        now(self.world.trash.delete(gone.backup_id, by="x", operator=True))
        self.world.admit(3)
        request_id = self.world.offered(4, size=len(DATA))
        self.world.send(request_id, DATA[:100], length=len(DATA))
        self.tells()
        self.left()

    def test_deleted(self) -> None:
        """Everything is listed again, the trash as trash."""
        backups = [self.stored(video) for video in (1, 2)]
        trashed = self.stored(3)
        now(self.world.trash.delete(trashed.backup_id, by="x", operator=True))
        now(self.world.ledger.close())
        self.ledger_file.unlink()
        self.world = self.world.restart()
        paths = [one.folder for one in (*backups, trashed)]
        self.tells(*paths)
        self.repaired(*paths)
        assert set(self.listed()) == {one.backup_id for one in backups}
        assert now(self.world.ledger.backup(trashed.backup_id)).deleted_by == "x"

    def test_from_yesterday(self) -> None:
        """An old copy was put back: what came since is listed, what was deleted since is told."""
        kept, deleted = self.stored(1), self.stored(2)
        now(self.world.ledger.close())
        shutil.copy(self.ledger_file, f"{self.ledger_file}-copy")
        self.world = self.world.restart()
        new = self.stored(3)
        now(self.world.keeper.delete(deleted.backup_id))
        now(self.world.ledger.close())
        shutil.copy(f"{self.ledger_file}-copy", self.ledger_file)
        self.world = self.world.restart()
        self.tells(new.folder, deleted.folder)
        report = self.look(repair=True)
        assert {one.path: one.repaired for one in report.findings} == {
            new.folder: True,
            deleted.folder: False,
        }
        listed = self.listed()
        assert set(listed) == {kept.backup_id, deleted.backup_id, new.backup_id}
        assert listed[deleted.backup_id].problem is not None
        self.left(deleted.folder)

    def test_more_than_can_be_told(self) -> None:
        """What is left out is counted, and whether it is repaired."""
        for video in range(1, 6):
            self.stored(video)
        self.world = self.make("file")  # with an empty ledger
        set_attribute(self, inspection, "MOST", 2)
        report = self.look()
        assert (len(report.findings), report.more, report.more_repaired) == (2, 3, 0)
        report = self.look(repair=True)
        assert (len(report.findings), report.more, report.more_repaired) == (2, 3, 3)
        assert self.look().findings == []

    def test_not_mounted(self) -> None:
        """Where nothing at all is there, nothing is marked: the volume may not be mounted."""
        backups = [self.stored(video) for video in (1, 2)]
        for one in backups:
            shutil.rmtree(self.root / one.folder)
        self.left(".")
        assert all(one.problem is None for one in self.listed().values())


class FileTests(InspectionCase):
    def test_half_the_files_are_missing(self) -> None:
        """Each is marked with its problem, so that its sender is asked; the others are well."""
        backups = [self.stored(video) for video in range(1, 5)]
        (self.root / backups[0].folder / backups[0].name).unlink()
        shutil.rmtree(self.root / backups[1].folder)
        paths = f"{backups[0].folder}/{backups[0].name}", backups[1].folder
        self.tells(*paths)
        self.look(repair=True)
        problems = {key: one.problem for key, one in self.listed().items() if one.problem}
        assert set(problems) == {one.backup_id for one in backups[:2]}
        assert len(now(self.world.ledger.repairs(now=self.clock.seconds(), limit=9))) == 2
        self.left(*paths)

    def test_files_that_are_put_back(self) -> None:
        """What was marked is read again, and well."""
        self.stored(1)
        backup = self.stored(2)
        file = self.root / backup.folder / backup.name
        file.rename(f"{self.folder}/aside")
        self.look(repair=True)
        assert self.listed()[backup.backup_id].problem
        shutil.copy2(f"{self.folder}/aside", file)
        self.repaired(f"{backup.folder}/{backup.name}")
        assert self.listed()[backup.backup_id].problem is None

    def test_changed_by_hand(self) -> None:
        """The same size, another content: told by its time, proved by its bytes, and left."""
        backup = self.stored(1)
        file = self.root / backup.folder / backup.name
        file.write_bytes(b"x" + DATA[1:])
        late = self.clock.seconds() + SLACK + 1
        os.utime(file, (late, late))
        where = f"{backup.folder}/{backup.name}"
        self.tells(where)
        report = self.look(repair=True)
        assert "SHA-256" in self.told(report)[where]
        assert file.read_bytes() == b"x" + DATA[1:]
        assert self.listed()[backup.backup_id].problem

    def test_touched_by_hand(self) -> None:
        """Only its time is another: once it is read, all is well."""
        backup = self.stored(1)
        late = self.clock.seconds() + SLACK + 1
        os.utime(self.root / backup.folder / backup.name, (late, late))
        self.clock.advance(2 * SLACK)
        self.repaired(f"{backup.folder}/{backup.name}")

    def test_larger_than_it_should_be(self) -> None:
        """Nothing is cut off: it is marked, and its first bytes can still be got back."""
        backup = self.stored(1)
        file = self.root / backup.folder / backup.name
        file.write_bytes(DATA + b"more")
        where = f"{backup.folder}/{backup.name}"
        self.tells(where)
        self.look(repair=True)
        assert file.read_bytes() == DATA + b"more"
        assert "bytes" in str(self.listed()[backup.backup_id].problem)
        self.left(where)


class DescriptionTests(InspectionCase):
    def test_missing_or_cut(self) -> None:
        """It is written anew from the list, once the bytes have been proved."""
        gone, cut = self.stored(1), self.stored(2, file_name="holiday ü.mp4")
        before = self.files()
        (self.root / gone.folder / "backup.json").unlink()
        path = self.root / cut.folder / "backup.json"
        path.write_bytes(path.read_bytes()[:100])
        paths = gone.folder, f"{cut.folder}/backup.json"
        self.tells(*paths)
        self.repaired(*paths)
        assert set(self.files()) == set(before)
        told = json.loads(path.read_bytes())
        assert (told["fileName"], told["sha256"]) == ("holiday ü.mp4", cut.sha256)

    def test_missing_beside_wrong_bytes(self) -> None:
        """It is no proof that all is well: the backup is marked."""
        backup = self.stored(1)
        (self.root / backup.folder / "backup.json").unlink()
        (self.root / backup.folder / backup.name).write_bytes(b"x" + DATA[1:])
        report = self.look(repair=True)
        assert not any(one.repaired for one in report.findings)
        assert self.listed()[backup.backup_id].problem

    def test_missing_and_not_listed(self) -> None:
        """A video that nobody knows stays where it is, and is told."""
        backup, cut = self.stored(1), self.stored(2)
        (self.root / backup.folder / "backup.json").unlink()
        path = self.root / cut.folder / "backup.json"
        path.write_bytes(path.read_bytes()[:100])
        self.world = self.make("file")  # with an empty ledger
        self.tells(backup.folder, f"{cut.folder}/backup.json")
        self.left(backup.folder, f"{cut.folder}/backup.json")

    def test_without_its_file_and_not_listed(self) -> None:
        backup = self.stored(1)
        (self.root / backup.folder / backup.name).unlink()
        self.world = self.make("file")
        self.left(f"{backup.folder}/{backup.name}")
        assert self.listed() == {}

    def test_changed_by_hand(self) -> None:
        """The list knows better; and a lock that only the description tells of holds."""
        one, other = self.stored(1), self.stored(2)
        for backup, change in (
            (one, {"fileName": "another.mp4"}),
            (other, {"lockedUntil": "2099-01-01T00:00:00Z"}),
        ):
            path = self.root / backup.folder / "backup.json"
            path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
        paths = [f"{backup.folder}/backup.json" for backup in (one, other)]
        self.tells(*paths)
        self.repaired(*paths)
        told = json.loads((self.root / one.folder / "backup.json").read_bytes())
        assert told["fileName"] == one.file_name
        assert now(self.world.ledger.backup(other.backup_id)).locked_until is not None

    def test_one_was_deleted_or_brought_back_since(self) -> None:
        """The list is an older one: each is told of, and kept."""
        deleted, back = self.stored(1), self.stored(2)
        ledger, trash = self.world.ledger, self.world.trash
        now(trash.delete(deleted.backup_id, by="x", operator=True))
        now(ledger.change_backup(deleted.backup_id, lambda _: deleted))
        then = now(trash.delete(back.backup_id, by="x", operator=True))
        now(trash.undelete(back.backup_id))
        now(ledger.change_backup(back.backup_id, lambda _: then))
        paths = [f"{backup.folder}/backup.json" for backup in (deleted, back)]
        self.tells(*paths)
        self.repaired(*paths)
        assert set(self.listed()) == {deleted.backup_id, back.backup_id}

    def test_what_is_damaged_and_deleted(self) -> None:
        """It was forgotten, as was advised: nobody is told of it any more."""
        gone, wrong = self.stored(1), self.stored(2)
        shutil.rmtree(self.root / gone.folder)
        (self.root / wrong.folder / wrong.name).write_bytes(b"x")
        self.look(repair=True)
        for one in (gone, wrong):
            now(self.world.trash.delete(one.backup_id, by="x", operator=True))
        self.tells()
        self.left()


class PlaceTests(InspectionCase):
    def test_a_peers_folder_is_renamed(self) -> None:
        """The list has it where it lies now, and its bytes are read there."""
        backup = self.stored(1)
        self.stored(2, peer="http://c:1")
        peer, _, rest = backup.folder.partition("/")
        (self.root / peer).rename(self.root / "renamed")
        self.tells(f"renamed/{rest}")
        self.repaired(f"renamed/{rest}")
        moved = self.listed()[backup.backup_id]
        assert (moved.folder, moved.peer, moved.problem) == (f"renamed/{rest}", backup.peer, None)

    def test_a_backups_folder_is_renamed(self) -> None:
        """Its name is its id: it says so, and once it has it again all is well."""
        self.stored(1)
        backup = self.stored(2)
        folder = self.root / backup.folder
        other = folder.rename(folder.with_name("renamed"))
        path = f"{backup.folder.rpartition('/')[0]}/renamed/backup.json"
        told = self.told(self.look())
        assert set(told) == {path, backup.folder}
        assert backup.backup_id in told[path]
        self.look(repair=True)
        other.rename(folder)
        self.repaired(f"{backup.folder}/{backup.name}")

    def test_a_copy(self) -> None:
        """The listed one is whole: its copy is told, and stays."""
        backup = self.stored(1)
        copy = f"copies/1/{backup.backup_id}"
        shutil.copytree(self.root / backup.folder, self.root / copy)
        self.tells(copy)
        self.left(copy)
        assert self.listed()[backup.backup_id] == backup

    def test_foreign_files(self) -> None:
        """At every depth; also one beside a backup's own."""
        backup = self.stored(1)
        peer = backup.folder.partition("/")[0]
        foreign = ["stray", f"{peer}/stray", f"{peer}/1/stray", f"{backup.folder}/stray"]
        for path in foreign:
            (self.root / path).write_bytes(b"somebody's")
        self.tells(*foreign)
        self.left(*foreign)


class RebuildTests(InspectionCase):
    def test_everything_at_once(self) -> None:
        """A rebuild lists every whole backup, tells of all else, and touches nothing."""
        whole, moved, changed, cut, large, gone, renamed = (self.stored(n) for n in range(1, 8))
        root = self.root
        (root / "elsewhere" / "2").mkdir(parents=True)
        (root / moved.folder).rename(root / "elsewhere" / "2" / moved.backup_id)
        (root / changed.folder / changed.name).write_bytes(b"x" + DATA[1:])
        description = root / cut.folder / "backup.json"
        description.write_bytes(description.read_bytes()[:100])
        (root / large.folder / large.name).write_bytes(DATA + b"more")
        (root / gone.folder / gone.name).unlink()
        other = (root / renamed.folder).rename((root / renamed.folder).with_name("renamed"))
        (root / whole.folder / "stray").write_bytes(b"somebody's")
        before = self.files()
        self.world = self.make("file")  # with an empty ledger
        found = now(
            rebuild(
                ledger=self.world.ledger,
                storage=self.world.storage,
                off=sync,
                now=self.clock.seconds,
            )
        )
        assert self.files() == before
        assert set(self.listed()) == {one.backup_id for one in (whole, moved, changed)}
        assert {one.path for one in found.damaged} == {
            f"{cut.folder}/backup.json",
            f"{large.folder}/{large.name}",
            f"{gone.folder}/{gone.name}",
            f"{other.relative_to(root)}/backup.json",
            f"{whole.folder}/stray",
        }
        now(self.world.keeper.verify(changed.backup_id))
        assert self.listed()[changed.backup_id].problem


class UploadTests(InspectionCase):
    def begun(self) -> tuple[str, str]:
        request_id = self.world.offered(1, size=len(DATA))
        self.world.create(request_id, len(DATA))
        [upload] = self.world.uploads()
        self.world.send(request_id, DATA[:100], upload_id=upload.upload_id, offset=0, length=100)
        return request_id, upload.upload_id

    def incoming(self, upload_id: str) -> Path:
        return self.root / ".backupd" / "incoming" / upload_id

    def test_a_file_without_an_upload(self) -> None:
        """Nobody can go on with it: a repair frees its room."""
        _, upload_id = self.begun()
        self.incoming("orphan").write_bytes(DATA)
        self.tells(".backupd/incoming/orphan")
        assert self.incoming("orphan").exists()
        self.repaired(".backupd/incoming/orphan")
        assert not self.incoming("orphan").exists()
        assert self.incoming(upload_id).exists()

    def test_an_upload_without_its_file(self) -> None:
        """Its sender begins again, and all of its room is promised still."""
        request_id, upload_id = self.begun()
        self.incoming(upload_id).unlink()
        self.tells(f".backupd/incoming/{upload_id}")
        self.repaired(f".backupd/incoming/{upload_id}")
        assert self.world.uploads() == []
        self.world.check_accounts()
        self.world.send(request_id, DATA)
        assert now(self.world.keeper.complete(request_id)).size == len(DATA)

    def test_a_part_without_its_file(self) -> None:
        """What was to join it is forgotten with it, and what nobody can go on with is removed."""
        request_id = self.world.offered(1, size=len(DATA))
        ends = (len(DATA) // 2, len(DATA) - len(DATA) // 2)
        parts = [self.world.create(request_id, end, partial=True).upload_id for end in ends]
        for part, end in zip(parts, ends, strict=True):
            self.world.send(request_id, DATA[:end], upload_id=part, offset=0)
        now(self.world.resources.create_final(request_id, parts, Described(length=None)))

        def fails(*_: object) -> None:
            raise StorageFailed("The volume failed.")

        set_attribute(self, joining, "_copy", fails)
        with pytest.raises(StorageFailed):
            now(self.world.join_what_waits(request_id))
        self.incoming(parts[1]).unlink()
        self.repaired(f".backupd/incoming/{parts[1]}")
        assert self.world.uploads() == []
        self.world.check_accounts()
        self.world.send(request_id, DATA)
        assert now(self.world.keeper.complete(request_id)).size == len(DATA)

    def test_a_whole_upload_without_its_file(self) -> None:
        request_id = self.world.offered(1, size=len(DATA))
        self.world.send(request_id, DATA)
        [upload] = self.world.uploads()
        self.incoming(upload.upload_id).unlink()
        self.look(repair=True)
        request = self.world.request(request_id)
        assert isinstance(request, Pending)
        assert "gone" in str(request.last_error)


class MeanwhileTests(InspectionCase):
    def test_what_is_being_stored(self) -> None:
        """Between its sidecar and the list it is no finding, and not listed by another."""
        request_id = self.world.offered(1, size=len(DATA))
        self.world.send(request_id, DATA)
        change = self.world.ledger.change

        def late(*arguments: Any, **more: Any) -> Any:
            if isinstance(self.world.request(request_id), Storing):
                assert self.look(repair=True).findings == []
                assert self.listed() == {}
            return change(*arguments, **more)

        set_attribute(self, self.world.ledger, "change", late)
        backup = now(self.world.keeper.complete(request_id))
        assert list(self.listed()) == [backup.backup_id]

    def test_what_is_removed_meanwhile(self) -> None:
        """It is no finding that its files are gone before it is off the list."""
        self.stored(1)
        backup = self.stored(2)
        drop = self.world.ledger.drop_backup
        looked: list[Inspection] = []

        def late(backup_id: str) -> Any:
            looked.append(self.inspection())
            looked[0].begin(repair=True)
            return drop(backup_id)

        set_attribute(self, self.world.ledger, "drop_backup", late)
        now(self.world.keeper.delete(backup.backup_id))
        [one] = looked
        assert one.report is not None
        assert (one.report.running, one.report.findings) == (False, [])

    def test_one_at_a_time(self) -> None:
        """Whoever asks for the same sees the one that is under way; others wait."""
        self.stored(1)
        waiting: list[Deferred[Any]] = []

        def off(function: Any, /, *arguments: Any, **_: Any) -> Deferred[Any]:
            done: Deferred[Any] = Deferred()
            done.addCallback(lambda _: function(*arguments))
            waiting.append(done)
            return done

        one = self.inspection(off)
        first = one.begin(repair=False)
        assert first.running
        assert one.begin(repair=False) is first
        with pytest.raises(Busy):
            one.begin(repair=True)
        stopped = one.stop()
        while waiting:
            waiting.pop(0).callback(None)
        assert stopped.called
        assert (first.running, "stopping" in str(first.failure)) == (False, True)
