"""How long others wait while two thousand connections do what slowhttptest knows to do.

Heads and bodies that trickle, a thousand ranges, and restores that are asked for and hardly read.
Others come each on a connection of their own, so taking it is in their waits too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench import servers
from bench.asking import Asker, complete
from bench.latency import percentile, probes
from bench.machine import MIB, make_file, settle
from bench.report import Bench, Row, spread
from bench.targets import curl

__all__ = ["CONNECTIONS", "MODES", "attack", "measure"]

CONNECTIONS = int(os.environ.get("BACKUPD_SLOW", "2000"))
PER_SECOND = 1000
SECONDS = 10.0
SIZE = 8 * MIB
"""Of what is kept, and asked for."""

LIMIT = 100.0
"""Milliseconds at the 99th percentile."""

VISITS, ASKS = 50, 20
"""Questions a second."""

ADMIT = "/api/v1/backup/can-accept-backup"

MODES = {
    "headers": ["-H", "-i", "3", "-x", "24"],
    "body": ["-B", "-t", "POST", "-i", "3", "-s", "8192", "-x", "10"],
    "ranges": ["-R", "-t", "GET", "-a", "1", "-b", "3000"],
    "reading": ["-X", "-w", "10", "-y", "20", "-n", "5", "-z", "32", "-k", "3"],
}
"""What slowhttptest calls slow headers, slow body, range header and slow read."""


@contextmanager
def attack(mode: str, port: int, content: str, connections: int, seconds: float) -> Iterator[None]:
    """Slow connections while the block lasts, ``seconds`` at most; ``content`` is the path of
    something large."""
    path = ADMIT if mode == "body" else content
    command = ["slowhttptest", *MODES[mode], "-c", str(connections), "-r", str(PER_SECOND)]
    command += ["-l", str(int(seconds)), "-u", f"http://127.0.0.1:{port}{path}"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as attacker:
        try:
            yield
        finally:
            attacker.kill()


def measure(bench: Bench) -> Iterator[Row]:
    """Every mode, and nobody, in turn."""
    if shutil.which("slowhttptest") is None:
        bench.say("slow clients are left out: there is no slowhttptest")
        return
    waits: dict[str, list[list[list[float]]]] = {mode: [] for mode in ["nobody", *MODES]}
    # One address may have every connection: nothing else protects it.
    settings = {"max_connections_per_address": str(2 * CONNECTIONS)}
    with ExitStack() as stack:
        server = servers.backupd(bench.folder / "backupd", **settings)
        stack.callback(server.stop)
        file = bench.folder / "video.bin"
        make_file(file, SIZE)
        with Asker() as asker:
            (offer,) = asker.offers(server, SIZE)
            curl([offer.link], [file], 'request = "POST"')
            content = complete(server, offer)
        for number in range(bench.runs):
            for mode, of in waits.items():
                bench.say(f"slow clients, run {number + 1} of {bench.runs}: {mode}")
                settle(SIZE)
                with ExitStack() as meanwhile:
                    if mode != "nobody":
                        meanwhile.enter_context(
                            attack(mode, server.port, content, CONNECTIONS, SECONDS + 10)
                        )
                    of.append(
                        probes(
                            ("visit", server.port, VISITS),
                            ("call", server.port, ASKS),
                            seconds=SECONDS,
                        )
                    )
    for number, what in enumerate(("GET /healthz", "can-accept-backup")):
        for mode in MODES:
            yield _row(f"slow {mode}: {what}, ms", number, waits[mode], waits["nobody"])


def _row(
    what: str, number: int, waits: list[list[list[float]]], nobody: list[list[list[float]]]
) -> Row:
    p50 = [percentile(run[number], 50) for run in waits]
    p99 = [percentile(run[number], 99) for run in waits]
    alone = [percentile(run[number], 99) for run in nobody]
    return Row(
        what=what,
        ours=f"p50 {spread(p50, '{:.1f}')}\np99 {spread(p99, '{:.1f}')}",
        beside=f"with nobody there\np99 {spread(alone, '{:.1f}')}",
        expected=f"p99 {LIMIT:g} at most",
        held=max(p99) <= LIMIT,
        raw={"p50 ms": p50, "p99 ms": p99, "p99 ms with nobody there": alone},
    )
