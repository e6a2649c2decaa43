"""What the torture holds against a ledger: nothing acknowledged may be missing from it."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert

from backupd.interfaces import Upload
from backupd.ledger import schema
from backupd.ledger.rows import request_row, upload_row
from backupd.requests import Ask, BackupRequest, Expired, Received, Receiving, Stored
from tests.torture.books import Books
from tests.torture.wire import Wire

ASK = Ask(
    request_id="the-request",
    peer="local",
    origin="",
    video=1,
    callback="http://localhost:1/ready",
    size=100,
    capability="secret",
    created_at=0.0,
)
LINK = "/api/v1/backup/receive-backup/secret"
RECEIVING = Receiving(ask=ASK, lease_until=9.0)


def upload(
    name: str,
    offset: int,
    *,
    length: int | None = None,
    partial: bool = False,
    parts: tuple[str, ...] = (),
) -> Upload:
    return Upload(
        upload_id=name,
        request_id=ASK.request_id,
        length=length,
        offset=offset,
        allocated=offset,
        created_at=0.0,
        changed_at=0.0,
        partial=partial,
        parts=parts,
    )


def books(folder: Path, request: BackupRequest, *uploads: Upload) -> Books:
    """A ledger with this request and its uploads."""
    path = folder / "ledger.sqlite3"
    engine = create_engine(f"sqlite:///{path}")
    schema.metadata.create_all(engine)
    with engine.begin() as connection:
        row = request_row(request) | {"allocated": sum(one.allocated for one in uploads)}
        connection.execute(insert(schema.requests), row)
        for one in uploads:
            connection.execute(insert(schema.uploads), upload_row(one))
    engine.dispose()
    with closing(sqlite3.connect(path)) as read:
        return Books(folder, read)


def test_what_is_there_is_there(tmp_path: Path) -> None:
    found = books(tmp_path, RECEIVING, upload("one", 60))
    found.check_acknowledged({f"{LINK}/one": 60, LINK: 59})


def test_an_upload_that_has_vanished_is_missed(tmp_path: Path) -> None:
    """By whatever path it was spoken of; a request that lives on is no excuse for it."""
    found = books(tmp_path, RECEIVING)
    for path in (f"{LINK}/one", LINK, "/api/v1/uploads/secret", "/api/v1/uploads/unknown"):
        with pytest.raises(AssertionError, match="no such"):
            found.check_acknowledged({path: 1})


def test_an_upload_that_has_less_is_missed(tmp_path: Path) -> None:
    found = books(tmp_path, RECEIVING, upload("one", 60))
    for path in (f"{LINK}/one", LINK):
        with pytest.raises(AssertionError, match="61 bytes were acknowledged"):
            found.check_acknowledged({path: 61})


def test_what_is_stored_has_no_upload_any_more(tmp_path: Path) -> None:
    stored = Stored(ask=ASK, backup_id="b", size=100, sha256="", ended_at=5.0)
    books(tmp_path, stored).check_acknowledged({f"{LINK}/one": 100, LINK: 100})


def test_what_ran_out_was_not_kept(tmp_path: Path) -> None:
    """Nobody lets anything run out there."""
    expired = Expired(ask=ASK, reason="late", ended_at=5.0)
    with pytest.raises(AssertionError, match="EXPIRED"):
        books(tmp_path, expired).check_acknowledged({f"{LINK}/one": 100})


def test_what_is_whole_is_told_by_its_link_however_it_came(tmp_path: Path) -> None:
    received = Received(ask=ASK, upload_id="all", size=100, sha256="")
    whole = upload("all", 100, length=100, parts=("one", "two"))
    books(tmp_path, received, whole).check_acknowledged({LINK: 100, f"{LINK}/two": 40})


def test_parts_are_in_what_joins_them(tmp_path: Path) -> None:
    """One after the other; but not while bytes of theirs are nowhere."""
    two = upload("two", 40, length=40, partial=True)
    final = upload("all", 60, length=100, parts=("one", "two"))
    acknowledged = {f"{LINK}/one": 60, f"{LINK}/two": 40}
    books(tmp_path, RECEIVING, two, final).check_acknowledged(acknowledged)
    (tmp_path / "ledger.sqlite3").unlink()
    with pytest.raises(AssertionError, match=f"{LINK}/one"):
        books(tmp_path, RECEIVING, replace(two, offset=39), final).check_acknowledged(acknowledged)


# -- what had to be sent again ---------------------------------------------------------------------


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


def exchange(wire: Wire, method: str, path: str, at: int, body: int, answer: str) -> None:
    """One request that goes through the door, and what came back."""
    with socket.socket() as client:
        head = f"{method} {path} HTTP/1.1\r\nUpload-Offset: {at}\r\n\r\n".encode()
        wire.said(client, head + b"x" * body)
        wire.answered(client, f"HTTP/1.1 {answer}\r\n\r\n".encode())


def test_bytes_behind_the_offset_are_sent_again(wire: Wire) -> None:
    exchange(wire, "PATCH", f"{LINK}/one", 0, 50, "500 Broken")
    exchange(wire, "PATCH", f"{LINK}/one", 20, 30, "204 Well\r\nUpload-Offset: 50")
    assert wire.resent == [30]
    assert wire.offsets() == {f"{LINK}/one": 50}


def test_an_upload_that_is_gone_is_sent_again_under_another_name(wire: Wire) -> None:
    """All of it, and of its other parts that are gone too; what it had stays acknowledged."""
    exchange(wire, "PATCH", f"{LINK}/one", 0, 50, "204 Well\r\nUpload-Offset: 50")
    exchange(wire, "PATCH", f"{LINK}/two", 0, 20, "204 Well\r\nUpload-Offset: 20")
    for name in ("one", "two"):
        exchange(wire, "HEAD", f"{LINK}/{name}", 0, 0, "404 Not Found")
    assert wire.resent == []
    exchange(wire, "PATCH", f"{LINK}/three", 0, 10, "204 Well\r\nUpload-Offset: 10")
    assert wire.resent == [70]
    assert wire.offsets() == {f"{LINK}/one": 50, f"{LINK}/two": 20, f"{LINK}/three": 10}


def test_parts_that_were_joined_are_not_sent_again(wire: Wire) -> None:
    """They are gone as well, and nobody begins anew."""
    exchange(wire, "PATCH", f"{LINK}/one", 0, 50, "204 Well\r\nUpload-Offset: 50")
    exchange(wire, "HEAD", f"{LINK}/one", 0, 0, "404 Not Found")
    exchange(wire, "HEAD", LINK, 0, 0, "200 Well\r\nUpload-Offset: 50")
    assert wire.resent == []
