"""Many uploads at once: what each costs beside a single stream, and small files beside rsync."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench import servers
from bench.asking import Asker
from bench.machine import GIB, MIB, make_file
from bench.metrics import block_noted, metric
from bench.report import Bench, Row, beside, within
from bench.server import Server
from bench.targets import BARE, Backupd, Entrant, Put, Rsync, Run, entrant, rounds

__all__ = ["measure", "memory_when_idle"]

STREAMS, SMALL = 8, 200
LONGEST_BLOCK = 20
ALL_AT_ONCE = {"max_concurrent_transfers": "1000", "max_per_peer": "1000"}
_SECONDS = 60.0


def memory_when_idle(server: Server) -> int:
    """Bytes that a backupd holds once its metrics tell of no request in progress."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        if metric(server, "backupd_requests_in_progress") == 0:
            return server.memory()
        time.sleep(0.05)
    raise RuntimeError("the uploads do not end")


def _files(folder: Path, name: str, count: int, size: int) -> tuple[list[Path], list[str]]:
    files = [folder / f"{name}-{number}.bin" for number in range(count)]
    return files, [make_file(file, size) for file in files]


def _with_memory(
    one: Entrant, server: Server, idle: int, peaks: list[float], stays: list[float]
) -> Entrant:
    """``one``, whose uploads are ended as soon as they are measured, to see what memory stays.

    Both are counted above what a fresh daemon has.
    """

    def go() -> Run:
        run = one.go()
        peaks.append((server.memory(peak=True) - idle) / MIB)
        one.clear()
        stays.append((memory_when_idle(server) - idle) / MIB)
        return run

    return replace(one, go=go)


def measure(bench: Bench) -> Iterator[Row]:
    """One stream, eight, two hundred small ones, and the same small ones by rsync, in turns."""
    folder = bench.folder
    one, digest = _files(folder, "one", 1, bench.size)
    eight, digests = _files(folder, "eight", STREAMS, bench.size // STREAMS)
    small, small_digests = _files(folder, "small", SMALL, 10 * bench.size // 2048)
    peaks: list[float] = []
    stays: list[float] = []
    blocks: dict[str, list[float]] = {"eight": [], "small": []}
    with ExitStack() as stack:
        asker = stack.enter_context(Asker())
        server = servers.backupd(folder / "backupd", **ALL_AT_ONCE)
        stack.callback(server.stop)
        rsyncd = servers.rsync(folder / "rsync", bench.peers)
        stack.callback(rsyncd.stop)
        idle = memory_when_idle(server)

        def ours(files: Sequence[Path], known: Sequence[str], name: str) -> Entrant:
            return entrant(Backupd(server, asker, digests=known, name=name), files)

        script = servers.bare(folder / "bare")
        stack.callback(script.stop)
        several = ours(eight, digests, "eight")
        entrants = [
            ours(one, digest, "one"),
            _with_memory(block_noted(several, server, blocks["eight"]), server, idle, peaks, stays),
            entrant(Put(BARE, script, synced=True), one, f"{BARE}, one"),
            entrant(Put(BARE, script, synced=True), eight, f"{BARE}, eight"),
            block_noted(ours(small, small_digests, "small"), server, blocks["small"]),
            entrant(Rsync(rsyncd, bench.peers), small),
        ]
        runs = rounds("many uploads", entrants, bench.runs, bench.say)

    title = f"{STREAMS} uploads of {bench.size / STREAMS / MIB:g} MiB at once"
    yield beside(
        f"{title}: GiB per CPU-second of the server",
        [1 / run.cpu for run in runs["eight"]],
        f"one of {bench.size / GIB:g} GiB",
        [1 / run.cpu for run in runs["one"]],
        form="{:.2f}",
        at_least=0.9,
    )
    yield beside(
        f"{title}: what is left of one's GiB per CPU-second",
        _left(runs["one"], runs["eight"]),
        BARE,
        _left(runs[f"{BARE}, one"], runs[f"{BARE}, eight"]),
        form="{:.2f}",
    )
    speeds = {name: [run.speed for run in of] for name, of in runs.items()}
    yield beside(f"{title}: MiB/s", speeds["eight"], "one", speeds["one"])
    yield _blocks(title, blocks["eight"])
    what = f"{title}: MiB of memory above idle for each"
    yield within(what, [peak / STREAMS for peak in peaks], form="{:.1f}", at_most=16)
    what = f"{title}: MiB of memory that stay when all have ended"
    yield within(what, stays, form="{:.1f}", at_most=16)

    title = f"{SMALL} files of {10 * bench.size / 2048 / MIB:g} MiB"
    for word, of in (("MiB/s until durable", speeds), ("server CPU-seconds per GiB", None)):
        found = of or {name: [run.cpu for run in its] for name, its in runs.items()}
        yield beside(
            f"{title}: {word}",
            found["small"],
            Rsync.name,
            found[Rsync.name],
            form="{:.0f}" if of else "{:.2f}",
            at_least=1.0 if of else None,
        )
    yield _blocks(title, blocks["small"])


def _left(one: Sequence[Run], many: Sequence[Run]) -> list[float]:
    return [alone.cpu / run.cpu for alone, run in zip(one, many, strict=True)]


def _blocks(title: str, blocks: Sequence[float]) -> Row:
    what = f"{title}: longest turn of the reactor, ms"
    return within(what, blocks, form="{:.1f}", at_most=LONGEST_BLOCK)
