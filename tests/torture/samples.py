"""What two daemons take, looked at from outside again and again, and whether it grows."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import median

from bench.plot import Measure, panels
from tests.integration.daemons import Daemon
from tests.torture import books
from tests.torture.videos import MIB

__all__ = ["Sample", "Sampler", "complaints", "look", "plot"]

KIB = 1024
POINTS = 40
"""Points of a curve in the plot, each the median of its part of the run."""


@dataclass(frozen=True)
class Sample:
    """One look at one daemon. ``done`` counts the uploads that were begun until then.

    The first four values are of its process, and begin anew with each; the others outlive it.
    """

    at: float
    pid: int
    done: int
    memory: float
    descriptors: float
    threads: float
    cpu: float
    ledger: float
    log: float
    trash: float
    reserved: float
    waiting: float


@dataclass(frozen=True)
class Bound:
    """How much may be gained: ``at_all``, and more only as far as ``each`` for every upload."""

    at_all: float
    each: float

    def most(self, done: int) -> float:
        """What may be gained over so many uploads."""
        return self.at_all + self.each * done


OF_A_PROCESS = {
    # A descriptor or a thread that is lost with every upload, or 20 KiB, is more than twice this.
    "memory": Bound(3 * MIB, 8 * KIB),
    "descriptors": Bound(8, 0.2),
    "threads": Bound(6, 0.2),
}
"""In a short life, which is all warming up."""

OF_A_LONG_LIFE = {
    # Measured: none of it from the tenth minute of a life to the thirtieth, over 4,000 uploads;
    # of direct uploads alone, 10,000 in a life, 0.35 KiB each, which the allocator scatters.
    "memory": Bound(3 * MIB, 1 * KIB),
    "descriptors": Bound(8, 0),
    "threads": Bound(6, 0),
}
LONG = 25 * 60.0
"""Seconds after which a life is long: it has warmed up within a dozen minutes, by 30 MiB, before
the middle third is over.
"""

LASTING = {
    # What is remembered of one upload takes a few KiB, and is forgotten after `history`.
    "ledger": Bound(2 * MIB, 0.5 * KIB),
    "trash": Bound(64 * MIB, 0),
    "reserved": Bound(64 * MIB, 0),
    "waiting": Bound(12, 0),
}
LOG_AT_MOST = 16 * MIB
"""Bytes of SQLite's write-ahead log, at any time."""


def look(daemon: Daemon, done: int, began: float) -> Sample:
    """One sample; raises `OSError` while the daemon is being restarted."""
    pid = daemon.pid
    status = Path(f"/proc/{pid}/status").read_text()
    if "VmRSS" not in status:
        raise OSError("it has just ended")
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = daemon.root / ".backupd"
    found = books.living(daemon)
    return Sample(
        at=time.monotonic() - began,
        pid=pid,
        done=done,
        memory=float(re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[0]) * KIB,
        descriptors=len(os.listdir(f"/proc/{pid}/fd")),
        threads=float(re.findall(r"^Threads:\s+(\d+)", status, re.MULTILINE)[0]),
        cpu=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        ledger=(own / "ledger.sqlite3").stat().st_size,
        log=(own / "ledger.sqlite3-wal").stat().st_size,
        trash=sum(one["size"] for one in found.backups if one["deleted_at"] is not None),
        reserved=sum(one["size"] for one in found.live),
        waiting=len(found.live) + sum(not one["over"] for one in found.entries),
    )


class Sampler(threading.Thread):
    """Looks at the daemons, time after time; `samples` has what it saw, by their names."""

    def __init__(self, daemons: Sequence[Daemon], every: float, done: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self.began = time.monotonic()
        self.samples: dict[str, list[Sample]] = {one.name: [] for one in daemons}
        self._daemons = daemons
        self._every = every
        self._done = done
        self._over = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._look_again_and_again()
        except BaseException as error:
            self.failure = error

    def _look_again_and_again(self) -> None:
        while not self._over.wait(self._every):
            for daemon in self._daemons:
                # It may just be gone, or not be there yet.
                try:
                    sample = look(daemon, self._done(), self.began)
                except (OSError, AssertionError, books.Unreadable):
                    continue
                self.samples[daemon.name].append(sample)

    def told(self) -> dict[str, list[dict[str, float]]]:
        """The samples, to be looked at with other tools."""
        return {name: [asdict(one) for one in of] for name, of in self.samples.items()}

    def stop(self) -> None:
        self._over.set()
        self.join()
        if self.failure is not None:
            raise AssertionError("the samples are not whole") from self.failure


# -- whether it grows ------------------------------------------------------------------------------


def complaints(name: str, samples: Sequence[Sample]) -> Iterator[str]:
    """What has grown beyond its bound, in sentences."""
    lives = [list(life) for _, life in groupby(samples, key=lambda one: one.pid)]
    longest = max(len(life) for life in lives)
    # A short life is all warming up; of the others the last third is held against the middle one.
    worth = [life for life in lives if len(life) >= max(9, longest * 2 // 3)]
    for what in OF_A_PROCESS:
        gains = [_gain(life, what, 3) for life in worth]
        gained, done = sum(gain for gain, _ in gains), sum(done for _, done in gains)
        # Each life may gain what one may.
        most = sum(
            _bounds(life)[what].most(done) for life, (_, done) in zip(worth, gains, strict=True)
        )
        yield from _judge(name, what, gained, done, most, f"{len(worth)} lives of it")
    for what, bound in LASTING.items():
        gained, done = _gain(samples, what, 4)
        most = bound.most(done)
        yield from _judge(name, what, gained, done, most, "the last half of the run")
    log = max(one.log for one in samples)
    if log > LOG_AT_MOST:
        yield f"{name}: the write-ahead log of its ledger had {log / MIB:.1f} MiB"


def _bounds(life: Sequence[Sample]) -> dict[str, Bound]:
    return OF_A_LONG_LIFE if life[-1].at - life[0].at >= LONG else OF_A_PROCESS


def _gain(samples: Sequence[Sample], what: str, parts: int) -> tuple[float, int]:
    """From the second part to the last one: how much, and how many uploads later."""
    length = len(samples) // parts
    before, after = samples[length : 2 * length], samples[-length:]

    def gain(which: str) -> float:
        values = [[float(getattr(one, which)) for one in part] for part in (before, after)]
        return median(values[1]) - median(values[0])

    return gain(what), int(gain("done"))


def _judge(
    name: str, what: str, gained: float, done: int, most: float, where: str
) -> Iterator[str]:
    if gained > most:
        yield (
            f"{name}: {what} grew by {gained:,.0f} in {where}, over {done} uploads; "
            f"{most:,.0f} would pass"
        )


# -- for people ------------------------------------------------------------------------------------

_SHOWN = {
    "memory": ("resident memory, MiB", MIB),
    "descriptors": ("descriptors", 1),
    "threads": ("threads", 1),
    "ledger": ("ledger, MiB", MIB),
    "log": ("its write-ahead log, MiB", MIB),
    "trash": ("in the trash, MiB", MIB),
    "reserved": ("reserved, MiB", MIB),
    "waiting": ("requests and entries under way", 1),
}
_ONLY_A_RECEIVER_HAS = {"trash", "reserved"}


def plot(title: str, samples: dict[str, list[Sample]]) -> str:
    """Every value over the time, as SVG."""
    end = max(one.at for found in samples.values() for one in found)
    unit, name = (60.0, "minutes") if end >= 300 else (1.0, "seconds")
    shares = [end * number / POINTS for number in range(POINTS + 1)]
    steps = [f"{share / unit:.0f}" if not at % 8 else "" for at, share in enumerate(shares)]
    measures = []
    for daemon, found in samples.items():
        for what, (says, size) in _SHOWN.items():
            if what in _ONLY_A_RECEIVER_HAS and daemon != "receiver":
                continue
            values, last = [], 0.0
            for share in shares:
                near = [one for one in found if abs(one.at - share) <= end / POINTS / 2]
                if near:
                    last = median(float(getattr(one, what)) for one in near) / size
                values.append(last)
            measures.append(Measure(f"{daemon}: {says}", values, "{:.1f}"))
    return panels(title, name, steps, measures, per_row=4)
