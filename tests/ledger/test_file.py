"""The ledger's file: what survives, what is refused, and its schema."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, text
from twisted.internet.defer import Deferred

from backupd.errors import LedgerFailed, LedgerTooNew
from backupd.ledger.opening import LOG
from backupd.ledger.schema import metadata
from backupd.ledger.sql import SqlLedger
from backupd.ledger.upgrade import upgrade
from backupd.requests import lapsed
from backupd.settings import Settings
from tests.conformance.ledger_case import cancel, refuse_offer, same
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
from tests.ledger.offs import WhenTold, at_once
from tests.outcomes import result_of

Open = Callable[[], SqlLedger]


@pytest.fixture
def open_ledger(tmp_path: Path) -> Iterator[Open]:
    """Opens the same ledger again and again; the one before is closed, or left as by a crash."""
    opened: list[SqlLedger] = []

    def open_it() -> SqlLedger:
        url = f"sqlite:///{tmp_path}/ledger.sqlite3"
        ledger = SqlLedger(url, write_off=at_once, read_off=at_once)
        ledger.open()
        opened.append(ledger)
        return ledger

    yield open_it
    for ledger in opened:
        result_of(ledger.close())


def fill(ledger: SqlLedger) -> None:
    """Something in every state and every table."""
    for name in "12345678":
        ask = an_ask(name, peer=f"peer-{int(name) % 3}", size=50 + int(name))
        result_of(ledger.admit(ask, plenty, now=NOW, max_pending=100))
    for name, step, allocated in (
        ("2", to_offered, 0),
        ("3", to_receiving, 20),
        ("4", lambda r: to_received(r, "4"), 90),
        ("5", lambda r: to_storing(r, "5"), 55),
        ("6", cancel, 0),
        ("7", refuse_offer(NOW + 5), 0),
        ("8", lambda r: lapsed(to_offered(r), now=NOW + 1e6), 10),
    ):
        put = an_upload(name, name, allocated=allocated, offset=allocated // 2)
        result_of(ledger.change(f"request-{name}", step, put=put))
    result_of(ledger.list_backup(a_kept_backup()))
    result_of(ledger.enqueue(an_entry()))
    result_of(ledger.enqueue(an_entry("2", state="FAILED")))


def test_the_room_for_its_log_is_set_aside(open_ledger: Open, tmp_path: Path) -> None:
    """On a disk that others fill it can still record what is deleted, from the first start on,
    and after a crash; what was recorded is read past the room that is not used.
    """
    log = tmp_path / "ledger.sqlite3-wal"
    for start in range(3):
        ledger = open_ledger()
        assert log.stat().st_blocks * 512 >= LOG
        assert result_of(ledger.latest_seen()) == (float(start) if start else None)
        result_of(ledger.see(start + 1.0, start + 1.0))
        assert log.stat().st_blocks * 512 >= LOG


def everything(ledger: SqlLedger) -> list[Any]:
    """All that a ledger tells."""
    answers: list[Deferred[Any]] = [
        ledger.requests(live=None, peer=None, after=0, limit=100),
        ledger.all_live(),
        ledger.uploads(None),
        ledger.backups(peer=None, video=None, after=0, limit=100),
        ledger.entries(over=None, after=0, limit=100),
        ledger.totals(),
        ledger.lines(now=NOW + 9, limit=10, heads=10),
    ]
    return [result_of(answer) for answer in answers]


def test_all_survives(open_ledger: Open) -> None:
    """All that was committed is there after closing and opening, the sums counted anew too."""
    ledger = open_ledger()
    fill(ledger)
    before = everything(ledger)
    result_of(ledger.close())
    assert everything(open_ledger()) == before


def test_all_survives_a_crash(open_ledger: Open) -> None:
    """What was answered is in the file although nobody closed it."""
    ledger = open_ledger()
    fill(ledger)
    assert everything(open_ledger()) == everything(ledger)


def test_turns_survive(open_ledger: Open) -> None:
    """After a restart the peer that was served last is still the one that waits longest."""
    ledger = open_ledger()
    for name, peer in (("1", "a"), ("2", "a"), ("3", "b"), ("4", "b")):
        result_of(ledger.admit(an_ask(name, peer=peer), plenty, now=NOW, max_pending=9))
    result_of(ledger.change("request-1", to_offered))
    ledger = open_ledger()
    lines = result_of(ledger.lines(now=NOW, limit=9, heads=1))
    assert [line.peer for line in lines] == ["b", "a"]
    result_of(ledger.change("request-3", to_offered))
    lines = result_of(ledger.lines(now=NOW, limit=9, heads=1))
    assert [line.peer for line in lines] == ["a", "b"]


def test_allocation_is_counted_from_the_uploads(open_ledger: Open, tmp_path: Path) -> None:
    """What a request owes is recounted from its uploads, whatever was noted beside it."""
    ledger = open_ledger()
    fill(ledger)
    totals = result_of(ledger.totals())
    result_of(ledger.close())
    engine = create_engine(f"sqlite:///{tmp_path}/ledger.sqlite3")
    with engine.begin() as connection:
        connection.execute(text("UPDATE requests SET allocated = 7"))
    engine.dispose()
    ledger = open_ledger()
    assert result_of(ledger.totals()) == totals
    result_of(ledger.change("request-3", same, drop=["upload-3"]))
    assert result_of(ledger.totals()).promised == totals.promised + 20


def test_newer_ledger(open_ledger: Open, tmp_path: Path) -> None:
    """A ledger of a version that is not known is refused, and not touched."""
    result_of(open_ledger().close())
    engine = create_engine(f"sqlite:///{tmp_path}/ledger.sqlite3")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerTooNew, match="9999"):
        open_ledger()
    with engine.begin() as connection:
        assert (
            connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
        )
    engine.dispose()


@pytest.mark.parametrize(
    "content", [b"no database at all" * 100, b"SQLite format 3\0" + b"x" * 999]
)
def test_no_ledger(open_ledger: Open, tmp_path: Path, content: bytes) -> None:
    """A file that is no ledger is refused, and stays as it is."""
    file = tmp_path / "ledger.sqlite3"
    file.write_bytes(content)
    with pytest.raises(LedgerFailed, match="could not be opened"):
        open_ledger()
    assert file.read_bytes() == content


def test_whose_damage_has_a_name_that_is_no_text(open_ledger: Open, tmp_path: Path) -> None:
    """Refused like any other, with what to do about it."""
    result_of(open_ledger().close())
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET name = CAST(x'9c9c' AS TEXT), sql = 'no statement' "
            "WHERE name = 'backups'"
        )
        connection.commit()
    with pytest.raises(LedgerFailed, match=r"could not be opened: .*docs/recovery\.md"):
        open_ledger()


def test_damage_that_is_met_later(open_ledger: Open, tmp_path: Path) -> None:
    """It is no matter of trying again: what is told says what to do, and `/readyz` from then on."""
    result_of(open_ledger().close())
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'backups'"
        ((page,),) = connection.execute(query)
        ((size,),) = connection.execute("PRAGMA page_size")
    with (tmp_path / "ledger.sqlite3").open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    ledger = open_ledger()
    assert result_of(ledger.trouble()) is None
    with pytest.raises(LedgerFailed, match=r"is damaged: .*docs/recovery\.md"):
        result_of(ledger.backups(peer=None, video=None, after=0, limit=9))
    assert "is damaged" in str(result_of(ledger.trouble()))


def test_a_text_that_is_none_any_more(open_ledger: Open, tmp_path: Path) -> None:
    """Its row is damage too; what is left of it is not told: it may be a secret."""
    ledger = open_ledger()
    ask = an_ask("1")
    result_of(ledger.admit(ask, plenty, now=NOW, max_pending=100))
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as connection:
        connection.execute("UPDATE requests SET capability = CAST(x'ff736563726574' AS TEXT)")
        connection.commit()
    with pytest.raises(
        LedgerFailed, match=r"is damaged: .*capability.*docs/recovery\.md"
    ) as failed:
        result_of(ledger.request(ask.request_id))
    assert "secret" not in str(failed.value)
    assert "is damaged" in str(result_of(ledger.trouble()))


@pytest.mark.parametrize("column", ["peer", "origin"])
def test_a_line_that_is_none_any_more(open_ledger: Open, tmp_path: Path, column: str) -> None:
    """Nor is what is left of a line told where turns are given, over and over."""
    ledger = open_ledger()
    result_of(ledger.admit(an_ask("1"), plenty, now=NOW, max_pending=100))
    spoil(tmp_path, "UPDATE lines SET COLUMN = SPOILT".replace("COLUMN", column))
    with pytest.raises(LedgerFailed, match=rf"is damaged: .*{column}.*docs/recovery\.md") as failed:
        result_of(ledger.lines(now=NOW, limit=9, heads=9))
    assert "secret" not in str(failed.value)
    assert "is damaged" in str(result_of(ledger.trouble()))


@pytest.mark.parametrize("together", [1, 2])
def test_a_line_that_a_step_meets(tmp_path: Path, together: int) -> None:
    """A step that meets damage fails by it, alone or beside others; it is no defect of ours."""
    off = WhenTold()
    ledger = SqlLedger(f"sqlite:///{tmp_path}/ledger.sqlite3", write_off=off, read_off=at_once)
    ledger.open()
    ledger.admit(an_ask("1"), plenty, now=NOW, max_pending=100)
    steps = [ledger.change("request-1", refuse_offer(NOW + 5)) for _ in range(together)]
    off.run()
    spoil(tmp_path, "UPDATE lines SET failures = SPOILT")
    off.run()
    for step in steps:
        with pytest.raises(LedgerFailed, match=r"is damaged: .*failures") as failed:
            result_of(step)
        assert "secret" not in str(failed.value)
    assert "is damaged" in str(result_of(ledger.trouble()))
    result_of(ledger.close())


def test_a_complaint_that_is_no_text(open_ledger: Open, tmp_path: Path) -> None:
    """What SQLite says of damage may have bytes of the file in it; a step tells it all the same."""
    ledger = open_ledger()
    spoil(
        tmp_path,
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET name = SPOILT, sql = 'no statement' WHERE name = 'backups'",
        "PRAGMA schema_version = 1000",
    )
    with pytest.raises(LedgerFailed, match=r"is damaged: .*docs/recovery\.md"):
        result_of(ledger.admit(an_ask("1"), plenty, now=NOW, max_pending=100))
    assert "is damaged" in str(result_of(ledger.trouble()))


SPOILT = "CAST(x'ff736563726574' AS TEXT)"  # "secret", after a byte that is none of a text


def spoil(folder: Path, *statements: str) -> None:
    """Do this to the ledger's file beside it."""
    with closing(sqlite3.connect(folder / "ledger.sqlite3")) as connection:
        for statement in statements:
            connection.execute(statement.replace("SPOILT", SPOILT))
        connection.commit()


def test_no_folder(tmp_path: Path) -> None:
    """A ledger in a folder that is not there cannot be opened."""
    ledger = SqlLedger(f"sqlite:///{tmp_path}/none/x", write_off=at_once, read_off=at_once)
    with pytest.raises(LedgerFailed, match="could not be opened"):
        ledger.open()


def test_schema(open_ledger: Open, tmp_path: Path) -> None:
    """The numbered upgrades lead to exactly the schema that the program speaks to."""
    open_ledger()
    engine = create_engine(f"sqlite:///{tmp_path}/ledger.sqlite3")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    with engine.connect() as connection:
        found = set(connection.execute(text(DEFINITIONS)).scalars())
    engine.dispose()
    plain = create_engine("sqlite://")
    with plain.begin() as connection:
        metadata.create_all(connection)
        wanted = set(connection.execute(text(DEFINITIONS)).scalars())
    plain.dispose()
    # compare_metadata is blind to the conditions of partial indexes.
    assert found == wanted


def test_an_older_ledger_learns_the_way_back(open_ledger: Open, tmp_path: Path) -> None:
    """From the requests that are not forgotten yet; what was known to be damaged is due."""
    engine = create_engine(f"sqlite:///{tmp_path}/ledger.sqlite3")
    with engine.begin() as connection:
        upgrade(connection, "0001")
        for table, values in (
            ("requests", OLD_REQUEST),
            ("backups", OLD_BACKUP | {"seq": 1, "backup_id": "a", "request_id": "r"}),
            ("backups", OLD_BACKUP | {"seq": 2, "backup_id": "b", "request_id": "forgotten"}),
        ):
            names = ", ".join(values)
            marks = ", ".join(f":{name}" for name in values)
            statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"  # noqa: S608
            connection.execute(text(statement), values)
    engine.dispose()
    ledger = open_ledger()
    (repair,) = result_of(ledger.repairs(now=NOW, limit=9))
    assert (repair.backup.backup_id, repair.callback) == ("a", "http://b:1/ready")
    assert repair.origin == "http://b:1"
    unread = result_of(ledger.longest_unread(before=NOW + 1))
    assert unread is not None
    assert result_of(ledger.longest_unread(before=NOW)) is None


def test_an_older_ledger_gives_nobody_up_for_those_before(
    open_ledger: Open, tmp_path: Path
) -> None:
    """A line that failed, and in which nobody waits, has no time that is over; others keep it."""
    engine = create_engine(f"sqlite:///{tmp_path}/ledger.sqlite3")
    row = text(
        "INSERT INTO lines"
        " (peer, origin, failures, resting_until, last_turn, ready_at, gives_up_at)"
        " VALUES (:peer, 'o', 1, 0, 0, :ready_at, :now)"
    )
    with engine.begin() as connection:
        upgrade(connection, "0006")
        for peer, ready_at in (("a", None), ("b", NOW)):
            connection.execute(row, {"peer": peer, "ready_at": ready_at, "now": NOW})
    engine.dispose()
    open_ledger()
    engine = create_engine(f"sqlite:///{tmp_path}/ledger.sqlite3")
    with engine.connect() as connection:
        told = connection.execute(text("SELECT peer, gives_up_at FROM lines ORDER BY peer")).all()
    engine.dispose()
    assert [tuple(one) for one in told] == [("a", None), ("b", NOW)]


OLD_REQUEST = {
    "request_id": "r",
    "peer": "p",
    "origin": "http://b:1",
    "video": "2",
    "video_is_number": True,
    "callback": "http://b:1/ready",
    "size": 5,
    "capability": "c",
    "capability_hash": "h",
    "created_at": NOW,
    "state": "STORED",
    "tries": 0,
    "attempts": 0,
    "accepted": True,
    "allocated": 0,
    "ended_at": NOW,
}
OLD_BACKUP = {
    "peer": "p",
    "video": "2",
    "video_is_number": True,
    "file_name": "2.mp4",
    "size": 5,
    "sha256": "ab" * 32,
    "stored_at": NOW,
    "verified_at": NOW,
    "folder": "p/2/a",
    "name": "2.mp4",
    "problem": "rot",
}
DEFINITIONS = "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"


def test_a_commit_is_on_the_disk(open_ledger: Open) -> None:
    """Both connections write ahead and sync at every commit; the journal is no matter of taste."""
    ledger = open_ledger()
    for connection in (ledger._writer, ledger._reader):
        assert connection is not None
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


@pytest.mark.parametrize("name", ["what?", "100%", "%41", "a#b", "é ☂", "a&b=c", "a:b@c"])
def test_default_ledger_under_any_root(tmp_path: Path, name: str) -> None:
    """Whatever the root is called, the ledger lies under it."""
    settings = Settings(root=str(tmp_path / name))
    own = Path(settings.own_folder)
    own.mkdir(parents=True)
    ledger = SqlLedger(settings.ledger_url, write_off=at_once, read_off=at_once)
    ledger.open()
    result_of(ledger.close())
    assert (own / "ledger.sqlite3").is_file()
