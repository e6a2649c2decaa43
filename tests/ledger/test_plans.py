"""A tick's questions cost no more at a million requests than at ten: each finds its rows by an
index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from backupd.interfaces import Pick, Retention
from backupd.ledger.sql import SqlLedger
from backupd.requests import Pending
from tests.conformance.ledger_case import cancel, refuse_offer, same, store
from tests.conformance.samples import (
    NOW,
    a_kept_backup,
    an_ask,
    an_entry,
    an_upload,
    plenty,
    to_offered,
    to_receiving,
    to_storing,
)
from tests.ledger.offs import at_once
from tests.outcomes import result_of

Ask = Callable[[SqlLedger], Deferred[Any]]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger", write_off=at_once, read_off=at_once)
    ledger.open()
    for number in range(30):
        ask = an_ask(str(number), peer=f"peer-{number % 3}")
        result_of(ledger.admit(ask, plenty, now=NOW, max_pending=100))
    result_of(ledger.change("request-29", cancel))
    result_of(ledger.list_backup(a_kept_backup()))
    yield ledger
    result_of(ledger.close())


def plans(ledger: SqlLedger, ask: Ask) -> list[str]:
    """How SQLite goes about each statement that ``ask`` needs."""
    asked: list[str] = []
    drivers: list[Any] = [
        connection.connection.dbapi_connection
        for connection in (ledger._writer, ledger._reader)
        if connection is not None
    ]
    for driver in drivers:
        driver.set_trace_callback(asked.append)
    try:
        result_of(ask(ledger))
    finally:
        for driver in drivers:
            driver.set_trace_callback(None)
    assert ledger._writer is not None
    found = []
    for statement in asked:
        if statement.split()[0] in ("SELECT", "UPDATE", "DELETE", "INSERT", "WITH"):
            plan = ledger._writer.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")
            found += [row.detail for row in plan]
    assert found
    return found


def position(ledger: SqlLedger) -> Deferred[int]:
    request = result_of(ledger.request("request-9"))
    assert isinstance(request, Pending)
    return ledger.position(request)


QUESTIONS: dict[str, Ask] = {
    "lines": lambda ledger: ledger.lines(now=NOW, limit=4, heads=4),
    "overdue": lambda ledger: ledger.overdue(now=NOW, limit=4),
    "request": lambda ledger: ledger.request("request-1"),
    "by_capability": lambda ledger: ledger.by_capability("capability-1"),
    "live_for": lambda ledger: ledger.live_for("1", None, 2),
    "live_for a peer": lambda ledger: ledger.live_for("1", "peer-1", 2),
    "last_ended": lambda ledger: ledger.last_ended("29", None),
    "position": position,
    "in_progress": lambda ledger: ledger.in_progress(),
    "uploads": lambda ledger: ledger.uploads("request-1"),
    "admit": lambda ledger: ledger.admit(an_ask("new"), plenty, now=NOW, max_pending=99),
    "admit again": lambda ledger: ledger.admit(
        an_ask("1", peer="peer-1"), plenty, now=NOW, max_pending=99
    ),
    "offer failed": lambda ledger: ledger.change("request-1", refuse_offer(NOW + 5)),
    "offer taken": lambda ledger: ledger.change("request-1", to_offered),
    "first byte": lambda ledger: ledger.change("request-1", to_receiving, put=an_upload()),
    "checkpoint": lambda ledger: ledger.change("request-1", same, put=an_upload(offset=9)),
    "cancelled": lambda ledger: ledger.change("request-1", cancel),
    "purge": lambda ledger: ledger.purge(before=NOW, limit=9),
    "enqueue": lambda ledger: ledger.enqueue(an_entry()),
    "outgoing": lambda ledger: ledger.outgoing(),
    "entries_due": lambda ledger: ledger.entries_due(
        [Pick("http://localhost:3000", state, 4) for state in ("ASKING", "READY")],
        now=NOW,
        without=["entry-2"],
    ),
    "entries_for": lambda ledger: ledger.entries_for("1", 2),
    "longest_unread": lambda ledger: ledger.longest_unread(before=NOW),
    "begin_reading": lambda ledger: ledger.begin_reading("backup-1", now=NOW),
    "verified": lambda ledger: ledger.verified("backup-1", problem=None, now=NOW),
    "damaged": lambda ledger: ledger.verified("backup-1", problem="rot", now=NOW),
    "repairs": lambda ledger: ledger.repairs(now=NOW, limit=4),
    "put_repair": lambda ledger: ledger.put_repair(
        "backup-1", request_id=None, tries=1, due_at=NOW
    ),
    "copy_of": lambda ledger: ledger.copy_of(a_kept_backup()),
    "trash": lambda ledger: ledger.change_backup("backup-1", lambda one: one),
    "list of the trash": lambda ledger: ledger.backups(
        peer=None, video=None, after=0, limit=9, trash=True
    ),
    "outdated": lambda ledger: ledger.outdated(
        lambda peer: Retention(keep_last=1), now=NOW + 9, after=0, limit=9
    ),
    "retire": lambda ledger: ledger.retire(
        "backup-1", Retention(keep_last=1), by="retention", at=NOW + 9, now=NOW + 9
    ),
    "has_version": lambda ledger: ledger.has_version(a_kept_backup()),
    "trash_due": lambda ledger: ledger.trash_due(before=NOW, limit=9),
    "latest_seen": lambda ledger: ledger.latest_seen(),
    "own_time": lambda ledger: ledger.own_time(),
    "see": lambda ledger: ledger.see(NOW, NOW),
    "drop_backup": lambda ledger: ledger.drop_backup("backup-1"),
    "entry_by_capability": lambda ledger: ledger.entry_by_capability("entry-capability-1"),
}


HARMLESS = {
    "SCAN CONSTANT ROW",
    "SCAN lines",  # a purge looks at each: one to a peer and origin
    "SCAN requests USING INDEX requests_storing",  # has only those that are to go forward
    "SCAN server",  # one for each server that something goes to
}


BEYOND_PENDING = {
    "SCAN requests USING INDEX requests_active",  # has only those that have their turn
    "SCAN uploads USING COVERING INDEX ix_uploads_request_id",  # a start reads each anyway
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_question_reads_every_row(ledger: SqlLedger, question: str) -> None:
    """No statement walks through a table, or through a whole index of one."""
    result_of(ledger.enqueue(an_entry()))
    scans = {plan for plan in plans(ledger, QUESTIONS[question]) if plan.startswith("SCAN")}
    assert scans <= HARMLESS | (BEYOND_PENDING if question == "in_progress" else set())


def test_the_next_to_be_read_needs_no_sorting(ledger: SqlLedger) -> None:
    (plan,) = plans(ledger, QUESTIONS["longest_unread"])
    assert "USING INDEX backups_read" in plan


def test_storing_looks_only_at_copies_of_the_same_video(ledger: SqlLedger) -> None:
    result_of(ledger.change("request-1", lambda r: to_storing(r, "1"), put=an_upload()))
    found = plans(ledger, lambda ledger: ledger.change("request-1", store))
    assert not [plan for plan in found if plan.startswith("SCAN")]


def test_the_condition_reads_only_what_is_damaged(ledger: SqlLedger) -> None:
    """The damaged are counted in an index of their own; the oldest is the first of another."""
    damaged, oldest = plans(ledger, lambda ledger: ledger.condition())
    assert "backups_damaged" in damaged
    assert "USING INDEX backups_well" in oldest


def test_sums_are_read_from_an_index(ledger: SqlLedger) -> None:
    """Not from a million rows with all their texts."""
    (plan,) = plans(ledger, lambda ledger: ledger.kept())
    assert "USING COVERING INDEX backups_read" in plan


def test_due_requests_need_no_sorting(ledger: SqlLedger) -> None:
    """The heads of a line come in the order of their index; only lines are sorted."""
    due = plans(ledger, QUESTIONS["lines"])
    heads = [plan for plan in due if "requests" in plan]
    assert heads
    assert all("USING INDEX requests_pending" in plan for plan in heads)
    assert due.count("USE TEMP B-TREE FOR ORDER BY") <= 1
    assert any("lines_answering" in plan for plan in due)
    assert any("lines_failing" in plan for plan in due)


def test_what_is_to_be_sent_is_found_by_where_it_goes(ledger: SqlLedger) -> None:
    """By leaps from server to server, and by the first of what goes to one: nothing is sorted, and
    no row read that is not due.
    """
    for name, to in (("1", "http://a"), ("2", "http://b"), ("3", "http://b")):
        result_of(ledger.enqueue(an_entry(name, to=to)))
    servers = [plan for plan in plans(ledger, QUESTIONS["outgoing"]) if "entries" in plan]
    assert servers
    assert all("USING INDEX entries_due" in plan for plan in servers)
    _, following, *due = servers
    assert "(to>?)" in following
    assert len(due) == 4
    assert all("(to=? AND state=?)" in plan for plan in due)
    picked = plans(ledger, QUESTIONS["entries_due"])
    assert len(picked) == 2
    assert all("INDEX entries_due (to=? AND state=? AND due_at<?)" in plan for plan in picked)


def test_overdue_uses_its_indexes(ledger: SqlLedger) -> None:
    """Leases, times and steps left half-way each have an index of their own."""
    found = " ".join(plans(ledger, QUESTIONS["overdue"]))
    for index in ("requests_active", "requests_expiring", "requests_storing"):
        assert index in found
    assert "TEMP B-TREE" not in found


def test_retention_finds_newer_versions_by_an_index(ledger: SqlLedger) -> None:
    """Each look counts the good versions of one video, no more of them than the rule says."""
    found = plans(ledger, QUESTIONS["outdated"])
    page, newer = found[0], found[-1]
    assert "INTEGER PRIMARY KEY" in page
    assert "backups_good_versions (peer=? AND video=? AND stored_at>?)" in newer
    assert not [plan for plan in found if "TEMP B-TREE" in plan]


def test_the_trash_has_indexes_of_its_own(ledger: SqlLedger) -> None:
    (listed,) = plans(ledger, QUESTIONS["list of the trash"])
    assert "INDEX backups_trash " in f"{listed} "
    (due,) = plans(ledger, QUESTIONS["trash_due"])
    assert "INDEX backups_trash_due" in due


def test_setting_back_reads_only_what_is_alive(ledger: SqlLedger) -> None:
    """Of a million requests that have ended none is read."""
    found = plans(ledger, lambda ledger: ledger.set_back(9.0, own=NOW))
    for table, index in (("requests", "requests_live"), ("entries", "entries_")):
        plan = next(plan for plan in found if plan.split()[1] == table)
        assert f"INDEX {index}" in plan
