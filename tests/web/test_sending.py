"""Giving back by windows on a plain connection: read ahead, within bounds, to a good or bad end."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.tcp import Server
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface import implementer

from backupd.errors import StorageFailed
from backupd.interfaces import IWindowed, Window
from backupd.requests import Backup
from backupd.unsent import unsent
from backupd.web.patience import Patience
from backupd.web.sending import AHEAD, ROOM, SMALLEST_ROOM, Sender
from tests.web.test_restore import BACKUP, GET, File, RestoreCase
from tests.web.test_sendfile import Reactor

WHOLE = 5 * ROOM + 1234


@implementer(IWindowed)
class Windowed(File):
    """A kept file whose windows are in memory, and are counted until they are released."""

    def __init__(self) -> None:
        super().__init__()
        self.good = WHOLE
        self.lent = 0
        self.rooms: list[int] = []

    def size(self) -> int:
        return WHOLE

    def forget(self, offset: int, length: int) -> None:
        pass

    def window(self, offset: int, length: int, room: int) -> Window:
        self.rooms.append(room)
        data = self.read(offset, min(length, room))
        self.lent += 1
        return Window(len(data), -1, memoryview(data), self.release)

    def release(self) -> None:
        self.lent -= 1


class WindowFixture(RestoreCase):
    """The connection is a real one, of which the test is the client and the reactor."""

    kind = Windowed
    file: Windowed

    def setUp(self) -> None:
        super().setUp()
        self.reactor = Reactor()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.client = socket.create_connection(listening.getsockname())
            ours, _ = listening.accept()
        self.client.setblocking(False)
        self.addCleanup(self.client.close)
        self.channel = self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        port: Any = None
        reactor: Any = self.reactor
        self.line: Any = Server(ours, self.channel, ("127.0.0.1", 1), port, 1, reactor)
        self.channel.makeConnection(self.line)
        self.got = b""
        self.addCleanup(self.lose)

    async def backup(self, backup_id: str) -> Backup:
        self.asked += 1
        return replace(BACKUP, size=WHOLE)

    def lose(self) -> None:
        """The connection is gone."""
        self.line.connectionLost(Failure(ConnectionDone()))

    def receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self.client.recv(1024 * 1024):
                self.got += data

    def turns(self) -> None:
        """The reactor runs, and the client takes everything."""
        while self.line in self.reactor.writers:
            assert self.line.doWrite() is None
            self.receive()
            while self.reactor.later:
                call, *arguments = self.reactor.later.pop()
                call(*arguments)

    def body(self) -> bytes:
        head, _, body = self.got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        return body


class WindowCase(WindowFixture):
    """Windows, over a real connection that the test turns by hand."""

    def test_two_answers_on_one_connection(self) -> None:
        self.send(GET % b"" + GET % b"")
        self.turns()
        first = self.body()[:WHOLE]
        self.got = self.body()[WHOLE:]
        assert first == self.body() == b"v" * WHOLE
        assert (self.asked, self.file.opened, self.file.closed, self.file.lent) == (2, 2, 2, 0)

    def test_so_many_windows_are_made_ready_ahead_and_no_more(self) -> None:
        self.held = []
        self.send(GET % b"")
        self.step()
        assert len(self.held) == AHEAD
        self.step()
        # One is being sent, and has not left: the next ones are prepared, and wait.
        assert len(self.held) == AHEAD
        self.step()
        self.step()
        assert (self.held, self.file.lent) == ([], AHEAD + 1)
        self.turns()
        assert len(self.held) > 0
        while self.held:
            self.step()
            self.turns()
        assert self.body() == b"v" * WHOLE
        assert (self.file.closed, self.file.lent) == (1, 0)

    def test_a_file_that_ends_early_is_cut_after_its_last_byte(self) -> None:
        self.file.good = 3 * ROOM + 5
        with capturedLogs() as log:
            self.send(GET % b"" + GET % b"")
            self.turns()
        with pytest.raises(ConnectionResetError):
            self.receive()
        assert self.body() == b"v" * (3 * ROOM + 5)
        assert (self.asked, self.file.opened, self.file.closed, self.file.lent) == (1, 1, 1, 0)
        assert [event.get("incident") for event in log] == ["id"]

    def test_a_volume_that_fails_at_once_is_a_problem(self) -> None:
        self.file.good = 0
        self.file.fails = True
        self.send(GET % b"")
        self.turns()
        assert self.got.startswith(b"HTTP/1.1 500 ")
        assert (self.file.closed, self.file.lent) == (1, 0)

    def test_a_client_that_leaves_leaves_nothing_open(self) -> None:
        """The file is closed after the last thread that reads it, whatever comes of that."""
        self.held = []
        self.send(GET % b"")
        self.step()
        self.step()
        assert len(self.held) == AHEAD
        self.lose()
        self.step()
        assert self.file.closed == 0

        def broken(offset: int, length: int) -> bytes:
            raise StorageFailed("The volume failed.")

        self.file.read = broken  # type: ignore[method-assign]
        self.step()
        self.step()
        assert (self.held, self.file.closed, self.file.lent) == ([], 1, 0)

    def test_a_client_that_takes_nothing_is_cut_and_one_that_takes_a_little_is_not(self) -> None:
        self.line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.send(GET % b"")
        for _ in range(3):
            self.line.doWrite()
            self.clock.advance(59)
            self.receive()
        assert len(self.got) < ROOM  # the first window is still on its way
        assert not self.line.disconnecting
        assert self.reactor.later == []
        for _ in range(2):  # what it took last may have counted for the first
            self.clock.advance(60)
        ((lose, reason),) = self.reactor.later
        lose(reason)
        with pytest.raises(ConnectionResetError):
            self.receive()
        assert (self.file.closed, self.file.lent) == (1, 0)

    def test_what_a_client_takes_out_of_the_kernel_counts(self) -> None:
        """There may be more than it takes in its time, before the kernel wants any again."""
        self.send(GET % b"")
        for _ in range(3):
            self.line.doWrite()
        left = unsent(self.line)
        for _ in range(4):
            self.clock.advance(59)
            late = time.monotonic() + 20
            while unsent(self.line) == left:
                assert time.monotonic() < late, "the kernel has nothing for the client"
                self.client.recv(200_000)
            left = unsent(self.line)
        assert self.reactor.later == []
        assert self.line in self.reactor.writers


def test_many_answers_have_little_room_each() -> None:
    rooms = []
    sender = Sender(lambda f, *args: None)  # type: ignore[arg-type]
    for _ in range(64):
        sender._under_way += 1
        rooms.append(sender._room())
    assert rooms[0] == ROOM
    assert rooms[-1] == SMALLEST_ROOM
    assert sum(rooms) <= 64 * SMALLEST_ROOM + 3 * ROOM * 2


class LeastCase(WindowFixture):
    """A client that takes a few bytes now and then takes nothing."""

    patience = Patience(min_rate=1024)

    def test_a_client_that_takes_less_than_the_least_is_cut(self) -> None:
        self.line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.send(GET % b"")
        self.line.doWrite()
        sent = self.line.socket

        class Trickle:
            """Takes a hundred bytes at a time, however it is sent."""

            def fileno(self) -> int:
                return int(sent.fileno())

            def send(self, data: Any) -> int:
                return min(100, len(data))

        self.line.socket = Trickle()
        for _ in range(5):
            assert self.reactor.later == []
            self.clock.advance(14)
            self.line.doWrite()
        self.line.socket = sent
        ((lose, reason),) = self.reactor.later
        lose(reason)
        assert (self.file.closed, self.file.lent) == (1, 0)


class PacedCase(WindowFixture):
    """Windows leave no faster than they may."""

    limit = "1 MB/s"

    def test_a_restore_is_exact_and_smooth(self) -> None:
        self.send(GET % b"")
        went: list[int] = []
        for _ in range(40):
            self.clock.advance(0.1)
            self.turns()
            went.append(len(self.got))
        assert went[0] <= 600_000
        assert abs((went[-1] - went[9]) / 3e6 - 1) < 0.05
        assert max(after - before for before, after in itertools.pairwise(went)) < 3e5
        while len(self.body()) < WHOLE:
            self.clock.advance(0.1)
            self.turns()
        assert self.body() == b"v" * WHOLE
        assert (self.file.closed, self.file.lent) == (1, 0)

    def test_a_client_that_leaves_while_it_waits_leaves_nothing_open(self) -> None:
        self.send(GET % b"")
        self.turns()
        self.lose()
        self.clock.advance(1)
        assert (self.file.closed, self.file.lent) == (1, 0)
