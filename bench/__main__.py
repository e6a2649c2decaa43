"""``make bench``: every measurement, in one table."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from backupd.sizes import parse_size
from bench import (
    admissions,
    growth,
    ingest,
    latency,
    links,
    many,
    restore,
    sending,
    simulation,
    slow,
    ticks,
)
from bench.machine import conditions
from bench.peers import Peers
from bench.report import Bench, Row, print_table, write_json

Section = Callable[[Bench], Iterator[Row]]

SECTIONS: dict[str, Section] = {
    "ingest": ingest.measure,
    "many": many.measure,
    "sending": sending.measure,
    "links": links.rows,
    "latency": latency.measure,
    "slow": slow.measure,
    "restore": restore.measure,
    "admissions": admissions.measure,
    "ticks": ticks.measure,
    "starts": growth.measure,
    "simulation": simulation.measure,
}


def main() -> int:
    """Measure, print, and delete what was made."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path("bench-data"), help="a folder to be made")
    parser.add_argument("--size", default=os.environ.get("SIZE") or "2G", help="of the file, 2G")
    parser.add_argument("--runs", type=int, default=5, help="of each, 5")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="raw numbers")
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS))
    options = parser.parse_args()
    folder: Path = options.dir.absolute()
    folder.mkdir(parents=True)  # never one that is there already: it is deleted at the end

    begun = time.monotonic()
    told = conditions(folder)
    console = Console(width=None if Console().is_terminal else 150)
    rows: list[Row] = []
    try:
        with Console(stderr=True).status("") as status:

            def say(text: str) -> None:
                status.update(text)
                if not sys.stderr.isatty():
                    print(text, file=sys.stderr, flush=True)

            size = parse_size(options.size.removesuffix("B") + "B")
            peers = Peers(folder / "peers", say)
            for name in options.only:
                part = folder / name
                part.mkdir()
                rows += SECTIONS[name](Bench(part, size, options.runs, say, peers))
                shutil.rmtree(part)
            versions = peers.versions()
    finally:
        shutil.rmtree(folder)
    minutes = (time.monotonic() - begun) / 60
    caption = (
        f"median (min - max) of {options.runs} runs; ratio: backupd's figure divided by the "
        "other's, median of the rounds\n"
        f"{', '.join(f'{name}: {what}' for name, what in told.items())}; {minutes:.0f} min"
    )
    print_table(console, rows, caption)
    raw = {"conditions": told, "versions": versions, "size": size, "runs": options.runs}
    write_json(options.json, rows, {**raw, "minutes": round(minutes, 1)})
    console.print(f"The raw numbers are in {options.json}.")
    missed = [row.what for row in rows if row.held is False]
    for what in missed:
        console.print(f"Not as expected: {what}.", markup=False, highlight=False, soft_wrap=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
