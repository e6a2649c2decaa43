"""Giving back when something goes wrong, over real sockets: no wrong byte, nothing left open."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.contract import digest, form, is_problem
from tests.integration.daemons import Daemon, call, wait_until
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
