"""``python -m tests.protections``: is each protection held by a test?

``protections.toml`` has every protection of docs/security.md that a line of code stands for, and
which tests hold it. Each is taken out of a copy of the tree, alone, and these tests have to fail;
before that they have to pass.

    python -m tests.protections                  all of them
    python -m tests.protections --only quota     those whose words have this in them; or numbers
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tests.simulation.mutate import PYTEST, Mutation, Tree

__all__ = ["PROTECTIONS", "protections"]

PROTECTIONS = Path(__file__).with_name("protections.toml")
SECONDS = 240.0
"""In which the tests of one have failed."""


def protections() -> list[tuple[Mutation, Sequence[str]]]:
    """Each with the tests that hold it."""
    with PROTECTIONS.open("rb") as file:
        listed = tomllib.load(file)["protection"]
    return [
        (Mutation(number=number, **one), found_by)
        for number, one in enumerate(listed, 1)
        for found_by in [one.pop("found_by")]
    ]


def main(arguments: Sequence[str]) -> int:
    """Take out one after the other; 1 when one is not missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.protections")
    parser.add_argument("--only", default="", help="their numbers, or words that they have")
    options = parser.parse_args(arguments)
    wanted = [
        (one, found_by)
        for one, found_by in protections()
        if not options.only or one.is_one_of(options.only)
    ]
    if not wanted:
        parser.error(f"--only {options.only!r} means none of them")
    missed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="backupd-protections-") as place:
        folder = Path(place)
        tree = Tree(folder, 0, SECONDS)
        every = sorted({test for _, found_by in wanted for test in found_by})
        status, said = tree.run(*PYTEST, *every, seconds=10 * SECONDS)
        if status != 0:
            print(f"with every protection in its place the tests already fail:\n{said}")
            return 2
        for one, found_by in wanted:
            path, began = folder / one.file, time.perf_counter()
            source = path.read_text("utf-8")
            path.write_text(one.applied(source), "utf-8")
            try:
                # 1: tests have failed. Any other status is none of them having run.
                status, said = tree.run(*PYTEST, *found_by, seconds=SECONDS)
            finally:
                path.write_text(source, "utf-8")
            took = time.perf_counter() - began
            verdict = "missed by its tests" if status == 1 else f"NOT MISSED ({status})"
            print(f"{one.number:3} {verdict:20} {took:4.0f} s  without {one.why}", flush=True)
            if status != 1:
                missed.append(one.why)
    print(f"{len(wanted) - len(missed)} of {len(wanted)} protections are held by a test")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
