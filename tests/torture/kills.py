"""``kill -9`` of either daemon at any instant, under load; SIGTERM, SIGSTOP and SIGCONT too."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, quantiles

from tests.integration.daemons import Daemon, wait_until
from tests.torture import books
from tests.torture.books import Books
from tests.torture.clients import Client, Direct, Ours, Raw, ThroughLink
from tests.torture.ending import come_to_an_end, listed, nothing_is_left
from tests.torture.scene import Scene, a_scene
from tests.torture.scratch import scratch
from tests.torture.videos import MIB

__all__ = ["run"]

RESENT = 64 * MIB
"""Bytes of an upload that one kill may cost at most."""

RECEIVER = {
    "loop_interval": "0.2",
    "offer_lease": "4",
    "max_concurrent_transfers": "8",
    "max_per_peer": "3",
    "shutdown_grace": "1",
}
SENDER = {"loop_interval": "0.2", "max_sends": "4", "shutdown_grace": "1"}
CLIENTS: tuple[type[Client], ...] = (Ours, Ours, Ours, ThroughLink, ThroughLink, Direct, Raw)
TOLD_EVERY = 25
PAUSES = (0.3, 1.0, 5.0, 18.0)
"""Seconds that a daemon stands still: now and then longer than a lease, or than a message takes."""


def size(chance: random.Random) -> int:
    """Mostly what is stored within a life or two of the daemons, and now and then much more."""
    kind = chance.random()
    if kind < 0.15:
        return chance.randrange(1, 5000)
    if kind < 0.95:
        return chance.randrange(MIB, 16 * MIB)
    return chance.randrange(100 * MIB, 200 * MIB)


class Killer:
    """Ends the daemons, and looks at what they left."""

    def __init__(self, scene: Scene, chance: random.Random, pauses: Sequence[float]) -> None:
        self.scene = scene
        self.pauses = pauses
        self.chance = chance
        self.kills = 0
        self.signals: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.entries: Counter[str] = Counter()
        self.recovered: list[float] = []

    def strike(self) -> None:
        """One signal, to one daemon or both, at some instant of what goes on."""
        time.sleep(self._instant())
        self.scene.check()
        kind = self.chance.random()
        victims = self._victims()
        if kind < 0.06:
            self._pause(victims[0])
        elif kind < 0.12:
            self._end(victims, signal.SIGTERM)
        else:
            self._end(victims, signal.SIGKILL)

    def _instant(self) -> float:
        """Often right after the start: recovery and the first offers are what is risky."""
        return self.chance.choice([0.05, 0.5, 1.0, 2.0]) * self.chance.random()

    def _victims(self) -> list[Daemon]:
        kind = self.chance.random()
        if kind < 0.6:
            return [self.scene.receiver]
        return [self.scene.sender] if kind < 0.9 else [self.scene.receiver, self.scene.sender]

    def _end(self, victims: list[Daemon], how: signal.Signals) -> None:
        for victim in victims:
            self.signals[f"{how.name} to the {victim.name}"] += 1
            if how is signal.SIGKILL:
                victim.kill()
                self.kills += 1
            else:
                code = victim.stop()
                assert code in (0, -signal.SIGTERM), f"{victim.name} ended with {code}"
        for victim in victims:
            self._look(victim)
        for victim in victims:
            victim.launch()
        if self.chance.random() < 0.1:
            self._before_it_is_ready(victims[0])
        began = time.monotonic()
        for victim in victims:
            victim.wait_ready()
        self.recovered.append(time.monotonic() - began)
        if self.scene.receiver in victims:
            # Recovery has forgotten nothing of what it found.
            self._look_at_the_living()

    def _before_it_is_ready(self, victim: Daemon) -> None:
        """Recovery must bear being killed, too."""
        time.sleep(self.chance.uniform(0.2, 1.2))
        self.signals[f"SIGKILL to the {victim.name} while it starts"] += 1
        victim.kill()
        self.kills += 1
        self._look(victim)
        victim.launch()

    def _look(self, victim: Daemon) -> None:
        """What a daemon that was killed has left."""
        found = books.dead(victim)
        if victim is self.scene.sender:
            self.entries += Counter(one["state"] for one in found.entries if not one["over"])
            return
        self.requests += found.states()
        self._check_the_disk(found)

    def _check_the_disk(self, found: Books) -> None:
        """What is on the disk of a receiver that does nothing is all that was acknowledged."""
        with self.scene.lock:
            videos, stored = dict(self.scene.videos), dict(self.scene.stored)
        found.check_acknowledged(self.scene.wire.offsets())
        found.check_bytes(videos)
        found.check_backups(stored)
        found.check_parts()

    def _look_at_the_living(self) -> None:
        """The receiver goes on from all that was acknowledged, and knows what it has promised."""
        # The door is asked first: the ledger had all of this before, and it may have more now.
        acknowledged = self.scene.wire.offsets()
        books.living(self.scene.receiver).check_acknowledged(acknowledged)
        books.promises_add_up(self.scene.receiver)

    def _pause(self, victim: Daemon) -> None:
        """One stands still; the other must go on, and answer. Then both go on from all there is."""
        assert victim.process is not None
        self.signals[f"SIGSTOP to the {victim.name}"] += 1
        other = self.scene.sender if victim is self.scene.receiver else self.scene.receiver
        victim.process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: _stands_still(victim.pid), f"the {victim.name} stands still")
            if victim is self.scene.receiver:
                # It writes nothing now, so its disk is as good as that of a dead one.
                self._check_the_disk(books.dead(victim))
            until = time.monotonic() + self.chance.choice(self.pauses)
            while time.monotonic() < until:
                asked = time.monotonic()
                assert other.ready()["status"] == "ok"
                took = time.monotonic() - asked
                assert took < 5, f"{other.name} took {took:.1f} s to answer"
                time.sleep(0.2)
        finally:
            victim.process.send_signal(signal.SIGCONT)
        victim.wait_ready()
        self._look_at_the_living()

    # -- what came of it --------------------------------------------------------------------------

    def figures(self) -> Iterator[str]:
        """For people."""
        wire, counts = self.scene.wire, self.scene.counts
        yield f"kills: {self.kills}; signals: {listed(self.signals)}"
        yield f"requests at kills of the receiver: {listed(self.requests)}"
        yield f"entries at kills of the sender: {listed(self.entries)}"
        yield (
            f"{counts['stored']} videos stored, fetched and compared; {wire.acknowledged / MIB:.0f}"
            f" MiB acknowledged; clients tried again {counts['tries again']} times"
        )
        resent = wire.resent or [0]
        yield (
            f"uploads resumed with bytes sent again: {len(wire.resent)}, "
            f"{mean(resent) / MIB:.2f} MiB on average, {max(resent) / MIB:.2f} at most"
        )
        cuts = quantiles(self.recovered, n=100) if len(self.recovered) > 1 else [0.0] * 99
        yield f"seconds from a start until it is ready: p50 {cuts[49]:.2f}, p99 {cuts[98]:.2f}"


def _stands_still(pid: int) -> bool:
    """Whether no thread of this process runs any more: a signal takes its time."""
    try:
        tasks = [one.read_text() for one in Path(f"/proc/{pid}/task").glob("*/stat")]
    except OSError:
        return False  # one has just ended
    return {one.rpartition(")")[2].split()[0] for one in tasks} == {"T"}


def run(
    chance: random.Random,
    told: Callable[[str], None],
    kills: int = 1000,
    clients: Sequence[type[Client]] = CLIENTS,
    size: Callable[[random.Random], int] = size,
    pauses: Sequence[float] = PAUSES,
) -> None:
    """So many kills; then everything that was begun has to come to its end."""
    with scratch("kills") as folder, a_scene(folder, RECEIVER, SENDER) as scene:
        crowd = [kind(scene, random.Random(chance.random()), size) for kind in clients]
        for one in crowd:
            one.start()
        killer = Killer(scene, chance, pauses)
        try:
            while killer.kills < kills:
                before = killer.kills // TOLD_EVERY
                killer.strike()
                if killer.kills // TOLD_EVERY > before:
                    told(
                        f"{killer.kills} kills, {scene.counts['stored']} videos stored, "
                        f"{scene.wire.acknowledged / MIB:.0f} MiB acknowledged"
                    )
        finally:
            scene.ending.set()
        come_to_an_end(scene, crowd)
        nothing_is_left(scene)
        for line in killer.figures():
            told(line)
        most = max(scene.wire.resent, default=0)
        assert most <= RESENT, f"{most} bytes of one upload had to be sent again"
