"""The sending role over real sockets, against the original's receiver in a few lines."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from backupd.interfaces import Entry
from backupd.ledger.sql import SqlLedger
from backupd.links import Links
from backupd.peer.client import make_client
from backupd.sender.outbox import Outbox
from backupd.settings import Settings
from backupd.threads import Threads
from backupd.waiting import go_on
from tests.peer.plain import Connection, Plain, answer

reactor: Any = global_reactor
OVER = ("VERIFIED", "UNVERIFIED", "FAILED")


class Original:
    """Says yes, takes the bytes, says that they are stored; what breaks is up to the test."""

    def __init__(self, *, resumable: bool = False, cut_at: int | None = None) -> None:
        self.plain = Plain(self._serve)
        self.asked: list[dict[str, Any]] = []
        self.kept = b""
        self.completed: list[dict[str, Any]] = []
        self.resumable = resumable
        self.cut_at = cut_at

    def _serve(self, connection: Connection) -> None:
        method, path, _ = connection.line.split()
        if path.endswith("/can-accept-backup"):
            self.asked.append(json.loads(connection.read()))
            connection.say(answer("200 OK", b'{"success": true, "message": "yes"}'))
        elif method == "OPTIONS":
            connection.say(answer("200 OK", b"POST", "Allow: POST"))
        elif path == "/receive" and method == "HEAD":
            offset = f"Upload-Offset: {len(self.kept)}"
            more = (offset, "Tus-Resumable: 1.0.0") if self.resumable else ()
            connection.say(answer("200 OK" if self.resumable else "404 Not Found", b"", *more))
        elif path == "/receive":
            if method == "POST":
                self.kept = b""
            if self.cut_at is not None:
                self.kept += connection.read(self.cut_at)
                self.cut_at = None
                return
            self.kept += connection.read()
            connection.say(answer("200 OK", b'{"success": true}'))
        elif path == "/complete":
            self.completed.append(json.loads(connection.read()))
            connection.say(answer("200 OK", b'{"success": true}'))
        else:
            connection.say(answer("404 Not Found"))


class Sender:
    """An outbox on the real reactor; the loop runs when it is nudged."""

    def __init__(self, folder: Path) -> None:
        self.threads = Threads(reactor, 4, "test")
        self.ledger = SqlLedger("sqlite://", write_off=self.at_once, read_off=self.at_once)
        self.soon: IDelayedCall | None = None
        self.over: Deferred[Entry] = Deferred()
        self.folder = folder
        self.outbox = Outbox(
            ledger=self.ledger,
            peer=make_client(reactor),
            links=Links("http://localhost:4000"),
            settings=Settings(),
            clock=reactor,
            off=self.threads,
            rng=random.Random(1),
            new_id=lambda: os.urandom(8).hex(),
            new_capability=lambda: os.urandom(16).hex(),
            nudge=self.nudge,
        )

    @staticmethod
    def at_once(f: Any, /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        done.callback(f(*args, **kwargs))
        return done

    def nudge(self) -> None:
        if self.soon is None or not self.soon.active():
            self.soon = reactor.callLater(0, self.look)

    def look(self) -> None:
        go_on(self._look())

    async def _look(self) -> None:
        await self.outbox.tick()
        for _, entry in await self.ledger.entries(over=True, after=0, limit=1):
            if not self.over.called:
                self.over.callback(entry)

    async def stop(self) -> None:
        await self.outbox.stop()
        if self.soon is not None and self.soon.active():
            self.soon.cancel()
        self.threads.stop()


@asynccontextmanager
async def sending(folder: Path) -> AsyncIterator[Sender]:
    sender = Sender(folder)
    sender.threads.start()
    sender.ledger.open()
    try:
        yield sender
    finally:
        await sender.stop()
        await sender.ledger.close()


async def back_up(folder: Path, receiver: Original, data: bytes) -> Entry:
    """Queue a file, call when asked, and wait for the end."""
    path = folder / "2.mp4"
    path.write_bytes(data)
    with receiver.plain as plain:
        async with sending(folder) as sender:
            entry = await sender.outbox.enqueue(path=str(path), to=plain.url)
            links = f"{plain.url}/receive", f"{plain.url}/complete"
            await sender.outbox.notice(None, "2", *links)
            sender.over.addTimeout(30, reactor)
            assert entry.entry_id == (await sender.over).entry_id
            return await sender.ledger.entry(entry.entry_id)


@pytest_twisted.ensureDeferred
async def test_the_originals_receiver_gets_the_video(tmp_path: Path) -> None:
    """It names no digest, so nobody knows whether its copy is right, and the user is told so."""
    receiver, data = Original(), os.urandom(5_000_000)
    entry = await back_up(tmp_path, receiver, data)
    assert receiver.kept == data
    assert (entry.state, entry.sha256 is None) == ("UNVERIFIED", False)
    assert "names no SHA-256" in str(entry.last_error)
    assert receiver.completed == [
        {"videoId": 2, "success": True, "size": len(data), "sha256": entry.sha256}
    ]


@pytest_twisted.ensureDeferred
async def test_what_was_cut_is_sent_again(tmp_path: Path) -> None:
    receiver, data = Original(cut_at=1_000_000), os.urandom(5_000_000)
    entry = await back_up(tmp_path, receiver, data)
    assert receiver.kept == data
    assert entry.state == "UNVERIFIED"


@pytest_twisted.ensureDeferred
async def test_what_was_cut_goes_on_where_the_receiver_stands(tmp_path: Path) -> None:
    receiver, data = Original(resumable=True, cut_at=1_000_000), os.urandom(5_000_000)
    entry = await back_up(tmp_path, receiver, data)
    assert receiver.kept == data
    assert entry.state == "UNVERIFIED"
    methods = [line.split()[0] for line in receiver.plain.lines if "/receive" in line]
    assert methods == ["OPTIONS", "HEAD", "POST", "HEAD", "PATCH"]
