"""Our sender over a long, thin link: several connections, when they bring more."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest_twisted
from twisted.internet import reactor as global_reactor

from backupd.interfaces import Entry
from tests.integration.daemons import Daemon, wait_until
from tests.integration.slow_proxy import SlowProxy
from tests.sender.test_foreign_receiver import sending
from tests.sender.tus_server import Serving, TusServer

MIB = 1024 * 1024


class Receiver(TusServer):
    """Says yes, takes uploads by tus, and names the digest of what it has."""

    def more(self, method: str, path: str, body: bytes) -> bytes:
        if path == "/complete":
            digest = hashlib.sha256(self.whole.data).hexdigest()
            return json.dumps({"success": True, "sha256": digest}).encode()
        return b'{"success": true}'


async def back_up(folder: Path, size: int, rate: float, shared: float | None, delay: float) -> Way:
    """Send a file of ``size`` over such a link."""
    path = folder / "2.mp4"
    path.write_bytes(os.urandom(size))
    receiver = Receiver()
    with (
        Serving(receiver, receiver.more) as server,
        SlowProxy(server.port, delay=delay, rate=rate, shared=shared) as proxy,
    ):
        async with sending(folder) as sender:
            url = f"http://127.0.0.1:{proxy.port}"
            await sender.outbox.enqueue(path=str(path), to=url)
            await sender.outbox.notice(None, "2", f"{url}/receive", f"{url}/complete")
            sender.over.addTimeout(60, global_reactor)
            entry = await sender.over
    assert bytes(receiver.whole.data) == path.read_bytes()
    assert receiver.received == size, "nothing is sent twice"
    return Way(entry, receiver, proxy)


class Way:
    """How it went."""

    def __init__(self, entry: Entry, receiver: TusServer, proxy: SlowProxy) -> None:
        self.entry = entry
        self.connections = proxy.most_busy
        self.parts = receiver.made - 1


@pytest_twisted.ensureDeferred
async def test_connections_that_are_thin_each_are_used_four_at_once(tmp_path: Path) -> None:
    way = await back_up(tmp_path, 48 * MIB, rate=2 * MIB, shared=None, delay=0.1)
    assert way.entry.state == "VERIFIED"
    assert way.connections >= 3
    assert way.parts > 4


@pytest_twisted.ensureDeferred
async def test_a_link_that_is_thin_as_a_whole_is_left_to_one_connection(tmp_path: Path) -> None:
    """The second is tried and brings nothing; a third is not tried."""
    way = await back_up(tmp_path, 24 * MIB, rate=4 * MIB, shared=2 * MIB, delay=0.05)
    assert way.entry.state == "VERIFIED"
    assert way.connections == 2


@pytest_twisted.ensureDeferred
async def test_a_short_way_gets_one_connection_and_no_parts(tmp_path: Path) -> None:
    """However thin it is: nothing that only distance would explain."""
    way = await back_up(tmp_path, 20 * MIB, rate=8 * MIB, shared=None, delay=0.001)
    assert way.entry.state == "VERIFIED"
    assert (way.connections, way.parts) == (1, 0)


def test_our_own_receiver_takes_the_parts_and_keeps_one_file(tmp_path: Path) -> None:
    """Two daemons as people run them: several connections at once, joined to what was sent; the
    receiver has no more than one file's room, and nothing is left of the parts."""
    video = tmp_path / "video.mp4"
    video.write_bytes(os.urandom(40 * MIB))
    receiver = Daemon(tmp_path, "receiver", loop_interval="0.2")
    sender = Daemon(tmp_path, "sender", loop_interval="0.2")
    with SlowProxy(receiver.port, delay=0.1, rate=2 * MIB) as proxy:
        far = receiver.settings["public_url"] = f"http://localhost:{proxy.port}"
        with receiver, sender:
            done = sender.ctl("send", str(video), "--to", far, seconds=60)
            assert done.code == 0, done.err
            assert proxy.most_busy >= 3
            assert proxy.carried < 41 * MIB, "nothing is sent twice"
            [backup] = receiver.call("GET", "/api/v1/backups").json["backups"]
            got = receiver.call("GET", f"/api/v1/backups/{backup['backupId']}/content")
            assert got.body == video.read_bytes()
            incoming = receiver.root / ".backupd" / "incoming"
            wait_until(lambda: not list(incoming.iterdir()), "nothing of the parts is left")
