"""Opening the ledger's file, and a look into it before that."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, delete, event, insert, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, StaticPool
from twisted.logger import Logger

from backupd.errors import LedgerFailed
from backupd.interfaces import Remembered
from backupd.ledger.batches import PUT_ASIDE, cause_of, is_broken
from backupd.ledger.schema import backups, facts, uploads

__all__ = ["LOG", "file_of", "guarded", "make_engine", "note_root", "remembered", "set_aside"]

_log = Logger()

LOG = 6 * 1024**2
"""Bytes of SQLite's log that are allocated beforehand; it is worked off at 4 MiB."""

SOME = 1000
"""So many backups, and so many uploads, are told of by a ledger that knows no root."""

_ROOT = "root"


def set_aside(path: str) -> None:
    """Allocate the log's blocks, so that a disk that others fill does not keep it from growing.

    What frees room has to be recorded too. Beyond what SQLite has written it reads as zeros, which
    are no part of a log.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(handle, 0, LOG)
        finally:
            os.close(handle)
    except OSError as error:
        _log.warn("no room could be set aside for the log of the ledger: {why}", why=error.strerror)


def make_engine(url: URL, *, in_memory: bool) -> Engine:
    """An engine whose connections commit durably."""
    pool = StaticPool if in_memory else NullPool
    engine = create_engine(url, poolclass=pool, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        # FULL: a commit is on the disk when it returns, also in WAL mode. What only serves to undo
        # a step stays in memory: a full /var/tmp must not stop the ledger.
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "temp_store=MEMORY",
            "busy_timeout=5000",
        ):
            connection.execute(f"PRAGMA {pragma}")

    return engine


@contextmanager
def guarded(url: URL) -> Iterator[None]:
    """What fails within is a `LedgerFailed` that says what to do."""
    try:
        yield
    except (SQLAlchemyError, UnicodeError) as error:
        # UnicodeError: what SQLite complains of is named by bytes from the file.
        cause = cause_of(error)
        advice = f" {PUT_ASIDE}" if is_broken(error) else ""
        raise LedgerFailed(
            f"The ledger {url.render_as_string()} could not be opened: {cause}.{advice}"
        ) from error


def file_of(url: URL) -> str | None:
    """The path of the ledger's file, None when it is in memory."""
    return None if url.database in (None, "", ":memory:") else url.database


# -- the root that it is about --------------------------------------------------------------------


def note_root(connection: Connection, mark: str) -> None:
    """From now on it is about the root with this mark."""
    if _root(connection) != mark:
        connection.execute(delete(facts).where(facts.c.name == _ROOT))
        connection.execute(insert(facts), {"name": _ROOT, "value": mark})


def _root(connection: Connection) -> str | None:
    return connection.execute(select(facts.c.value).where(facts.c.name == _ROOT)).scalar()


def remembered(where: str | URL) -> Remembered:
    """What the ledger at this URL knows of the root; see `ILedger.remembered`."""
    url = make_url(where)
    path = file_of(url)
    if path is None or not os.path.exists(path):
        return Remembered()
    engine = create_engine("sqlite://", creator=lambda: _look_into(path), poolclass=NullPool)
    with guarded(url), engine.connect() as connection:
        tables = set(inspect(connection).get_table_names())
        root = _root(connection) if facts.name in tables else None
        if root is not None or not {backups.name, uploads.name} <= tables:
            return Remembered(root)
        kept = select(backups.c.folder).order_by(backups.c.seq.desc()).limit(SOME)
        begun = select(uploads.c.upload_id).where(uploads.c.offset > 0).limit(SOME)
        return Remembered(
            None,
            folders=tuple(connection.execute(kept).scalars()),
            uploads=tuple(connection.execute(begun).scalars()),
        )


def _look_into(path: str) -> sqlite3.Connection:
    """A connection that makes no ledger, and changes nothing of what one holds."""
    # With its empty host: of a path that begins with two slashes a part would be taken for one.
    file = f"file://{quote(os.path.abspath(path))}?mode="
    reading = sqlite3.connect(f"{file}ro", uri=True)
    try:
        reading.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:
        # A journal that a crash has left is worked off by those only who may write.
        reading.close()
        return sqlite3.connect(f"{file}rw", uri=True)
    return reading
