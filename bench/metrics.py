"""What a backupd tells Prometheus of itself."""

from __future__ import annotations

import re
import urllib.request
from dataclasses import replace

from bench.server import Server
from bench.targets import Entrant, Run

__all__ = ["block_noted", "longest_block", "metric"]


def metric(server: Server, name: str) -> float:
    """A figure without labels. Raises `RuntimeError` if there is none of that name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        told = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    if told is None:
        raise RuntimeError(f"/metrics has no {name}")
    return float(told[1])


def longest_block(server: Server) -> float:
    """Milliseconds of the longest turn of the reactor since this was last asked."""
    return 1000 * metric(server, "backupd_reactor_block_seconds_max")


def block_noted(one: Entrant, server: Server, blocks: list[float]) -> Entrant:
    """``one``, and how long the reactor was held at most while it ran."""

    def go() -> Run:
        longest_block(server)
        run = one.go()
        blocks.append(longest_block(server))
        return run

    return replace(one, go=go)
