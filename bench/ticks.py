"""What a tick costs with ever more requests waiting, of which four are due."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from backupd.ledger.sql import SqlLedger
from backupd.links import Links
from backupd.receiver.queue import OfferAnswer, Queue
from backupd.requests import Ask
from backupd.settings import Settings
from bench.ledgers import admit, opened, result, wait
from bench.report import Bench, Row, beside

__all__ = ["Tick", "measure", "ticks"]


DUE = 4
NOW = 1_000_000.0
LATER = 1_000_000_000.0


@dataclass(frozen=True, slots=True)
class Tick:
    """Median seconds: of the ledger's two queries alone, and of the sweep's query and the
    queue's tick with ``DUE`` offers made."""

    queries: float
    whole: float


class _NeverAnswers:
    """Takes offers, and leaves them without an answer."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, ask: Ask, body: bytes) -> OfferAnswer:
        self.count += 1
        return await Deferred[OfferAnswer]()


def _tick(ledger: SqlLedger) -> Tick:
    """Measure for about two seconds."""
    clock = Clock()
    clock.advance(NOW)
    queries: list[float] = []
    whole: list[float] = []
    ends = time.perf_counter() + 2.0
    while time.perf_counter() < ends or len(whole) < 5:
        begun = time.perf_counter()
        result(ledger.lines(now=NOW, limit=2 * (DUE + 1), heads=DUE + 1))
        result(ledger.overdue(now=NOW, limit=100))
        queries.append(time.perf_counter() - begun)

        offer = _NeverAnswers()
        queue = Queue(
            ledger=ledger,
            offer=offer,
            links=Links("http://localhost:3000"),
            clock=clock,
            settings=Settings(max_concurrent_transfers=DUE),
            backoff=lambda _: 5.0,
            end=lambda *_: Deferred(),
            nudge=lambda: None,
        )
        begun = time.perf_counter()
        result(ledger.overdue(now=NOW, limit=100))
        result(Deferred.fromCoroutine(queue.tick()))
        whole.append(time.perf_counter() - begun)
        if offer.count != DUE:
            raise RuntimeError(f"{offer.count} offers were made, {DUE} were due")
        result(Deferred.fromCoroutine(queue.stop()))
    return Tick(median(queries), median(whole))


def measure(bench: Bench) -> Iterator[Row]:
    """A tick with a hundred thousand waiting, beside one with ten."""
    few, many = 10, 100_000
    found = dict(ticks(bench.folder, (few, many), bench.say))
    yield beside(
        f"a tick, {DUE} due of {many:,} pending, ms",
        [1000 * found[many].whole],
        f"of {few} pending",
        [1000 * found[few].whole],
        form="{:.2f}",
        at_most=2,
    )


def ticks(
    folder: Path, pending: tuple[int, ...], progress: Callable[[str], None]
) -> Iterator[tuple[int, Tick]]:
    """Each number of waiting requests, smallest first, with its tick."""
    path = folder / "ticks.sqlite3"
    ledger = opened(path)
    for number in range(DUE):
        admit(ledger, number, NOW - 1)
    for number in pending:
        progress(f"ticks, {number:,} waiting")
        result(ledger.close())
        wait(path, number, LATER)
        ledger = opened(path)
        if result(ledger.totals()).pending != number:
            raise RuntimeError("the ledger was not filled as it should be")
        yield number, _tick(ledger)
    result(ledger.close())
