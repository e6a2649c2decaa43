"""``twistd`` that notes how long its reactor did not look at its sockets.

``python -m bench.blocking FILE ARGUMENT…`` is ``twistd ARGUMENT…``, and appends to FILE the
milliseconds of each turn of the reactor that took more than one, less those for which its thread
could have run and other programs had the cores.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["longest"]


class _Watched:
    """A reactor's poller; between two polls it is at work."""

    def __init__(self, poller: Any, notes: Path) -> None:
        self._poller = poller
        self._notes = notes.open("a", buffering=1)
        self._schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._since = self._now()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def _now(self) -> float:
        """Seconds, without those of waiting for a core."""
        waited = int(os.pread(self._schedule, 100, 0).split()[1])
        return time.perf_counter() - waited / 1e9

    def poll(self, *arguments: Any) -> Any:
        took = 1000 * (self._now() - self._since)
        if took > 1:
            self._notes.write(f"{took:.1f}\n")
        try:
            return self._poller.poll(*arguments)
        finally:
            self._since = self._now()


def longest(notes: Path) -> float:
    """The milliseconds of the longest turn that is noted in the file, 0 when none is."""
    return max(map(float, notes.read_text().split()), default=0.0)


def main() -> None:
    """Run twistd."""
    notes = Path(sys.argv.pop(1))
    from twisted.internet import reactor
    from twisted.scripts.twistd import run

    watched: Any = reactor
    watched._poller = _Watched(watched._poller, notes)
    run()


if __name__ == "__main__":
    main()
