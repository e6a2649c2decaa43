"""Windows on a real connection: in order, never faster than it takes them, and never polled for."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Server
from twisted.internet.testing import StringTransport

from backupd.interfaces import Window
from backupd.web.sendfile import send_window, takes_windows

SIZE = 3 * 1024 * 1024 + 17
DATA = os.urandom(SIZE)


class Reactor:
    """Notes who wants to read and write, and delays nothing."""

    def __init__(self) -> None:
        self.writers: set[object] = set()
        self.readers: set[object] = set()
        self.later: list[Any] = []

    def addWriter(self, one: object) -> None:
        self.writers.add(one)

    def removeWriter(self, one: object) -> None:
        self.writers.discard(one)

    def addReader(self, one: object) -> None:
        self.readers.add(one)

    def removeReader(self, one: object) -> None:
        self.readers.discard(one)

    def callLater(self, _: float, *call: Any) -> None:
        self.later.append(call)


class Line:
    """A transport of Twisted's on one end of a connection; the test is the client and the
    reactor."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(DATA)
        self.fd = os.open(path, os.O_RDONLY)
        self.path = path
        self.reactor = Reactor()
        self.client, ours = socket.socketpair()
        self.client.setblocking(False)
        self.transport: Any = Server(
            ours,
            Protocol(),
            ("", 0),
            None,  # type: ignore[arg-type]
            1,
            self.reactor,  # type: ignore[arg-type]
        )
        self.got = b""
        self.moves = 0

    def window(self, start: int, length: int, *, cached: bool) -> Window:
        data = None if cached else memoryview(DATA)[start : start + length]
        return Window(length, self.fd, data)

    def send(self, start: int, length: int, *, cached: bool = True) -> Deferred[int]:
        def moved(count: int) -> None:
            self.moves += 1

        return send_window(self.transport, self.window(start, length, cached=cached), start, moved)

    @property
    def wants_to_write(self) -> bool:
        return self.transport in self.reactor.writers

    def turn(self) -> Any:
        """The reactor finds that the connection can be written to."""
        assert self.wants_to_write
        return self.transport.doWrite()

    def receive(self) -> None:
        """The client takes what has come."""
        try:
            while data := self.client.recv(1024 * 1024):
                self.got += data
        except BlockingIOError:
            pass

    def run(self) -> None:
        """Until nothing wants to be written any more."""
        turns = 0
        while self.wants_to_write:
            assert self.turn() is None
            self.receive()
            turns += 1
            assert turns < 10_000

    def close(self) -> None:
        self.client.close()
        os.close(self.fd)
        if hasattr(self.transport, "socket"):
            self.transport.socket.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path / "file")
    yield line
    line.close()


def result(done: Deferred[int]) -> int | None:
    found: list[int] = []
    done.addCallback(found.append)
    return found[0] if found else None


both = pytest.mark.parametrize("cached", [True, False], ids=["sendfile", "memory"])


@both
def test_a_window_arrives_whole(line: Line, cached: bool) -> None:
    done = line.send(1000, SIZE - 1000, cached=cached)
    line.run()
    assert line.got == DATA[1000:]
    assert result(done) == SIZE - 1000
    assert line.moves > 1


@both
def test_what_was_written_before_leaves_first_and_what_comes_meanwhile_after(
    line: Line, cached: bool
) -> None:
    head, tail = b"h" * 1_000_000, b"t" * 1_000_000
    line.transport.write(head)
    done = line.send(0, SIZE, cached=cached)
    while not line.moves:
        line.turn()
        line.receive()
    line.transport.write(tail)
    line.run()
    assert line.got == head + DATA + tail
    assert result(done) == SIZE


@both
def test_windows_follow_each_other(line: Line, cached: bool) -> None:
    for start in (0, 500_000, 1_000_000):
        done = line.send(start, 500_000, cached=cached)
        line.run()
        assert result(done) == 500_000
        line.transport.write(b"-")
        line.run()
    assert (
        line.got
        == b"-".join([DATA[:500_000], DATA[500_000:1_000_000], DATA[1_000_000:1_500_000]]) + b"-"
    )


@both
def test_nothing_is_asked_of_the_reactor_between_windows(line: Line, cached: bool) -> None:
    """A transport that waits for its next window must not be woken for nothing."""
    done = line.send(0, 100, cached=cached)
    line.turn()
    assert result(done) == 100
    assert not line.wants_to_write
    assert "doWrite" not in vars(line.transport)


@both
def test_a_full_connection_is_waited_for(line: Line, cached: bool) -> None:
    done = line.send(0, SIZE, cached=cached)
    moves = -1
    while moves != line.moves:
        moves = line.moves
        assert line.turn() is None
    assert result(done) is None
    assert line.wants_to_write


@both
def test_a_connection_that_is_closed_is_told_to_the_reactor(line: Line, cached: bool) -> None:
    done = line.send(0, SIZE, cached=cached)
    line.client.close()
    answers = [line.turn() for _ in range(2) if line.wants_to_write]
    # What sendfile cannot tell apart from a fault of the file, the next write tells.
    if cached:
        assert answers[0] is None
        assert result(done) == 0
        line.send(0, SIZE, cached=False)
        assert line.turn() is CONNECTION_LOST
    else:
        assert answers[0] is CONNECTION_LOST


def test_a_file_that_became_shorter_ends_the_window(line: Line) -> None:
    os.truncate(line.path, 1_000_000)
    done = line.send(900_000, 500_000)
    line.run()
    assert result(done) == 100_000
    assert line.got == DATA[900_000:1_000_000]
    assert not line.wants_to_write


def test_a_file_that_sendfile_does_not_take_ends_the_window(line: Line) -> None:
    reading, writing = os.pipe()
    os.close(line.fd)
    line.fd = reading
    done = line.send(0, 100)
    line.run()
    assert result(done) == 0
    os.close(writing)


@both
def test_cancelled_it_lets_the_transport_go_on_as_usual(line: Line, cached: bool) -> None:
    done = line.send(0, SIZE, cached=cached)
    line.turn()
    line.transport.write(b"after")
    done.addErrback(lambda _: None)
    done.cancel()
    assert "doWrite" not in vars(line.transport)
    line.run()
    assert line.got.endswith(b"after")
    assert len(line.got) < SIZE


@both
def test_aborting_ends_it(line: Line, cached: bool) -> None:
    """Twisted's own hook stays in place, and a window that comes later is not sent."""
    done = line.send(0, SIZE, cached=cached)
    line.turn()
    line.receive()
    got = line.got
    line.transport.abortConnection()
    assert not line.wants_to_write
    line.send(0, SIZE, cached=cached)
    assert not line.wants_to_write
    line.receive()
    assert (line.got, result(done)) == (got, None)


@both
def test_closing_waits_for_the_window(line: Line, cached: bool) -> None:
    done = line.send(0, SIZE, cached=cached)
    line.turn()
    line.transport.loseConnection()
    answer = None
    while answer is None:
        answer = line.turn()
        line.receive()
    assert line.got == DATA
    assert result(done) == SIZE


def test_only_plain_connections_take_windows(line: Line) -> None:
    assert takes_windows(line.transport)
    line.transport.TLS = True
    assert not takes_windows(line.transport)
    assert not takes_windows(StringTransport())
