"""A long run of all that goes on in a life of two servers; what they take must not grow."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import median

from tests.integration.daemons import REPOSITORY, Daemon, call, free_port
from tests.integration.plain import COMPLETE, PlainReceiver, PlainSender, octets
from tests.integration.tus import VERSION, metadata
from tests.torture.clients import Again, Client, Direct, Ours, Raw, Scene, ThroughLink, a_scene
from tests.torture.ending import come_to_an_end, listed, nothing_is_left
from tests.torture.samples import Sampler, complaints, plot
from tests.torture.scratch import scratch
from tests.torture.videos import MIB, Video

__all__ = ["run"]

RECEIVER = {
    "loop_interval": "0.5",
    "offer_lease": "3",
    "offer_deadline": "15",
    "upload_expiry": "15",
    "max_concurrent_transfers": "8",
    "max_per_peer": "4",
    "trash_period": "5",
    "keep_last": "2",
    "history": "20",
    "scrub_period": "60",
    "shutdown_grace": "2",
}
SENDER = {"loop_interval": "0.5", "history": "20", "shutdown_grace": "2"}

REST = 1.0
"""Seconds that a nuisance takes between two, on average."""


def size(chance: random.Random) -> int:
    """Small ones, since it is their number that shows what is lost with each."""
    kind = chance.random()
    if kind < 0.9:
        return chance.randrange(1, 100_000)
    return chance.randrange(MIB, 4 * MIB) if kind < 0.99 else chance.randrange(8 * MIB, 24 * MIB)


class Trashed(Direct):
    """Deletes into the trash, which empties itself."""

    deletions = ("", "", "?now=true")


class Versions(Direct):
    """New versions of a few videos: retention deletes the older ones, not this client."""

    def called(self, video: Video) -> str:
        return f"again-{video.number % 4}"

    def look_after(self, backup_id: str, video: Video) -> None:
        """What retention keeps is its own affair."""


class _Nuisance(Client):
    """Does something that leaves nothing to be kept."""

    def bring(self, video: Video) -> tuple[str, str]:
        raise NotImplementedError

    def _bring_home(self, video: Video) -> None:
        self.scene.counts["begun"] += 1
        self.keep_on(lambda: self.annoy(video))
        del self.scene.videos[video.number]
        # Without any rest they would fill the line faster than it can run out.
        self.scene.ending.wait(self.chance.uniform(0, 2 * REST))

    def annoy(self, video: Video) -> None:
        raise NotImplementedError


class Leaves(_Nuisance):
    """Begins an upload and never comes back: leases and requests run out."""

    def annoy(self, video: Video) -> None:
        described = {"Upload-Length": str(video.size + 1)}
        described["Upload-Metadata"] = metadata(videoId=f"left-{video.number}")
        url = f"{self.scene.wire.url}/api/v1/uploads"
        answer = call("POST", url, b"", VERSION | described)
        if answer.status != 201:
            raise Again(answer)
        if self.chance.random() < 0.7:
            location: str = answer.headers["Location"]
            where = location if "://" in location else self.scene.wire.url + location
            kind = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
            path = "/" + where.split("/", 3)[3]
            lines = {"Host": self.scene.wire.host, "Content-Length": str(video.size + 1)}
            head = "".join(f"{k}: {v}\r\n" for k, v in (lines | VERSION | kind).items())
            with socket.create_connection(("127.0.0.1", self.scene.wire.port), 10) as connection:
                connection.sendall(f"PATCH {path} HTTP/1.1\r\n{head}\r\n".encode())
                connection.sendall(video.piece(0, min(video.size, MIB)))
            self.scene.wire.forget(where)


class Takes(_Nuisance):
    """Asks, and takes it back: by its operator, by its sender, or by never answering."""

    def __init__(self, scene: Scene, chance: random.Random, size: Callable[..., int]) -> None:
        super().__init__(scene, chance, size)
        self.door = PlainSender()

    def annoy(self, video: Video) -> None:
        kind = self.chance.randrange(3)
        self.door.answers_with = 503 if kind == 0 else 200
        answer = self.door.ask(self.scene.wire.url, video.number, video.size)
        if answer.status != 200 or not answer.json["success"]:
            raise Again(answer)
        if kind == 1:
            path = f"/api/v1/backup/requests/{answer.json['requestId']}"
            ended = self.scene.receiver.call("DELETE", path, operator=True)
            assert ended.status in (200, 409, 410, 503), ended.body
        elif kind == 2:
            links = self.door.notice(video.number, 5.0)
            done = call("POST", links[COMPLETE], {"videoId": video.number, "success": False})
            assert done.status in (200, 410, 503), done.body


class Refuses(_Nuisance):
    """Our sender has a peer that refuses, one that is not there, and one that wants it at last."""

    def __init__(self, scene: Scene, chance: random.Random, size: Callable[..., int]) -> None:
        super().__init__(scene, chance, size)
        self.receiver = PlainReceiver()
        self.nobody = f"http://localhost:{free_port()}"

    def annoy(self, video: Video) -> None:
        path = self.scene.folder / f"refused-{video.number}.mp4"
        video.write(path)
        self.receiver.received.clear()
        self.receiver.refusals = self.chance.randrange(2)
        to = self.chance.choice([self.nobody, self.receiver.url])
        message = {"to": to, "path": str(path), "videoId": video.number}
        answer = self.scene.sender.call("POST", "/api/v1/outbox", message, operator=True)
        if answer.status != 201:
            raise Again(answer)
        self.scene.ending.wait(self.chance.uniform(0, 2))
        entry = f"/api/v1/outbox/{answer.json['entry']['entryId']}"
        self.keep_on(lambda: self._cancelled(entry))
        path.unlink()

    def _cancelled(self, entry: str) -> None:
        answer = self.scene.sender.call("DELETE", entry, operator=True)
        if answer.status not in (200, 409):
            raise Again(answer)


class Looks(_Nuisance):
    """Lists, pages, restores in pieces, and has things read again."""

    def annoy(self, video: Video) -> None:
        receiver, sender = self.scene.receiver, self.scene.sender
        for path in ("/", "/metrics", "/openapi.json", "/api/v1/scrub", "/api/v1/nothing"):
            receiver.call("GET", path)
        for path in ("/api/v1/backups?trash=true", "/api/v1/audit", "/api/v1/peers"):
            receiver.call("GET", path, operator=True)
        sender.call("GET", "/api/v1/outbox?state=over&limit=50", operator=True)
        receiver.call("GET", "/api/v1/backup/requests?limit=50")
        receiver.call("POST", "/api/v1/backup/can-accept-backup", b"{", octets)
        for one in receiver.call("GET", "/api/v1/backups?limit=20").json.get("backups", []):
            path = f"/api/v1/backups/{one['backupId']}"
            kind = self.chance.randrange(4)
            if kind == 0:
                receiver.call("GET", f"{path}/content", headers={"Range": "bytes=0-99,200-299"})
            elif kind == 1:
                receiver.call("POST", f"{path}/verify", operator=True)
            elif kind == 2:
                self._hang_up_early(f"{path}/content")

    def _hang_up_early(self, path: str) -> None:
        with socket.create_connection(("127.0.0.1", self.scene.receiver.port), 10) as connection:
            head = f"GET {path} HTTP/1.1\r\nHost: localhost:{self.scene.receiver.port}\r\n\r\n"
            connection.sendall(head.encode())
            connection.recv(1000)


CLIENTS: tuple[type[Client], ...] = (
    *(Ours, Ours, ThroughLink, Direct, Raw, Trashed, Versions),
    *(Leaves, Takes, Refuses, Looks),
)


class Troubles(threading.Thread):
    """Cuts connections, and ends daemons from time to time."""

    def __init__(self, scene: Scene, chance: random.Random, ends: list[float]) -> None:
        super().__init__(daemon=True)
        self.scene = scene
        self.chance = chance
        self.ends = ends
        self.signals: Counter[str] = Counter()
        self._began = time.monotonic()

    def run(self) -> None:
        try:
            while not self.scene.ending.wait(0.5):
                if self.chance.random() < 0.1:
                    self.scene.wire.cut_at(self.scene.wire.sent + self.chance.randrange(MIB))
                if self.ends and time.monotonic() - self._began >= self.ends[0]:
                    del self.ends[0]
                    self._end(self.chance.choice([self.scene.receiver, self.scene.sender]))
        except BaseException as error:
            self.scene.failures.append(error)

    def _end(self, victim: Daemon) -> None:
        if self.chance.random() < 0.7:
            self.signals[f"SIGKILL to the {victim.name}"] += 1
            victim.kill()
        else:
            self.signals[f"SIGTERM to the {victim.name}"] += 1
            victim.stop()
        victim.start()


def run(
    chance: random.Random,
    told: Callable[[str], None],
    minutes: float = 60.0,
    *,
    rest: float = 1.2,
    restarts: int = 8,
) -> None:
    """So many minutes; the plot is left in ``build/``. With ``rest`` 0 no client ever pauses."""
    seconds = 60 * minutes
    with (
        scratch("long") as folder,
        a_scene(folder, RECEIVER, SENDER, rest=rest, may_expire=True, kept=0.0) as scene,
    ):
        every = max(0.4, seconds / 900)
        sampler = Sampler([scene.receiver, scene.sender], every, lambda: scene.counts["begun"])
        crowd = [kind(scene, random.Random(chance.random()), size) for kind in CLIENTS]
        ends = [seconds * (at + 1) / (restarts + 1) for at in range(restarts)]
        troubles = Troubles(scene, random.Random(chance.random()), ends)
        for one in (sampler, *crowd, troubles):
            one.start()
        began, told_at = time.monotonic(), 0.0
        while (passed := time.monotonic() - began) < seconds:
            scene.check()
            if passed - told_at >= 60:
                told_at = passed
                told(f"{passed / 60:.0f} min: {listed(scene.counts)}")
            time.sleep(0.2)
        scene.ending.set()
        sampler.stop()
        troubles.join(60)
        path = REPOSITORY / "build" / "long-run.svg"
        path.with_suffix(".json").write_text(json.dumps(sampler.told()))
        path.write_text(plot(f"A run of {minutes:g} minutes", sampler.samples))
        come_to_an_end(scene, crowd)
        nothing_is_left(scene, others=True)
        for line in _figures(scene, sampler, troubles.signals):
            told(line)
        told(f"plot: {path}")
        wrong = [one for name, of in sampler.samples.items() for one in complaints(name, of)]
        assert not wrong, "\n".join(wrong)


def _figures(scene: Scene, sampler: Sampler, signals: Counter[str]) -> Iterator[str]:
    yield f"{listed(scene.counts)}; {scene.wire.cuts} connections cut; {listed(signals)}"
    for name, samples in sampler.samples.items():
        ends = [one for one, after in pairwise(samples) if one.pid != after.pid]
        cpu = sum(one.cpu for one in [*ends, samples[-1]])
        last = samples[len(samples) // 2 :]
        yield (
            f"{name}: {cpu / samples[-1].at:.0%} of a core; medians of the last half: "
            f"{median(one.memory for one in last) / MIB:.1f} MiB resident, "
            f"{median(one.descriptors for one in last):.0f} descriptors, "
            f"{median(one.threads for one in last):.0f} threads, "
            f"{median(one.ledger for one in last) / MIB:.1f} MiB of ledger"
        )
