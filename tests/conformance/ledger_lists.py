"""What every `ILedger` does with the list of backups and with the outbox."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backupd.errors import NoSuchBackup, NoSuchEntry
from backupd.interfaces import Entry, Outgoing, Pick
from backupd.sender.steps import GOING
from tests.conformance.ledger_case import LedgerCase
from tests.conformance.samples import NOW, a_kept_backup, an_entry
from tests.outcomes import result_of

__all__ = ["ListTests"]


HERE = "http://localhost:3000"
THERE = "http://localhost:3333"


def broken(entry: Entry) -> Entry:
    raise ZeroDivisionError


class ListTests(LedgerCase):
    """Kept backups, and videos to be sent."""

    # what is kept

    def test_backups(self) -> None:
        """What is listed comes back whole, with the video's kind."""
        for number, video in enumerate((2, "2", "é" * 128, 2**53 - 1)):
            backup = a_kept_backup(str(number), video=video, size=2**60)
            assert result_of(self.ledger.list_backup(backup))
            found = result_of(self.ledger.backup(backup.backup_id))
            assert found == backup
            assert type(found.video) is type(video)

    def test_list_backup_twice(self) -> None:
        """What is there already stays as it is."""
        backup = a_kept_backup()
        assert result_of(self.ledger.list_backup(backup))
        assert not result_of(self.ledger.list_backup(replace(backup, problem="other")))
        assert result_of(self.ledger.backup("backup-1")) == backup

    def test_put_backup(self) -> None:
        """What is there is replaced, what is not is listed."""
        checked = a_kept_backup(verified_at=NOW, problem="It was read as other bytes.")
        assert result_of(self.ledger.put_backup(a_kept_backup()))
        assert not result_of(self.ledger.put_backup(checked))
        assert result_of(self.ledger.backup("backup-1")) == checked

    def test_drop_backup(self) -> None:
        """What is dropped is told once, and is gone."""
        result_of(self.ledger.list_backup(a_kept_backup()))
        assert result_of(self.ledger.drop_backup("backup-1")) == a_kept_backup()
        with pytest.raises(NoSuchBackup):
            result_of(self.ledger.backup("backup-1"))
        with pytest.raises(NoSuchBackup):
            result_of(self.ledger.drop_backup("backup-1"))

    def test_backup_pages(self) -> None:
        """Pages follow each other without gap or repetition, by peer and by video."""
        for number in range(6):
            result_of(
                self.ledger.list_backup(
                    a_kept_backup(str(number), peer="ab"[number % 2], video=number // 2)
                )
            )

        def walk(peer: str | None = None, video: int | str | None = None) -> str:
            names, after = "", 0
            while page := result_of(
                self.ledger.backups(peer=peer, video=video, after=after, limit=2)
            ):
                names += "".join(backup.backup_id[-1] for _, backup in page)
                after = page[-1][0]
            return names

        assert walk() == "012345"
        assert walk("a") == "024"
        assert walk(video="1") == walk(video=1) == "23"
        assert walk("b", 2) == "5"
        assert walk("c") == ""

    def test_numbers_are_never_given_twice(self) -> None:
        """Whoever goes on after a page misses nothing although the last one was dropped."""
        result_of(self.ledger.list_backup(a_kept_backup("1")))
        ((number, _),) = result_of(self.ledger.backups(peer=None, video=None, after=0, limit=9))
        result_of(self.ledger.drop_backup("backup-1"))
        result_of(self.ledger.list_backup(a_kept_backup("2")))
        page = result_of(self.ledger.backups(peer=None, video=None, after=number, limit=9))
        assert [backup.backup_id for _, backup in page] == ["backup-2"]

    # the outbox

    def test_enqueue(self) -> None:
        """What is queued comes back whole, by its id, its capability and its video."""
        entry = an_entry(
            video=2,
            content_type="video/mp4",
            attempts=3,
            last_error="refused",
            request_id="request-1",
            status_url="http://localhost:3000/s",
            upload_link="http://localhost:3000/u",
            complete_link="http://localhost:3000/c",
            sha256="ab" * 32,
            backup_id="backup-1",
            content_url="http://localhost:3000/b",
        )
        assert result_of(self.ledger.enqueue(entry)) == entry
        assert result_of(self.ledger.entry("entry-1")) == entry
        assert result_of(self.ledger.entry_by_capability("entry-capability-1")) == entry
        assert result_of(self.ledger.entries_for("2", 10)) == [entry]

    def test_enqueue_another_version(self) -> None:
        """Once all of a file has arrived, another version of it is another entry; and that one is
        the one that is sending the file from then on.
        """
        first = result_of(self.ledger.enqueue(an_entry("1")))

        def queued(number: str, size: int) -> Entry:
            one = replace(an_entry(number), path=first.path, video=first.video, size=size)
            return result_of(self.ledger.enqueue(one))

        assert queued("2", first.size + 1) == first
        sent = result_of(self.ledger.change_entry("entry-1", lambda e: replace(e, state="SENT")))
        assert queued("3", first.size) == sent
        other = queued("4", first.size + 1)
        assert other.entry_id == "entry-4"
        assert queued("5", first.size + 2) == other
        assert result_of(self.ledger.entries_for(first.video, 9)) == [sent, other]

    def test_enqueue_twice(self) -> None:
        """The same file to the same server is one entry until it is over; another file,
        video or server is another.
        """
        first = result_of(self.ledger.enqueue(an_entry("1")))
        same = replace(an_entry("2"), path=first.path, video="1")
        assert result_of(self.ledger.enqueue(same)) == first
        for number, other in enumerate(
            (
                replace(an_entry("3"), video="1"),
                replace(an_entry("4"), path=first.path),
                replace(an_entry("5"), path=first.path, video="1", to="http://other"),
            )
        ):
            assert result_of(self.ledger.enqueue(other)) == other, number
        result_of(self.ledger.change_entry("entry-1", lambda e: replace(e, state="FAILED")))
        assert result_of(self.ledger.enqueue(same)) == same

    def test_unknown_entry(self) -> None:
        """What was never queued is not there."""
        result_of(self.ledger.enqueue(an_entry()))
        with pytest.raises(NoSuchEntry):
            result_of(self.ledger.entry("entry-2"))
        with pytest.raises(NoSuchEntry):
            result_of(self.ledger.change_entry("entry-2", lambda e: e))
        for capability in ("", "entry-capability-2", "\ud800"):
            with pytest.raises(NoSuchEntry):
                result_of(self.ledger.entry_by_capability(capability))
        assert result_of(self.ledger.entries_for("2", 10)) == []

    def test_change_entry(self) -> None:
        """A step is recorded; what it raises leaves the entry as it was."""
        result_of(self.ledger.enqueue(an_entry()))
        changed = result_of(
            self.ledger.change_entry("entry-1", lambda e: replace(e, state="WAITING"))
        )
        assert changed == an_entry(state="WAITING")
        with pytest.raises(ZeroDivisionError):
            result_of(self.ledger.change_entry("entry-1", broken))
        assert result_of(self.ledger.entry("entry-1")) == changed

    def test_entries_due(self) -> None:
        """Longest due first, without those that are over, not due, or under way already."""
        for number in range(5):
            result_of(self.ledger.enqueue(an_entry(str(number), due_at=NOW - number)))
        result_of(self.ledger.enqueue(an_entry("later", due_at=NOW + 1)))
        result_of(self.ledger.change_entry("entry-4", lambda e: replace(e, state="VERIFIED")))

        self.assert_due("3210", Pick(HERE, "ASKING", 9))
        self.assert_due("32", Pick(HERE, "ASKING", 2))
        self.assert_due("21", Pick(HERE, "ASKING", 9), without=("entry-3", "entry-0"))

    def assert_due(self, names: str, *picks: Pick, without: tuple[str, ...] = ()) -> None:
        found = result_of(self.ledger.entries_due(picks, now=NOW, without=without))
        assert "".join(entry.entry_id[-1] for entry in found) == names

    def test_entries_due_of_each_server(self) -> None:
        """Of each server and state that is asked for, in the order in which it is, and no other."""
        for name, to, state in (
            ("0", HERE, "ASKING"),
            ("1", HERE, "READY"),
            ("2", f"{HERE}/path", "ASKING"),
            ("3", THERE, "ASKING"),
            ("4", THERE, "ASKING"),
            ("5", THERE, "SENT"),
        ):
            due_at = NOW - int(name)
            result_of(self.ledger.enqueue(an_entry(name, to=to, state=state, due_at=due_at)))
        self.assert_due("51", Pick(THERE, "SENT", 9), Pick(HERE, "READY", 9))
        self.assert_due("40", Pick(THERE, "ASKING", 1), Pick(HERE, "ASKING", 9))
        self.assert_due("", Pick(THERE, "READY", 9), Pick("http://nowhere", "ASKING", 9))
        self.assert_due("")

    def test_outgoing(self) -> None:
        """Each server once, with the first of each state, due or not; not what is over."""
        assert result_of(self.ledger.outgoing()) == []
        for name, to, state, late in (
            ("0", THERE, "ASKING", 0),
            ("1", THERE, "ASKING", 7),
            ("2", THERE, "WAITING", -1e9),
            ("3", HERE, "READY", 3),
            ("4", HERE, "READY", 2),
            ("5", HERE, "SENT", 1),
            ("6", HERE, "ASKING", 9),
            ("7", "http://over", "FAILED", 9),
        ):
            due_at = NOW - late
            result_of(self.ledger.enqueue(an_entry(name, to=to, state=state, due_at=due_at)))
        result_of(self.ledger.change_entry("entry-6", lambda e: replace(e, state="VERIFIED")))
        found = result_of(self.ledger.outgoing())
        assert sorted(found, key=lambda one: one.to) == [
            Outgoing(HERE, {"READY": NOW - 3, "SENT": NOW - 1}),
            Outgoing(THERE, {"ASKING": NOW - 7, "WAITING": NOW + 1e9}),
        ]

    def test_every_state_that_goes_on_is_outgoing(self) -> None:
        """One that a ledger does not know would never be carried on."""
        for state in sorted(GOING):
            result_of(self.ledger.enqueue(an_entry(state, to=HERE, state=state, due_at=NOW)))
        [found] = result_of(self.ledger.outgoing())
        assert set(found.due) == GOING

    def test_entry_pages(self) -> None:
        """Pages follow each other; what is over is told apart by every last state."""
        ends = ("VERIFIED", "UNVERIFIED", "FAILED", "CANCELLED")
        for number, state in enumerate((*ends, "ASKING", "WAITING", "READY", "SENT")):
            result_of(self.ledger.enqueue(an_entry(str(number), state=state)))

        def walk(over: bool | None) -> str:
            names, after = "", 0
            while page := result_of(self.ledger.entries(over=over, after=after, limit=3)):
                names += "".join(entry.entry_id[-1] for _, entry in page)
                after = page[-1][0]
            return names

        assert walk(None) == "01234567"
        assert walk(True) == "0123"
        assert walk(False) == "4567"

    def test_purge_entries(self) -> None:
        """What was over before then is forgotten; what goes on never is."""
        result_of(self.ledger.enqueue(an_entry("1", changed_at=NOW - 9)))
        result_of(self.ledger.enqueue(an_entry("2", state="FAILED", changed_at=NOW - 9)))
        result_of(self.ledger.enqueue(an_entry("3", state="FAILED", changed_at=NOW)))
        assert result_of(self.ledger.purge(before=NOW, limit=10)) == 1
        left = result_of(self.ledger.entries(over=None, after=0, limit=9))
        assert [entry.entry_id for _, entry in left] == ["entry-1", "entry-3"]

    def test_purge_remembers_what_was_sent(self) -> None:
        """That a file was stored is not forgotten, or a watched folder would send it again."""
        old = {"state": "VERIFIED", "changed_at": NOW - 9, "path": "/srv/videos/a.mp4"}
        result_of(self.ledger.enqueue(an_entry("1", **old)))
        result_of(self.ledger.enqueue(an_entry("2", **old)))
        assert result_of(self.ledger.purge(before=NOW, limit=10)) == 1
        left = result_of(self.ledger.entries(over=None, after=0, limit=9))
        assert [entry.entry_id for _, entry in left] == ["entry-2"]
        # Nor by whom: each of them may find its copy damaged, and ask for it again.
        result_of(self.ledger.enqueue(an_entry("3", **old, to="http://localhost:3001")))
        assert result_of(self.ledger.purge(before=NOW, limit=10)) == 0
