"""What every `ILedger` tells of many requests: lists, what is overdue, whose turn it is."""

from __future__ import annotations

import pytest

from backupd.errors import NoSuchRequest
from backupd.requests import (
    Cancelled,
    Offered,
    Pending,
    ended,
    lapsed,
    offer_failed,
)
from tests.conformance.ledger_case import (
    LedgerCase,
    cancel,
    refuse_offer,
    store,
)
from tests.conformance.samples import (
    NOW,
    a_kept_backup,
    an_ask,
    an_upload,
    to_offered,
    to_received,
    to_receiving,
    to_storing,
)
from tests.outcomes import result_of

__all__ = ["LineTests"]


class LineTests(LedgerCase):
    """Pages, overdue, purge, lines."""

    # lists

    def test_pages(self) -> None:
        """Pages follow each other without gap or repetition, by state and by peer."""
        for name in "123456":
            self.admit(name, peer=f"http://localhost:300{int(name) % 2}")
        for name in "12":
            self.change(name, cancel)

        def walk(live: bool | None, peer: str | None) -> str:
            names, after = "", 0
            while page := result_of(
                self.ledger.requests(live=live, peer=peer, after=after, limit=2)
            ):
                assert len(page) <= 2
                names += "".join(request.ask.request_id[-1] for _, request in page)
                after = page[-1][0]
            return names

        assert walk(None, None) == "123456"
        assert walk(True, None) == "3456"
        assert walk(False, None) == "12"
        assert walk(True, "http://localhost:3001") == "35"
        assert walk(None, "http://localhost:3009") == ""
        assert [r.ask.request_id[-1] for r in result_of(self.ledger.all_live())] == [*"3456"]

    def test_in_progress(self) -> None:
        """What is beyond PENDING and has not ended, whatever has uploads; oldest first."""
        for name in "1234567":
            self.admit(name)
        self.change("6", to_offered)
        self.change("2", to_receiving, put=an_upload("2", "2"))
        self.change("3", lambda r: to_received(r, "3"), put=an_upload("3", "3"))
        self.change("4", lambda r: to_storing(r, "4"), put=an_upload("4", "4"))
        self.change("5", cancel, put=an_upload("5", "5"))
        self.change("7", lambda r: lapsed(to_offered(r), now=NOW + 1e6), put=an_upload("7", "7"))
        found = result_of(self.ledger.in_progress())
        names = [request.ask.request_id[-1] for request in found]
        assert names == [*"2346"]

    def test_last_ended(self) -> None:
        """Of several that have ended for a video, the last answers for it, or a peer's last."""
        for name, age in (("1", 5.0), ("2", 1.0), ("3", 9.0)):
            self.admit(name, video=2, peer=f"http://localhost:300{int(name) % 2}")
            self.change(
                name,
                lambda r, a=age: ended(r, Cancelled, reason="no", now=NOW - a),  # type: ignore[misc]
            )
        assert result_of(self.ledger.last_ended("2", None)).ask.request_id == "request-2"
        odd = self.ledger.last_ended(2, "http://localhost:3001")
        assert result_of(odd).ask.request_id == "request-1"
        with pytest.raises(NoSuchRequest):
            result_of(self.ledger.last_ended(2, "http://localhost:3009"))
        assert result_of(self.ledger.live_for(2, None, 10)) == []

    def test_given_up(self) -> None:
        """Who waits behind offers that fail is given up with them, unless it asked again."""
        for name in "123":
            self.admit(name)
        self.admit("4", peer="http://localhost:3009", origin="http://localhost:3009")
        self.change("1", refuse_offer(NOW + 5))

        def given_up(now: float) -> set[str]:
            found = result_of(self.ledger.given_up(now=now, limit=10))
            assert all(request.expires_at == NOW + 86400 for request in found)
            return {request.ask.request_id[-1] for request in found}

        assert given_up(NOW + 86399) == set()
        assert given_up(NOW + 86400) == {"1", "2", "3"}
        self.change("2", to_offered)
        assert given_up(NOW + 86400) == set(), "it answers"
        self.change("1", refuse_offer(NOW + 5))
        self.admit("5", video=1)
        assert given_up(NOW + 86400) == set(), "it asked again"

    def test_overdue(self) -> None:
        """Leases and times that are up, and all in STORING; each once, and nothing else."""
        for name in "12345":
            self.admit(name)
        self.change("2", to_receiving)
        self.change("3", to_received)
        self.change("4", to_storing)
        self.change("5", refuse_offer(NOW + 5))

        def overdue(now: float) -> set[str]:
            found = result_of(self.ledger.overdue(now=now, limit=10))
            assert len(found) == len({request.ask.request_id for request in found})
            return {request.ask.request_id[-1] for request in found}

        assert overdue(NOW) == {"4"}
        assert overdue(NOW + 600) == {"2", "4"}
        assert overdue(NOW + 86400) == {"2", "3", "4", "5"}
        self.change("4", store)
        assert overdue(NOW) == set()

    def test_purge(self) -> None:
        """What ended before then is forgotten, some at a time; what lives stays."""
        for name in "1234":
            self.admit(name)
        for name in "123":
            self.change(name, cancel)
        assert result_of(self.ledger.purge(before=NOW, limit=10)) == 0
        assert result_of(self.ledger.purge(before=NOW + 1, limit=2)) == 2
        assert result_of(self.ledger.purge(before=NOW + 1, limit=2)) == 1
        assert result_of(self.ledger.purge(before=NOW + 1, limit=2)) == 0
        assert self.request("4").ask == an_ask("4")
        assert self.totals().live == 1

    # whose turn it is

    def test_lines(self) -> None:
        """A line shows its due requests, first come first served, and only them."""
        for name in "123":
            self.admit(name, peer="a")
        self.admit("4", peer="b")
        self.change("1", refuse_offer(NOW + 5))
        assert self.lines() == {"b": ["4"]}, "the origin that failed rests"
        assert self.lines(NOW + 5) == {"b": ["4"], "a": ["2", "3", "1"]}
        assert self.lines(NOW + 5, heads=1) == {"b": ["4"], "a": ["2"]}
        assert self.lines(NOW - 1) == {}

    def test_lines_are_fair(self) -> None:
        """Peers take turns, however many requests each has; who waited longest is first."""
        for name in "12345":
            self.admit(name, peer="a")
        for name in "67":
            self.admit(name, peer="b")
        self.admit("8", peer="c")
        served = ""
        while due := self.lines():
            head = next(iter(due.values()))[0]
            self.change(head, to_offered)
            served += head
        assert served == "16827345"

    def test_using_the_link_is_a_turn(self) -> None:
        """A peer that uses its link before it has answered the offer has had its turn, too."""
        for name in "123":
            self.admit(name, peer="a")
        for name in "45":
            self.admit(name, peer="b")
        served = ""
        while due := self.lines():
            peer, (head, *_) = next(iter(due.items()))
            self.change(head, to_receiving if peer == "a" else to_offered)
            served += head
        assert served == "14253"

    def test_using_the_link_ends_the_failing(self) -> None:
        """It counts as the answer to the offer: nobody in that line is given up any more."""
        for name in "123":
            self.admit(name)
        self.change("1", refuse_offer(NOW + 60))
        self.change("2", to_receiving)
        found = result_of(self.ledger.lines(now=NOW, limit=9, heads=9))
        assert [(line.failures, line.ready_at) for line in found] == [(0, NOW)]
        given_up = result_of(self.ledger.given_up(now=NOW + 86400, limit=9))
        assert [request.ask.request_id for request in given_up] == []

    def test_an_empty_line_gives_nobody_up(self) -> None:
        """Whoever comes into a line that once failed, and is empty, has its whole time; and
        among the lines to look at it stands before nobody.
        """
        self.admit("1", peer="a")
        self.change("1", refuse_offer(NOW + 5))
        self.change("1", cancel)
        self.admit("2", peer="b")
        self.change("2", refuse_offer(NOW + 5))

        def given_up(now: float, limit: int = 9) -> set[str]:
            found = result_of(self.ledger.given_up(now=now, limit=limit))
            return {request.ask.request_id[-1] for request in found}

        assert given_up(NOW + 86400, limit=1) == {"2"}
        self.admit("3", peer="a")
        assert given_up(NOW + 86400) == {"2"}
        late = NOW + 2 * 86400
        self.change("3", lambda r: offer_failed(r, due_at=NOW + 9, expires_at=late, why="refused"))
        assert given_up(late - 1) == {"2"}
        assert given_up(late) == {"2", "3"}

    def test_a_new_origin_is_no_new_peer(self) -> None:
        """A peer that calls from another origin does not pass those who wait."""
        for name in "12":
            self.admit(name, peer="a")
            self.admit(f"{name}b", peer="b")
        self.change("1", to_offered)
        self.change("1b", to_offered)
        self.admit("3", peer="b", origin="http://localhost:3999")
        assert next(iter(self.lines())) == "a"

    def test_a_purge_gives_no_turn(self) -> None:
        """A peer that has had its turn stays behind those that wait, though its line was empty."""
        self.admit("1", peer="a")
        self.change("1", to_offered)
        self.admit("2", peer="b")
        self.change("2", to_offered)
        self.admit("3", peer="a")
        result_of(self.ledger.purge(before=NOW + 1, limit=9))
        self.admit("4", peer="b")
        assert [*self.lines()] == ["a", "b"]

    def test_failing_lines_come_apart(self) -> None:
        """Lines that fail come after those that answer, longest ready first, each with its
        own limit; one offer taken ends the failing.
        """
        for name in "1234":
            self.admit(name, peer=name)
        self.change("1", refuse_offer(NOW + 9))
        self.change("2", refuse_offer(NOW + 5))
        assert [*self.lines(NOW + 9)] == ["3", "4", "2", "1"]
        assert [*self.lines(NOW + 9, limit=1)] == ["3", "2"]
        found = result_of(self.ledger.lines(now=NOW + 9, limit=9, heads=1))
        assert [line.failures for line in found] == [0, 0, 1, 1]
        assert [line.ready_at for line in found] == [NOW, NOW, NOW + 5, NOW + 9]
        self.admit("5", peer="1")
        self.change("1", to_offered)
        assert "1" in [*self.lines(NOW)]

    def test_a_newcomer_does_not_wake_a_resting_line(self) -> None:
        """Back-off is per origin: another request does not cut it short."""
        self.admit("1", peer="a")
        self.change("1", refuse_offer(NOW + 60))
        self.admit("2", peer="a")
        assert self.lines(NOW + 59) == {}
        assert self.lines(NOW + 60) == {"a": ["2", "1"]}

    def test_asked_again_from_elsewhere(self) -> None:
        """A request whose link moves to another origin waits in that line, and only there."""
        self.admit("1", peer="a")
        self.change("1", refuse_offer(NOW + 60))
        self.admit("1", peer="a", origin="http://localhost:3999")
        found = result_of(self.ledger.lines(now=NOW, limit=9, heads=9))
        assert [(line.origin, len(line.heads)) for line in found] == [("http://localhost:3999", 1)]

    def test_position(self) -> None:
        """The place in the peer's own line: 1 is next."""

        def position(name: str) -> int:
            request = self.request(name)
            assert isinstance(request, Pending)
            return result_of(self.ledger.position(request))

        for name in "123":
            self.admit(name, peer="a")
        self.admit("4", peer="b")
        assert [position(name) for name in "1234"] == [1, 2, 3, 1]
        self.change("1", to_offered)
        self.change("2", refuse_offer(NOW + 5))
        assert [position(name) for name in "23"] == [2, 1]

    def test_stored_is_listed(self) -> None:
        """The step to STORED puts the backup on the list; one that lies there already, found
        by a rebuild, is no hindrance.
        """
        self.admit("1")
        self.admit("2")
        self.change("1", to_storing, put=an_upload())
        self.change("1", store)
        assert result_of(self.ledger.backup("backup-1")) == a_kept_backup("1")
        self.change("2", lambda r: to_storing(r, "2"))
        result_of(self.ledger.list_backup(a_kept_backup("2")))
        self.change("2", store)
        assert result_of(self.ledger.backup("backup-2")) == a_kept_backup("2")
        assert self.totals().live == 0

    def test_offered_again(self) -> None:
        """A request that comes back in line is served again before a later one."""
        self.admit("1", peer="a")
        self.admit("2", peer="a")
        self.change("1", to_offered)
        back = self.change("1", lambda r: lapsed(r, now=NOW + 600))
        assert isinstance(back, Pending)
        assert self.lines(NOW + 600) == {"a": ["2", "1"]}
        assert isinstance(self.change("1", to_offered), Offered)
        assert self.lines(NOW + 600) == {"a": ["2"]}
