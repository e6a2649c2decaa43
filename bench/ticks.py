"""What a tick costs with ever more requests waiting, of which four are due."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock

from backupd.interfaces import Room
from backupd.ledger.sql import SqlLedger
from backupd.links import Links
from backupd.receiver.queue import OfferAnswer, Queue
from backupd.requests import Ask
from backupd.settings import Settings
from bench.report import Bench, Row, beside

__all__ = ["Tick", "measure", "ticks"]

T = TypeVar("T")
P = ParamSpec("P")

DUE = 4
LINES = 1000
"""At most so many pairs of a peer and an origin; the requests are spread over them."""

NOW = 1_000_000.0
LATER = 1_000_000_000.0


@dataclass(frozen=True, slots=True)
class Tick:
    """Median seconds: of the ledger's two queries alone, and of the sweep's query and the
    queue's tick with ``DUE`` offers made."""

    queries: float
    whole: float


def _here(f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    return execute(f, *args, **kwargs)


def _result(deferred: Deferred[T]) -> T:
    """What a Deferred that has fired holds."""
    results: list[T] = []
    deferred.addCallback(results.append)
    return results[0]


def _ask(number: int) -> Ask:
    origin = f"http://127.0.0.1:{10000 + number}"
    return Ask(
        request_id=f"id-{number}",
        peer=origin,
        origin=origin,
        video=number,
        callback=f"{origin}/offer",
        size=1024,
        capability=f"capability-{number}",
        created_at=NOW,
    )


def _fill(path: Path, pending: int) -> None:
    """Bring the ledger to ``pending`` requests; those that come new are not due for long."""
    with closing(sqlite3.connect(path)) as connection, connection:
        (present,) = connection.execute("SELECT count(*) FROM requests").fetchone()
        names = [row[1] for row in connection.execute("PRAGMA table_info(requests)")]
        origin = f"'http://127.0.0.1:' || (10000 + n.i % {LINES})"
        values = {
            "seq": "n.i + 1",
            "request_id": "'id-' || n.i",
            "peer": origin,
            "origin": origin,
            "video": "n.i",
            "capability": "'capability-' || n.i",
            "capability_hash": "lower(hex(randomblob(32)))",
            "due_at": f"{LATER} + n.i",
        }
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?) "  # noqa: S608
            f"INSERT INTO requests ({', '.join(names)}) "
            f"SELECT {', '.join(values.get(name, f'r.{name}') for name in names)} "
            "FROM n, (SELECT * FROM requests WHERE seq = 1) AS r",
            (present, pending),
        )
        connection.execute(
            "INSERT OR IGNORE INTO lines (peer, origin, failures, resting_until, ready_at, "
            "last_turn) SELECT peer, origin, 0, 0, min(due_at), 0 FROM requests GROUP BY 1, 2"
        )


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
        _result(ledger.lines(now=NOW, limit=2 * (DUE + 1), heads=DUE + 1))
        _result(ledger.overdue(now=NOW, limit=100))
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
        _result(ledger.overdue(now=NOW, limit=100))
        _result(Deferred.fromCoroutine(queue.tick()))
        whole.append(time.perf_counter() - begun)
        if offer.count != DUE:
            raise RuntimeError(f"{offer.count} offers were made, {DUE} were due")
        _result(Deferred.fromCoroutine(queue.stop()))
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

    def opened() -> SqlLedger:
        ledger = SqlLedger(f"sqlite:///{path.absolute()}", write_off=_here, read_off=_here)
        ledger.open()
        return ledger

    ledger = opened()
    for number in range(DUE):
        _result(
            ledger.admit(
                _ask(number), lambda *_: Room(available=2**60), now=NOW - 1, max_pending=DUE
            )
        )
    for number in pending:
        progress(f"ticks, {number:,} waiting")
        _result(ledger.close())
        _fill(path, number)
        ledger = opened()
        if _result(ledger.totals()).pending != number:
            raise RuntimeError("the ledger was not filled as it should be")
        yield number, _tick(ledger)
    _result(ledger.close())
