"""How much time the simulation gets through: hours of its machines in a minute of one core."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.report import Bench, Row, within

__all__ = ["measure"]

ROOT = Path(__file__).resolve().parents[1]
HISTORIES = 100
PROMISED = 200


def measure(bench: Bench) -> Iterator[Row]:
    """The same histories each time, in a process of their own, by its CPU time."""
    rates = []
    for number in range(bench.runs):
        bench.say(f"simulation, run {number + 1}")
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seeds", str(HISTORIES), "--jobs", "1"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        found = re.search(r"(\d+) per minute of one core", done.stdout)
        if done.returncode or found is None:
            raise RuntimeError(f"the simulation fails:\n{done.stdout}{done.stderr}")
        rates.append(float(found[1]))
    yield within(
        f"simulated hours in a minute of one core, {HISTORIES} histories",
        rates,
        at_least=PROMISED,
    )
