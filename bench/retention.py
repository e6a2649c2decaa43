"""What a look for what falls out of retention costs: ``python -m bench.retention --kept 1000000``.

Every video has four versions, of which two are to be kept; a look goes through one page.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

from backupd.interfaces import Retention
from backupd.receiver.trash import PAGE
from bench.ledgers import keep, opened, result

__all__ = ["main"]

VERSIONS = 4
RULE = Retention(keep_last=2)


def main() -> None:
    """Print how long a page takes, at the median and at most, and what a whole walk costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kept", type=int, default=1_000_000)
    kept = parser.parse_args().kept
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.sqlite3")
        keep(path, kept)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(
                "UPDATE backups SET peer = 'b', video = seq / ?, stored_at = stored_at + seq % ?",
                (VERSIONS, VERSIONS),
            )
        ledger = opened(path)
        now, after, found = time.time() + 86400, 0, 0
        pages: list[float] = []
        cpu = time.process_time()
        while True:
            begun = time.perf_counter()
            page, following = result(
                ledger.outdated(lambda peer: RULE, now=now, after=after, limit=PAGE)
            )
            pages.append(1000 * (time.perf_counter() - begun))
            found += len(page)
            if following is None:
                break
            after = following
        cpu = time.process_time() - cpu
        result(ledger.close())
    pages.sort()
    print(
        f"{kept:,} kept, {found:,} fall out: a page of {PAGE} takes {pages[len(pages) // 2]:.1f} "
        f"ms ({pages[-1]:.1f} at most), a walk {cpu:.1f} CPU-seconds"
    )


if __name__ == "__main__":
    main()
