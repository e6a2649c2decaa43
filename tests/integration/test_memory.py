"""Memory is bounded whatever the size, and bytes go nowhere but to their volume."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemons import Answer, Daemon, answer_on, call
from tests.integration.plain import PlainSender

MIB = 1024**2
ALL = bool(os.environ.get("BACKUPD_TEST_ALL"))
ONE = (4096 if ALL else 512) * MIB
EACH = (128 if ALL else 24) * MIB
AT_ONCE = 16
NEEDED = 10 * 1024**3 if ALL else 2 * 1024**3
ZEROS = bytes(MIB)


def write_zeros(daemon: Daemon, link: str, size: int) -> Answer:
    """PUT ``size`` bytes of nothing."""
    with socket.create_connection(("127.0.0.1", daemon.port), 120) as connection:
        path = "/" + link.split("/", 3)[3]
        head = f"PUT {path} HTTP/1.1\r\nHost: localhost:{daemon.port}\r\nContent-Length: {size}"
        connection.sendall(f"{head}\r\n\r\n".encode())
        for _ in range(size // MIB):
            connection.sendall(ZEROS)
        return answer_on(connection)


def sha256_of_zeros(size: int) -> str:
    digest = hashlib.sha256()
    for _ in range(size // MIB):
        digest.update(ZEROS)
    return digest.hexdigest()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """With turns for all, and a folder for temporary files that must stay empty."""
    if shutil.disk_usage(tmp_path).free < NEEDED:
        assert not os.environ.get("BACKUPD_TEST_ALL"), "too little room on the disk"
        pytest.skip(f"{NEEDED // 1024**3} GiB of free disk are needed")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    running = Daemon(tmp_path, max_concurrent_transfers=str(AT_ONCE), max_per_peer=str(AT_ONCE))
    running.extra_environment["TMPDIR"] = str(temporary)
    with running, PlainSender() as sender:
        warm, complete = sender.turn(running.url, "warm", MIB)
        assert write_zeros(running, warm, MIB).status == 200
        assert call("POST", complete, {"videoId": "warm", "success": False}).status == 200
        yield running
        assert list(temporary.iterdir()) == []
        assert {path.name for path in tmp_path.iterdir()} == {
            "daemon",
            "daemon.log",
            "temporary",
        }
    shutil.rmtree(running.root)


@pytest.mark.timeout(600)
def test_one_long_upload(daemon: Daemon) -> None:
    before = daemon.memory()
    with PlainSender() as sender:
        send, _ = sender.turn(daemon.url, 1, ONE)
        answer = write_zeros(daemon, send, ONE)
    assert answer.status == 200
    assert answer.json["sha256"] == sha256_of_zeros(ONE)
    assert daemon.memory() - before <= 32 * MIB


@pytest.mark.timeout(600)
def test_sixteen_uploads_at_once(daemon: Daemon) -> None:
    before = daemon.memory()
    answers: list[Answer] = []
    with PlainSender() as sender:
        links = [sender.turn(daemon.url, number, EACH)[0] for number in range(AT_ONCE)]
        threads = [
            threading.Thread(target=lambda to=link: answers.append(write_zeros(daemon, to, EACH)))
            for link in links
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    assert [answer.status for answer in answers] == [200] * AT_ONCE
    assert {answer.json["sha256"] for answer in answers} == {sha256_of_zeros(EACH)}
    assert daemon.memory() - before <= AT_ONCE * 16 * MIB


@pytest.mark.timeout(600)
def test_a_reader_that_reads_nothing_costs_little(daemon: Daemon) -> None:
    """Giving back waits for the network, too."""
    with PlainSender() as sender:
        send, complete = sender.turn(daemon.url, 1, 128 * MIB)
        assert write_zeros(daemon, send, 128 * MIB).status == 200
        done = call("POST", complete, {"videoId": 1, "success": True}).json
    before = daemon.memory()
    path = "/" + done["contentUrl"].split("/", 3)[3]
    head = f"GET {path} HTTP/1.1\r\nHost: localhost:{daemon.port}\r\n\r\n".encode()
    readers = [socket.create_connection(("127.0.0.1", daemon.port), 20) for _ in range(8)]
    for reader in readers:
        reader.sendall(head)
        assert reader.recv(16).startswith(b"HTTP/1.1 200")
    assert len(call("GET", done["contentUrl"]).body) == 128 * MIB
    assert daemon.memory() - before <= 32 * MIB
    for reader in readers:
        reader.close()
