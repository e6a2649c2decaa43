"""Small questions at a steady pace, and how long each takes, while others load the machine.

Run in a process of its own: ``python -m bench.probe WHAT WHERE SECONDS PER_SECOND`` prints the
waits in seconds, sorted, as JSON. WHAT is ``get`` (``GET /healthz``; WHERE is a port), ``admit``
(``can-accept-backup``, durable; WHERE is a port) or ``sqlite`` (a bare commit; WHERE is a folder).
``visit`` and ``call`` are the first two on a new connection each time, from another address than
others have.
"""

from __future__ import annotations

import http.client
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["pace"]

_CALLBACK = "http://127.0.0.1:9/offer"
"""Nothing listens there: an offer is refused at once, and tried again later and later."""


_NEW = ("visit", "call")
_ELSEWHERE = ("127.0.0.2", 0)


def _get(connection: http.client.HTTPConnection) -> Callable[[], None]:
    def ask() -> None:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"/healthz answered {answer.status}")

    return ask


def _admit(connection: http.client.HTTPConnection) -> Callable[[], None]:
    count = 0

    def ask() -> None:
        nonlocal count
        count += 1
        body = {
            "videoId": f"{os.getpid()}-{count}",
            "diskEmptySpaceRequire": "1 KB",
            "linkForServerAtoNoticeServerBWhenServerAIsReady": _CALLBACK,
        }
        headers = {"Content-Type": "application/json"}
        path = "/api/v1/backup/can-accept-backup"
        connection.request("POST", path, json.dumps(body), headers)
        answer = json.loads(connection.getresponse().read())
        if not answer["success"]:
            raise RuntimeError(f"backupd said no: {answer}")

    return ask


def _anew(connection: http.client.HTTPConnection, ask: Callable[[], None]) -> Callable[[], None]:
    def come_and_ask() -> None:
        connection.close()
        ask()

    return come_and_ask


def _commit(folder: Path) -> Callable[[], None]:
    """One row of about an admission's size, as durable as the ledger's."""
    database = sqlite3.connect(folder / f"probe-{os.getpid()}.sqlite3", isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("CREATE TABLE rows (seq INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    text = "x" * 600

    def commit() -> None:
        database.execute("INSERT INTO rows (text) VALUES (?)", (text,))

    return commit


def pace(ask: Callable[[], None], seconds: float, per_second: float) -> list[float]:
    """Ask so often, one at a time; each wait counts from when it was sent."""
    ask()  # connects
    waits: list[float] = []
    begun = time.perf_counter()
    due = begun
    while due < begun + seconds:
        time.sleep(max(0.0, due - time.perf_counter()))
        sent = time.perf_counter()
        ask()
        waits.append(time.perf_counter() - sent)
        due = max(due + 1 / per_second, time.perf_counter())
    return sorted(waits)


def main(what: str, where: str, seconds: str, per_second: str) -> None:
    """Ask, and print the waits."""
    if what == "sqlite":
        ask = _commit(Path(where))
    else:
        kinds = {"get": _get, "admit": _admit, "visit": _get, "call": _admit}
        source = _ELSEWHERE if what in _NEW else None
        connection = http.client.HTTPConnection(
            "127.0.0.1", int(where), timeout=60, source_address=source
        )
        ask = kinds[what](connection)
        if what in _NEW:
            ask = _anew(connection, ask)
    print(json.dumps(pace(ask, float(seconds), float(per_second))))


if __name__ == "__main__":
    main(*sys.argv[1:])
