"""What goes into the audit log, when, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from backupd.trust.audit import MAX_APART, MAX_BATCH, MAX_TEXT, MAX_WAITING, WINDOW, Audit
from backupd.waiting import go_on
from tests.receiver.fakes import ManualOff, sync
from tests.receiver.world import logged, now, set_attribute
from tests.web.closed import Events

START = 1_800_000_000.25


class AuditCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(START)
        self.events = Events()
        self.audit = Audit(self.events, sync, self.clock)

    def told(self) -> list[tuple[str, str | None]]:
        return [(one["event"], one.get("address")) for one in self.events.written]


class WriteTests(AuditCase):
    def test_an_event(self) -> None:
        """With its time, and nothing that is not said."""
        self.audit.note("deleted", peer="b", what="id", why="because")
        assert self.events.written == [
            {
                "n": 1,
                "time": "2027-01-15T08:00:00.250Z",
                "event": "deleted",
                "peer": "b",
                "what": "id",
                "why": "because",
            }
        ]

    def test_what_a_client_says_is_bounded(self) -> None:
        self.audit.note("refused", what="x" * 10_000)
        assert len(self.events.written[0]["what"]) == MAX_TEXT

    def test_many_at_once_are_synced_together(self) -> None:
        """Off the reactor thread, one batch at a time, while the next gathers."""
        off = ManualOff()
        audit = Audit(self.events, off, self.clock)
        for number in range(5):
            audit.note(f"e{number}")
        assert off.names == ["append"]
        off.release()
        assert [one["event"] for one in self.events.written] == ["e0"]
        off.release()
        assert [one["event"] for one in self.events.written] == [f"e{n}" for n in range(5)]
        assert off.names == []

    def test_a_disk_that_fails(self) -> None:
        """It is said once; nothing is lost as long as it fits, and it goes on by itself."""
        self.events.fails = "The audit log cannot be written: EIO."
        with capturedLogs() as logs:
            for number in range(3):
                self.audit.note(f"e{number}")
                self.audit.tick()
        assert len([one for one in logs if one["log_level"].name == "error"]) == 1
        assert self.audit.trouble == "The audit log cannot be written: EIO."
        self.events.fails = None
        self.audit.tick()
        assert [one["event"] for one in self.events.written] == ["e0", "e1", "e2"]
        assert self.audit.trouble is None

    def test_memory_is_bounded_while_it_fails(self) -> None:
        """What does not fit is counted, and that is said as soon as anything can be."""
        self.events.fails = "full"
        for _ in range(MAX_WAITING + 7):
            self.audit.note("e")
        self.events.fails = None
        self.audit.tick()
        assert len(self.events.written) == MAX_WAITING + 1
        (lost,) = [one for one in self.events.written if one["event"] == "lost"]
        assert lost["count"] == 7
        self.audit.note("e")
        assert len(self.events.written) == MAX_WAITING + 2

    def test_a_defect_stops_nothing(self) -> None:
        def broken(events: Sequence[Mapping[str, Any]]) -> None:
            raise ZeroDivisionError

        set_attribute(self, self.events, "append", broken)
        self.audit.note("e")
        (failure,) = logged(self)
        assert failure.check(ZeroDivisionError)

    def test_close_writes_what_there_is(self) -> None:
        off = ManualOff()
        audit = Audit(self.events, off, self.clock)
        for _ in range(MAX_BATCH + 5):
            audit.note("e")
        closed = go_on(audit.close())
        assert not closed.called
        off.release_all()
        now(closed)
        assert len(self.events.written) == MAX_BATCH + 5

    def test_without_a_log(self) -> None:
        audit = Audit(None, sync, self.clock)
        audit.note("e")
        audit.often("e")
        audit.tick()
        assert now(go_on(audit.read(None, 9))) == []


class OftenTests(AuditCase):
    """What anybody can make happen as often as they like does not fill the disk."""

    def test_the_first_is_told_at_once_and_the_others_counted(self) -> None:
        for _ in range(1000):
            self.audit.often("refused", address="192.0.2.1", why="no token")
        assert self.told() == [("refused", "192.0.2.1")]
        self.clock.advance(WINDOW)
        self.audit.tick()
        first, others = self.events.written
        assert (first["why"], others["count"], others["address"]) == ("no token", 999, "192.0.2.1")
        self.clock.advance(WINDOW)
        self.audit.tick()
        assert len(self.events.written) == 2

    def test_a_flood_from_many_addresses(self) -> None:
        """So many are told apart, the others are one number; and none is left out of it."""
        for number in range(5000):
            self.audit.often("refused", address=f"198.51.{number // 250}.{number % 250}")
        self.clock.advance(WINDOW)
        self.audit.tick()
        assert len(self.events.written) == MAX_APART + 1
        assert self.events.written[-1]["address"] == "others"
        assert self.events.written[-1]["count"] == 5000 - MAX_APART

    def test_one_kind_hides_no_other(self) -> None:
        for number in range(100):
            self.audit.often("refused", address=f"192.0.2.{number}")
        self.audit.often("restored", peer="b", what="id", same="id")
        assert self.told()[-1] == ("restored", None)

    def test_it_begins_anew_every_minute(self) -> None:
        for _ in range(3):
            self.audit.often("refused", address="192.0.2.1")
            self.clock.advance(WINDOW)
        assert self.told() == [("refused", "192.0.2.1")] * 3

    def test_close_tells_what_was_counted(self) -> None:
        for _ in range(3):
            self.audit.often("refused", address="192.0.2.1")
        now(go_on(self.audit.close()))
        assert [one.get("count") for one in self.events.written] == [None, 2]
