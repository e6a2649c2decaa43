"""How fast a large file becomes durable, and what that takes: backupd beside stock Klein.

Both get the same file over loopback from ``curl -T``, in turns, on the same disk.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

from bench.server import Server, Usage, backupd, stock_klein

__all__ = ["Run", "measure"]

MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Run:
    """One upload: its bytes, the seconds until it was durable, and what the server used."""

    size: int
    seconds: float
    usage: Usage

    @property
    def speed(self) -> float:
        """MiB per second."""
        return self.size / MIB / self.seconds

    @property
    def cpu(self) -> float:
        """CPU seconds of the server per GiB."""
        return self.usage.cpu / (self.size / GIB)


class _Target(Protocol):
    server: Server

    def link(self) -> str:
        """Where the next upload goes to."""

    def clear(self) -> None:
        """Delete what the last upload left, if there was one."""


class _StockKlein:
    def __init__(self, folder: Path) -> None:
        self.server = stock_klein(folder)
        self._files = folder / "files"

    def link(self) -> str:
        return f"http://localhost:{self.server.port}/video"

    def clear(self) -> None:
        (self._files / "video").unlink(missing_ok=True)


class _Offers:
    """A sender's callback: waits for the offer."""

    def __init__(self) -> None:
        self._came = threading.Event()
        self._offer: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                outer._offer = json.loads(self.rfile.read(length))
                self.send_response(204)
                self.end_headers()
                outer._came.set()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/offer"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self) -> dict[str, str]:
        if not self._came.wait(60):
            raise RuntimeError("no offer came")
        self._came.clear()
        return self._offer


class _Backupd:
    def __init__(self, folder: Path, size: int, offers: _Offers) -> None:
        self.server = backupd(folder)
        self._size = size
        self._offers = offers
        self._complete: str | None = None

    def link(self) -> str:
        self._post(
            "/api/v1/backup/can-accept-backup",
            videoId=2,
            diskEmptySpaceRequire=str(self._size),
            linkForServerAtoNoticeServerBWhenServerAIsReady=self._offers.url,
        )
        offer = self._offers.wait()
        self._complete = offer["linkForServerBtoCompleteBackupToSeverA"]
        return offer["linkForServerBtoSendBackupToSeverA"]

    def clear(self) -> None:
        if self._complete is not None:
            self._post(urlsplit(self._complete).path, videoId=2, success=False)
            self._complete = None

    def _post(self, path: str, **body: object) -> None:
        connection = http.client.HTTPConnection("localhost", self.server.port, timeout=60)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = json.load(connection.getresponse())
        connection.close()
        if not answer["success"]:
            raise RuntimeError(f"backupd said no: {answer}")


def _make_file(path: Path, size: int) -> str:
    """A file that does not compress to nothing, and its SHA-256."""
    block, sha256 = os.urandom(64 * MIB), hashlib.sha256()
    with path.open("xb") as file:
        for at in range(0, size, len(block)):
            part = block[: size - at]
            file.write(part)
            sha256.update(part)
    return sha256.hexdigest()


def _busy() -> float:
    """CPU seconds that this machine has been busy since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, waiting = fields[3:5]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def _wait_for_quiet() -> None:
    """Wait for a second in which the machine has little else to do, for a minute at most."""
    for _ in range(60):
        before = _busy()
        time.sleep(1)
        if _busy() - before < 0.1 * (os.cpu_count() or 1):
            return


def _warm(size: int) -> None:
    """Touch memory that the page cache will use, so that no run pays for the first touch.

    In a virtual machine a page that was never touched, or that the host has taken back, costs
    several times more than one in use.
    """
    free = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemFree")
    )
    length = min(2 * size + GIB, free * 3 // 4) // mmap.PAGESIZE * mmap.PAGESIZE
    with mmap.mmap(-1, length) as memory:
        memory[:: mmap.PAGESIZE] = bytes([1]) * (length // mmap.PAGESIZE)


def _read(path: Path) -> None:
    """Have the file in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(8 * MIB):
            pass


def _upload(target: _Target, link: str, file: Path, sha256: str) -> Run:
    curl = ["curl", "-sS", "--noproxy", "*", "-T", str(file), "-w", "\n%{time_total}", link]
    with target.server.watched() as usage:
        done = subprocess.run(curl, capture_output=True, text=True, check=True)
    answer, _, seconds = done.stdout.rpartition("\n")
    if sha256 not in answer:
        raise RuntimeError(f"the upload failed: {answer[:500]}")
    return Run(file.stat().st_size, float(seconds), usage)


def measure(
    folder: Path, size: int, runs: int, progress: Callable[[str], None]
) -> tuple[list[Run], list[Run]]:
    """Upload ``size`` bytes ``runs`` times to each, in turns: backupd's runs and stock Klein's."""
    file = folder / "video.bin"
    sha256 = _make_file(file, size)
    with _Offers() as offers:
        targets: list[_Target] = []
        try:
            targets.append(_Backupd(folder / "backupd", size, offers))
            targets.append(_StockKlein(folder / "stock-klein"))
            found: tuple[list[Run], list[Run]] = ([], [])
            for number in range(runs):
                for target, results in zip(targets, found, strict=True):
                    progress(f"ingest, run {number + 1} of {runs}: {type(target).__name__[1:]}")
                    os.sync()
                    _wait_for_quiet()
                    _warm(size)
                    _read(file)
                    # Only now, so that every run finds the same: one file's pages, just freed.
                    for other in targets:
                        other.clear()
                    results.append(_upload(target, target.link(), file, sha256))
            return found
        finally:
            for target in targets:
                target.server.stop()
            file.unlink()
