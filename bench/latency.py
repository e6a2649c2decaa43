"""How long a small question takes while four uploads saturate the disk.

Beside it a bare SQLite commit on the same disk under the same load, and an Express process that
takes the same uploads.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from bench import servers
from bench.asking import Asker, give_up
from bench.machine import MIB, flush, make_file, settle
from bench.metrics import longest_block
from bench.report import Bench, Row, spread, within
from bench.server import REPOSITORY, Server
from bench.targets import curl

__all__ = ["measure", "percentile", "probes"]

UPLOADS = 4
SECONDS, ROUNDS = 30.0, 3
GETS, ASKS = 50, 20
"""Questions a second."""

GET_LIMIT, ADMIT_MARGIN, LONGEST_BLOCK = 10.0, 15.0, 20.0
"""Milliseconds at the 99th percentile; those that an admission may take beyond a bare
commit; those that a turn of the reactor may take."""

SETTINGS = {"max_concurrent_transfers": "64", "max_per_peer": "64"}


@contextmanager
def _under_load(send: Callable[[int], None]) -> Iterator[list[int]]:
    """``send`` again and again from four threads; the list grows by one with each that ended."""
    over, done, failures = threading.Event(), list[int](), list[BaseException]()

    def go_on(number: int) -> None:
        try:
            while not over.is_set():
                send(number)
                done.append(number)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(UPLOADS)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise RuntimeError("an upload of the load failed") from failures[0]


def probes(*asked: tuple[str, object, float], seconds: float = SECONDS) -> list[list[float]]:
    """The waits, in ms, of probes that run side by side."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.probe", what, str(where), str(seconds), str(rate)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for what, where, rate in asked
    ]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("a probe failed")
    return [[1000 * wait for wait in json.loads(text)] for text in said]


def _ours(server: Server, asker: Asker, file: Path) -> Callable[[int], None]:
    size = file.stat().st_size

    def send(number: int) -> None:
        (offer,) = asker.offers(server, size)
        curl([offer.link], [file], 'request = "POST"')
        give_up(server, offer)

    return send


def _express(server: Server, file: Path) -> Callable[[int], None]:
    counts = [0] * UPLOADS

    def send(number: int) -> None:
        counts[number] += 1
        name = f"{number}-{counts[number]}"
        curl([f"http://127.0.0.1:{server.port}/{name}"], [file])
        flush(server.folder / "files")
        (server.folder / "files" / name).unlink()

    return send


def percentile(waits: list[float], percent: int) -> float:
    """Of waits that are sorted."""
    return waits[min(len(waits) - 1, len(waits) * percent // 100)]


def measure(bench: Bench) -> Iterator[Row]:
    """Rounds of ours and of Express."""
    folder = bench.folder
    file = folder / "video.bin"
    make_file(file, bench.size // UPLOADS)
    waits: dict[str, list[list[float]]] = {
        name: [] for name in ("get", "admit", "commit", "express", "commit beside express")
    }
    loads: dict[str, list[float]] = {"backupd": [], "express": []}
    blocks: list[float] = []
    with ExitStack() as stack:
        asker = stack.enter_context(Asker())
        server = servers.backupd(folder / "backupd", **SETTINGS)
        stack.callback(server.stop)
        express = servers.express(folder / "express", bench.peers)
        stack.callback(express.stop)
        rounds = min(bench.runs, ROUNDS)
        for number in range(rounds):
            bench.say(f"questions under load, run {number + 1} of {rounds}: backupd")
            settle(bench.size, file)
            longest_block(server)
            with _under_load(_ours(server, asker, file)) as done:
                found = probes(
                    ("get", server.port, GETS),
                    ("admit", server.port, ASKS),
                    ("sqlite", folder, ASKS),
                )
                loads["backupd"].append(len(done) * file.stat().st_size / MIB / SECONDS)
                blocks.append(longest_block(server))
            for name, those in zip(("get", "admit", "commit"), found, strict=True):
                waits[name].append(those)
            bench.say(f"questions under load, run {number + 1} of {rounds}: Express")
            settle(bench.size, file)
            with _under_load(_express(express, file)) as done:
                found = probes(("get", express.port, GETS), ("sqlite", folder, ASKS))
                loads["express"].append(len(done) * file.stat().st_size / MIB / SECONDS)
            for name, those in zip(("express", "commit beside express"), found, strict=True):
                waits[name].append(those)
    yield from _rows(waits, loads)
    what = f"beside {UPLOADS} uploads: longest turn of the reactor, ms"
    yield within(what, blocks, form="{:.1f}", at_most=LONGEST_BLOCK)


def _rows(waits: dict[str, list[list[float]]], loads: dict[str, list[float]]) -> Iterator[Row]:
    p50 = {name: [percentile(those, 50) for those in of] for name, of in waits.items()}
    p99 = {name: [percentile(those, 99) for those in of] for name, of in waits.items()}

    def told(name: str) -> str:
        return f"p50 {spread(p50[name], '{:.1f}')}\np99 {spread(p99[name], '{:.1f}')}"

    raw = {"p50 ms": p50, "p99 ms": p99, "MiB/s of the load": loads}
    title = f"beside {UPLOADS} uploads"
    yield Row(
        what=f"{title}: GET /healthz, ms",
        ours=told("get"),
        beside=f"Express\n{told('express')}",
        ratio=f"{median(p99['get']) / median(p99['express']):.2f} x",
        expected=f"p99 {GET_LIMIT:g} at most",
        held=median(p99["get"]) <= GET_LIMIT,
        raw=raw,
    )
    beyond = [mine - bare for mine, bare in zip(p99["admit"], p99["commit"], strict=True)]
    yield Row(
        what=f"{title}: durable can-accept-backup, ms",
        ours=told("admit"),
        beside=f"a bare SQLite commit\n{told('commit')}",
        ratio=f"{median(beyond):+.1f} ms",
        expected=f"p99 {ADMIT_MARGIN:+g} ms at most",
        held=median(beyond) <= ADMIT_MARGIN,
        raw={"beyond a commit, ms": beyond},
    )
    yield Row(
        what=f"{title}: MiB/s that the uploads get meanwhile",
        ours=spread(loads["backupd"]),
        beside=f"Express\n{spread(loads['express'])}",
        ratio=f"{median(loads['backupd']) / median(loads['express']):.2f} x",
        raw=loads,
    )
