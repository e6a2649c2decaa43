"""How many asks a second are told yes, each yes durable."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.server import backupd

__all__ = ["Asked", "measure"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One run: yes answers per second, and how long half and 99 of 100 asks took at most."""

    per_second: float
    median: float
    p99: float


def _ask(port: int, clients: int, count: int, first: int) -> Asked:
    command = [sys.executable, "-m", "bench.clients", *map(str, (port, clients, count, first))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    result = json.loads(done.stdout)
    if result["yes"] != count:
        raise RuntimeError(f"only {result['yes']} of {count} asks were told yes")
    waits = result["waits"]
    return Asked(count / result["seconds"], waits[count // 2], waits[count * 99 // 100])


def measure(
    folder: Path, clients: tuple[int, ...], count: int, runs: int, progress: Callable[[str], None]
) -> dict[int, list[Asked]]:
    """For each number of clients: ``runs`` runs of ``count`` asks, in turns.

    At the end the server is killed, and what it said yes to is counted in its ledger.
    """
    server = backupd(folder / "admissions")
    found: dict[int, list[Asked]] = {number: [] for number in clients}
    asked = 0
    try:
        for run in range(runs):
            for number, results in found.items():
                progress(f"admissions, run {run + 1} of {runs}: {number} clients")
                results.append(_ask(server.port, number, count, asked))
                asked += count
    finally:
        server.kill()
    ledger = server.folder / "root" / ".backupd" / "ledger.sqlite3"
    with closing(sqlite3.connect(ledger)) as connection:
        (kept,) = connection.execute("SELECT count(*) FROM requests").fetchone()
    if kept != asked:
        raise RuntimeError(f"{asked} were told yes, the ledger has {kept}")
    return found
