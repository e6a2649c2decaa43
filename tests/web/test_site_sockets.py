"""Streaming request bodies over real sockets, with clients that know nothing of our code."""

# mypy: disable-error-code="no-untyped-call, untyped-decorator"

from __future__ import annotations

import hashlib
import select
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import pytest_twisted
from klein import Klein
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IAddress
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutputAndValue

from backupd.errors import TooLarge, UploadCut
from backupd.web.body import HIGH_WATER, Body
from backupd.web.site import BackupSite, StreamingRequest

reactor: Any = global_reactor
T = TypeVar("T")
MIB = 1024 * 1024
PUT = b"PUT %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"


class Handlers:
    """What a video receiver does with bodies, in short."""

    app = Klein()

    def __init__(self) -> None:
        self.read: list[bytes] = []
        self.cut: Deferred[str] = Deferred()
        self.begun: Deferred[StreamingRequest] = Deferred()
        self.may_answer: Deferred[bytes] = Deferred()

    @app.route("/count", methods=["POST", "PUT"])
    async def count(self, request: StreamingRequest) -> bytes:
        size = 0
        while piece := await request.body.read():
            size += len(piece)
        return b"%d bytes\n" % size

    @app.route("/straight", methods=["PUT"])
    async def straight(self, request: StreamingRequest) -> bytes:
        """Reads into a buffer of its own; says how often, and the digest."""
        buffer, digest, reads = memoryview(bytearray(MIB)), hashlib.sha256(), 0
        while count := await request.body.read_into(buffer):
            digest.update(buffer[:count])
            reads += 1
        return b"%d reads, %s\n" % (reads, digest.hexdigest().encode())

    @app.route("/refuse", methods=["POST", "PUT"])
    async def refuse(self, request: StreamingRequest) -> bytes:
        try:
            return await request.body.read_all(10)
        except TooLarge as error:
            request.setResponseCode(413)
            return str(error).encode()

    @app.route("/keep", methods=["PUT"])
    def keep(self, request: StreamingRequest) -> Deferred[bytes]:
        """Reads on when the client has left, as the intake does."""
        Deferred.fromCoroutine(self._keep(request)).addErrback(self.cut.errback)
        return Deferred()

    async def _keep(self, request: StreamingRequest) -> None:
        try:
            while piece := await request.body.read():
                self.read.append(piece)
        except UploadCut as cut:
            self.cut.callback(str(cut))

    @app.route("/wait", methods=["PUT"])
    def wait(self, request: StreamingRequest) -> Deferred[bytes]:
        """Reads nothing."""
        self.begun.callback(request)
        return self.may_answer


class TrackedSite(BackupSite):
    """Knows when its connections are gone."""

    def __init__(self, handlers: Handlers) -> None:
        super().__init__(handlers.app.resource(), reactor=reactor, linger_seconds=10)
        self.channels: list[Any] = []
        self.gone: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> Any:
        channel: Any = super().buildProtocol(addr)
        gone: Deferred[None] = Deferred()
        lost = channel.connectionLost

        def connection_lost(*reason: Any) -> None:
            lost(*reason)
            gone.callback(None)

        channel.connectionLost = connection_lost
        self.channels.append(channel)
        self.gone.append(gone)
        return channel


@asynccontextmanager
async def serving(handlers: Handlers) -> AsyncIterator[int]:
    """The port of a site; nothing is left of it afterwards."""
    site = TrackedSite(handlers)
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(site)
    try:
        yield port.getHost().port
    finally:
        await port.stopListening()
        for channel in site.channels:
            channel.transport.abortConnection()
        await DeferredList(site.gone)
    assert site.streaming == 0


def client(port: int, talk: Callable[[socket.socket], T]) -> Deferred[T]:
    """What a blocking client says in a thread of its own."""

    def run() -> T:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            return talk(connection)

    return deferToThread(run)


def to_the_end(connection: socket.socket) -> bytes:
    answer = b""
    while data := connection.recv(65536):
        answer += data
    return answer


def until(connection: socket.socket, end: bytes) -> bytes:
    answer = b""
    while not answer.endswith(end):
        data = connection.recv(65536)
        assert data, answer
        answer += data
    return answer


async def curl(port: int, path: str, size: int, *options: str) -> tuple[str, str, int]:
    """What curl got, what it said on the way, and its exit code."""
    body = "x" * size
    url = f"http://127.0.0.1:{port}{path}"
    out, err, code = await getProcessOutputAndValue(
        "curl", ["-sv", "-X", "PUT", *options, "--data-binary", "@-", url], stdinBytes=body.encode()
    )
    return out.decode(), err.decode(), code


@pytest_twisted.ensureDeferred
async def test_a_refusal_reaches_a_client_that_sends_everything_before_it_reads() -> None:
    def talk(connection: socket.socket) -> bytes:
        connection.sendall(PUT % (b"/refuse", 8 * MIB))
        for _ in range(8):
            connection.sendall(b"x" * MIB)
        return to_the_end(connection)

    async with serving(Handlers()) as port:
        answer = await client(port, talk)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nConnection: close\r\n" in answer
    assert b"The body has 8388608 bytes; 10 are allowed." in answer


@pytest_twisted.ensureDeferred
async def test_a_refusal_of_chunks_reaches_a_client_that_goes_on_sending() -> None:
    def talk(connection: socket.socket) -> bytes:
        connection.sendall(b"PUT /refuse HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(8):
            connection.sendall(b"100000\r\n" + b"x" * MIB + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        return to_the_end(connection)

    async with serving(Handlers()) as port:
        answer = await client(port, talk)
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest_twisted.ensureDeferred
async def test_curl_is_asked_to_continue_and_then_sends() -> None:
    async with serving(Handlers()) as port:
        out, err, code = await curl(port, "/count", 3 * MIB, "-H", "Expect: 100-continue")
    assert (out, code) == (f"{3 * MIB} bytes\n", 0)
    assert "HTTP/1.1 100 Continue" in err


@pytest_twisted.ensureDeferred
async def test_curl_that_expects_100_is_refused_without_it() -> None:
    async with serving(Handlers()) as port:
        out, err, code = await curl(port, "/refuse", 3 * MIB, "-H", "Expect: 100-continue")
    assert "10 are allowed" in out
    assert code == 0
    assert "100 Continue" not in err


@pytest_twisted.ensureDeferred
async def test_curl_that_expects_nothing_sees_the_refusal() -> None:
    async with serving(Handlers()) as port:
        out, err, code = await curl(port, "/refuse", 30 * MIB, "-H", "Expect:")
    assert "10 are allowed" in out
    assert code == 0
    assert "HTTP/1.1 413" in err


@pytest_twisted.ensureDeferred
async def test_curl_sends_chunks() -> None:
    async with serving(Handlers()) as port:
        out, _, code = await curl(port, "/count", 3 * MIB, "-H", "Transfer-Encoding: chunked")
    assert (out, code) == (f"{3 * MIB} bytes\n", 0)


@pytest_twisted.ensureDeferred
async def test_requests_follow_each_other_on_one_connection() -> None:
    def talk(connection: socket.socket) -> list[bytes]:
        answers = []
        for size in (3 * MIB, 1, 2 * MIB):
            connection.sendall(PUT % (b"/count", size))
            connection.sendall(b"x" * size)
            answers.append(until(connection, b"0\r\n\r\n"))
        return answers

    async with serving(Handlers()) as port:
        answers = await client(port, talk)
    for size, answer in zip((3 * MIB, 1, 2 * MIB), answers, strict=True):
        assert b"%d bytes\n" % size in answer
        assert b"close" not in answer.lower()


@pytest_twisted.ensureDeferred
async def test_straight_into_the_readers_buffer() -> None:
    """Bytes that go around the parser are all there, and what is pipelined behind them too."""
    content = bytes(range(251)) * (5 * MIB // 251)

    def talk(connection: socket.socket) -> bytes:
        connection.sendall(PUT % (b"/straight", len(content)) + content)
        last = PUT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        connection.sendall(last % (b"/count", 3) + b"end")
        return to_the_end(connection)

    calls: list[int] = []
    filled = Body.filled

    def counted(body: Body, count: int) -> None:
        calls.append(count)
        filled(body, count)

    async with serving(Handlers()) as port:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Body, "filled", counted)
            answer = await client(port, talk)
    assert b"5 reads, " + hashlib.sha256(content).hexdigest().encode() in answer
    assert b"3 bytes" in answer
    # The first bytes come with the headers, the last one by the parser.
    assert 4 * MIB - 64 * 1024 <= sum(calls) < len(content)


@pytest_twisted.ensureDeferred
async def test_a_cut_connection_delivers_what_came_before() -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(PUT % (b"/keep", 3 * MIB))
        connection.sendall(b"x" * (2 * MIB))

    handlers = Handlers()
    async with serving(handlers) as port:
        await client(port, talk)
        why = await handlers.cut.addTimeout(30, reactor)
    assert sum(map(len, handlers.read)) == 2 * MIB
    assert str(2 * MIB) in why


@pytest_twisted.ensureDeferred
async def test_a_client_cannot_push_more_than_the_buffers_hold() -> None:
    """High water and one piece here, and what the two kernels' ends of the connection take."""

    def talk(connection: socket.socket) -> int:
        connection.sendall(PUT % (b"/wait", 256 * MIB))
        connection.setblocking(False)
        sent = 0
        # There is no event for "it takes no more": half a second without room stands for it.
        while select.select([], [connection], [], 0.5)[1]:
            sent += connection.send(b"x" * MIB)
        return sent

    handlers = Handlers()
    async with serving(handlers) as port:
        sent = await client(port, talk)
        request = await handlers.begun
        assert request.body.silent_for() == 0
        first = len(await request.body.read())
        assert 0 < first <= HIGH_WATER
    assert HIGH_WATER <= sent < 32 * MIB


@pytest_twisted.ensureDeferred
async def test_a_handler_that_reads_nothing_answers_all_the_same() -> None:
    def talk(connection: socket.socket) -> bytes:
        connection.sendall(PUT % (b"/wait", 16 * MIB))
        connection.sendall(b"x" * (16 * MIB))
        return to_the_end(connection)

    handlers = Handlers()
    async with serving(handlers) as port:
        answer = client(port, talk)
        await handlers.begun
        handlers.may_answer.callback(b"no, thank you")
        assert b"no, thank you" in await answer
