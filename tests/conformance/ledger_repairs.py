"""What every `ILedger` knows of what is kept: when it was read, and what is done about damage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backupd.errors import NoSuchBackup
from backupd.interfaces import Condition, Repair
from backupd.requests import Backup, BackupRequest, storing
from tests.conformance.ledger_case import LedgerCase, cancel, store
from tests.conformance.samples import NOW, a_kept_backup, an_ask, an_upload, plenty, to_received
from tests.outcomes import result_of

__all__ = ["RepairTests"]

LATER = NOW + 1000


class RepairTests(LedgerCase):
    """Reading again, and sending again."""

    def listed(self, name: str, **more: Any) -> Backup:
        backup = a_kept_backup(name, **more)
        result_of(self.ledger.list_backup(backup))
        return backup

    def stored(self, name: str = "1", **more: Any) -> Backup:
        """A backup that a request came to, with the way back to its sender."""
        backup = a_kept_backup(name, video=self.admit(name, **more).ask.video)

        def to_storing(request: BackupRequest) -> BackupRequest:
            return storing(to_received(request, name), backup=backup)

        self.change(name, to_storing, put=an_upload(name, name))
        self.change(name, store)
        return backup

    def unread(self, before: float = LATER) -> str | None:
        found = result_of(self.ledger.longest_unread(before=before))
        return None if found is None else found.backup_id[-1]

    def verified(self, name: str, problem: str | None, now: float = LATER) -> Backup:
        return result_of(self.ledger.verified(f"backup-{name}", problem=problem, now=now))

    def due(self, now: float = LATER) -> list[Repair]:
        return result_of(self.ledger.repairs(now=now, limit=9))

    # reading again

    def test_what_was_read_longest_ago_comes_first(self) -> None:
        """What was never read comes before all, and what was read lately is left alone."""
        for name, moment in (("1", NOW - 5), ("2", NOW - 9), ("3", NOW), ("4", None)):
            self.listed(name, verified_at=moment)
        order = []
        while (first := self.unread(before=NOW)) is not None:
            order.append(first)
            self.verified(first, None)
        assert order == ["4", "2", "1"]

    def test_the_damaged_wait_for_their_turn_too(self) -> None:
        """A backup that is not verified by its reading does not come again and again."""
        self.listed("1", verified_at=NOW - 9)
        self.listed("2", verified_at=NOW - 5)
        self.verified("1", "rot")
        assert self.unread() == "2"
        assert self.unread(LATER + 1) == "2"

    def test_a_reading_that_begins_goes_last(self) -> None:
        """Should it never end, all others have been read before it begins again."""
        backup = self.listed("1", verified_at=NOW - 9)
        self.listed("2", verified_at=NOW - 5)
        result_of(self.ledger.begin_reading("backup-1", now=NOW))
        assert self.unread() == "2"
        assert result_of(self.ledger.backup("backup-1")) == backup

    def test_verified(self) -> None:
        """Found well it has its time and no problem; found damaged it has its problem."""
        backup = self.listed("1", verified_at=NOW)
        rotten = self.verified("1", "rot")
        assert rotten == replace(backup, problem="rot")
        well = self.verified("1", None, LATER + 5)
        assert well == replace(backup, verified_at=LATER + 5)
        assert result_of(self.ledger.backup("backup-1")) == well
        with pytest.raises(NoSuchBackup):
            self.verified("2", "rot")

    def test_kept(self) -> None:
        assert result_of(self.ledger.kept()) == (0, 0)
        self.listed("1", size=2**59)
        self.listed("2", size=5)
        assert result_of(self.ledger.kept()) == (2, 2**59 + 5)

    def test_condition(self) -> None:
        """One that was never verified counts from when it was stored; the damaged are counted."""
        assert result_of(self.ledger.condition()) == Condition(damaged=0, verified_at=None)
        self.listed("1", verified_at=NOW + 9)
        self.listed("2", verified_at=NOW + 7)
        assert result_of(self.ledger.condition()) == Condition(damaged=0, verified_at=NOW + 7)
        self.verified("2", "rot")
        assert result_of(self.ledger.condition()) == Condition(damaged=1, verified_at=NOW + 9)
        never = self.listed("3", verified_at=None)
        found = result_of(self.ledger.condition())
        assert found == Condition(damaged=1, verified_at=never.stored_at)

    # sending again

    def test_damage_is_due_at_once(self) -> None:
        """With the link that the request came with, which is shown nowhere else."""
        self.stored("1", callback="http://localhost:3002/ready/secret")
        assert self.due() == []
        damaged = self.verified("1", "rot")
        (repair,) = self.due()
        assert repair == Repair(
            backup=damaged,
            origin="http://localhost:3002",
            callback="http://localhost:3002/ready/secret",
            request_id=None,
            tries=0,
        )
        assert "secret" not in repr(repair)
        assert self.due(LATER - 1) == []

    def test_nobody_to_tell(self) -> None:
        """Neither after an upload without a callback, nor where the ledger was rebuilt."""
        self.stored("1", callback="")
        self.listed("2")
        self.verified("1", "rot")
        self.verified("2", "rot")
        assert self.due() == []

    def test_what_was_done_is_kept(self) -> None:
        """A second finding of the same damage does not begin anew."""
        self.stored()
        self.verified("1", "rot")
        put = self.ledger.put_repair("backup-1", request_id="r", tries=3, due_at=LATER + 9)
        result_of(put)
        self.verified("1", "more rot", LATER + 5)
        assert self.due(LATER + 8) == []
        (repair,) = self.due(LATER + 9)
        assert (repair.request_id, repair.tries) == ("r", 3)
        result_of(self.ledger.put_repair("backup-1", request_id="r", tries=3, due_at=None))
        assert self.due(LATER * 2) == []

    def test_over(self) -> None:
        """A backup that is well again, or gone, is nothing to see to."""
        self.stored("1")
        self.verified("1", "rot")
        self.verified("1", None)
        assert self.due() == []
        self.verified("1", "rot")
        result_of(self.ledger.drop_backup("backup-1"))
        assert self.due() == []
        result_of(self.ledger.put_repair("backup-1", request_id=None, tries=0, due_at=NOW))
        assert self.due() == []

    def test_a_new_copy_makes_the_damaged_due(self) -> None:
        """Whatever it was put off to, and whoever asked for the copy; another video's does not."""
        for damaged, due_at, copy in (("1", LATER * 2, "2"), ("3", None, "4")):
            self.stored(damaged)
            self.verified(damaged, "rot")
            backup_id = f"backup-{damaged}"
            put = self.ledger.put_repair(backup_id, request_id=None, tries=1, due_at=due_at)
            result_of(put)
            self.stored(f"other-{copy}")
            assert self.due() == []
            self.stored(copy, video=damaged)
            assert [repair.backup.backup_id for repair in self.due()] == [backup_id]
            result_of(self.ledger.drop_backup(backup_id))

    def test_copy_of(self) -> None:
        """Another one, whole, of the same peer's video, with the same bytes."""
        backup = self.listed("1", video=7)
        for name, other in (
            ("2", {"video": 8}),
            ("3", {"video": 7, "peer": "other"}),
            ("4", {"video": 7, "sha256": "00" * 32}),
            ("5", {"video": 7, "size": 51}),
            ("6", {"video": 7, "problem": "rot"}),
        ):
            self.listed(name, **other)
            assert result_of(self.ledger.copy_of(backup)) is None, other
        same = self.listed("7", video="7")
        assert result_of(self.ledger.copy_of(backup)) == same

    def test_a_fresh_request_changes_no_other(self) -> None:
        """What a sender asked for itself stays as it is; only its end makes room for another."""
        mine = self.admit("1", size=50)
        ask = an_ask("2", video="1", size=70, callback="http://localhost:3002/other")

        def again() -> object:
            admitted = self.ledger.admit(ask, plenty, now=NOW, max_pending=9, fresh=True)
            return result_of(admitted)[0]

        assert again() == mine
        assert self.request() == mine
        self.change("1", cancel)
        fresh = again()
        assert fresh == self.request("2")
        assert self.totals().promised == 70
