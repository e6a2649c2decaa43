"""What every `ILedger` knows of the time, and does when a clock was ahead."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from backupd.interfaces import Entry, Pick
from backupd.requests import NEVER, BackupRequest, lapsed, storing
from tests.conformance.ledger_case import LedgerCase, cancel, refuse_offer, store
from tests.conformance.samples import (
    NOW,
    a_kept_backup,
    an_ask,
    an_entry,
    an_upload,
    plenty,
    to_offered,
    to_received,
    to_receiving,
    to_storing,
)
from tests.outcomes import result_of

__all__ = ["TimeTests"]

AHEAD = 5 * 3600.0
RIGHT = NOW - AHEAD
"""What time it is when a clock that was ahead has said `NOW`."""


def earlier(value: Any) -> Any:
    """A request or an entry as it is once it was set back: nothing else of it has changed."""
    waits = ("due_at", "lease_until", "expires_at", "deadline")
    times = {name: getattr(value, name, None) for name in waits}
    changed = {name: at - AHEAD for name, at in times.items() if at is not None and at != NEVER}
    return replace(value, **changed)


class TimeTests(LedgerCase):
    """What time has been, and waits that are set back."""

    def set_back(self) -> None:
        result_of(self.ledger.set_back(AHEAD, own=RIGHT))

    def everything(self) -> tuple[list[BackupRequest], list[Entry]]:
        requests = result_of(self.ledger.requests(live=None, peer=None, after=0, limit=99))
        entries = result_of(self.ledger.entries(over=None, after=0, limit=99))
        return [one for _, one in requests], [one for _, one in entries]

    def test_the_latest_time(self) -> None:
        """Of times that have been the latest is known, of the daemon's own the last."""
        assert result_of(self.ledger.latest_seen()) is None
        assert result_of(self.ledger.own_time()) is None
        for now, latest in ((NOW, NOW), (NOW + 5, NOW + 5), (NOW + 2, NOW + 5)):
            result_of(self.ledger.see(now, now + 1))
            assert result_of(self.ledger.latest_seen()) == latest
            assert result_of(self.ledger.own_time()) == now + 1

    def test_waits_are_set_back(self) -> None:
        """Those of all that is alive, in whatever state; nothing else of it changes, and nothing
        of what is over.
        """
        for name in "12345678":
            self.admit(name, callback="" if name == "6" else f"http://localhost:3002/{name}")
        self.change("2", to_offered)
        self.change("3", to_receiving, put=an_upload("3", "3"))
        self.change("4", lambda r: to_received(r, "4"), put=an_upload("4", "4"))
        self.change("5", lambda r: to_storing(r, "5"), put=an_upload("5", "5"))
        self.change("6", lambda r: lapsed(to_offered(r), now=NOW + 600))
        self.change("7", refuse_offer(NOW + 5))
        self.change("8", cancel)
        for name, state in (("1", "ASKING"), ("2", "SENT"), ("3", "VERIFIED")):
            result_of(self.ledger.enqueue(an_entry(name, state=state)))
        requests, entries = self.everything()
        totals, uploads = self.totals(), result_of(self.ledger.uploads(None))
        self.set_back()
        live, over = [earlier(one) for one in requests[:7]], requests[7]
        assert self.everything() == (
            [*live, over],
            [earlier(entries[0]), earlier(entries[1]), entries[2]],
        )
        assert [self.request(name) for name in "12345678"] == [*live, over]
        pick = Pick(an_entry().to, "ASKING", 9)
        assert result_of(self.ledger.entries_due([pick], now=RIGHT, without=[]))
        assert (self.totals(), result_of(self.ledger.uploads(None))) == (totals, uploads)

    def test_it_is_noted_in_the_same_step(self) -> None:
        """The daemon's own time; the latest that has been is none the earlier."""
        result_of(self.ledger.see(NOW, NOW))
        self.set_back()
        assert result_of(self.ledger.own_time()) == RIGHT
        assert result_of(self.ledger.latest_seen()) == NOW

    def test_lines_are_set_back(self) -> None:
        """When they are ready, rest, and give up; also those in which nobody waits just now."""
        for name in "123":
            self.admit(name, peer=name)
        self.change("2", refuse_offer(NOW + 5))
        self.change("3", refuse_offer(NOW + 5))
        self.change("3", cancel)
        self.set_back()
        assert self.lines(RIGHT - 1) == {}
        assert self.lines(RIGHT + 4) == {"1": ["1"]}
        assert self.lines(RIGHT + 5) == {"1": ["1"], "2": ["2"]}

        def given_up(now: float) -> int:
            return len(result_of(self.ledger.given_up(now=now, limit=9)))

        assert (given_up(RIGHT + 86399), given_up(RIGHT + 86400)) == (0, 1)
        ask = an_ask("4", peer="3")
        result_of(self.ledger.admit(ask, plenty, now=RIGHT, max_pending=9))
        assert "3" not in self.lines(RIGHT + 4)
        assert self.lines(RIGHT + 5)["3"] == ["4"]

    def test_who_waits_for_ever_still_does(self) -> None:
        """The client of a direct upload comes by itself: it is not called."""
        self.admit(callback="")
        self.change("1", lambda r: lapsed(to_offered(r), now=NOW + 600))
        self.set_back()
        assert self.lines(NEVER - 1000) == {}

    def test_repairs_are_set_back(self) -> None:
        """What is kept, and when it was stored and read, is not."""

        def going(name: str, request: BackupRequest) -> BackupRequest:
            kept = a_kept_backup(name, video=request.ask.video)
            return storing(to_received(request, name), backup=kept)

        for name in "12":
            self.admit(name)
            self.change(name, functools.partial(going, name), put=an_upload(name, name))
            self.change(name, store)
            result_of(self.ledger.verified(f"backup-{name}", problem="rotten", now=NOW))
        result_of(self.ledger.put_repair("backup-2", request_id=None, tries=1, due_at=None))
        kept = result_of(self.ledger.backups(peer=None, video=None, after=0, limit=9))
        unread = result_of(self.ledger.longest_unread(before=NOW))
        self.set_back()

        def due(now: float) -> list[str]:
            found = result_of(self.ledger.repairs(now=now, limit=9))
            return [one.backup.backup_id for one in found]

        assert (due(RIGHT - 1), due(RIGHT)) == ([], ["backup-1"])
        assert due(NEVER) == ["backup-1"]
        assert result_of(self.ledger.backups(peer=None, video=None, after=0, limit=9)) == kept
        assert result_of(self.ledger.longest_unread(before=NOW)) == unread
