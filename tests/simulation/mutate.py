"""``python -m tests.simulation.mutate``: does the suite find small faults?

Each fault of ``mutations.toml`` is put into a copy of the tree, alone; first the simulation looks
for it, then the model, then the unit tests. A fault that nobody finds fails the run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MUTATIONS", "Mutation", "mutations"]

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = Path(__file__).with_name("mutations.toml")
PARTS = ("backupd", "tests", "twisted", "bench", "examples", "pyproject.toml", "backupd.tac")
UNITS = ("receiver", "sender", "storage", "ledger", "peer", "web", "conformance")


@dataclass(frozen=True, slots=True)
class Mutation:
    """A small fault."""

    file: str
    old: str
    new: str
    why: str

    def applied(self, source: str) -> str:
        """``source`` with the fault. Raises `ValueError` when there is no one place for it."""
        if source.count(self.old) != 1:
            raise ValueError(
                f"{self.file} has the text of {self.why!r} {source.count(self.old)} times"
            )
        return source.replace(self.old, self.new)


def mutations() -> list[Mutation]:
    """Every fault that is listed."""
    with MUTATIONS.open("rb") as file:
        return [Mutation(**one) for one in tomllib.load(file)["mutation"]]


def _run(tree: Path, *command: str, seconds: float) -> tuple[bool, str]:
    """Whether it passed, and what it said."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, "it went on for too long"
    return done.returncode == 0, done.stdout + done.stderr


def _unit_tests(tree: Path, room: str) -> Iterator[list[str]]:
    """Those of the room that the fault is in; then all."""
    if (tree / "tests" / room).is_dir():
        yield [f"tests/{room}"]
    folders = [
        f"tests/{name}" for name in UNITS if name != room and (tree / "tests" / name).is_dir()
    ]
    own = sorted((tree / "tests").glob("test_*.py"))
    # Packaging stands on the checkout, which a copy is not.
    yield folders + [f"tests/{one.name}" for one in own if one.name != "test_packaging.py"]


def _found_by(tree: Path, room: str, seeds: int, jobs: int) -> str | None:
    """Who finds the fault that is in ``tree``, None when nobody does."""
    simulation = ("-m", "tests.simulation", "--seeds", str(seeds), "--jobs", str(jobs), "--stop")
    passed, said = _run(tree, *simulation, seconds=900)
    if not passed:
        failed = re.search(r"^seed (\d+): (.*)", said, re.MULTILINE)
        if failed is None:
            return f"simulation: {said.strip().splitlines()[-1:]}"
        return f"simulation, after {int(failed[1]) + 1} seeds: {failed[2][:90]}"
    pytest = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header")
    passed, _ = _run(tree, *pytest, "tests/simulation/test_model.py", seconds=600)
    if not passed:
        return "the model"
    for tests in _unit_tests(tree, room):
        passed, said = _run(tree, *pytest, *tests, seconds=900)
        if not passed:
            failed = re.search(r"^FAILED (\S+)", said, re.MULTILINE)
            return f"unit tests: {failed[1] if failed else 'they do not run'}"
    return None


def _try(mutation: Mutation, tree: Path, seeds: int, jobs: int) -> dict[str, Any]:
    path = tree / mutation.file
    source = path.read_text("utf-8")
    path.write_text(mutation.applied(source), "utf-8")
    began = time.perf_counter()
    try:
        found = _found_by(tree, mutation.file.split("/")[1], seeds, jobs)
    finally:
        path.write_text(source, "utf-8")
    return {"why": mutation.why, "found": found, "seconds": time.perf_counter() - began}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutate")
    parser.add_argument("--seeds", type=int, default=2000, help="histories for each fault")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="faults whose words contain this")
    parser.add_argument("--json", type=Path, help="write what was found to this file")
    options = parser.parse_args(arguments)
    results = []
    with tempfile.TemporaryDirectory(prefix="backupd-mutations-") as folder:
        tree = Path(folder)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(
                    source,
                    tree / part,
                    ignore=shutil.ignore_patterns("__pycache__", "node_modules"),
                )
            elif source.exists():
                shutil.copy(source, tree / part)
        passed, said = _run(tree, "-m", "tests.simulation", "--seeds", "3", seconds=300)
        if not passed:
            print(f"without any fault the simulation already fails:\n{said}")
            return 2
        for mutation in mutations():
            if options.only not in mutation.why:
                continue
            result = _try(mutation, tree, options.seeds, options.jobs)
            results.append(result)
            print(
                f"{result['seconds']:6.1f} s  {mutation.why}: {result['found'] or 'NOBODY'}",
                flush=True,
            )
    missed = [result["why"] for result in results if result["found"] is None]
    print(f"{len(results) - len(missed)} of {len(results)} faults were found")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), "utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
