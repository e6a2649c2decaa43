"""A bad network between two daemons: loss, refusals, silence one way, cut wires, new addresses.

Every video reaches STORED, and what is restored is what was sent. A connection of which only one
side knows that it is dead holds no turn for longer than the lease, and whoever sends asks where it
stands and goes on from there.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.integration.contract import path_of
from tests.integration.cutter import Cutter
from tests.integration.daemons import Daemon, Done, free_port, wait_until
from tests.integration.pairs import pair
from tests.integration.slow_proxy import SlowProxy
from tests.integration.tus import OFFSET, VERSION, metadata
from tests.integration.wires import Far, Wire
from tests.torture.scratch import scratch

__all__ = ["WEATHERS", "check_half_open", "check_proxies", "check_weather", "joined", "run"]

MIB = 1024**2
QUICK = {"loop_interval": "0.3", "shutdown_grace": "1"}
LEASE = 4.0
ARRIVES = 240.0
"""Seconds within which all has arrived once the network is well; a sender that has said all waits
two minutes for its answer before it asks where it stands.
"""


# -- what becomes of videos ------------------------------------------------------------------------


class Shipment:
    """Videos that one daemon sends to another."""

    def __init__(self, owner: Daemon, keeper: Daemon, folder: Path, to: str) -> None:
        self.owner, self.keeper, self.folder, self.to = owner, keeper, folder, to
        self._sent: dict[str, tuple[str, bytes]] = {}

    def send(self, video: str, data: bytes) -> None:
        """Queue it."""
        path = self.folder / f"{video}.mp4"
        path.write_bytes(data)
        queued = self.owner.ctl(
            "send", path, "--to", self.to, "--video-id", video, "--detach", "--json"
        )
        assert queued.code == 0, queued.err
        self._sent[video] = queued.json["entries"][0]["entryId"], data

    def entries(self) -> dict[str, Any]:
        """What the sender says of each, by the video."""
        found = {}
        for video, (entry_id, _) in self._sent.items():
            path = f"/api/v1/outbox/{entry_id}"
            found[video] = self.owner.call("GET", path, operator=True).json
        return found

    def all_arrived(self) -> bool:
        states = [one["state"] for one in self.entries().values()]
        assert not {"FAILED", "CANCELLED", "UNVERIFIED"} & set(states), self.entries()
        return set(states) == {"VERIFIED"}

    def under_way(self) -> int:
        """Bytes that the keeper has of what is not stored yet."""
        path = "/api/v1/backup/requests?state=live"
        live = self.keeper.call("GET", path, operator=True).json["requests"]
        return sum(one["receivedBytes"] for one in live)

    def check(self) -> None:
        """All of it arrives, once; restored, it is what was sent; and nothing else is left."""
        wait_until(self.all_arrived, f"all has arrived: {self.entries()}", ARRIVES)
        kept = self.keeper.ctl("list", "--json").json["backups"]
        assert sorted(str(one["videoId"]) for one in kept) == sorted(self._sent), kept
        for one in kept:
            back = self.folder / "back.mp4"
            back.unlink(missing_ok=True)
            done = self._restore(one["backupId"], back)
            assert done.code == 0, done.err
            assert back.read_bytes() == self._sent[str(one["videoId"])][1]
        assert self.under_way() == 0
        assert self.keeper.incoming == []

    def _restore(self, backup_id: str, path: Path) -> Done:
        if isinstance(self.owner, Far):
            return self.owner.ctl("restore", backup_id, "--at", self.to, "-o", path)
        return self.keeper.ctl("restore", backup_id, "-o", path)


# -- weather ---------------------------------------------------------------------------------------


@contextmanager
def joined(folder: Path, **settings: str) -> Iterator[tuple[Wire, Far, Far]]:
    """A wire, a keeper at its near end, and at its far end an owner that it is paired with."""
    with (
        Wire() as wire,
        Far(folder, "keeper", wire.near, **(QUICK | {"offer_lease": f"{LEASE} s"})) as keeper,
        Far(folder, "owner", wire.far, **(QUICK | settings)) as owner,
    ):
        pair(keeper, owner, network="private")
        yield wire, keeper, owner


Weather = Callable[[Wire, random.Random], Callable[[], None]]
"""Begins, and gives back what ends it."""


def _loss(wire: Wire, chance: random.Random) -> Callable[[], None]:
    for host in (wire.near, wire.far):
        host.rules(f"numgen random mod 100 < {chance.randrange(2, 9)} drop")

    def calm() -> None:
        wire.near.calm()
        wire.far.calm()

    return calm


def _reject(wire: Wire, chance: random.Random) -> Callable[[], None]:
    host = chance.choice((wire.near, wire.far))
    how = chance.choice(("meta l4proto tcp reject with tcp reset", "reject"))
    host.rules(how)
    return host.calm


def _silence(wire: Wire, chance: random.Random) -> Callable[[], None]:
    """One of the two hears nothing, and is heard."""
    host = chance.choice((wire.near, wire.far))
    host.rules("drop")
    return host.calm


def _cut(wire: Wire, chance: random.Random) -> Callable[[], None]:
    wire.cut()
    return wire.mend


def _address(wire: Wire, chance: random.Random) -> Callable[[], None]:
    """The owner is somewhere else all of a sudden, and later where it was."""
    new = f"10.77.0.{chance.randrange(10, 250)}"
    wire.far.lose_address(wire.far.address)
    wire.far.add_address(new)

    def back() -> None:
        # In this order: what is added beside another of the same network goes with it.
        wire.far.lose_address(new)
        wire.far.add_address(wire.far.address)

    return back


WEATHERS: dict[str, Weather] = {
    "loss": _loss,
    "reject": _reject,
    "silence": _silence,
    "cut": _cut,
    "address": _address,
}


def check_weather(
    folder: Path,
    chance: random.Random,
    told: Callable[[str], None],
    weathers: list[str],
    *,
    videos: int = 3,
    size: int = 5 * MIB,
) -> None:
    """Videos on their way while it is bad, one weather after the other; in the end all is there."""
    with joined(folder, send_bandwidth="3 MB/s", max_sends="2") as (wire, keeper, owner):
        wire.need_filter()
        for number, name in enumerate(weathers):
            place = folder / str(number)
            place.mkdir()
            shipment = Shipment(owner, keeper, place, "keeper")
            for one in range(videos):
                data = chance.randbytes(chance.randrange(size // 2, size))
                shipment.send(f"{name}-{number}-{one}", data)
            wait_until(shipment.under_way, "bytes are on their way")
            began = time.monotonic()
            end = WEATHERS[name](wire, chance)
            try:
                lasts = chance.uniform(1.0, 3 * LEASE)
                threading.Event().wait(lasts)
            finally:
                end()
            shipment.check()
            for kept in keeper.ctl("list", "--json").json["backups"]:
                assert keeper.ctl("delete", kept["backupId"], "--now").code == 0
            took = time.monotonic() - began
            told(f"{name} for {lasts:.0f} s: {videos} videos are there after {took:.0f} s")


# -- half-open connections -------------------------------------------------------------------------


def check_half_open(folder: Path, chance: random.Random, told: Callable[[str], None]) -> None:
    """The wire is cut under an upload, by plain HTTP, of a client that hears nothing of it.

    Its turn goes to another after the lease, what has come stands, and it goes on from there.
    """
    with Wire() as wire:
        keeper = Far(folder, "keeper", wire.near, **QUICK)
        keeper.settings |= {"max_concurrent_transfers": "1", "offer_lease": f"{LEASE} s"}
        # A second endpoint, without TLS: bytes come in around the parser there.
        plain = free_port()
        keeper.settings["listen"] += f" tcp:{plain}"
        with keeper:
            tokens = [keeper.add(name, "send,restore") for name in ("near", "far")]
            data = chance.randbytes(chance.randrange(2 * MIB, 4 * MIB))
            sent = chance.randrange(1, len(data))
            with wire.far.inside():
                far = Direct(wire.near.address, plain, tokens[1])
                url = far.create("far", len(data))
                connection = far.begin(url, 0, len(data))
                connection.sendall(data[:sent])
            wait_until(lambda: _received(keeper, "far") == sent, "the bytes are there")
            wire.cut()
            began = time.monotonic()
            with wire.near.inside():
                near = Direct("127.0.0.1", plain, tokens[0])
                other = chance.randbytes(MIB)
                at = near.create("near", len(other))
                # One turn in all: that of a client that is silent, and not known to be gone.
                wait_until(lambda: near.patch(at, 0, other) == 204, "its turn is free", 30.0)
            took = time.monotonic() - began
            assert took < 3 * LEASE, f"a dead connection held its turn for {took:.0f} s"
            connection.close()
            wire.mend()
            with wire.far.inside():
                stands = wait_until(lambda: far.offset(url), "it can be asked again")
                assert stands == sent, f"{sent} bytes had come, and {stands} stand"
                assert far.patch(url, stands, data[stands:]) == 204
            kept = keeper.ctl("list", "--json").json["backups"]
            digests = {one["videoId"]: one["sha256"] for one in kept}
            assert digests == {
                "far": hashlib.sha256(data).hexdigest(),
                "near": hashlib.sha256(other).hexdigest(),
            }
            told(f"half-open: the turn was free after {took:.0f} s, and {sent} bytes stood")


def _received(keeper: Far, video: str) -> int:
    path = "/api/v1/backup/requests?state=live"
    live = keeper.call("GET", path, operator=True).json["requests"]
    return next((int(one["receivedBytes"]) for one in live if one["videoId"] == video), 0)


class Direct:
    """A client of ``/api/v1/uploads`` that shows a token; on the host that this thread is on."""

    def __init__(self, address: str, port: int, token: str) -> None:
        self._address, self._port = address, port
        self._headers = VERSION | {"Authorization": f"Bearer {token}"}

    def _ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self._address, self._port, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, self._headers | named)
            answer = connection.getresponse()
            answer.read()
            return answer
        finally:
            connection.close()

    def create(self, video: str, length: int) -> str:
        """The path of a new upload."""
        answer = self._ask(
            "POST",
            "/api/v1/uploads",
            Upload_Length=str(length),
            Upload_Metadata=metadata(videoId=video),
        )
        assert answer.status == 201, answer.status
        return path_of(answer.headers["Location"])

    def begin(self, path: str, offset: int, length: int) -> socket.socket:
        """A connection on which so many bytes are announced."""
        lines = [f"PATCH {path} HTTP/1.1", f"Host: {self._address}:{self._port}"]
        headers = self._headers | OFFSET
        headers |= {"Upload-Offset": str(offset), "Content-Length": str(length)}
        lines += [f"{name}: {value}" for name, value in headers.items()]
        connection = socket.create_connection((self._address, self._port), 10)
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return connection

    def patch(self, path: str, offset: int, data: bytes) -> int:
        """The status of the answer; it may be refused before all is sent."""
        kind = OFFSET["Content-Type"]
        try:
            answer = self._ask("PATCH", path, data, Content_Type=kind, Upload_Offset=str(offset))
        except OSError:
            return 0
        return answer.status

    def offset(self, path: str) -> int:
        """Where it stands, 0 while that cannot be told."""
        try:
            answer = self._ask("HEAD", path)
        except OSError:
            return 0
        return int(answer.headers.get("Upload-Offset", 0))


# -- proxies ---------------------------------------------------------------------------------------


def check_proxies(
    folder: Path, chance: random.Random, told: Callable[[str], None], *, cuts: int = 12
) -> None:
    """Through a door that cuts at any byte, and a long, thin link behind it."""
    keeper = Daemon(folder, "keeper", **QUICK)
    door = Cutter()
    keeper.settings["host"] = door.host
    try:
        with (
            keeper,
            Daemon(folder, "owner", **QUICK) as owner,
            SlowProxy(keeper.port, delay=0.01, rate=8 * MIB) as slow,
        ):
            door.target = slow.port
            shipment = Shipment(owner, keeper, folder, door.url)
            videos = [chance.randbytes(chance.randrange(MIB, 6 * MIB)) for _ in range(4)]
            total = sum(len(data) for data in videos)
            door.cut_at(*(chance.randrange(1, total) for _ in range(cuts)))
            for number, data in enumerate(videos):
                shipment.send(f"cut-{number}", data)
            shipment.check()
            told(f"{door.cuts} cuts through a door: {door.sent} bytes passed for {total}")
            assert door.cuts >= cuts // 2
    finally:
        door.close()


def run(chance: random.Random, told: Callable[[str], None], *, rounds: int = 4) -> list[str]:
    """Every weather in an order of chance, some rounds of it, and the proxies.

    What could not be tried here, with the reason.
    """
    untried: dict[str, None] = {}
    for number in range(rounds):
        with scratch("network") as folder:
            check_proxies(folder, chance, told)
        weathers = chance.sample(list(WEATHERS), len(WEATHERS))
        between_hosts: dict[str, Callable[[Path], None]] = {
            "half-open connections": partial(check_half_open, chance=chance, told=told),
            "weathers": partial(check_weather, chance=chance, told=told, weathers=weathers),
        }
        for what, check in between_hosts.items():
            try:
                with scratch("network") as folder:
                    check(folder)
            except pytest.skip.Exception as why:
                untried[f"{what}: {why}"] = None
        told(f"round {number + 1} of {rounds} is over")
    return list(untried)
