"""How cost grows: with bytes, with uploads at once, with what waits, with what is kept.

``make bench-growth`` prints a table of each and draws it into ``docs/plots``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from backupd.sizes import parse_size
from bench import servers
from bench.asking import Asker, give_up
from bench.ledgers import admit, keep, opened, result, wait
from bench.machine import GIB, MIB, conditions, make_file, settle
from bench.many import ALL_AT_ONCE, memory_when_idle
from bench.peers import Peers
from bench.plot import Measure, panels
from bench.report import Bench, Row, within
from bench.server import REPOSITORY, Server
from bench.targets import Backupd, Run, entrant
from bench.ticks import ticks

__all__ = ["measure"]

SIZES = [4**n * MIB for n in range(8)]
AT_ONCE = [1, 4, 16, 64, 256]
COUNTS = [10, 100, 1_000, 10_000, 100_000, 1_000_000]
ENOUGH = 256 * MIB
"""Smaller files are sent so often that these bytes are reached."""

START_LIMIT = 3.0
STARTS, PAGES, PAGE = 3, 30, 100
FAR = 4e9
"""A time that does not come while this is measured."""

_LEDGER = "root/.backupd/ledger.sqlite3"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Growth:
    """What grows along which steps, and what each step costs."""

    name: str
    title: str
    along: str
    steps: Sequence[str]
    measures: Sequence[Measure]


def _of(server: Server, asker: Asker, size: int, count: int, idle: int) -> Run:
    """Upload ``count`` times ``size`` bytes, one after the other; memory counts above ``idle``."""
    settle(size * count)
    offers = asker.offers(server, size, count)
    command = [sys.executable, "-m", "bench.pour", str(size), *(offer.link for offer in offers)]
    with server.watched() as usage:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    usage.memory = server.memory(peak=True) - idle
    for offer in offers:
        give_up(server, offer)
    memory_when_idle(server)
    return Run(size * count, float(done.stdout), usage)


def _costs(found: Sequence[Sequence[Run]], each: Sequence[int]) -> list[Measure]:
    """``each`` uploads at once."""
    memory = [
        max(run.usage.memory for run in runs) / MIB / count
        for runs, count in zip(found, each, strict=True)
    ]
    return [
        Measure("MiB/s until durable", [median(run.speed for run in runs) for runs in found]),
        Measure(
            "server CPU-seconds per GiB",
            [median(run.cpu for run in runs) for runs in found],
            "{:.2f}",
        ),
        Measure("MiB of memory above idle for each", memory, "{:.1f}", 16),
    ]


def by_bytes(bench: Bench, most: int) -> Growth:
    """One upload of ever more bytes, up to ``bench.size``."""
    sizes = [size for size in SIZES if size <= bench.size]
    found: list[list[Run]] = [[] for _ in sizes]
    with ExitStack() as stack:
        asker = stack.enter_context(Asker())
        server = servers.backupd(bench.folder / "backupd", **ALL_AT_ONCE)
        stack.callback(server.stop)
        idle = memory_when_idle(server)
        for number in range(bench.runs):
            for size, runs in zip(sizes, found, strict=True):
                bench.say(f"bytes, run {number + 1} of {bench.runs}: {size // MIB:,} MiB")
                runs.append(_of(server, asker, size, max(1, ENOUGH // size), idle))
    names = [f"{s // GIB} GiB" if s >= GIB else f"{s // MIB} MiB" for s in sizes]
    costs = _costs(found, [1] * len(sizes))
    return Growth("bytes", "One upload of ever more bytes", "size", names, costs)


def by_uploads(bench: Bench, most: int) -> Growth:
    """The same bytes in ever more uploads at once."""
    total = min(bench.size, 2 * GIB)
    found: list[list[Run]] = [[] for _ in AT_ONCE]
    with ExitStack() as stack:
        asker = stack.enter_context(Asker())
        server = servers.backupd(bench.folder / "backupd", **ALL_AT_ONCE)
        stack.callback(server.stop)
        idle = memory_when_idle(server)
        files = [bench.folder / f"{count}.bin" for count in AT_ONCE]
        for file, count in zip(files, AT_ONCE, strict=True):
            make_file(file, total // count)
        for number in range(bench.runs):
            for file, count, runs in zip(files, AT_ONCE, found, strict=True):
                bench.say(f"uploads, run {number + 1} of {bench.runs}: {count} at once")
                settle(total, file)
                one = entrant(Backupd(server, asker, at_once=count), [file] * count)
                one.ready()
                runs.append(one.go())
                runs[-1].usage.memory = server.memory(peak=True) - idle
                one.clear()
                memory_when_idle(server)
    title = f"{total / GIB:g} GiB in ever more uploads at once"
    return Growth("uploads", title, "uploads at once", [*map(str, AT_ONCE)], _costs(found, AT_ONCE))


def _starts(folder: Path) -> tuple[float, float]:
    """Median seconds from the command to the first answer, and MiB then."""
    seconds, memory = [], []
    for _ in range(STARTS):
        begun = time.perf_counter()
        server = servers.backupd(folder)
        seconds.append(time.perf_counter() - begun)
        memory.append(server.memory() / MIB)
        server.kill()
    return median(seconds), median(memory)


def _short(count: int) -> str:
    return f"{count // 1_000_000}M" if count >= 1_000_000 else f"{count:,}"


def _waiting(folder: Path, count: int) -> None:
    path = folder / _LEDGER
    if not path.exists():
        ledger = opened(path)
        admit(ledger, 0, FAR)
        result(ledger.close())
    wait(path, count, FAR)


def by_pending(bench: Bench, most: int) -> Growth:
    """Ever more requests that wait."""
    counts = [count for count in COUNTS if count <= most]
    found = dict(ticks(bench.folder, tuple(counts), bench.say))
    starts = []
    for count in counts:
        bench.say(f"start with {count:,} waiting")
        _waiting(bench.folder, count)
        starts.append(_starts(bench.folder))
    measures = [
        Measure("a tick, 4 due, ms", [1000 * found[n].whole for n in counts], "{:.2f}"),
        Measure("start until it answers, s", [s for s, _ in starts], "{:.2f}", START_LIMIT),
        Measure("MiB of memory then", [m for _, m in starts]),
    ]
    steps = [_short(count) for count in counts]
    return Growth("pending", "Ever more requests that wait", "requests", steps, measures)


def _page_ms(server: Server, query: str) -> float:
    """Median milliseconds until a page of the list is read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    waits = []
    for _ in range(PAGES):
        begun = time.perf_counter()
        connection.request("GET", f"/api/v1/backups?limit={PAGE}&{query}")
        answer = connection.getresponse()
        page = json.loads(answer.read())
        waits.append(time.perf_counter() - begun)
        if answer.status != 200 or not page["backups"]:
            raise RuntimeError(f"the list was answered with {answer.status}: {page}")
    connection.close()
    return 1000 * median(waits)


def _pages(folder: Path, count: int) -> tuple[float, float, float]:
    """Milliseconds of the first page, of the last, and of one video's copies."""
    server = servers.backupd(folder)
    try:
        queries = ("", f"after={max(0, count - PAGE)}", f"videoId={count // 2}")
        first, last, video = (_page_ms(server, query) for query in queries)
    finally:
        server.stop()
    return first, last, video


def by_kept(bench: Bench, most: int) -> Growth:
    """Ever more backups that are kept."""
    counts = [count for count in COUNTS if count <= most]
    starts, pages = [], []
    for count in counts:
        bench.say(f"list and start with {count:,} kept")
        keep(bench.folder / _LEDGER, count)
        starts.append(_starts(bench.folder))
        pages.append(_pages(bench.folder, count))
    measures = [
        Measure(f"first {PAGE} of the list, ms", [first for first, _, _ in pages], "{:.1f}"),
        Measure(f"last {PAGE} of the list, ms", [last for _, last, _ in pages], "{:.1f}"),
        Measure("one video's copies, ms", [video for _, _, video in pages], "{:.1f}"),
        Measure("start until it answers, s", [s for s, _ in starts], "{:.2f}", START_LIMIT),
    ]
    steps = [_short(count) for count in counts]
    return Growth("kept", "Ever more backups that are kept", "backups", steps, measures)


def measure(bench: Bench) -> Iterator[Row]:
    """The part that `make bench` shows: a start with a million of each."""
    most = COUNTS[-1]
    for word, fill in (("waiting", _waiting), ("kept", lambda f, n: keep(f / _LEDGER, n))):
        bench.say(f"start with {most:,} {word}")
        folder = bench.folder / word
        fill(folder, most)
        what = f"start with {most:,} {word}, seconds until it answers"
        yield within(what, [_starts(folder)[0]], form="{:.2f}", at_most=START_LIMIT)


GROWTHS: dict[str, Callable[[Bench, int], Growth]] = {
    "bytes": by_bytes,
    "uploads": by_uploads,
    "pending": by_pending,
    "kept": by_kept,
}


def _told(growth: Growth) -> Table:
    table = Table(growth.along, *growth.steps, title=growth.title)
    for one in growth.measures:
        table.add_row(one.title, *(one.form.format(value) for value in one.values))
    return table


def main() -> None:
    """Measure, print, draw, and delete what was made."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("bench-data"), help="a folder to be made")
    parser.add_argument("--size", default="16G", help="of the largest file, 16G")
    parser.add_argument("--most", type=int, default=COUNTS[-1], help="requests or backups")
    parser.add_argument("--runs", type=int, default=3, help="of each upload, 3")
    parser.add_argument("--plots", type=Path, default=Path("docs/plots"), help="where to draw")
    parser.add_argument("--json", type=Path, default=Path("build/growth.json"), help="raw numbers")
    parser.add_argument("--only", choices=GROWTHS, nargs="+", default=list(GROWTHS))
    options = parser.parse_args()
    folder: Path = options.dir.absolute()
    folder.mkdir(parents=True)  # never one that is there already: it is deleted at the end
    size = parse_size(options.size.removesuffix("B") + "B")
    console = Console(width=None if Console().is_terminal else 120)
    raw: dict[str, object] = {"conditions": conditions(folder)}

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    options.plots.mkdir(parents=True, exist_ok=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    try:
        for name in options.only:
            part = folder / name
            part.mkdir()
            growth = GROWTHS[name](
                Bench(part, size, options.runs, say, Peers(folder, say)), options.most
            )
            shutil.rmtree(part)
            drawn = panels(growth.title, growth.along, growth.steps, growth.measures)
            (options.plots / f"{name}.svg").write_text(drawn, "utf-8")
            console.print(_told(growth))
            raw[name] = {
                one.title: dict(zip(growth.steps, one.values, strict=True))
                for one in growth.measures
            }
            options.json.write_text(json.dumps(raw, indent=1) + "\n", "utf-8")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
