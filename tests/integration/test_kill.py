"""Nothing that was acknowledged is lost by ``kill -9``, whenever it comes."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.integration.daemons import Daemon, answer_on, call, wait_until
from tests.integration.plain import PlainSender

ALL = bool(os.environ.get("BACKUPD_TEST_ALL"))
KILLS = 20 if ALL else 5
SIZE = 24 * 1024**2
BLOCK = 64 * 1024
BLOCKS_PER_SECOND = 128
CUT = (OSError, http.client.HTTPException)


class Client:
    """Sends at a steady pace, goes on after a cut, and remembers what was acknowledged."""

    def __init__(self, daemon: Daemon, link: str, data: bytes, rng: random.Random) -> None:
        self.daemon, self.link, self.data, self.rng = daemon, link, data, rng
        self.acknowledged = 0

    def look(self) -> int:
        """The durable offset; it never decreases."""
        standing = call("HEAD", self.link)
        assert standing.status == 200
        offset = int(standing.headers["Upload-Offset"])
        assert offset >= self.acknowledged, "what was acknowledged is lost"
        self.acknowledged = offset
        return offset

    def send(self, method: str, start: int, stop: int, *headers: str) -> None:
        """One request with these bytes of the video; cut by whatever happens to the daemon."""
        with socket.create_connection(("127.0.0.1", self.daemon.port), 10) as connection:
            path = "/" + self.link.split("/", 3)[3]
            lines = [f"{method} {path} HTTP/1.1", f"Host: localhost:{self.daemon.port}", *headers]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            for at in range(start, stop, BLOCK):
                connection.sendall(self.data[at : min(at + BLOCK, stop)])
                time.sleep(1 / BLOCKS_PER_SECOND)
            if method == "PATCH":
                answer = answer_on(connection)
                assert answer.status == 204, answer.body
                assert int(answer.headers["Upload-Offset"]) == stop
                self.acknowledged = stop

    def begin(self) -> None:
        """Announce the whole, send a little of it, and hang up."""
        self.send("PUT", 0, 5 * BLOCK, f"Content-Length: {SIZE}")
        wait_until(lambda: self.look() == 5 * BLOCK, "what came before the cut is durable")

    def go_on(self) -> None:
        """Pieces of some length, each acknowledged, to the end."""
        while (offset := self.look()) < SIZE:
            stop = min(SIZE, offset + self.rng.randrange(1, 1024**2))
            self.send(
                "PATCH",
                offset,
                stop,
                f"Content-Length: {stop - offset}",
                "Content-Type: application/offset+octet-stream",
                "Tus-Resumable: 1.0.0",
                f"Upload-Offset: {offset}",
            )


def free(root: Path) -> int:
    volume = os.statvfs(root)
    return volume.f_bavail * volume.f_frsize


def test_an_upload_survives_every_kill(tmp_path: Path) -> None:
    rng = random.Random(20)
    data = rng.randbytes(SIZE)
    with Daemon(tmp_path) as daemon, PlainSender() as sender:
        send, complete = sender.turn(daemon.url, 1, SIZE)
        client = Client(daemon, send, data, rng)
        client.begin()
        for _ in range(KILLS):
            killer = threading.Timer(rng.uniform(0.005, 0.12), daemon.kill)
            killer.start()
            with pytest.raises(CUT):
                client.go_on()
            killer.join()
            daemon.start()
            state = daemon.ready()
            assert state["pending"] + state["inProgress"] == 1
        assert 0 < client.look() < SIZE, "every kill was to come in the middle"
        client.go_on()

        done = None
        for _ in range(5 if ALL else 2):
            killer = threading.Timer(rng.uniform(0.0, 0.02), daemon.kill)
            killer.start()
            try:
                answer = call("POST", complete, {"videoId": 1, "success": True})
                assert answer.status == 200
                assert answer.json == (done or answer.json)
                done = answer.json
            except CUT:
                pass
            killer.join()
            daemon.start()
        done = call("POST", complete, {"videoId": 1, "success": True}).json
        assert done["sha256"] == hashlib.sha256(data).hexdigest()
        (backup,) = daemon.backups()
        assert backup["backupId"] == done["backupId"]
        assert call("GET", done["contentUrl"]).body == data

        state = daemon.ready()
        assert (state["pending"], state["inProgress"]) == (0, 0)
        wait_until(
            lambda: abs(daemon.ready()["availableBytes"] - free(daemon.root)) < SIZE // 2,
            "nothing is promised to anybody",
        )
        assert daemon.incoming == []
