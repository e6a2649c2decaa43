"""Giving back, on a clock and with a file that fails or stalls as the test says."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from backupd.bandwidth import Bandwidth, Schedule
from backupd.errors import StorageFailed
from backupd.requests import Backup
from backupd.trust.audit import Audit
from backupd.web import restore
from backupd.web.endpoint import Api
from backupd.web.sending import READ
from tests.receiver.fakes import sync
from tests.web.connection import AsLocal, SiteCase

SIZE = 4 * READ
BACKUP = Backup(
    backup_id="b",
    request_id="r",
    peer="p",
    video=1,
    file_name="a.mp4",
    content_type="video/mp4",
    size=SIZE,
    sha256="ab" * 32,
    stored_at=1_000_000.0,
    verified_at=None,
    folder="f",
    name="n",
)
GET = b"GET /api/v1/backups/b/content HTTP/1.1\r\nHost: a\r\n%s\r\n"
HEAD = GET.replace(b"GET", b"HEAD")


class File:
    """A kept file of which ``good`` bytes can be read; then it ends, or ``fails``."""

    def __init__(self) -> None:
        self.good = SIZE
        self.fails = False
        self.opened = self.closed = 0

    def open(self, backup: Backup) -> File:
        if self.good < 0:
            raise StorageFailed("The file is gone.")
        self.opened += 1
        return self

    def read(self, offset: int, length: int) -> bytes:
        assert self.closed < self.opened
        data = b"v" * max(0, min(length, self.good - offset))
        if not data and self.fails:
            raise StorageFailed("The volume failed.")
        return data

    def close(self) -> None:
        self.closed += 1


class RestoreCase(SiteCase):
    kind = File
    limit = "unlimited"

    def setUp(self) -> None:
        super().setUp()
        self.file = self.kind()
        self.held: list[Callable[[], object]] | None = None
        self.asked = 0
        service: Any = SimpleNamespace(
            audit=Audit(None, sync, Clock()),
            new_id=lambda: "id",
            off=self.off,
            storage=self.file,
            ledger=SimpleNamespace(backup=self.backup),
            bandwidth_out=Bandwidth(Schedule.parse(self.limit), self.clock),
        )
        api = Api(service)
        restore.routes(api)
        self.site.resource = AsLocal(api.app.resource())

    async def backup(self, backup_id: str) -> Backup:
        self.asked += 1
        return BACKUP

    def off(self, f: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """As in a thread: what has begun goes on, also when nobody waits for it any more."""
        if self.held is None:
            return maybeDeferred(f, *args)
        done: Deferred[Any] = Deferred()
        self.held.append(lambda: maybeDeferred(f, *args).chainDeferred(done))
        return done

    def step(self) -> None:
        """What runs in a thread ends."""
        assert self.held
        self.held.pop(0)()

    def answered(self) -> tuple[bytes, bytes]:
        """Head and body."""
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        return head, body


class Broken(RestoreCase):
    """What fails in the middle: only a cut tells the client so."""

    def cut_in_the_middle(self) -> None:
        self.file.good = READ + 5
        with capturedLogs() as log:
            self.send(GET % b"" + GET % b"")
        head, body = self.answered()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == b"v" * (READ + 5)
        assert self.transport.aborted
        assert (self.asked, self.file.opened, self.file.closed) == (1, 1, 1)
        assert [event.get("incident") for event in log] == ["id"]

    def test_a_volume_that_fails(self) -> None:
        self.file.fails = True
        self.cut_in_the_middle()

    def test_a_file_that_ends_early(self) -> None:
        self.cut_in_the_middle()

    def test_a_defect(self) -> None:
        def read(offset: int, length: int) -> bytes:
            if offset:
                raise ZeroDivisionError
            return b"v" * length

        self.file.read = read  # type: ignore[method-assign]
        self.send(GET % b"")
        assert self.transport.aborted
        assert self.answered()[1] == b"v" * READ
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_before_the_first_byte_it_is_a_problem_without_a_word_about_the_video(self) -> None:
        for good in (-1, 0):
            self.file.good = good
            self.transport.clear()
            self.send(GET % b"Range: bytes=1-2\r\n")
            head, body = self.answered()
            assert head.startswith(b"HTTP/1.1 500 ")
            assert json.loads(body)["incident"] == "id"
            named = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")}
            assert not named & {
                b"etag",
                b"repr-digest",
                b"content-range",
                b"content-disposition",
                b"last-modified",
                b"accept-ranges",
            }
        assert self.transport.connected
        assert self.file.opened == self.file.closed

    def test_head_tells_that_the_file_is_gone(self) -> None:
        self.send(HEAD % b"")
        assert self.answered()[0].startswith(b"HTTP/1.1 200 ")
        assert (self.file.opened, self.file.closed) == (1, 1)
        self.file.good = -1
        self.transport.clear()
        self.send(HEAD % b"")
        head, body = self.answered()
        assert head.startswith(b"HTTP/1.1 500 ")
        assert body == b""


class Abandoned(RestoreCase):
    """A client that leaves, whenever it does, leaves no open file."""

    def test_while_the_file_is_opened(self) -> None:
        self.held = []
        self.send(GET % b"")
        self.cut()
        assert self.file.opened == 0
        self.step()
        self.step()
        assert (self.file.opened, self.file.closed, self.held) == (1, 1, [])

    def test_while_the_file_is_read_it_is_closed_after_that(self) -> None:
        self.held = []
        self.send(GET % b"")
        self.step()
        self.cut()
        assert len(self.held) == 1
        self.step()
        assert self.file.closed == 0
        self.step()
        assert (self.file.closed, self.held) == (1, [])

    def test_while_it_does_not_take_what_there_is(self) -> None:
        self.held = []
        self.send(GET % b"")
        self.step()
        self.channel.pauseProducing()
        self.step()
        assert self.held == []
        self.cut()
        self.step()
        assert (self.file.opened, self.file.closed) == (1, 1)

    def test_while_its_range_is_digested(self) -> None:
        """Nor a line in the log, which whoever leaves then could fill."""
        self.held = []
        self.send(GET % b"Range: bytes=0-9\r\nWant-Content-Digest: sha-256=1\r\n")
        self.step()
        self.cut()
        assert len(self.held) == 1
        with capturedLogs() as log:
            self.step()
            self.step()
        assert (self.file.closed, self.held) == (1, [])
        assert log == []


class Stalled(RestoreCase):
    """A client that takes nothing is let go; one that is slow is not."""

    def setUp(self) -> None:
        super().setUp()
        self.held = []
        self.send(GET % b"")
        self.step()
        self.channel.pauseProducing()
        self.step()

    def test_after_the_sites_timeout_the_connection_is_cut(self) -> None:
        self.clock.advance(59.9)
        assert self.transport.connected
        self.clock.advance(0.1)
        assert self.transport.aborted
        self.step()
        assert (self.file.closed, self.held) == (1, [])

    def test_whoever_takes_something_gets_the_time_again(self) -> None:
        for _ in range(3):
            self.clock.advance(59)
            self.channel.resumeProducing()
            self.channel.pauseProducing()
            self.step()
        assert self.transport.connected
        self.clock.advance(59)
        self.channel.resumeProducing()
        while self.held:
            self.step()
        assert len(self.answered()[1]) == SIZE
        assert self.transport.connected


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("x" * 4096, "x" * 200),
        ("x" * 4096 + ".mp4", "x" * 196 + ".mp4"),
        ("\U0001f600" * 4092 + ".mp4", "%F0%9F%98%80" * 196 + ".mp4"),
        ("." + "x" * 4095, "." + "x" * 199),
        ("x." * 1000 + "y" * 3000, "x." * 100),
        ("x" * 200, "x" * 200),
    ],
)
def test_a_long_name_keeps_its_extension_and_the_header_short(name: str, kept: str) -> None:
    disposition = restore._disposition(name)
    assert disposition.endswith(f"filename*=UTF-8''{kept}")
    assert len(disposition) < 3000
