"""Small questions at a steady pace, and how long each takes, while others load the machine.

Run in a process of its own: ``python -m bench.probe WHAT WHERE SECONDS PER_SECOND`` prints the
waits in seconds, sorted, as JSON. WHAT is ``get`` (``GET /healthz``; WHERE is a port), ``admit``
(``can-accept-backup``, durable; WHERE is a port) or ``sqlite`` (a bare commit; WHERE is a folder).
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


def _get(port: int) -> Callable[[], None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask() -> None:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"/healthz answered {answer.status}")

    return ask


def _admit(port: int) -> Callable[[], None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
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
        ask = {"get": _get, "admit": _admit}[what](int(where))
    print(json.dumps(pace(ask, float(seconds), float(per_second))))


if __name__ == "__main__":
    main(*sys.argv[1:])
