"""What every `ILedger` does with the trash, with locks, and with what falls out of retention."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest

from backupd.errors import Locked, NoSuchBackup
from backupd.interfaces import Retention
from backupd.requests import Backup, locked, trashed, undeleted
from tests.conformance.ledger_case import LedgerCase
from tests.conformance.samples import NOW, a_kept_backup
from tests.outcomes import result_of

__all__ = ["KeepingTests"]

DAY = 86400.0


def trash(backup: Backup) -> Backup:
    return trashed(backup, by="operator", at=NOW, now=NOW)


class KeepingTests(LedgerCase):
    """The trash, locks, and retention."""

    def keep(self, name: str, **more: Any) -> Backup:
        backup = a_kept_backup(name, **{"video": "v", "stored_at": NOW} | more)
        result_of(self.ledger.list_backup(backup))
        return backup

    def on_list(self, *, trash: bool = False) -> str:
        page = result_of(self.ledger.backups(peer=None, video=None, after=0, limit=99, trash=trash))
        return "".join(backup.backup_id[-1] for _, backup in page)

    def outdated(self, rule: Retention, *, now: float = NOW + 99 * DAY) -> str:
        found, after = result_of(
            self.ledger.outdated(lambda peer: rule, now=now, after=0, limit=99)
        )
        assert after is None
        return "".join(backup.backup_id[-1] for backup in found)

    # the trash

    def test_trash_is_another_list(self) -> None:
        """What is in it is on no other list, and is still there; out of it all is as before."""
        first, second = self.keep("1"), self.keep("2")
        gone = result_of(self.ledger.change_backup("backup-1", trash))
        assert gone == replace(first, deleted_at=NOW, deleted_by="operator")
        assert (self.on_list(), self.on_list(trash=True)) == ("2", "1")
        assert result_of(self.ledger.backup("backup-1")) == gone
        assert result_of(self.ledger.copy_of(second)) is None
        assert result_of(self.ledger.kept()) == (2, first.size + second.size)
        assert result_of(self.ledger.change_backup("backup-1", undeleted)) == first
        assert (self.on_list(), self.on_list(trash=True)) == ("12", "")

    def test_it_keeps_its_quota(self) -> None:
        """What is in the trash counts for its peer until it is gone."""
        backup = self.keep("1")
        before = result_of(self.ledger.usage(backup.peer))
        result_of(self.ledger.change_backup("backup-1", trash))
        assert result_of(self.ledger.usage(backup.peer)) == before
        result_of(self.ledger.drop_backup("backup-1"))
        assert result_of(self.ledger.usage(backup.peer)) != before

    def test_damaged_in_the_trash(self) -> None:
        """It counts neither as damaged nor as well."""
        self.keep("1", problem="rotten")
        assert result_of(self.ledger.condition()).damaged == 1
        result_of(self.ledger.change_backup("backup-1", trash))
        condition = result_of(self.ledger.condition())
        assert (condition.damaged, condition.verified_at) == (0, None)

    def test_what_is_written_elsewhere_stays(self) -> None:
        """A verification, or a rebuild, changes neither trash nor lock."""
        backup = self.keep("1")
        result_of(self.ledger.change_backup("backup-1", trash))
        checked = result_of(self.ledger.verified("backup-1", problem=None, now=NOW + 1))
        assert checked.deleted_at == NOW
        result_of(self.ledger.put_backup(replace(backup, problem="x")))
        assert result_of(self.ledger.backup("backup-1")).deleted_at == NOW

    def test_trash_due(self) -> None:
        """Longest ago first, and nothing that is not in the trash."""
        for name in "1234":
            self.keep(name)
        for name, at in (("2", NOW - 5), ("1", NOW - 3), ("3", NOW + 1)):
            step = functools.partial(trashed, by="x", at=at, now=NOW)
            result_of(self.ledger.change_backup(f"backup-{name}", step))

        def due(limit: int) -> str:
            found = result_of(self.ledger.trash_due(before=NOW, limit=limit))
            return "".join(one.backup_id[-1] for one in found)

        assert (due(9), due(1)) == ("21", "2")

    # locks

    def test_lock(self) -> None:
        """Until then it cannot get into the trash; what a step raises changes nothing."""
        self.keep("1")
        held = result_of(self.ledger.change_backup("backup-1", lambda b: locked(b, until=NOW + 9)))
        assert held.locked_until == NOW + 9
        with pytest.raises(Locked):
            result_of(self.ledger.change_backup("backup-1", trash))
        with pytest.raises(Locked):
            result_of(self.ledger.change_backup("backup-1", lambda b: locked(b, until=NOW + 8)))
        assert result_of(self.ledger.backup("backup-1")) == held
        later = result_of(
            self.ledger.change_backup(
                "backup-1", lambda b: trashed(b, by="operator", at=NOW + 9, now=NOW + 9)
            )
        )
        assert later.deleted_at == NOW + 9

    def test_unknown(self) -> None:
        with pytest.raises(NoSuchBackup):
            result_of(self.ledger.change_backup("nothing", trash))
        rule = Retention(keep_last=1)
        with pytest.raises(NoSuchBackup):
            result_of(self.ledger.retire("nothing", rule, by="x", at=NOW, now=NOW))

    # retention

    def test_keep_last(self) -> None:
        """The newest good ones of each video of each peer stay; age is told by the time at which
        they were stored, not by the order in which they were listed.
        """
        self.keep("3", stored_at=NOW + 3)
        self.keep("1", stored_at=NOW + 1)
        self.keep("2", stored_at=NOW + 2)
        self.keep("4", stored_at=NOW + 4, video="other")
        self.keep("5", stored_at=NOW + 5, peer="other")
        assert self.outdated(Retention(keep_last=1)) == "12"
        assert self.outdated(Retention(keep_last=2)) == "1"
        assert self.outdated(Retention(keep_last=3)) == ""
        assert self.outdated(Retention(keep_last=0)) == ""
        assert self.outdated(Retention()) == ""

    def test_keep_for(self) -> None:
        """By age alone the last good one never goes; with both, either keeps."""
        for name in "123":
            self.keep(name, stored_at=NOW + int(name) * DAY)
        rule = Retention(keep_for=10 * DAY)
        assert self.outdated(rule, now=NOW + 11 * DAY - 1) == ""
        assert self.outdated(rule, now=NOW + 11 * DAY) == "1"
        assert self.outdated(rule) == "12"
        assert self.outdated(replace(rule, keep_last=2)) == "1"
        assert self.outdated(replace(rule, keep_last=1), now=NOW + 11 * DAY) == "1"

    def test_minimum_keep(self) -> None:
        """However many came after it, it stays for so long."""
        self.keep("1")
        self.keep("2")
        rule = Retention(keep_last=1, minimum_keep=10 * DAY)
        assert self.outdated(rule, now=NOW + 10 * DAY - 1) == ""
        assert self.outdated(rule, now=NOW + 10 * DAY) == "1"

    def test_damaged_versions_do_not_count(self) -> None:
        """Neither do those in the trash: the last good one stays, whatever came after it."""
        self.keep("1", problem="rotten")
        self.keep("2")
        self.keep("3", problem="rotten")
        self.keep("4")
        result_of(self.ledger.change_backup("backup-4", trash))
        assert self.outdated(Retention(keep_last=1)) == "1"
        assert self.outdated(Retention(keep_for=1.0)) == "1"

    def test_a_lock_holds(self) -> None:
        self.keep("1")
        self.keep("2")
        result_of(self.ledger.change_backup("backup-1", lambda b: locked(b, until=NOW + 100 * DAY)))
        assert self.outdated(Retention(keep_last=1)) == ""
        assert self.outdated(Retention(keep_last=1), now=NOW + 100 * DAY) == "1"

    def test_pages(self) -> None:
        """Pages follow each other to the end, each by the rule of its peer."""
        for number in range(6):
            self.keep(str(number), peer="ab"[number % 2])
        rules = {"a": Retention(keep_last=1), "b": Retention()}
        names, after = "", 0
        for _ in range(9):
            found, following = result_of(
                self.ledger.outdated(rules.__getitem__, now=NOW + DAY, after=after, limit=2)
            )
            names += "".join(one.backup_id[-1] for one in found)
            if following is None:
                break
            after = following
        assert names == "02"

    def test_retire(self) -> None:
        """Looked at again in the step itself: what has become the last good one stays."""
        first = self.keep("1")
        self.keep("2")
        rule, now = Retention(keep_last=1), NOW + DAY

        def retire(backup_id: str) -> Backup | None:
            return result_of(self.ledger.retire(backup_id, rule, by="r", at=now, now=now))

        assert retire("backup-2") is None
        result_of(self.ledger.verified("backup-2", problem="rotten", now=NOW))
        assert retire("backup-1") is None
        assert self.on_list() == "12"
        result_of(self.ledger.verified("backup-2", problem=None, now=NOW))
        assert retire("backup-1") == replace(first, deleted_at=now, deleted_by="r")
        assert self.on_list() == "2"

    def test_has_version(self) -> None:
        """Another good one of the same peer's video, outside of the trash."""
        first = self.keep("1")
        self.keep("2", peer="other")
        self.keep("3", video="other")
        self.keep("4", problem="rotten")
        assert not result_of(self.ledger.has_version(first))
        self.keep("5")
        assert result_of(self.ledger.has_version(first))
        result_of(self.ledger.change_backup("backup-5", trash))
        assert not result_of(self.ledger.has_version(first))
