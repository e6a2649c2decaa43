"""The trash, locks and retention: nothing is gone at once that could still be needed."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import fail
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from backupd.errors import Forbidden, Invalid, LedgerFailed, Locked, NoRoom, NoSuchBackup
from backupd.interfaces import IFileSystem, Retention
from backupd.ledger.sql import SqlLedger
from backupd.receiver.recovery import rebuild
from backupd.receiver.trash import AGAIN, PASS_EVERY, RETENTION, SEE_EVERY, Rules
from backupd.requests import Backup
from tests.outcomes import result_of
from tests.receiver.test_keeping import DATA
from tests.receiver.test_repair import RepairCase
from tests.receiver.world import START, now, set_attribute, sync
from tests.storage.faulty import FaultyFileSystem, failing

DAY = 86400.0
PERIOD = 7 * DAY


class TrashCase(RepairCase):
    def path(self, backup: Backup) -> Path:
        return Path(self.world.root, backup.folder, backup.name)

    def beside(self, backup: Backup) -> Any:
        return json.loads(self.path(backup).with_name("backup.json").read_text())

    def trashed(self) -> list[str]:
        page = now(self.world.ledger.backups(peer=None, video=None, after=0, limit=99, trash=True))
        return [backup.backup_id for _, backup in page]

    def delete(self, backup: Backup, *, operator: bool = True) -> Backup:
        by = "operator" if operator else backup.peer
        gone: Backup = now(self.world.trash.delete(backup.backup_id, by=by, operator=operator))
        return gone

    def sweep(self) -> None:
        now(self.world.trash.sweep())

    def walk(self) -> None:
        """Once through all that is kept, for what falls out of retention."""
        self.clock.advance(PASS_EVERY)
        now(self.world.trash.look())

    def faulty(self) -> FaultyFileSystem:
        root = Path(self.folder, "faulty")
        root.mkdir()
        fs = FaultyFileSystem(str(root))
        self.world = self.make("faulty", fs=cast(IFileSystem, fs))
        return fs


class DeleteTests(TrashCase):
    def test_the_files_stay_for_the_period(self) -> None:
        """Off the list at once, and whole on the disk until the last second of it."""
        backup = self.keep()
        gone = self.delete(backup)
        assert (gone.deleted_at, gone.deleted_by) == (self.clock.seconds(), "operator")
        assert (self.listed(), self.trashed()) == ([], [backup.backup_id])
        self.clock.advance(PERIOD - 1)
        self.sweep()
        assert self.path(backup).exists()
        self.clock.advance(1)
        self.sweep()
        assert self.trashed() == []
        assert not self.path(backup).parent.exists()
        (noted,) = self.world.noted
        assert noted[0] == "removed"

    def test_undelete(self) -> None:
        """It is as it was, on the list and beside its file, and no sweep takes it."""
        backup = self.keep()
        before = self.beside(backup)
        self.delete(backup)
        assert self.beside(backup)["deletedBy"] == "operator"
        assert now(self.world.trash.undelete(backup.backup_id)) == backup
        assert self.beside(backup) == before
        self.clock.advance(100 * DAY)
        self.sweep()
        assert self.listed() == [backup.backup_id]
        assert now(self.world.trash.undelete(backup.backup_id)) == backup

    def test_again(self) -> None:
        """Deleting what is in the trash does not begin its time anew."""
        backup = self.keep()
        first = self.delete(backup)
        self.clock.advance(DAY)
        assert self.delete(backup) == first

    def test_now(self) -> None:
        """Listed or in the trash: it is gone with its files, at once."""
        for in_trash in (False, True):
            one = self.keep()
            if in_trash:
                self.delete(one)
            now(self.world.trash.delete_now(one.backup_id, by="operator"))
            assert (self.listed(), self.trashed()) == ([], [])
            assert not self.path(one).parent.exists()
            self.raises(NoSuchBackup, self.world.ledger.backup(one.backup_id))

    def test_room_and_quota_count_it_until_it_is_gone(self) -> None:
        backup = self.keep()
        self.delete(backup)
        assert now(self.world.ledger.usage(backup.peer)).kept == backup.size
        assert now(self.world.ledger.kept()) == (1, backup.size)
        now(self.world.trash.delete_now(backup.backup_id, by="operator"))
        assert now(self.world.ledger.usage(backup.peer)).kept == 0

    def test_a_peer_cannot_delete_what_is_too_young(self) -> None:
        """Not before `minimum_keep`, whatever right it has; the operator can."""
        self.world.rules = Rules(Retention(minimum_keep=30 * DAY))
        backup = self.keep()
        self.clock.advance(30 * DAY - 1)
        self.raises(Forbidden, self.world.trash.delete(backup.backup_id, by="b", operator=False))
        assert self.listed() == [backup.backup_id]
        self.clock.advance(1)
        self.delete(backup, operator=False)
        young = self.keep()
        self.delete(young)
        assert len(self.trashed()) == 2

    def test_on_a_full_volume(self) -> None:
        """Into the trash, and out of existence, without a byte of room beside the list."""
        fs = self.faulty()
        one, other = self.keep(), self.keep()
        fs.fault = failing(errno.ENOSPC, "pwritev")
        self.delete(one)
        assert self.trashed() == [one.backup_id]
        now(self.world.trash.delete_now(other.backup_id, by="operator"))
        assert not self.path(other).parent.exists()
        # What could not be noted beside the files is believed the second time.
        self.clock.advance(PERIOD)
        self.sweep()
        assert self.path(one).exists()
        self.clock.advance(PERIOD)
        self.sweep()
        assert not self.path(one).parent.exists()

    def test_at_once_when_the_list_cannot_be_written_either(self) -> None:
        """The files make the room for the note that they are gone."""
        backup = self.keep()
        fail, change = [True], self.world.ledger.change_backup

        def full(*arguments: Any) -> Any:
            if fail:
                raise LedgerFailed("The ledger could not commit: disk is full.")
            return change(*arguments)

        set_attribute(self, self.world.ledger, "change_backup", full)
        now(self.world.trash.delete_now(backup.backup_id, by="operator"))
        assert not self.path(backup).parent.exists()

    def test_not_out_of_the_trash_without_saying_so_beside_the_file(self) -> None:
        """Or a ledger that is lost would put it there again, and nobody would know."""
        fs = self.faulty()
        backup = self.keep()
        self.delete(backup)
        fs.fault = failing(errno.ENOSPC, "pwritev")
        self.raises(NoRoom, self.world.trash.undelete(backup.backup_id))
        assert self.trashed() == [backup.backup_id]

    def test_a_backup_that_cannot_be_removed_holds_up_no_other(self) -> None:
        """It stays in the trash, and is tried again after a while."""
        bad, good = self.keep(), self.keep()
        for one in (bad, good):
            self.delete(one)
        remove, tried = self.world.storage.remove, []

        def broken(backup: Backup) -> None:
            tried.append(backup.backup_id)
            if backup == replace(bad, deleted_at=backup.deleted_at, deleted_by="operator"):
                raise NoRoom("EIO")
            remove(backup)

        set_attribute(self, self.world.storage, "remove", broken)
        self.clock.advance(PERIOD)
        self.sweep()
        self.sweep()
        assert self.trashed() == [bad.backup_id]
        assert tried == [bad.backup_id, good.backup_id]
        self.clock.advance(AGAIN)
        self.sweep()
        assert tried[2:] == [bad.backup_id]

    def test_it_is_emptied_on_a_full_volume(self) -> None:
        """What time it is cannot be noted there, and what is removed makes room for the note."""
        backup = self.keep()
        self.delete(backup)
        self.sweep()

        async def full(latest: float, own: float) -> None:
            raise LedgerFailed("The ledger could not commit: disk is full.")

        set_attribute(self, self.world.ledger, "see", full)
        self.clock.advance(PERIOD)
        with capturedLogs() as logs:
            self.sweep()
        assert any("disk is full" in str(one.get("why")) for one in logs)
        assert self.trashed() == []
        assert not self.path(backup).parent.exists()

    def test_damaged_in_the_trash_is_not_sent_again(self) -> None:
        """Out of it, it is."""
        backup = self.damage(self.keep())
        self.delete(backup)
        self.look()
        assert self.live() == []
        now(self.world.trash.undelete(backup.backup_id))
        self.look()
        assert len(self.live()) == 1


class LostLedgerTests(TrashCase):
    def rebuilt(self) -> list[Backup]:
        """What a new ledger lists, in or out of the trash."""
        ledger = SqlLedger("sqlite://", write_off=sync, read_off=sync)
        ledger.open()
        self.addCleanup(ledger.close)
        result_of_rebuild = rebuild(
            ledger=ledger, storage=self.world.storage, off=sync, now=self.clock.seconds
        )
        assert now(result_of_rebuild).damaged == []
        pages = [
            result_of(ledger.backups(peer=None, video=None, after=0, limit=9, trash=trash))
            for trash in (False, True)
        ]
        return [backup for page in pages for _, backup in page]

    def test_the_trash_is_found_again(self) -> None:
        """It is not listed as if nobody had deleted it; and it has its whole time once more."""
        backup = self.delete(self.keep())
        self.clock.advance(6 * DAY)
        assert self.rebuilt() == [
            replace(backup, verified_at=None, deleted_at=self.clock.seconds())
        ]

    def test_locks_are_found_again(self) -> None:
        backup = self.keep()
        until = self.clock.seconds() + DAY
        now(self.world.trash.lock(backup.backup_id, until))
        assert self.rebuilt() == [replace(backup, verified_at=None, locked_until=until)]

    def test_a_lock_that_is_not_beside_the_file_is_none(self) -> None:
        """It is not said to be locked unless a rebuilt list would say so too."""
        fs = self.faulty()
        backup = self.keep()
        fs.fault = failing(errno.ENOSPC, "pwritev")
        self.raises(NoRoom, self.world.trash.lock(backup.backup_id, START + 9 * DAY))
        assert now(self.world.ledger.backup(backup.backup_id)).locked_until is None


class OlderLedgerTests(TrashCase):
    """A copy of the ledger was put back, and what the operator did since is only beside files."""

    def older(self, backup: Backup) -> None:
        """The list has it as it was then."""
        now(self.world.ledger.change_backup(backup.backup_id, lambda _: backup))

    def locked(self) -> Backup:
        backup = self.keep()
        now(self.world.trash.lock(backup.backup_id, self.clock.seconds() + 100 * DAY))
        self.older(backup)
        return backup

    def test_what_came_out_of_the_trash_is_not_removed(self) -> None:
        """Not before another whole period, in which it can be brought back."""
        backup = self.keep()
        deleted = self.delete(backup)
        now(self.world.trash.undelete(backup.backup_id))
        self.clock.advance(PERIOD)
        self.older(deleted)
        for _ in range(2):
            self.sweep()
            assert self.path(backup).exists()
        assert self.trashed() == [backup.backup_id]
        assert self.beside(backup)["deletedAt"] is not None
        self.clock.advance(PERIOD - 1)
        self.sweep()
        assert self.path(backup).exists()
        self.clock.advance(1)
        self.sweep()
        assert self.trashed() == []

    def test_what_could_not_be_prolonged_is_not_removed_for_that(self) -> None:
        """A ledger that fails puts it off: it has its whole time once that is noted."""
        backup = self.keep()
        deleted = self.delete(backup)
        now(self.world.trash.undelete(backup.backup_id))
        self.clock.advance(PERIOD)
        self.older(deleted)
        change = self.world.ledger.change_backup
        set_attribute(
            self, self.world.ledger, "change_backup", lambda *_: fail(LedgerFailed("full"))
        )
        self.sweep()
        set_attribute(self, self.world.ledger, "change_backup", change)
        for _ in range(2):
            self.clock.advance(AGAIN + 1)
            self.sweep()
            assert self.path(backup).exists()

    def test_what_was_deleted_once_more_has_its_time_from_then_on(self) -> None:
        backup = self.keep()
        deleted = self.delete(backup)
        now(self.world.trash.undelete(backup.backup_id))
        self.clock.advance(PERIOD)
        self.delete(backup)
        self.older(deleted)
        self.sweep()
        assert self.path(backup).exists()

    def test_a_lock_is_not_written_away(self) -> None:
        """A verification takes it over from the description, before it writes that anew."""
        backup = self.locked()
        now(self.world.keeper.verify(backup.backup_id))
        assert now(self.world.ledger.backup(backup.backup_id)).locked_until is not None
        assert self.beside(backup)["lockedUntil"] is not None

    def test_a_lock_holds(self) -> None:
        """Nobody deletes it, in no way."""
        ways: tuple[Callable[[Backup], Any], ...] = (
            lambda one: self.world.trash.delete(one.backup_id, by="operator", operator=True),
            lambda one: self.world.trash.delete_now(one.backup_id, by="operator"),
            lambda one: self.world.keeper.delete(one.backup_id),
        )
        for way in ways:
            backup = self.locked()
            self.raises(Locked, way(backup))
            assert backup.backup_id in self.listed()
            assert self.beside(backup)["lockedUntil"] is not None

    def test_a_lock_holds_against_retention(self) -> None:
        self.world.rules = Rules(Retention(keep_last=1))
        self.locked()
        self.keep()
        self.walk()
        assert self.trashed() == []

    def test_a_lock_holds_when_it_is_damaged_and_another_is_whole(self) -> None:
        backup = self.damage(self.locked())
        self.keep()
        self.look()
        assert backup.backup_id in self.listed()


class LockTests(TrashCase):
    def lock(self, backup: Backup, seconds: float) -> float:
        until = self.clock.seconds() + seconds
        held = now(self.world.trash.lock(backup.backup_id, until))
        assert held.locked_until == until
        return until

    def refused(self, backup: Backup) -> None:
        """Nobody deletes it in any way."""
        trash, backup_id = self.world.trash, backup.backup_id
        self.raises(Locked, trash.delete(backup_id, by="operator", operator=True))
        self.raises(Locked, trash.delete(backup_id, by="b", operator=False))
        self.raises(Locked, trash.delete_now(backup_id, by="operator"))
        self.raises(Locked, self.world.keeper.delete(backup_id))
        assert self.listed() == [backup_id]
        assert self.path(backup).exists()

    def test_nobody_deletes_it_until_then(self) -> None:
        backup = self.keep()
        self.lock(backup, 10 * DAY)
        self.refused(backup)
        self.clock.advance(10 * DAY - 1)
        self.refused(backup)
        self.clock.advance(1)
        self.delete(backup)

    def test_it_is_only_extended(self) -> None:
        backup = self.keep()
        until = self.lock(backup, 10 * DAY)
        self.raises(Locked, self.world.trash.lock(backup.backup_id, until - 1))
        self.lock(backup, 20 * DAY)
        self.clock.advance(15 * DAY)
        self.refused(backup)

    def test_when(self) -> None:
        """Not in the past, nor so far off that it must be a mistake."""
        backup = self.keep()
        for until in (0.0, self.clock.seconds(), START + 101 * 365 * DAY, float("nan")):
            self.raises(Invalid, self.world.trash.lock(backup.backup_id, until))

    def test_what_is_in_the_trash_is_not_locked(self) -> None:
        backup = self.delete(self.keep())
        self.raises(NoSuchBackup, self.world.trash.lock(backup.backup_id, START + 9 * DAY))

    def test_retention_respects_it(self) -> None:
        self.world.rules = Rules(Retention(keep_last=1))
        old, _ = self.keep(), self.keep()
        self.lock(old, 10 * DAY)
        self.walk()
        assert self.trashed() == []

    def test_repair_respects_it(self) -> None:
        """Damaged as it is: not removed for a whole copy, and not asked for again either."""
        old, _ = self.keep(), self.keep()
        self.lock(old, 10 * DAY)
        self.damage(old)
        self.look()
        assert old.backup_id in self.listed()
        assert self.live() == []
        self.clock.advance(11 * DAY)
        self.look()
        assert old.backup_id not in self.listed()

    def test_a_clock_that_jumps_unlocks_nothing(self) -> None:
        """What was locked seconds ago is locked still, whatever year it is said to be, and also
        for the process that comes after this one.
        """
        steady = Clock()
        world = self.world = self.make("jump", steady=steady.seconds)
        backup = self.keep()
        self.lock(backup, 300 * DAY)
        self.sweep()
        steady.advance(5.0)
        self.clock.advance(5.0 + 3650 * DAY)
        self.refused(backup)
        self.sweep()
        world.time.begin(now(world.ledger.latest_seen()))
        self.refused(backup)
        steady.advance(150 * DAY)
        self.clock.advance(150 * DAY)
        self.delete(backup)

    def test_a_clock_that_jumps_empties_no_trash(self) -> None:
        steady = Clock()
        self.world = self.make("jump", steady=steady.seconds)
        backup = self.delete(self.keep())
        self.clock.advance(3650 * DAY)
        with capturedLogs() as logs:
            self.sweep()
            self.sweep()
        assert self.path(backup).exists()
        (warned,) = [one for one in logs if one["log_level"].name == "warn"]
        assert warned["days"] == 3650
        steady.advance(PERIOD / 2)
        self.clock.advance(PERIOD / 2)
        self.sweep()
        assert not self.path(backup).exists()

    def test_what_time_it_is_is_noted_every_minute(self) -> None:
        """The daemon's own too, and also while no other is seen to pass; no more often."""
        world = self.world = self.make("note", steady=Clock().seconds)
        for passed, noted in ((0.0, 0.0), (SEE_EVERY - 1, 0.0), (1.0, SEE_EVERY)):
            self.clock.advance(passed)
            self.sweep()
            assert now(world.ledger.own_time()) == START + noted
            assert now(world.ledger.latest_seen()) == START

    def test_a_clock_that_is_behind_makes_nothing_older(self) -> None:
        """A server that wakes up in 1970 and is then told the time: what was stored or deleted
        meanwhile is as young as it is.
        """
        steady = Clock()
        self.world = self.make("behind", steady=steady.seconds)
        self.world.rules = Rules(Retention(minimum_keep=DAY))
        self.clock.rightNow = 0.0
        backup, deleted = self.keep(), self.delete(self.keep())
        self.clock.rightNow = START
        self.raises(Forbidden, self.world.trash.delete(backup.backup_id, by="b", operator=False))
        self.sweep()
        assert self.path(deleted).exists()


class RetentionTests(TrashCase):
    def test_old_versions_go_into_the_trash(self) -> None:
        """Not for good: the operator finds there what retention took by mistake."""
        self.world.rules = Rules(Retention(keep_last=2))
        versions = [self.keep(DATA + bytes([n])) for n in range(4)]
        self.walk()
        gone = [one.backup_id for one in versions[:2]]
        assert (self.trashed(), self.listed()) == (gone, [one.backup_id for one in versions[2:]])
        assert all(self.path(one).exists() for one in versions)
        kept = now(self.world.ledger.backup(gone[0]))
        assert kept.deleted_by == RETENTION
        assert [event for event, _ in self.world.noted] == ["deleted", "deleted"]
        self.clock.advance(PERIOD)
        self.sweep()
        assert self.trashed() == []
        assert self.listed() == [one.backup_id for one in versions[2:]]

    def test_what_made_it_of_no_use_is_damaged_since(self) -> None:
        """Then it comes back from the trash, instead of being removed as the last good one."""
        self.world.rules = Rules(Retention(keep_last=1))
        old, new = self.keep(), self.keep(DATA)
        self.walk()
        assert self.trashed() == [old.backup_id]
        self.path(new).write_bytes(b"rotten")
        now(self.world.keeper.verify(new.backup_id))
        self.clock.advance(PERIOD)
        self.sweep()
        assert sorted(self.listed()) == sorted([old.backup_id, new.backup_id])
        assert self.beside(old)["deletedAt"] is None

    def test_what_somebody_deleted_is_removed_all_the_same(self) -> None:
        backup = self.delete(self.keep())
        self.clock.advance(PERIOD)
        self.sweep()
        assert (self.listed(), self.trashed()) == ([], [])
        assert not self.path(backup).exists()

    def test_a_peers_own_rule(self) -> None:
        """What it does not say is as for everybody; 0 is no such rule for it."""
        everybody = Retention(keep_last=1, keep_for=0.0, minimum_keep=5.0)
        rules = Rules(everybody, {"b": Retention(keep_last=3), "c": Retention(keep_last=0)})
        assert rules.of("a") == everybody
        assert rules.of("b") == replace(everybody, keep_last=3)
        assert not rules.of("c").ends
        assert rules.end
        assert not Rules(Retention(minimum_keep=9.0), {"a": Retention(keep_last=0)}).end

    def test_nothing_ends_by_itself(self) -> None:
        """Without a rule, no look reads anything."""
        self.keep()
        set_attribute(self, self.world.ledger, "outdated", None)
        self.walk()

    def test_one_that_is_gone_meanwhile_holds_up_no_other(self) -> None:
        """Between the look and the step somebody may have removed it."""
        self.world.rules = Rules(Retention(keep_last=1))
        first, second, _ = self.keep(), self.keep(), self.keep()
        outdated = self.world.ledger.outdated

        async def late(*arguments: Any, **more: Any) -> Any:
            found = await outdated(*arguments, **more)
            await self.world.trash.delete_now(first.backup_id, by="operator")
            return found

        set_attribute(self, self.world.ledger, "outdated", late)
        self.walk()
        assert self.trashed() == [second.backup_id]

    def test_a_look_is_a_page(self) -> None:
        """However much is kept: the walk goes on at the next tick, and rests at its end."""
        self.world.rules = Rules(Retention(keep_last=1))
        asked: list[int] = []

        async def outdated(rule: Any, *, now: float, after: int, limit: int) -> Any:
            asked.append(after)
            return [], {0: 500, 500: 1000}.get(after)

        set_attribute(self, self.world.ledger, "outdated", outdated)
        for _ in range(4):
            now(self.world.trash.look())
        assert asked == [0, 500, 1000]
        self.walk()
        assert asked[3:] == [0]

    def test_the_clock_is_the_receivers(self) -> None:
        """Nothing that a sender says of times is looked at: age counts from when it was stored."""
        self.world.rules = Rules(Retention(keep_for=10 * DAY))
        old, new = self.keep(), self.keep()
        assert (old.stored_at, new.stored_at) == (START, START)
        self.clock.advance(10 * DAY - PASS_EVERY - 1)
        self.walk()
        assert self.trashed() == []
        self.walk()
        assert self.trashed() == [old.backup_id]
