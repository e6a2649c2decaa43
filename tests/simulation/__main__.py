"""``python -m tests.simulation``: many histories and their figures, or one again with its trace.

A seed is a history, bit for bit::

    python -m tests.simulation --seeds 2000          seeds 0 to 1999, and what they covered
    python -m tests.simulation 95                    one, with its trace
    python -m tests.simulation 95 --without 0,2      one, without some of what happens in it
    python -m tests.simulation 95 --shrink           the shortest that fails as this one does
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from twisted.logger import ILogObserver, globalLogBeginner

from tests.simulation.coverage import ENTRY_MOVES, MOVES, RARE, STATES
from tests.simulation.history import Outcome, run
from tests.simulation.plan import FAILING, draw
from tests.simulation.shrink import shrink, without
from tests.simulation.taken_apart import unheard

__all__ = ["ENOUGH", "Figures", "many", "ready"]

ENOUGH = 2000
"""Histories that have to have been in every state, and to have made every move."""

_MAY_BE = frozenset((*MOVES, *ENTRY_MOVES, *RARE))

COLLECT_EVERY = 20
"""Histories after which everything that they left behind is taken apart."""


def ready() -> None:
    """Make this process fit for many histories: no log, and no garbage to look through."""
    nowhere = cast(ILogObserver, lambda event: None)
    globalLogBeginner.beginLoggingTo([nowhere], redirectStandardIO=False, discardBuffer=True)
    sys.unraisablehook = unheard(sys.unraisablehook)
    gc.disable()
    gc.collect()
    gc.freeze()


@dataclass
class Figures:
    """What a number of histories came to."""

    histories: int = 0
    seconds: float = 0.0
    steps: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    failed_calls: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    moves: Counter[str] = field(default_factory=Counter)
    entry_moves: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[int, str]] = field(default_factory=list)

    def add(self, seed: int, outcome: Outcome) -> None:
        self.histories += 1
        self.seconds += outcome.seconds
        self.steps += outcome.steps
        self.faults += outcome.faults
        self.failed_calls += outcome.failed_calls
        self.done += outcome.done
        self.states += outcome.states
        self.moves += outcome.moves
        self.entry_moves += outcome.entry_moves
        if outcome.violation:
            self.failed.append((seed, outcome.violation))

    def join(self, other: Figures) -> None:
        self.histories += other.histories
        self.seconds += other.seconds
        self.steps += other.steps
        self.faults += other.faults
        self.failed_calls += other.failed_calls
        self.done += other.done
        self.states += other.states
        self.moves += other.moves
        self.entry_moves += other.entry_moves
        self.failed += other.failed

    def unseen(self) -> list[tuple[str, int, list[str]]]:
        """Of each kind of what has to be seen: how many there are, and those that were not."""
        return [
            (kind, len(wanted), [one for one in wanted if not seen[one]])
            for kind, wanted, seen in (
                ("states", STATES, self.states),
                ("moves of requests", MOVES, self.moves),
                ("moves of entries", ENTRY_MOVES, self.entry_moves),
            )
        ]

    def wrong(self, *, stopped: bool = False) -> str | None:
        """What is wrong with these histories; ``stopped`` ones need not have seen everything."""
        if self.failed:
            return f"{len(self.failed)} failed"
        odd = [one for one in self.moves + self.entry_moves if one not in _MAY_BE]
        if odd:
            return f"nothing failed, but these moves must not be: {', '.join(odd)}"
        missing = sum(len(missing) for *_, missing in self.unseen())
        if missing and self.histories >= ENOUGH and not stopped:
            return f"nothing failed, but {missing} states and moves were not seen"
        return None

    def lines(self, took: float, cpu: float) -> Iterator[str]:
        """The figures for people; ``took`` seconds of wall time, ``cpu`` of processors."""
        hours = self.seconds / 3600
        yield (
            f"{self.histories} histories in {took:.1f} s ({self.histories / took:.1f} per second), "
            f"{hours:.0f} simulated hours, {hours / (cpu / 60):.0f} per minute of one core, "
            f"{self.steps} steps"
        )
        for name, counts in (
            ("done", self.done),
            ("faults", self.faults),
            ("failed calls", self.failed_calls),
        ):
            told = (f"{kind} {count}" for kind, count in sorted(counts.items()))
            yield f"{name}: {', '.join(told)}"
        if never := [one for one in FAILING if not self.failed_calls[one]]:
            yield f"calls that never failed: {', '.join(never)}"
        for kind, count, missing in self.unseen():
            more = f"; not seen: {', '.join(missing)}" if missing else ""
            yield f"{kind}: {count - len(missing)} of {count}{more}"


def many(seeds: range, scratch: Path, *, stop_at_first: bool = False) -> Figures:
    """Histories one after the other, in this process."""
    figures = Figures()
    for seed in seeds:
        figures.add(seed, run(draw(seed), scratch=scratch))
        gc.collect(2 if seed % COLLECT_EVERY == 0 else 0)
        if figures.failed and stop_at_first:
            break
    return figures


def _share(scratch: Path, stop_at_first: bool, seeds: range) -> tuple[Figures, float]:
    before = time.process_time()
    folder = scratch / str(os.getpid())
    folder.mkdir(exist_ok=True)
    figures = many(seeds, folder, stop_at_first=stop_at_first)
    return figures, time.process_time() - before


def _in_parallel(
    seeds: range, jobs: int, scratch: Path, stop_at_first: bool
) -> tuple[Figures, float]:
    share = partial(_share, scratch, stop_at_first)
    portions = [seeds[at : at + 25] for at in range(0, len(seeds), 25)]
    figures, cpu = Figures(), 0.0
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for found, took in pool.imap(share, portions):
            figures.join(found)
            cpu += took
            if figures.failed and stop_at_first:
                break
    return figures, cpu


@contextmanager
def _scratch() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="backupd-simulation-", dir=memory) as folder:
        yield Path(folder)


def _one(seed: int, left_out: list[int], *, shorter: bool, scratch: Path) -> int:
    plan = draw(seed)
    if shorter:
        left_out = shrink(plan, lambda one: run(one, scratch=scratch).violation)
    outcome = run(without(plan, left_out), traced=True, scratch=scratch)
    print("\n".join(outcome.trace))
    for number, action in enumerate(plan.actions):
        mark = "-" if number in left_out else " "
        print(f"{mark}{number:3} {action}")
    print(f"digest {outcome.digest}")
    told = f" --without {','.join(map(str, left_out))}" if left_out else ""
    print(f"again: python -m tests.simulation {seed}{told}")
    if outcome.violation:
        print(f"VIOLATION: {outcome.violation}")
    return 1 if outcome.violation else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("seed", nargs="?", type=int, help="one history, with its trace")
    parser.add_argument("--without", default="", help="numbers of what is left out of it")
    parser.add_argument("--shrink", action="store_true", help="leave out as much as can be")
    parser.add_argument("--seeds", type=int, default=200, help="how many histories")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--stop", action="store_true", help="stop at the first that fails")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.jobs < 1:
        parser.error("--seeds and --jobs are 1 at least")
    ready()
    with _scratch() as scratch:
        if options.seed is not None:
            left_out = [int(number) for number in options.without.split(",") if number]
            return _one(options.seed, left_out, shorter=options.shrink, scratch=scratch)
        began = time.perf_counter()
        seeds = range(options.first, options.first + options.seeds)
        figures, cpu = _in_parallel(seeds, options.jobs, scratch, options.stop)
    print("\n".join(figures.lines(time.perf_counter() - began, cpu)))
    for seed, violation in sorted(figures.failed)[:20]:
        print(
            f"seed {seed}: {violation.strip()}\n  again: python -m tests.simulation {seed} --shrink"
        )
    wrong = figures.wrong(stopped=options.stop)
    print(wrong or "nothing failed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
