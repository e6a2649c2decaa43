"""``python -m bench``: every measurement, in one table."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from backupd.sizes import parse_size
from bench import admissions, ingest, ticks

PENDING = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
CLIENTS = (1, 32)
ASKS = 3000
SECTIONS = ("ingest", "admissions", "ticks")


def _spread(values: Sequence[float], form: str) -> str:
    """The median, and from where to where."""
    low, high = form.format(min(values)), form.format(max(values))
    return f"{form.format(median(values))}  ({low} - {high})"


def _add_ingest(table: Table, ours: list[ingest.Run], stock: list[ingest.Run]) -> None:
    title = f"ingest of {ours[0].size / ingest.GIB:g} GiB"

    speed = [run.speed for run in ours], [run.speed for run in stock]
    ratio = median(speed[0]) / median(speed[1])
    cells = [_spread(values, "{:.0f}") for values in speed]
    table.add_row(f"{title}: MiB/s until durable", *cells, f"{ratio:.2f} x", "1.7 x")

    cpu = [run.cpu for run in ours], [run.cpu for run in stock]
    ratio = median(cpu[1]) / median(cpu[0])
    cells = [_spread(values, "{:.2f}") for values in cpu]
    table.add_row(f"{title}: server CPU-seconds per GiB", *cells, f"{ratio:.2f} x", "1.5 x")

    def most(value: Callable[[ingest.Run], int]) -> list[str]:
        return [f"{max(map(value, runs)) / ingest.MIB:.0f} at most" for runs in (ours, stock)]

    table.add_row(f"{title}: memory above idle, MiB", *most(lambda run: run.usage.memory))
    table.add_row(f"{title}: temporary disk, MiB", *most(lambda run: run.usage.temporary))


def _add_admissions(table: Table, found: dict[int, list[admissions.Asked]]) -> None:
    for clients, runs in found.items():
        waits = [f"{1000 * median(getattr(run, a) for run in runs):.1f}" for a in ("median", "p99")]
        table.add_row(
            f"durable admissions per second, {clients} client{'s' * (clients > 1)}",
            _spread([run.per_second for run in runs], "{:.0f}")
            + f"\nanswer after {waits[0]} ms, p99 {waits[1]} ms",
            "",
            "",
            "500" if clients > 1 else "",
        )


def _add_ticks(table: Table, found: dict[int, ticks.Tick]) -> None:
    first = found[min(found)]
    for pending, tick in found.items():
        table.add_row(
            f"tick, {ticks.DUE} due of {pending:,} pending, ms",
            f"{1000 * tick.whole:.2f}, of it queries {1000 * tick.queries:.2f}",
            "",
            f"{tick.whole / first.whole:.2f} x {min(found)} pending",
            "2 x at most" if pending == 100_000 else "",
        )


def main() -> None:
    """Measure, print, and delete what was made."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("bench-data"), help="a folder to be made")
    parser.add_argument("--size", default=os.environ.get("SIZE") or "2G", help="of the file, 2G")
    parser.add_argument("--runs", type=int, default=5, help="of each, 5")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=SECTIONS)
    options = parser.parse_args()
    size = parse_size(options.size.removesuffix("B") + "B")
    folder: Path = options.dir.absolute()
    folder.mkdir(parents=True)  # never one that is there already: it is deleted at the end

    console = Console(width=None if Console().is_terminal else 140)
    table = Table("measurement", "backupd", "stock Klein", "ratio", "expected", show_lines=True)
    table.caption = f"median (min - max) of {options.runs} runs; ratio: how much better"
    try:
        with Console(stderr=True).status("") as status:
            if "ingest" in options.only:
                _add_ingest(table, *ingest.measure(folder, size, options.runs, status.update))
            if "admissions" in options.only:
                found = admissions.measure(folder, CLIENTS, ASKS, options.runs, status.update)
                _add_admissions(table, found)
            if "ticks" in options.only:
                _add_ticks(table, dict(ticks.measure(folder, PENDING, status.update)))
    finally:
        shutil.rmtree(folder)
    console.print(table)


if __name__ == "__main__":
    main()
