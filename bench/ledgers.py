"""Ledgers with as many rows as one likes: one written by the ledger itself, the rest its copies."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred, execute

from backupd.interfaces import Room
from backupd.ledger.sql import SqlLedger
from backupd.requests import Ask, Backup

__all__ = ["admit", "keep", "opened", "result", "wait"]

T = TypeVar("T")
P = ParamSpec("P")

LINES = 1000
"""At most so many pairs of a peer and an origin; the requests are spread over them."""

_ORIGIN = f"'http://127.0.0.1:' || (10000 + n.i % {LINES})"


def _here(f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    return execute(f, *args, **kwargs)


def result(deferred: Deferred[T]) -> T:
    """What a Deferred that has fired holds."""
    results: list[T] = []
    deferred.addCallback(results.append)
    return results[0]


def opened(path: Path) -> SqlLedger:
    """The ledger at ``path``, which does everything at once in the calling thread."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ledger = SqlLedger(f"sqlite:///{path.absolute()}", write_off=_here, read_off=_here)
    ledger.open()
    return ledger


def admit(ledger: SqlLedger, number: int, now: float) -> None:
    """A request that is due ``now``, in a line of its own."""
    origin = f"http://127.0.0.1:{10000 + number}"
    ask = Ask(
        request_id=f"id-{number}",
        peer=origin,
        origin=origin,
        video=number,
        callback=f"{origin}/offer",
        size=1024,
        capability=f"capability-{number}",
        created_at=now,
    )
    result(ledger.admit(ask, lambda *_: Room(available=2**60), now=now, max_pending=2**60))


def wait(path: Path, pending: int, due_at: float) -> None:
    """Bring the ledger to ``pending`` requests; those that come new are due after ``due_at``."""
    with closing(sqlite3.connect(path)) as connection, connection:
        new = {
            "request_id": "'id-' || n.i",
            "peer": _ORIGIN,
            "origin": _ORIGIN,
            "video": "n.i",
            "capability": "'capability-' || n.i",
            "capability_hash": "lower(hex(randomblob(32)))",
            "due_at": f"{due_at} + n.i",
        }
        _multiply(connection, "requests", pending, new)
        connection.execute(
            "INSERT OR IGNORE INTO lines (peer, origin, failures, resting_until, ready_at, "
            "last_turn) SELECT peer, origin, 0, 0, min(due_at), 0 FROM requests GROUP BY 1, 2"
        )


def keep(path: Path, kept: int) -> None:
    """Bring the ledger to ``kept`` backups, verified a moment ago; their files are not there."""
    now = time.time()
    ledger = opened(path)
    # A ledger that knows no mark would miss the files, and refuse to start.
    (path.parent / "root-mark").write_text("bench\n")
    first = Backup(
        backup_id="0" * 32,
        request_id="id-0",
        peer="http://127.0.0.1:10000",
        video=0,
        file_name="video.mp4",
        content_type="video/mp4",
        size=1024,
        sha256="0" * 64,
        stored_at=now,
        verified_at=now,
        folder="peer/0/0",
        name="video.mp4",
    )
    result(ledger.list_backup(first))
    result(ledger.close())
    with closing(sqlite3.connect(path)) as connection, connection:
        new = {
            "backup_id": "lower(hex(randomblob(16)))",
            "request_id": "'id-' || n.i",
            "peer": _ORIGIN,
            "video": "n.i",
            "folder": "'peer/' || n.i || '/0'",
        }
        _multiply(connection, "backups", kept, new)


def _multiply(
    connection: sqlite3.Connection, table: str, count: int, new: Mapping[str, str]
) -> None:
    """Copy the first row of ``table``, with what is ``new``, until there are ``count``."""
    (present,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    values = {"seq": "n.i + 1", **new}
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?) "  # noqa: S608
        f"INSERT INTO {table} ({', '.join(names)}) "
        f"SELECT {', '.join(values.get(name, f'r.{name}') for name in names)} "
        f"FROM n, (SELECT * FROM {table} WHERE seq = 1) AS r WHERE n.i < ?",
        (present, count, count),
    )
