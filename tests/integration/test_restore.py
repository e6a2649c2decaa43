"""Giving back when something goes wrong, over real sockets: no wrong byte, nothing left open."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import random
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import pytest

from tests.integration.contract import digest, form, is_problem
from tests.integration.daemons import Daemon, call, run, wait_until
from tests.integration.plain import PlainSender

DATA = bytes(range(256)) * 4096 * 8
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of its own; its log may tell of what was broken on purpose."""
    with Daemon(tmp_path, loop_interval="0.2", max_per_peer="100") as daemon:
        yield daemon
        daemon.stop()
        daemon.log.rename(daemon.log.with_suffix(".meant"))


def file_of(daemon: Daemon, done: Any) -> Path:
    (sidecar,) = daemon.root.glob(f"*/*/{done['backupId']}/backup.json")
    (file,) = [one for one in sidecar.parent.iterdir() if one != sidecar]
    return file


def test_a_file_that_ends_early_is_a_cut_and_never_other_bytes(
    daemon: Daemon, sender: PlainSender
) -> None:
    done = sender.back_up(daemon.url, 1, DATA)
    file = file_of(daemon, done)
    file.chmod(0o600)
    os.truncate(file, len(DATA) // 2)
    parts = urlsplit(done["contentUrl"])
    connection = http.client.HTTPConnection("127.0.0.1", parts.port or 80, timeout=20)
    connection.request("GET", parts.path)
    response = connection.getresponse()
    assert (response.status, response.headers["Content-Length"]) == (200, str(len(DATA)))
    got = b""
    # The end comes at once and not by a timeout, whichever way it shows.
    with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
        while piece := response.read(65536):
            got += piece
    connection.close()
    assert len(got) <= len(DATA) // 2
    assert DATA.startswith(got)
    wait_until(lambda: "incident" in daemon.text(), "the log tells of it")


def test_a_file_that_is_gone_is_told_before_anything_is_said_of_it(
    daemon: Daemon, sender: PlainSender
) -> None:
    done = sender.back_up(daemon.url, 1, DATA)
    file_of(daemon, done).unlink()
    for headers in ({}, {"Range": "bytes=0-4"}, {"If-None-Match": "*"}):
        answer = call("GET", done["contentUrl"], headers=headers)
        assert is_problem(answer, 500)["incident"] in daemon.text()
        for name in ("ETag", "Repr-Digest", "Content-Range", "Content-Disposition"):
            assert name not in answer.headers
    assert call("HEAD", done["contentUrl"]).status == 500


def test_clients_that_leave_leave_no_open_file(daemon: Daemon, sender: PlainSender) -> None:
    done = sender.back_up(daemon.url, 1, DATA)
    file = file_of(daemon, done)

    def still_open() -> int:
        count = 0
        for fd in Path(f"/proc/{daemon.pid}/fd").iterdir():
            try:
                count += os.readlink(fd) == str(file)
            except FileNotFoundError:
                continue
        return count

    request = f"GET {urlsplit(done['contentUrl']).path} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for _ in range(5):
        connections = [socket.create_connection(("127.0.0.1", daemon.port), 10) for _ in range(60)]
        for connection in connections:
            connection.sendall(request.encode())
        for connection in connections:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            connection.close()
    assert call("GET", done["contentUrl"]).body == DATA
    wait_until(lambda: not still_open(), "every file is closed")


def test_a_digest_of_a_form_is_refused_and_one_of_the_video_is_checked(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    send, _ = sender.turn(receiver.url, video, 100)
    body, headers = form(("video", "a.mp4", b"a video"))
    sent = headers | {"Content-Digest": digest(body)}
    is_problem(call("POST", send, body, sent), 400, "Content-Digest")
    is_problem(call("POST", send, body, headers | {"Repr-Digest": digest(b"else")}), 422)
    answer = call("POST", send, body, headers | {"Repr-Digest": digest(b"a video")})
    assert answer.json["sha256"] == hashlib.sha256(b"a video").hexdigest()


def test_places_are_told_of_the_first_100_of_a_page_and_of_single_requests(
    receiver: Daemon,
) -> None:
    with PlainSender() as refusing:
        refusing.answers_with = 503
        asked = [refusing.ask(receiver.url, n, 5).json["requestId"] for n in range(102)]
        path = f"/api/v1/backup/requests?state=live&peer={refusing.url}&limit=1000"
        page = receiver.call("GET", path).json["requests"]
        assert [one["requestId"] for one in page] == asked
        places = [one["position"] for one in page]
        assert (None in places[:100], places[100:]) == (False, [None, None])
        one = receiver.call("GET", f"/api/v1/backup/requests/{asked[-1]}").json
        assert one["position"] > 0
        for request_id in asked:
            receiver.call("DELETE", f"/api/v1/backup/requests/{request_id}", operator=True)


# -- on plain TCP, by windows ----------------------------------------------------------------------

BIG = random.Random(1).randbytes(24 * 1024 * 1024 + 12345)


@pytest.fixture(scope="module")
def big(receiver: Daemon, sender: PlainSender) -> tuple[str, Path]:
    """The path of a kept backup's content, and its file."""
    done = sender.back_up(receiver.url, "big", BIG)
    return urlsplit(done["contentUrl"]).path, file_of(receiver, done)


def set_cached(file: Path, cached: bool) -> None:
    """Have all of the file in the page cache, or nothing.

    Pages that once lay in a socket cannot be dropped at will: the kernel gives up its own hold on
    them only with the next packets of the CPU that sent them. So a cold file is one newly written.
    """
    if cached:
        file.read_bytes()
        return
    cold = file.with_name("cold")
    shutil.copy2(file, cold)

    def drop() -> bool:
        with cold.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return cached_bytes(cold) == 0

    wait_until(drop, "no page is in use any more")
    cold.replace(file)


def cached_bytes(file: Path) -> int:
    """As the kernel tells util-linux."""
    done = run(["fincore", "--bytes", "--noheadings", "--output", "RES", file], os.environ)
    assert done.code == 0, done.err
    return int(done.out)


@pytest.mark.parametrize("cached", [True, False], ids=["warm", "cold"])
def test_a_restore_leaves_the_page_cache_as_it_was(
    receiver: Daemon, big: tuple[str, Path], cached: bool
) -> None:
    path, file = big
    set_cached(file, cached)
    before = cached_bytes(file)
    assert (before >= len(BIG)) if cached else (before == 0)
    assert receiver.call("GET", path).body == BIG
    part = receiver.call("GET", path, headers={"Range": "bytes=5000000-19999999"})
    assert part.body == BIG[5_000_000:20_000_000]
    assert cached_bytes(file) == before


@pytest.mark.parametrize("cached", [True, False], ids=["warm", "cold"])
def test_answers_on_one_connection_come_whole_and_in_order(
    receiver: Daemon, big: tuple[str, Path], cached: bool
) -> None:
    """Pipelined behind an answer that goes out by windows, nothing overtakes or mixes with it."""
    path, file = big
    set_cached(file, cached)
    asked = [
        ("GET", path, {}),
        ("GET", "/healthz", {}),
        ("GET", path, {"Range": "bytes=1-9000000"}),
        ("HEAD", path, {}),
        ("GET", path, {"Range": "bytes=0-9,5000000-15000000,-7"}),
        ("GET", path, {"Range": "bytes=99999999-"}),
        ("GET", path, {"If-None-Match": "*"}),
        ("GET", path, {}),
    ]
    with socket.create_connection(("127.0.0.1", receiver.port), 30) as connection:
        for method, target, headers in asked:
            lines = [f"{method} {target} HTTP/1.1", f"Host: localhost:{receiver.port}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
        stream = connection.makefile("rb")
        answers = [_answer_in(stream, method) for method, _, _ in asked]
    assert [status for status, _ in answers] == [200, 200, 206, 200, 206, 416, 304, 200]
    bodies = [body for _, body in answers]
    assert bodies[0] == bodies[7] == BIG
    assert bodies[2] == BIG[1:9_000_001]
    for piece in (BIG[:10], BIG[5_000_000:15_000_001], BIG[-7:]):
        assert b"\r\n\r\n" + piece + b"\r\n--" in bodies[4]
    assert len(bodies[4]) < 10_000_018 + 1000


@pytest.mark.parametrize(
    ("wanted", "whole", "part"),
    [
        ({}, True, False),
        ({"Want-Content-Digest": "sha-512=9, sha-256=1"}, True, True),
        ({"Want-Content-Digest": "sha-256=0"}, False, False),
        ({"Want-Content-Digest": "sha-512=1"}, True, False),
        ({"Want-Content-Digest": "not a dictionary"}, True, False),
    ],
)
def test_a_content_digest_is_of_what_was_sent(
    receiver: Daemon, big: tuple[str, Path], wanted: dict[str, str], whole: bool, part: bool
) -> None:
    """The whole has one anyway; a part, because it has to be read for it, when it is wanted."""
    path, _ = big
    answer = receiver.call("GET", path, headers=wanted)
    assert answer.headers["Content-Digest"] == (digest(BIG) if whole else None)
    for said in ("bytes=5-6000000", "bytes=0-9,5000000-6000000,-7"):
        answer = receiver.call("GET", path, headers=wanted | {"Range": said})
        assert answer.status == 206
        assert answer.headers["Content-Digest"] == (digest(answer.body) if part else None)
        assert answer.headers["Repr-Digest"] == digest(BIG)
    head = receiver.call("HEAD", path, headers=wanted | {"Range": "bytes=0-4"})
    assert head.headers["Content-Digest"] == (digest(BIG) if whole else None)
    for headers in ({"If-None-Match": "*"}, {"Range": "bytes=99999999-"}):
        assert "Content-Digest" not in receiver.call("GET", path, headers=wanted | headers).headers


def test_a_repr_digest_is_there_unless_it_is_not_acceptable(
    receiver: Daemon, big: tuple[str, Path]
) -> None:
    """The preference is a hint: who would like SHA-512 better gets the digest that there is."""
    path, _ = big
    for wanted in ("sha-256=10", "sha-512=3, sha-256=1", "sha-512=1", "SHA-256=0", ""):
        answer = receiver.call("HEAD", path, headers={"Want-Repr-Digest": wanted})
        assert answer.headers["Repr-Digest"] == digest(BIG)
    answer = receiver.call("HEAD", path, headers={"Want-Repr-Digest": "sha-512=1, sha-256=0"})
    assert "Repr-Digest" not in answer.headers


def _answer_in(stream: BinaryIO, method: str) -> tuple[int, bytes]:
    """Status and body of the next answer, which must begin just here."""
    status = stream.readline()
    assert status.startswith(b"HTTP/1.1 "), status[:100]
    length = 0
    while line := stream.readline().strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    code = int(status.split()[1])
    return code, b"" if method == "HEAD" or code == 304 else stream.read(length)


@pytest.mark.parametrize("cached", [True, False], ids=["warm", "cold"])
def test_a_slow_client_gets_every_byte_and_the_others_do_not_wait(
    receiver: Daemon, big: tuple[str, Path], cached: bool
) -> None:
    path, file = big
    set_cached(file, cached)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", receiver.port))
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        got = connection.recv(4096)
        assert receiver.call("GET", path).body == BIG
        while piece := connection.recv(1024 * 1024):
            got += piece
    assert got.partition(b"\r\n\r\n")[2] == BIG
