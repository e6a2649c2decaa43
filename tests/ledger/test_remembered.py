"""The look into the ledger's file before a start: whatever state it is in, nothing is changed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from backupd.errors import LedgerFailed
from backupd.interfaces import Remembered
from backupd.ledger.opening import SOME, remembered
from backupd.ledger.sql import SqlLedger
from backupd.ledger.upgrade import upgrade
from tests.conformance.samples import NOW, a_kept_backup, an_ask, an_upload, plenty
from tests.ledger.offs import at_once
from tests.outcomes import result_of

NOTHING = Remembered()

CRASH = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
connection.execute("UPDATE facts SET value = 'half-written'")
connection.execute("CREATE TABLE much AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 "
                   "FROM n WHERE i < 20000) SELECT i, hex(randomblob(50)) FROM n")
os._exit(1)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A ledger that knows the root "mark"."""
    file = tmp_path / "a ledger?" / "ledger #1.sqlite3"
    file.parent.mkdir()
    ledger = opened(file)
    result_of(ledger.close())
    return file


def url(file: Path) -> str:
    return f"sqlite:///{str(file).replace('?', '%3F').replace('#', '%23')}"


def opened(file: Path, root: str | None = "mark") -> SqlLedger:
    ledger = SqlLedger(url(file), write_off=at_once, read_off=at_once)
    ledger.open(root)
    return ledger


def test_no_ledger(tmp_path: Path) -> None:
    """Nothing is made where none is."""
    for where in (tmp_path / "ledger", tmp_path / "not" / "there"):
        assert remembered(f"sqlite:///{where}") == NOTHING
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_was_closed(file: Path) -> None:
    data = file.read_bytes()
    assert remembered(url(file)).root == "mark"
    assert file.read_bytes() == data


def test_one_that_is_open(file: Path) -> None:
    """By the daemon that runs."""
    ledger = opened(file, "another")
    assert remembered(url(file)).root == "another"
    result_of(ledger.close())


def test_a_path_with_a_slash_too_many(file: Path) -> None:
    """A root that is written as "//srv/backups" is the one that it is everywhere else."""
    assert remembered(f"sqlite:////{url(file).removeprefix('sqlite:///')}").root == "mark"


def test_after_a_crash(file: Path, tmp_path: Path) -> None:
    """What is in the log only is read, and the log with the room set aside for it is left."""
    ledger = opened(file, "in the log")
    left = tmp_path / "left"
    left.mkdir()
    for one in (file, file.with_name(f"{file.name}-wal")):
        shutil.copy(one, left)
    result_of(ledger.close())
    log = left / f"{file.name}-wal"
    size = log.stat().st_size
    assert remembered(url(left / file.name)).root == "in the log"
    assert log.stat().st_size == size > 0


def test_a_journal_that_is_left(file: Path) -> None:
    """A crash while the file was not yet, or not any more, one with a log: it is undone first."""
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    subprocess.run([sys.executable, "-c", CRASH, str(file)], check=False)
    assert os.path.getsize(f"{file}-journal") > 0
    assert remembered(url(file)).root == "mark"


def test_an_empty_file(tmp_path: Path) -> None:
    """A crash at the very first start leaves one."""
    (tmp_path / "ledger").write_bytes(b"")
    assert remembered(f"sqlite:///{tmp_path}/ledger") == NOTHING


def test_a_ledger_of_an_older_version(tmp_path: Path) -> None:
    """It knows no mark, but what it lists."""
    path = tmp_path / "ledger"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        upgrade(connection, "0008")
    engine.dispose()
    assert remembered(f"sqlite:///{path}") == NOTHING
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute(
            "INSERT INTO backups (backup_id, request_id, peer, video, video_is_number, file_name, "
            "size, sha256, stored_at, folder, name) VALUES ('a', 'a', 'p', '2', 1, 'n', 1, 's', "
            "0, 'p/2/a', 'n')"
        )
    assert remembered(f"sqlite:///{path}").folders == ("p/2/a",)


def test_only_uploads_with_bytes(tmp_path: Path) -> None:
    """Of the others there is nothing on the right volume either."""
    ledger = opened(tmp_path / "ledger", None)
    result_of(ledger.admit(an_ask("1"), plenty, now=NOW, max_pending=100))
    uploads = [an_upload("1"), an_upload("2", offset=1, allocated=1)]
    result_of(ledger.change("request-1", lambda r: r, put=uploads))
    result_of(ledger.close())
    assert remembered(f"sqlite:///{tmp_path}/ledger") == Remembered(uploads=("upload-2",))


def test_not_a_million(tmp_path: Path) -> None:
    """Of many the newest are told of: the oldest may be lost for long."""
    ledger = opened(tmp_path / "ledger", None)
    names = [f"{number:04}" for number in range(SOME + 5)]
    for name in names:
        result_of(ledger.list_backup(a_kept_backup(name, folder=name)))
    result_of(ledger.close())
    assert set(remembered(f"sqlite:///{tmp_path}/ledger").folders) == set(names[5:])


def test_no_ledger_at_all(tmp_path: Path) -> None:
    """What is none, or damaged, is no ledger that knows nothing."""
    path = tmp_path / "ledger"
    path.write_bytes(b"no ledger at all" * 1000)
    with pytest.raises(LedgerFailed, match=r"could not be opened: .*recovery.md"):
        remembered(f"sqlite:///{path}")
    path.unlink()
    path.mkdir()
    with pytest.raises(LedgerFailed, match="could not be opened"):
        remembered(f"sqlite:///{path}")
