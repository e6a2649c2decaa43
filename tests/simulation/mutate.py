"""``python -m tests.simulation.mutate``: does the suite find small faults?

Each fault of ``mutations.toml`` is put into a copy of the tree, alone. Whoever found it last time
looks first: the simulation, the model, or a file of tests; if that one does not find it any more,
all the others do. A fault that nobody finds in its time fails the run.

    python -m tests.simulation.mutate                    all of them, the cheapest first
    python -m tests.simulation.mutate --only 7,12        these, by their number in the list
    python -m tests.simulation.mutate --only sync        those whose words have this in them
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MODEL", "MUTATIONS", "SIMULATION", "Mutation", "mutations"]

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = Path(__file__).with_name("mutations.toml")
PARTS = (
    *("backupd", "tests", "twisted", "bench", "examples", "deploy", "docs"),
    *("pyproject.toml", "backupd.tac", "README.md"),
)
UNITS = ("receiver", "sender", "storage", "ledger", "peer", "web", "conformance")
SIMULATION, MODEL = ASKED = "simulation", "model"
PYTEST = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A small fault. ``by`` is who finds it, ``seeds`` after how many histories it was last."""

    number: int
    file: str
    old: str
    new: str
    why: str
    by: str = SIMULATION
    seeds: int = 0

    def applied(self, source: str) -> str:
        """``source`` with the fault. Raises `ValueError` when there is no one place for it."""
        if source.count(self.old) != 1:
            raise ValueError(
                f"{self.file} has the text of {self.why!r} {source.count(self.old)} times"
            )
        return source.replace(self.old, self.new)

    @property
    def price(self) -> tuple[int, int, int]:
        """The cheapest come first: tests of one file, few histories, many, the model."""
        kind = {SIMULATION: 1, MODEL: 2}.get(self.by, 0)
        return kind, self.seeds, self.number

    def is_one_of(self, wanted: str) -> bool:
        """Whether ``wanted``, numbers or a few words, means this one."""
        if re.fullmatch(r"[\d,\s]+", wanted):
            return str(self.number) in re.split(r"[,\s]+", wanted)
        return wanted in self.why


@dataclass(frozen=True, slots=True)
class Found:
    """Who found a fault, None when nobody did; after how many seeds, and in how long."""

    mutation: Mutation
    by: str | None
    seeds: int | None
    said: str
    seconds: float

    def line(self) -> str:
        after = "" if self.seeds is None else f" after {self.seeds} seeds"
        return (
            f"{self.seconds:6.1f} s  {self.mutation.number:3} {self.mutation.why}: "
            f"{self.by or 'NOBODY'}{after}{f' ({self.said})' if self.said else ''}"
        )


def mutations() -> list[Mutation]:
    """Every fault that is listed, numbered from 1."""
    with MUTATIONS.open("rb") as file:
        listed = tomllib.load(file)["mutation"]
    return [Mutation(number=number, **one) for number, one in enumerate(listed, 1)]


class Tree:
    """A copy of the checkout, in which one fault at a time is looked for."""

    def __init__(self, folder: Path, seeds: int, seconds: float) -> None:
        self._folder = folder
        self._seeds = seeds
        self._seconds = seconds
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "node_modules")
                shutil.copytree(source, folder / part, ignore=ignored)
            elif source.exists():
                shutil.copy(source, folder / part)

    def run(self, *command: str, seconds: float) -> tuple[int | None, str]:
        """Its status, None when it took too long, and what it said."""
        environment = os.environ | {
            "PYTHONPATH": str(self._folder),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        with subprocess.Popen(
            [sys.executable, *command],
            cwd=self._folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as running:
            try:
                said, _ = running.communicate(timeout=max(1.0, seconds))
            except subprocess.TimeoutExpired:
                # With what it has started itself.
                os.killpg(running.pid, signal.SIGKILL)
                said, _ = running.communicate()
                return None, said
        return running.returncode, said

    def search(self, mutation: Mutation) -> Found:
        """Who finds it, beginning with who did last time."""
        path = self._folder / mutation.file
        source = path.read_text("utf-8")
        path.write_text(mutation.applied(source), "utf-8")
        began = time.perf_counter()
        try:
            for by in self._finders(mutation):
                left = began + self._seconds - time.perf_counter()
                if left <= 0:
                    break
                found = self._ask(by, left)
                if found is not None:
                    seeds, said = found
                    return Found(mutation, by, seeds, said, time.perf_counter() - began)
        finally:
            path.write_text(source, "utf-8")
        return Found(mutation, None, None, "", time.perf_counter() - began)

    def _ask(self, by: str, seconds: float) -> tuple[int | None, str] | None:
        """Seeds and words of a finder, None when it finds nothing in its time."""
        if by == SIMULATION:
            options = ("--seeds", str(self._seeds), "--jobs", "1", "--stop")
            status, said = self.run("-m", "tests.simulation", *options, seconds=seconds)
            if not status:
                return None
            failed = re.search(r"^seed (\d+): (.*)", said, re.MULTILINE)
            if failed is None:
                return 1, f"it does not run: {said.strip().splitlines()[-1:]}"
            return int(failed[1]) + 1, failed[2][:100]
        if by == MODEL:
            # Not by its test: nobody wants the walk that failed, shrunk for minutes.
            walks = "tests.simulation.walks --examples 200 --seed 0 --jobs 1 --unshrunk"
            _, said = self.run("-m", *walks.split(), seconds=seconds)
            return (None, "") if "portions failed" in said else None
        status, said = self.run(*PYTEST, *by.split(), seconds=seconds)
        # 1: tests have failed. Any other status is none of them having run.
        failed = re.search(r"^FAILED (\S+)", said, re.MULTILINE)
        if status != 1 or failed is None:
            return None
        return None, failed[1].rpartition("::")[2]

    def _finders(self, mutation: Mutation) -> Iterator[str]:
        yield mutation.by
        yield from (one for one in (SIMULATION, MODEL) if one != mutation.by)
        room = mutation.file.split("/")[1]
        tests = self._folder / "tests"
        if (tests / room).is_dir():
            yield f"tests/{room}"
        folders = [f"tests/{name}" for name in UNITS if name != room and (tests / name).is_dir()]
        # Packaging stands on the checkout, which a copy is not.
        own = [f"tests/{one.name}" for one in sorted(tests.glob("test_*.py"))]
        yield " ".join([*folders, *(one for one in own if "packaging" not in one)])


def _search_all(trees: Sequence[Tree], wanted: Sequence[Mutation]) -> Iterator[Found]:
    """Each tree takes the next fault as soon as it has done with one."""
    waiting: queue.SimpleQueue[Mutation] = queue.SimpleQueue()
    results: queue.SimpleQueue[Found | Exception] = queue.SimpleQueue()
    for mutation in wanted:
        waiting.put(mutation)

    def work(tree: Tree) -> None:
        while True:
            try:
                mutation = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                results.put(tree.search(mutation))
            except Exception as error:
                results.put(error)

    for tree in trees:
        threading.Thread(target=work, args=(tree,), daemon=True).start()
    for _ in wanted:
        result = results.get()
        if isinstance(result, Exception):
            raise result
        yield result


def _table(results: Sequence[Found]) -> Iterator[str]:
    """What was found, as a table of Markdown."""
    yield "| | fault | found by | seeds | seconds |"
    yield "|--:|---|---|--:|--:|"
    for one in sorted(results, key=lambda found: found.mutation.number):
        by = "NOBODY" if one.by is None else one.by
        if by not in (SIMULATION, MODEL, "NOBODY"):
            by = f"`{by}`" + (f" {one.said}" if one.said else "")
        seeds = "" if one.seeds is None else str(one.seeds)
        yield f"| {one.mutation.number} | {one.mutation.why} | {by} | {seeds} | {one.seconds:.0f} |"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutate")
    parser.add_argument("--seeds", type=int, default=2000, help="histories for each fault")
    parser.add_argument("--seconds", type=float, default=600.0, help="for each fault")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time")
    parser.add_argument("--only", default="", help="their numbers, or words that they have")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    options = parser.parse_args(arguments)
    wanted = sorted(
        (one for one in mutations() if not options.only or one.is_one_of(options.only)),
        key=lambda one: one.price,
    )
    if not wanted:
        parser.error(f"--only {options.only!r} means none of them")
    results: list[Found] = []
    with tempfile.TemporaryDirectory(prefix="backupd-mutations-") as folder:
        trees = [
            Tree(Path(folder) / str(number), options.seeds, options.seconds)
            for number in range(max(1, min(options.jobs, len(wanted))))
        ]
        status, said = trees[0].run("-m", "tests.simulation", "--seeds", "3", seconds=300)
        if status != 0:
            print(f"without any fault the simulation already fails:\n{said}")
            return 2
        by = sorted({file for one in wanted if one.by not in ASKED for file in one.by.split()})
        status, said = trees[0].run(*PYTEST, *by, seconds=300) if by else (0, "")
        if status != 0:
            print(f"without any fault the tests already fail:\n{said}")
            return 2
        for found in _search_all(trees, wanted):
            results.append(found)
            print(found.line(), flush=True)
    print("\n".join(["", *_table(results), ""]))
    missed = [found for found in results if found.by is None]
    print(f"{len(results) - len(missed)} of {len(results)} faults were found")
    for found in missed:
        print(f"nobody found {found.mutation.number}: {found.mutation.why}")
    if options.json:
        told = [
            {"why": one.mutation.why, "by": one.by, "seeds": one.seeds, "seconds": one.seconds}
            for one in results
        ]
        options.json.write_text(json.dumps(told, indent=1), "utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
