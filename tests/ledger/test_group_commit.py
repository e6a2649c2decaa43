"""Writers commit together, and stand or fall alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogLevel, capturedLogs

from backupd.errors import Busy, LedgerFailed, NoSuchRequest
from backupd.interfaces import Room
from backupd.ledger import batches, prepared
from backupd.ledger.sql import SqlLedger
from backupd.requests import BackupRequest, Live, Stored
from tests.conformance.ledger_case import broken, cancel, same
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
from tests.ledger.offs import WhenTold, at_once
from tests.outcomes import pending, result_of

Answer = Deferred[tuple[Live | None, Room]]


@pytest.fixture
def off() -> WhenTold:
    return WhenTold()


@pytest.fixture
def ledger(off: WhenTold, tmp_path: Path) -> Iterator[SqlLedger]:
    ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger", write_off=off, read_off=at_once)
    ledger.open()
    yield ledger
    closed = ledger.close()
    while off.waiting:
        off.run()
    result_of(closed)


def admit(ledger: SqlLedger, name: str, **more: Any) -> Answer:
    return ledger.admit(an_ask(name, **more), plenty, now=NOW, max_pending=1000)


@contextmanager
def statements(look: Callable[[str], None]) -> Iterator[None]:
    """Show every statement to ``look`` before it runs; what it raises, the database raises."""

    def before(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        look(statement)

    plain = prepared.run_plain

    def run(connection: Connection, statement: str, values: tuple[Any, ...] = ()) -> Any:
        look(statement)
        return plain(connection, statement, values)

    event.listen(Engine, "before_cursor_execute", before)
    try:
        with mock.patch.object(prepared, "run_plain", run):
            yield
    finally:
        event.remove(Engine, "before_cursor_execute", before)


@contextmanager
def failing(start: str) -> Iterator[None]:
    """Every statement that begins so fails."""

    def look(statement: str) -> None:
        if statement.startswith(start):
            raise OperationalError(statement, {}, OSError("disk I/O error"))

    with statements(look):
        yield


# -- many, one commit -----------------------------------------------------------------------------


def test_many_steps_share_a_commit(ledger: SqlLedger, off: WhenTold) -> None:
    """What is asked while a batch is under way waits, and commits together: one sync for many."""
    first = admit(ledger, "first")
    answers = [admit(ledger, str(number)) for number in range(100)]
    assert len(off.waiting) == 1
    seen: list[str] = []
    with statements(seen.append):
        off.run()
        assert seen.count("COMMIT") == 1
        assert not pending(first)
        assert all(pending(answer) for answer in answers)
        off.run()
    assert seen.count("COMMIT") == 2
    assert all(result_of(answer)[0] is not None for answer in answers)
    assert off.waiting == []


def test_batches_are_bounded(ledger: SqlLedger, off: WhenTold) -> None:
    """No number of steps makes one transaction endless."""
    answers = [admit(ledger, str(number)) for number in range(2 + batches.MAX_BATCH)]
    off.run()
    off.run()
    assert [pending(answer) for answer in answers].count(True) == 1
    off.run()
    assert not any(pending(answer) for answer in answers)


def test_waiting_is_bounded(
    ledger: SqlLedger, off: WhenTold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than so many do not wait: they are told to come again."""
    monkeypatch.setattr(batches, "MAX_WAITING", 3)
    answers = [admit(ledger, str(number)) for number in range(5)]
    with pytest.raises(Busy):
        result_of(answers.pop())
    off.run()
    off.run()
    assert all(result_of(answer)[0] for answer in answers)


def test_order(ledger: SqlLedger, off: WhenTold) -> None:
    """Steps are done and answered in the order of the calls; each sees those before it."""
    order: list[str] = []
    admit(ledger, "1").addCallback(lambda _: order.append("admitted"))
    changed = ledger.change("request-1", to_offered)
    changed.addCallback(lambda _: order.append("offered"))
    ended = ledger.change("request-1", cancel)
    ended.addCallback(lambda _: order.append("cancelled"))
    while off.waiting:
        off.run()
    assert order == ["admitted", "offered", "cancelled"]


def test_nothing_is_seen_before_the_commit(ledger: SqlLedger, off: WhenTold) -> None:
    """Totals and watchers learn of a change when it is committed, and before its caller does."""
    seen: list[str] = []
    ledger.watch(lambda request: seen.append("watched"))
    answer = admit(ledger, "1").addCallback(lambda _: seen.append("answered"))
    assert result_of(ledger.totals()).live == 0
    assert pending(answer)
    off.run()
    assert result_of(ledger.totals()).live == 1
    assert seen == ["watched", "answered"]


def test_two_that_do_not_fit_together_in_one_batch(ledger: SqlLedger, off: WhenTold) -> None:
    """The second of a batch is asked with the first's promise."""

    def room(promised: int, growth: int) -> Room:
        left = 100 - promised
        return Room(available=left, reason=None if growth <= left else "insufficient-space")

    admit(ledger, "0", size=1)  # the two that follow share a batch
    answers = [
        ledger.admit(an_ask(name, size=60), room, now=NOW, max_pending=9) for name in ("1", "2")
    ]
    off.run()
    off.run()
    (one, _), (two, found) = (result_of(answer) for answer in answers)
    assert one is not None
    assert two is None
    assert found == Room(available=39, reason="insufficient-space")


# -- alone ----------------------------------------------------------------------------------------


def test_one_that_raises_harms_no_other(ledger: SqlLedger, off: WhenTold) -> None:
    """What one step raises, or writes before it raises, is undone alone."""
    admit(ledger, "1", size=10)
    before = ledger.change("request-1", to_receiving, put=an_upload("a", allocated=4))
    bad = [
        ledger.change("request-1", broken, put=an_upload("b", allocated=4)),
        ledger.change("request-none", same),
        # The upload is written, then the offset of another is refused.
        ledger.change("request-1", cancel, put=an_upload("a", offset=-1)),
    ]
    after = admit(ledger, "2", size=20)
    while off.waiting:
        off.run()
    result_of(before)
    for answer, error in zip(bad, (ZeroDivisionError, NoSuchRequest, LedgerFailed), strict=True):
        with pytest.raises(error):
            result_of(answer)
    assert result_of(after)[0] is not None
    assert result_of(ledger.totals()).promised == 6 + 20
    assert len(result_of(ledger.uploads(None))) == 1


def test_a_row_that_is_there_already_harms_no_other(ledger: SqlLedger, off: WhenTold) -> None:
    """A second row of the same id fails its own step and leaves the batch alone."""
    answers = [
        admit(ledger, "1"),
        admit(ledger, "2", request_id="request-1"),
        admit(ledger, "3", capability="capability-1"),
        admit(ledger, "4"),
    ]
    entries = [ledger.enqueue(an_entry("1")), ledger.enqueue(an_entry("1", path="/other"))]
    while off.waiting:
        off.run()
    assert result_of(answers[0])[0]
    assert result_of(answers[3])[0]
    result_of(entries[0])
    twice: list[Deferred[Any]] = [answers[1], answers[2], entries[1]]
    for answer in twice:
        with pytest.raises(LedgerFailed) as caught:
            result_of(answer)
        assert "capability-1" not in str(caught.value)
    assert result_of(ledger.totals()).promised == 100
    assert len(result_of(ledger.all_live())) == 2


def test_a_caller_that_left(ledger: SqlLedger, off: WhenTold) -> None:
    """Cancelling gives up the answer; the step is done all the same."""
    one, two = admit(ledger, "1"), admit(ledger, "2")
    for answer in (one, two):
        answer.cancel()
        with pytest.raises(CancelledError):
            result_of(answer)
    off.run()
    off.run()
    assert result_of(ledger.totals()).live == 2


def test_an_observer_that_fails(ledger: SqlLedger, off: WhenTold) -> None:
    """A defect of one observer is logged; the others, and those who wait, learn what happened."""
    seen: list[BackupRequest] = []

    def defective(request: BackupRequest) -> None:
        raise ZeroDivisionError

    ledger.watch(defective)
    ledger.watch(seen.append)
    answers = [admit(ledger, "1"), admit(ledger, "2")]
    with capturedLogs() as logged:
        while off.waiting:
            off.run()
    assert [request for answer in answers if (request := result_of(answer)[0])] == seen
    assert [event["log_failure"].type for event in logged] == [ZeroDivisionError] * 2


# -- together -------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["COMMIT", "BEGIN", "RELEASE"])
def test_a_commit_that_fails(ledger: SqlLedger, off: WhenTold, at: str) -> None:
    """All of the batch fail with `LedgerFailed`, nothing of it has happened, and the next works."""
    seen: list[BackupRequest] = []
    ledger.watch(seen.append)
    admit(ledger, "1")
    off.run()
    totals = result_of(ledger.totals())
    del seen[:]
    opening = ledger.change("request-1", same)
    answers = [ledger.change("request-1", cancel), ledger.change("request-1", broken)]
    others = [admit(ledger, "2"), admit(ledger, "1", size=9999)]
    off.run()
    result_of(opening)
    with failing(at):
        off.run()
    together: list[Deferred[Any]] = [*answers, *others]
    for answer in together:
        with pytest.raises(LedgerFailed, match="disk I/O error"):
            result_of(answer)
    assert result_of(ledger.totals()) == totals
    assert seen == []
    assert [request.ask for request in result_of(ledger.all_live())] == [an_ask("1")]
    again = admit(ledger, "2")
    off.run()
    assert result_of(again)[0] is not None
    assert result_of(ledger.totals()).promised == 100
    assert len(seen) == 1


def test_trouble(ledger: SqlLedger, off: WhenTold) -> None:
    """A ledger that cannot commit says so, in the log once, until something is written again."""

    def trouble() -> str | None:
        answer = ledger.trouble()
        while off.waiting:
            off.run()
        return result_of(answer)

    admit(ledger, "1")
    off.run()
    assert trouble() is None
    with capturedLogs() as log, failing("COMMIT"):
        for name in ("2", "3"):
            answer = admit(ledger, name, capability="secret")
            off.run()
            with pytest.raises(LedgerFailed):
                result_of(answer)
        told = trouble()
    assert told is not None
    assert "disk I/O error" in told
    (line,) = [event for event in log if event["log_level"] is LogLevel.error]
    assert "disk I/O error" in line["why"]
    assert "secret" not in str(line)
    nothing = ledger.change("request-1", same)
    off.run()
    result_of(nothing)
    assert ledger._batches.failing == told, "an empty transaction says nothing"
    assert trouble() is None
    with capturedLogs() as log, failing("COMMIT"):
        admit(ledger, "4").addErrback(lambda _: None)
        off.run()
    assert [event["log_level"] for event in log] == [LogLevel.error]
    admit(ledger, "5")
    off.run()
    assert ledger._batches.failing is None


def test_a_step_that_fails_is_no_trouble(ledger: SqlLedger, off: WhenTold) -> None:
    """What one step raises says nothing of the ledger."""
    answer = ledger.change("request-none", same)
    off.run()
    with pytest.raises(NoSuchRequest):
        result_of(answer)
    assert result_of(ledger.trouble()) is None


def test_a_full_disk(ledger: SqlLedger, off: WhenTold) -> None:
    """When SQLite itself runs out of room the cause is told, and what was promised stands."""
    admit(ledger, "1")
    off.run()
    writer = ledger._writer
    assert writer is not None
    pages = writer.exec_driver_sql("PRAGMA page_count").scalar()
    writer.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    answers = [admit(ledger, str(number), file_name="x" * 4000) for number in range(2, 9)]
    off.run()
    off.run()
    with suppress(LedgerFailed):
        result_of(answers.pop(0))  # a batch of its own, which may have found the last pages
    for answer in answers:
        with pytest.raises(LedgerFailed, match="full"):
            result_of(answer)
    live = result_of(ledger.all_live())
    assert result_of(ledger.totals()).live == len(live)
    writer.exec_driver_sql("PRAGMA max_page_count=100000")
    again = admit(ledger, "9", file_name="x" * 4000)
    off.run()
    assert result_of(again)[0] is not None
    assert result_of(ledger.totals()).live == len(live) + 1


def test_close_commits_what_waits(ledger: SqlLedger, off: WhenTold) -> None:
    """Whatever was asked before the end is committed; what comes later fails, and says so."""
    answers = [admit(ledger, str(number)) for number in range(3)]
    closed = ledger.close()
    assert pending(closed)
    while off.waiting:
        off.run()
    result_of(closed)
    assert all(result_of(answer)[0] is not None for answer in answers)
    with pytest.raises(LedgerFailed, match="closed"):
        result_of(admit(ledger, "late"))
    with pytest.raises(LedgerFailed, match="closed"):
        result_of(ledger.all_live())


def test_nothing_is_begun_while_it_closes(tmp_path: Path, off: WhenTold) -> None:
    """The threads of reading and writing are two: no step may find its connection being closed."""
    reading = WhenTold()
    ledger = SqlLedger(f"sqlite:///{tmp_path}/other", write_off=off, read_off=reading)
    ledger.open()
    closed = ledger.close()
    late = admit(ledger, "late")
    assert not off.waiting
    with pytest.raises(LedgerFailed, match="closed"):
        result_of(late)
    reading.run()
    result_of(closed)


def test_stored_and_released_in_one_commit(ledger: SqlLedger, off: WhenTold) -> None:
    """STORED, the list of backups and the released room become true at one instant."""
    admit(ledger, "1")
    off.run()
    moved = ledger.change("request-1", to_storing)
    off.run()
    result_of(moved)
    stored = ledger.change(
        "request-1",
        lambda r: Stored(ask=r.ask, backup_id="backup-1", size=1, sha256="", ended_at=NOW),
    )
    with failing("COMMIT"):
        off.run()
    with pytest.raises(LedgerFailed):
        result_of(stored)
    assert result_of(ledger.backups(peer=None, video=None, after=0, limit=9)) == []
    assert result_of(ledger.totals()).promised == 50
    seen: list[str] = []
    stored = ledger.change(
        "request-1",
        lambda r: Stored(ask=r.ask, backup_id="backup-1", size=1, sha256="", ended_at=NOW),
    )
    with statements(seen.append):
        off.run()
    result_of(stored)
    assert seen.count("COMMIT") == 1
    assert result_of(ledger.backup("backup-1")) == a_kept_backup("1")
    assert result_of(ledger.totals()).promised == 0
