"""Uploads and small messages over real sockets, to a server that knows nothing of our code."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from werkzeug.http import parse_options_header

from backupd.errors import PeerFailed, PeerRefused
from backupd.peer.client import PeerClient, make_client
from backupd.peer.file_body import FileBody
from backupd.peer.open_file import FileState
from backupd.threads import Threads
from backupd.waiting import go_on
from tests.peer.plain import Connection, Plain, answer

MIB = 1024 * 1024
SIZE = 20 * MIB


@dataclass(frozen=True)
class Video:
    """A file with these bytes."""

    path: str
    data: bytes
    modified_ns: int


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Video:
    path = tmp_path_factory.mktemp("videos") / "2.mp4"
    data = os.urandom(1024) * (SIZE // 1024)
    path.write_bytes(data)
    return Video(str(path), data, path.stat().st_mtime_ns)


@asynccontextmanager
async def body_of(video: Video, offset: int = 0) -> AsyncIterator[FileBody]:
    threads = Threads(reactor, 2, "test")
    threads.start()
    file = FileState(video.path, SIZE, video.modified_ns)
    body = FileBody(file, off=threads, clock=cast(Any, reactor))
    try:
        await body.open(offset)
        yield body
    finally:
        await body.close()
        # An aborted connection ends in the reactor's next turn; leaving `Plain` waits for that.
        await deferLater(cast(Any, reactor), 0)
        threads.stop()


def client() -> PeerClient:
    return make_client(reactor)


@pytest_twisted.ensureDeferred
async def test_a_file_arrives_whole_and_with_its_name(video: Video) -> None:
    arrived: list[tuple[Connection, bytes]] = []

    def serve(connection: Connection) -> None:
        arrived.append((connection, connection.read()))
        connection.say(answer("200 OK", b'{"success": true, "size": 5}'))

    name = 'Größe "1"; x=\r\n.mp4'
    with Plain(serve) as plain:
        async with body_of(video) as body:
            said = await client().send(
                f"{plain.url}/up?x=1", body, content_type="video/mp4", file_name=name
            )
    assert said == {"success": True, "size": 5}
    ((connection, data),) = arrived
    assert connection.line == "POST /up?x=1 HTTP/1.1"
    assert connection.headers["content-type"] == "video/mp4"
    assert connection.headers["host"] == plain.url.removeprefix("http://")
    options = parse_options_header(connection.headers["content-disposition"])
    assert options == ("attachment", {"filename": name})
    assert data == video.data


@pytest.mark.parametrize("status", ["204 No Content", "200 OK"])
@pytest_twisted.ensureDeferred
async def test_an_upload_goes_on_from_an_offset(video: Video, status: str) -> None:
    arrived: list[tuple[Connection, bytes]] = []

    def serve(connection: Connection) -> None:
        arrived.append((connection, connection.read()))
        connection.say(f"HTTP/1.1 {status}\r\nUpload-Offset: {SIZE}\r\n".encode() + b"\r\n")

    with Plain(serve) as plain:
        async with body_of(video, SIZE - 7) as body:
            said = await client().resume(f"{plain.url}/up", SIZE - 7, body)
    assert said == {"receivedBytes": SIZE}
    ((connection, data),) = arrived
    assert connection.line == "PATCH /up HTTP/1.1"
    assert connection.headers["content-type"] == "application/offset+octet-stream"
    assert connection.headers["tus-resumable"] == "1.0.0"
    assert connection.headers["upload-offset"] == str(SIZE - 7)
    assert data == video.data[-7:]


@pytest.mark.parametrize("pieces", [1, 2, 40])
@pytest.mark.parametrize("status", ["409 Conflict", "413 Too Large", "503 Not Now"])
@pytest_twisted.ensureDeferred
async def test_a_refusal_in_the_middle_of_the_upload_is_heard(
    video: Video, status: str, pieces: int
) -> None:
    """However the answer is cut, from a server that reads on until its client has heard it."""

    def serve(connection: Connection) -> None:
        connection.read(100_000)
        no = answer(status, b'{"message": "because"}', "Retry-After: 3")
        step = -(-len(no) // pieces)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(no), step):
            connection.say(no[start : start + step])
            connection.read(1000)
        connection.read()

    with Plain(serve) as plain:
        async with body_of(video) as body:
            with pytest.raises(PeerRefused, match="because") as caught:
                await client().send(plain.url, body, content_type=None, file_name="2.mp4")
    assert str(caught.value.status) == status[:3]
    assert caught.value.retry_after == 3


@pytest_twisted.ensureDeferred
async def test_a_connection_that_breaks_is_told_as_such(video: Video) -> None:
    with Plain(lambda connection: connection.read(100_000)) as plain:
        async with body_of(video) as body:
            with pytest.raises(PeerFailed, match="closed the connection") as caught:
                await client().send(
                    f"{plain.url}/SECRET", body, content_type=None, file_name="2.mp4"
                )
    assert "SECRET" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_cancelling_ends_the_connection(video: Video) -> None:
    """Also when the receiver takes nothing more, and the network is full."""
    reading: Deferred[None] = Deferred()
    ended = threading.Event()

    def serve(connection: Connection) -> None:
        connection.read(100_000)
        reactor.callFromThread(reading.callback, None)  # type: ignore[attr-defined]
        try:
            connection.read()
        finally:
            ended.set()

    with Plain(serve) as plain:
        async with body_of(video) as body:
            upload = go_on(client().send(plain.url, body, content_type=None, file_name="2.mp4"))
            await reading
            body.pauseProducing()
            upload.cancel()
            with pytest.raises(CancelledError):
                await upload
    assert ended.is_set()


@pytest_twisted.ensureDeferred
async def test_nobody_listening_is_told_as_such(video: Video) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(PeerFailed, match=f"^{url} refused the connection.$"):
        await client().ask(url, {})
    async with body_of(video) as body:
        with pytest.raises(PeerFailed, match=f"^{url} refused the connection.$"):
            await client().send(url, body, content_type=None, file_name="2.mp4")


@pytest_twisted.ensureDeferred
async def test_small_messages_go_over_the_same_network() -> None:
    def serve(connection: Connection) -> None:
        if connection.line.startswith("HEAD"):
            connection.say(b"HTTP/1.1 200 OK\r\nUpload-Offset: 9\r\n\r\n")
        else:
            connection.read()
            connection.say(answer("200 OK", b'{"success": true}'))

    with Plain(serve) as plain:
        url = plain.url.replace("127.0.0.1", "localhost")
        assert await client().ask(url, {"videoId": 2}) == {"success": True}
        assert await client().standing(f"{url}/x") == 9
        assert await client().status(f"{url}/x") == {"success": True}
        assert await client().complete(f"{url}/x", {}) == {"success": True}
        assert (await client().offer(f"{url}/x", b"{}", {})).status == 200
    assert [line.split()[0] for line in plain.lines] == ["POST", "HEAD", "GET", "POST", "POST"]


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs_up_is_told_as_such() -> None:
    silent = Plain(lambda connection: None)
    with silent, pytest.raises(PeerFailed, match="closed the connection without an answer"):
        await client().status(silent.url)


@pytest_twisted.ensureDeferred
async def test_what_is_no_http_is_told_as_such() -> None:
    other = Plain(lambda connection: connection.say(b"SSH-2.0-x\r\n\r\n"))
    with other, pytest.raises(PeerFailed, match="failed"):
        await client().status(other.url)


@pytest.mark.parametrize("line", [b"X-A: " + b"a" * 1000, b"\tb" + b"a" * 1000, b""])
@pytest_twisted.ensureDeferred
async def test_a_head_that_does_not_end_is_cut_off(line: bytes) -> None:
    """One header after the other, one that goes on and on, or one interim answer after another:
    whoever we call could fill our memory with them in 15 seconds.
    """
    many = (line + b"\r\n" if line else b"HTTP/1.1 103 Early Hints\r\n\r\n") * 1000
    said = 0

    def serve(connection: Connection) -> None:
        nonlocal said
        connection.say(b"HTTP/1.1 200 OK\r\nX-B: b\r\n" if line else b"")
        while said < 64 * MIB:
            connection.say(many)
            said += len(many)

    with Plain(serve) as plain:
        with pytest.raises(PeerFailed, match="answers more than"):
            await client().status(plain.url)
        # An aborted connection ends in the reactor's next turn; leaving `Plain` waits for that.
        await deferLater(cast(Any, reactor), 0)
    assert said < 32 * MIB  # what lay in buffers of the system
