"""A long run of all that goes on in a life of two servers; what they take must not grow."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import median

from tests.integration.daemons import REPOSITORY, Daemon
from tests.torture.clients import Client, Direct, Ours, Raw, ThroughLink
from tests.torture.ending import come_to_an_end, listed, nothing_is_left
from tests.torture.nuisances import Leaves, Looks, Refuses, Takes, Trashed, Versions
from tests.torture.samples import Sampler, complaints, plot
from tests.torture.scene import Scene, a_scene
from tests.torture.scratch import scratch
from tests.torture.videos import MIB

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
    # Versions are looked through once an hour, and all that there are until then are read.
    "scrub_rate": "200 MB",
    "shutdown_grace": "2",
}
SENDER = {"loop_interval": "0.5", "history": "20", "shutdown_grace": "2"}
PLAYED = {"may_expire": True, "kept": 0.0}


def size(chance: random.Random) -> int:
    """Small ones, since it is their number that shows what is lost with each."""
    kind = chance.random()
    if kind < 0.9:
        return chance.randrange(1, 100_000)
    return chance.randrange(MIB, 4 * MIB) if kind < 0.99 else chance.randrange(8 * MIB, 24 * MIB)


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
                    self._end(self.scene.sender if len(self.ends) % 2 else self.scene.receiver)
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
    clients: Sequence[type[Client]] = CLIENTS,
    size: Callable[[random.Random], int] = size,
    rest: float = 1.2,
    restarts: int | Sequence[float] = 8,
    environment: Mapping[str, str] | None = None,
) -> None:
    """So many minutes; the plot is left in ``build/``.

    ``restarts`` says after which shares of the run a daemon is ended and started again, or how
    often in its first half: the second is one life, long enough to tell growth from warming up.
    """
    if isinstance(restarts, int):
        restarts = [at / (2 * restarts) for at in range(1, restarts + 1)]
    seconds = 60 * minutes
    with (
        scratch("long") as folder,
        a_scene(folder, RECEIVER, SENDER, environment, **PLAYED, rest=rest) as scene,
    ):
        every = max(0.4, seconds / 900)
        sampler = Sampler([scene.receiver, scene.sender], every, lambda: scene.counts["begun"])
        crowd = [kind(scene, random.Random(chance.random()), size) for kind in clients]
        ends = [seconds * share for share in restarts]
        troubles = Troubles(scene, random.Random(chance.random()), ends)
        for one in (sampler, *crowd, troubles):
            one.start()
        began, told_at = time.monotonic(), 0.0
        path = REPOSITORY / "build" / "long-run.svg"
        while (passed := time.monotonic() - began) < seconds:
            scene.check()
            if passed - told_at >= 60:
                told_at = passed
                told(f"{passed / 60:.0f} min: {listed(scene.counts)}")
            time.sleep(0.2)
        scene.ending.set()
        sampler.stop()
        troubles.join()
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
