"""The whole walk through nginx and HAProxy, configured as `deploy/` says, with TLS."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.integration import contract
from tests.integration.contract import BYTES, PATCH, SHA, form, is_problem, path_of
from tests.integration.daemons import (
    REPOSITORY,
    Answer,
    answer_on,
    clean_environment,
    run,
    wait_until,
)
from tests.integration.faults import Strace
from tests.integration.plain import PlainSender, octets
from tests.integration.proxies import CLIENT, PROXIES, Proxy

MIB = 1024**2
BIG = 256 * MIB
IN_FLIGHT = 48 * MIB
"""More than sockets and proxies hold in memory, and far less than `BIG`."""

ALL = bool(os.environ.get("BACKUPD_TEST_ALL"))


@pytest.fixture(scope="module", params=sorted(PROXIES))
def front(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """A daemon behind a proxy."""
    kind = PROXIES[request.param]
    turns = {"max_concurrent_transfers": "1000", "max_per_peer": "1000"}
    with kind(tmp_path_factory.mktemp(request.param), loop_interval="0.2", **turns) as proxy:
        yield proxy


def head(front: Proxy, method: str, link: str, *lines: str) -> bytes:
    """The head of a request, as bytes."""
    own = [f"Host: localhost:{front.port}", *lines]
    return "\r\n".join([f"{method} {path_of(link)} HTTP/1.1", *own, "", ""]).encode()


def complete(front: Proxy, link: str, video: object) -> Answer:
    return front.call("POST", link, {"videoId": video, "success": True})


# -- the walk --------------------------------------------------------------------------------------


def test_a_whole_upload_goes_through(front: Proxy, sender: PlainSender, video: int) -> None:
    """Links are the public ones, and lead through the proxy from beginning to end."""
    send, done = sender.turn(front.daemon.url, video, len(BYTES))
    assert send.startswith(front.url)
    assert done.startswith(front.url)
    started = front.call("POST", send, {"videoId": video})
    assert started.json["uploadUrl"] == send
    answer = front.call("POST", send, BYTES, octets)
    assert (answer.status, answer.json["sha256"]) == (200, SHA)
    kept = complete(front, done, video).json
    assert kept["contentUrl"].startswith(front.url)
    assert front.call("GET", kept["contentUrl"]).body == BYTES


def test_forms_and_chunks_go_through(front: Proxy, sender: PlainSender, video: int) -> None:
    send, _ = sender.turn(front.daemon.url, video, len(BYTES))
    body, headers = form(("videoId", None, str(video).encode()), ("file", "v.mp4", BYTES))
    assert front.call("POST", send, body, headers).json["sha256"] == SHA
    with front.connect() as connection:
        connection.sendall(head(front, "PUT", send, "Transfer-Encoding: chunked"))
        for piece in (BYTES[:5000], BYTES[5000:]):
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.sendall(b"0\r\n\r\n")
        answer = answer_on(connection, "PUT")
    assert (answer.status, answer.json["sha256"]) == (200, SHA)


def test_the_daemon_sees_the_client_and_not_the_proxy(front: Proxy) -> None:
    """Host, scheme and address are what the client has; what it makes up counts for nothing."""
    lies = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http"}
    path = f"/api/v1/backups/seen-through-{front.program}"
    assert front.call("GET", path, headers=lies).status == 404
    wait_until(lambda: path in front.daemon.text(), "the daemon has logged it")
    (line,) = [line for line in front.daemon.text().splitlines() if path in line]
    assert line.endswith(f" for {CLIENT}")

    where, ask = "/api/v1/backup/can-accept-backup", {"videoId": "x"}
    own = front.call("POST", where, ask, lies | {"Origin": front.url})
    is_problem(own, 400)
    foreign = {"Origin": f"http://localhost:{front.port}", "X-Forwarded-Proto": "http"}
    is_problem(front.call("POST", where, ask, foreign), 403)
    rebound = {"Host": "evil.example", "X-Forwarded-Host": f"localhost:{front.port}"}
    is_problem(front.call("GET", "/readyz", headers=rebound), 421)


# -- refusals --------------------------------------------------------------------------------------


def refused_while_sending(front: Proxy, request: bytes) -> Answer:
    """What a client reads that sends until it cannot any more, and reads only then."""
    with front.connect() as connection:
        connection.sendall(request)
        try:
            for _ in range(64):
                connection.sendall(bytes(MIB // 2))
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError, TimeoutError):
            pass  # it has heard enough; its answer must be there all the same
        return answer_on(connection)


def test_a_refusal_reaches_the_client_early(
    front: Proxy, sender: PlainSender, video: int, tmp_path: Path
) -> None:
    """413, 404 and 507 are read by a client that is in the middle of sending."""
    send, _ = sender.turn(front.daemon.url, video, len(BYTES))
    unknown = f"{front.url}/api/v1/backup/receive-backup/nobody-knows-this"
    length = f"Content-Length: {32 * MIB}"
    for link, status in ((send, 413), (unknown, 404)):
        is_problem(refused_while_sending(front, head(front, "POST", link, length)), status)

    large, _ = sender.turn(front.daemon.url, f"full {video}", 32 * MIB)
    fault = (["fallocate"], "ENOSPC")
    with Strace(tmp_path, front.daemon.pid, ["fallocate"], fail=fault):
        is_problem(refused_while_sending(front, head(front, "POST", large, length)), 507)
    assert front.call("PUT", large, bytes(32 * MIB), octets).status == 200


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
def test_curl_hears_a_refusal(
    front: Proxy, sender: PlainSender, video: int, tmp_path: Path, expect: str
) -> None:
    send, _ = sender.turn(front.daemon.url, video, len(BYTES))
    file = tmp_path / "big"
    with file.open("wb") as sparse:
        sparse.truncate(32 * MIB)
    for link, status in ((send, "413"), (send[:-1], "404")):
        command: list[str | Path] = ["curl", "-sS", "--cacert", front.certificate]
        command += ["-T", file, link, "-H", expect, "-w", "\n%{http_code}"]
        done = run(command, clean_environment())
        assert (done.code, done.out.splitlines()[-1]) == (0, status), (done.err, done.out)


# -- cuts ------------------------------------------------------------------------------------------


def test_while_the_daemon_is_down_nobody_is_made_to_begin_anew(
    front: Proxy, sender: PlainSender, video: int
) -> None:
    """Where an upload stands is a locked secret meanwhile, and everything else is to be asked
    again; what the daemon then says goes through as it is."""
    send, _ = sender.turn(front.daemon.url, video, len(BYTES))
    assert front.call("PATCH", send, BYTES[:5], PATCH | {"Upload-Offset": "0"}).status == 204
    front.daemon.kill()
    try:
        for link in (send, send + "/unknown"):
            down = front.call("HEAD", link, headers={"Tus-Resumable": "1.0.0"})
            assert (down.status, down.headers["Retry-After"]) == (423, "5")
        for asked in (
            front.call("PATCH", send, BYTES[5:], PATCH | {"Upload-Offset": "5"}),
            front.call("HEAD", "/healthz"),
            front.call("GET", "/readyz"),
        ):
            assert (asked.status, asked.headers["Retry-After"]) == (503, "5")
    finally:
        front.daemon.start()
    asked = front.call("HEAD", send, headers={"Tus-Resumable": "1.0.0"})
    assert (asked.status, asked.headers["Upload-Offset"]) == (200, "5")
    unknown = front.call("HEAD", send + "/unknown", headers={"Tus-Resumable": "1.0.0"})
    assert unknown.status == 404


def test_what_came_before_a_cut_is_kept(front: Proxy, sender: PlainSender, video: int) -> None:
    """The proxy keeps nothing back: the upload goes on from where it was cut, again and again."""
    rng = random.Random(video)
    data = rng.randbytes(24 * MIB)
    send, done = sender.turn(front.daemon.url, video, len(data))
    offset, sent = 0, 4 * MIB
    request = head(front, "PUT", send, f"Content-Length: {len(data)}")
    for _ in range(3):
        with front.connect() as connection:
            connection.sendall(request)
            connection.sendall(data[offset:sent])
            wait_until(partial(has_more, front, video, offset), "some of it has arrived")
        cut = wait_until(partial(standing, front, send, offset), "the cut has come through")
        assert cut <= sent
        offset, sent = cut, cut + rng.randrange(MIB, 6 * MIB)
        request = head(
            front,
            "PATCH",
            send,
            *(f"{name}: {value}" for name, value in PATCH.items()),
            f"Upload-Offset: {offset}",
            f"Content-Length: {len(data) - offset}",
        )
    rest = front.call("PATCH", send, data[offset:], PATCH | {"Upload-Offset": str(offset)})
    assert (rest.status, rest.headers["Upload-Offset"]) == (204, str(len(data)))
    answer = complete(front, done, video)
    assert answer.json["sha256"] == hashlib.sha256(data).hexdigest()


def has_more(front: Proxy, video: object, offset: int) -> bool:
    """Whether the daemon has more than ``offset`` bytes, durable or not."""
    (request,) = [one for one in front.daemon.requests() if one["videoId"] == video]
    return bool(request["receivedBytes"] > offset)


def standing(front: Proxy, link: str, before: int) -> int:
    """The durable offset, once it is more than ``before``."""
    offset = int(front.call("HEAD", link).headers["Upload-Offset"])
    return offset if offset > before else 0


# -- nothing is spooled ----------------------------------------------------------------------------


class Upload(threading.Thread):
    """Sends `BIG` bytes, and says how many the other side has taken so far."""

    def __init__(self, front: Proxy, link: str, block: bytes) -> None:
        super().__init__(daemon=True)
        self._front, self._link, self._block = front, link, block
        self.sent = 0
        self.answer: Answer | None = None

    def run(self) -> None:
        with self._front.connect(150.0) as connection:
            connection.sendall(head(self._front, "PUT", self._link, f"Content-Length: {BIG}"))
            while self.sent < BIG:
                connection.sendall(self._block)
                self.sent += len(self._block)
            self.answer = answer_on(connection, "PUT")


def stands_still(upload: Upload) -> bool:
    before = upload.sent
    time.sleep(0.5)
    return before == upload.sent > 0


def test_a_big_upload_is_not_spooled(front: Proxy, sender: PlainSender, video: int) -> None:
    """While the daemon stands still the client does too: no copy grows anywhere."""
    block = random.Random(video).randbytes(MIB)
    send, _ = sender.turn(front.daemon.url, video, BIG)
    memory = front.memory()
    upload = Upload(front, send, block)
    os.kill(front.daemon.pid, signal.SIGSTOP)
    try:
        upload.start()
        wait_until(lambda: stands_still(upload), "the client is slowed")
        assert upload.sent < IN_FLIGHT
        assert front.spooled() == []
    finally:
        os.kill(front.daemon.pid, signal.SIGCONT)
    while upload.is_alive():
        assert front.spooled() == []
        upload.join(0.02)
    assert upload.answer is not None
    assert upload.answer.status == 200
    assert upload.answer.json["sha256"] == hashlib.sha256(block * (BIG // MIB)).hexdigest()
    assert front.memory() - memory < IN_FLIGHT


def test_restores_go_through_unspooled_and_in_ranges(
    front: Proxy, sender: PlainSender, video: int
) -> None:
    """A client that reads slowly slows the daemon; ranges and conditions arrive as they were."""
    block = random.Random(video).randbytes(MIB)
    send, done = sender.turn(front.daemon.url, video, BIG)
    upload = Upload(front, send, block)
    upload.run()
    kept = complete(front, done, video).json
    link, memory = kept["contentUrl"], front.memory()

    digest = hashlib.sha256()
    with front.connect() as connection:
        connection.sendall(head(front, "GET", link, "Connection: close"))
        reader = connection.makefile("rb")
        while reader.readline() != b"\r\n":
            pass
        digest.update(reader.read(MIB))
        for _ in range(20):
            assert front.spooled() == []
            time.sleep(0.02)
        while piece := reader.read(MIB):
            digest.update(piece)
    assert digest.hexdigest() == kept["sha256"]
    assert front.spooled() == []
    assert front.memory() - memory < IN_FLIGHT

    part = front.call("GET", link, headers={"Range": f"bytes={MIB - 5}-{MIB + 4}"})
    assert (part.status, part.body) == (206, block[-5:] + block[:5])
    assert part.headers["Content-Range"] == f"bytes {MIB - 5}-{MIB + 4}/{BIG}"
    last = front.call("GET", link, headers={"Range": "bytes=-7"})
    assert (last.status, last.body) == (206, block[-7:])
    two = front.call("GET", link, headers={"Range": "bytes=0-1,5-6"})
    assert two.headers["Content-Type"].startswith("multipart/byteranges")
    assert block[5:7] in two.body
    assert front.call("GET", link, headers={"Range": f"bytes={BIG}-"}).status == 416
    same = {"If-None-Match": part.headers["ETag"]}
    assert front.call("GET", link, headers=same).status == 304
    whole = front.call("HEAD", link)
    assert whole.headers["Content-Length"] == str(BIG)
    encoded = base64.b64encode(bytes.fromhex(kept["sha256"])).decode()
    assert whole.headers["Repr-Digest"] == f"sha-256=:{encoded}:"


# -- secrets and patience --------------------------------------------------------------------------


def test_no_secret_is_logged(front: Proxy, sender: PlainSender, video: int) -> None:
    """Whatever goes well or wrong, a log has a few letters of a link and no more."""
    send, done = sender.turn(front.daemon.url, video, len(BYTES))
    wrapped = send.replace("receive-backup", "%72eceive-backup")
    front.call("HEAD", wrapped)
    front.call("POST", send + "?videoId=1", BYTES, octets | {"Content-Encoding": "gzip"})
    with front.connect() as connection:  # cut in the middle
        connection.sendall(head(front, "PUT", send, "Content-Length: 10000") + b"some")
    with front.connect() as connection:  # no HTTP at all
        connection.sendall(head(front, "PUT", send, "Content-Length: x", "Bad Header"))
        connection.recv(1000)
    front.daemon.kill()
    try:
        assert front.call("PUT", send, BYTES, octets).status in (502, 503)
    finally:
        front.daemon.start()
    assert front.call("PUT", send, BYTES, octets).status == 200
    assert complete(front, done, video).status == 200
    for link in (send, done):
        secret = link.rpartition("/")[2]
        shown = f"/{secret[:6]}..."
        wait_until(partial(is_logged, front, shown), "the log has been written")
        assert secret not in front.logs()
        assert secret[:12] not in front.logs()


def is_logged(front: Proxy, text: str) -> bool:
    return text in front.logs()


def test_no_timeout_is_shorter_than_an_upload_may_stand_still() -> None:
    """At least two minutes between two bytes, in either direction."""
    for name, patience in (
        (
            "nginx.conf.example",
            r"(client_body_timeout|send_timeout|proxy_send_timeout|proxy_read_timeout) (\w+);",
        ),
        ("haproxy.cfg.example", r"timeout (client|server) (\w+)\n"),
    ):
        text = (REPOSITORY / "deploy" / name).read_text()
        found = dict(re.findall(patience, text))
        assert len(found) == (4 if "nginx" in name else 2)
        for value in found.values():
            units = {"s": 1, "m": 60, "h": 3600}
            assert int(value[:-1]) * units[value[-1]] >= 120


@pytest.mark.skipif(not ALL, reason="takes more than a minute; BACKUPD_TEST_ALL=1 runs it")
@pytest.mark.timeout(400)
def test_an_upload_that_stands_still_for_more_than_a_minute_goes_on(
    tmp_path: Path, sender: PlainSender, video: int
) -> None:
    """A last sync that takes longer than the 60 s that proxies wait by default; both at once."""
    size = 8 * MIB

    def wait(name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        with PROXIES[name](folder, loop_interval="0.2") as front:
            send, _ = sender.turn(front.daemon.url, f"{name} {video}", size)
            begin = contract.head(front.daemon, "PUT", send, f"Content-Length: {size}")
            with socket.create_connection(("127.0.0.1", front.daemon.port), 10) as plain:
                plain.sendall(begin + bytes(9))
            wait_until(partial(standing, front, send, 0), "some of it is there")
            (upload,) = front.daemon.incoming
            path = front.daemon.root / ".backupd" / "incoming" / upload
            syncs = ["fdatasync"]
            with (
                Strace(folder, front.daemon.pid, syncs, delay=(syncs, 71), path=path),
                front.connect(200.0) as connection,
            ):
                lines = [f"{key}: {value}" for key, value in PATCH.items()]
                lines += ["Upload-Offset: 9", f"Content-Length: {size - 9}"]
                connection.sendall(head(front, "PATCH", send, *lines) + bytes(size - 9))
                begun = time.monotonic()
                answer = answer_on(connection, "PATCH")
                assert time.monotonic() - begun > 70
            assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(size))

    with ThreadPoolExecutor() as threads:
        list(threads.map(wait, PROXIES))
