"""How many asks a second are told yes, each yes durable."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import servers
from bench.report import Bench, Row, within

__all__ = ["measure"]

CLIENTS = (1, 32)
ASKS = 3000
EXPECTED = {32: 1500.0}


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


def measure(bench: Bench) -> Iterator[Row]:
    """For each number of clients: ``runs`` runs of ``ASKS`` asks, in turns.

    At the end the server is killed, and what it said yes to is counted in its ledger.
    """
    server = servers.backupd(bench.folder / "admissions")
    found: dict[int, list[Asked]] = {number: [] for number in CLIENTS}
    asked = 0
    try:
        for run in range(bench.runs):
            for number, results in found.items():
                bench.say(f"admissions, run {run + 1} of {bench.runs}: {number} clients")
                results.append(_ask(server.port, number, ASKS, asked))
                asked += ASKS
    finally:
        server.kill()
    ledger = server.folder / "root" / ".backupd" / "ledger.sqlite3"
    with closing(sqlite3.connect(ledger)) as connection:
        (kept,) = connection.execute("SELECT count(*) FROM requests").fetchone()
    if kept != asked:
        raise RuntimeError(f"{asked} were told yes, the ledger has {kept}")
    for clients, runs in found.items():
        waits = [f"{1000 * median(getattr(run, a) for run in runs):.1f}" for a in ("median", "p99")]
        yield within(
            f"durable admissions per second, {clients} client{'s' * (clients > 1)}",
            [run.per_second for run in runs],
            at_least=EXPECTED.get(clients),
            note=f"answer after {waits[0]} ms, p99 {waits[1]} ms",
        )
