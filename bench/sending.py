"""Our sender to our receiver, beside curl to our receiver."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import servers
from bench.asking import Asker
from bench.machine import GIB, make_file
from bench.report import Bench, Row, beside
from bench.server import Server, Usage
from bench.targets import Backupd, Entrant, Run, entrant, rounds

__all__ = ["measure"]

_SECONDS = 120.0

_DIGEST = "import hashlib, sys; hashlib.file_digest(open(sys.argv[1], 'rb'), 'sha256')"


def _call(server: Server, method: str, path: str, body: object = None) -> Any:
    """One request by the operator."""
    token = (server.folder / "root/.backupd/control-token").read_text().strip()
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Sending:
    """A sending daemon, and what it has sent to ``receiver``."""

    def __init__(self, sender: Server, receiver: Server, file: Path) -> None:
        self._sender = sender
        self._receiver = receiver
        self._file = file

    def go(self) -> Run:
        """From the order until the file has its final name; what is used is the sender's.

        Nobody is asked meanwhile, since an answer costs what is being measured.
        """
        to = f"http://localhost:{self._receiver.port}"
        with self._sender.watched() as usage:
            begun = time.perf_counter()
            order = {"path": str(self._file), "to": to}
            entry = _call(self._sender, "POST", "/api/v1/outbox", order)["entry"]
            while not self._stored():
                if time.perf_counter() - begun > _SECONDS:
                    raise RuntimeError(f"it is not sent: {self._entry(entry['entryId'])}")
                time.sleep(0.005)
            seconds = time.perf_counter() - begun
        while (now := self._entry(entry["entryId"]))["state"] != "VERIFIED":
            if now["state"] in ("FAILED", "UNVERIFIED") or time.perf_counter() - begun > _SECONDS:
                raise RuntimeError(f"it was not verified: {now}")
            time.sleep(0.05)
        return Run(self._file.stat().st_size, seconds, usage)

    def _entry(self, entry_id: str) -> Any:
        return _call(self._sender, "GET", f"/api/v1/outbox/{entry_id}")

    def _stored(self) -> bool:
        return any((self._receiver.folder / "root").glob(f"*/*/*/{self._file.name}"))

    def clear(self) -> None:
        """Delete what is kept."""
        for backup in _call(self._receiver, "GET", "/api/v1/backups")["backups"]:
            _call(self._receiver, "DELETE", f"/api/v1/backups/{backup['backupId']}?now=true")


def measure(bench: Bench) -> Iterator[Row]:
    """One file by our sender, and by curl, in turns; and ``sha256sum`` of it."""
    file = bench.folder / "video.bin"
    digest = make_file(file, bench.size)
    by_curl: list[float] = []
    with ExitStack() as stack:
        asker = stack.enter_context(Asker())
        receiver = servers.backupd(bench.folder / "receiver")
        stack.callback(receiver.stop)
        sender = servers.backupd(bench.folder / "sender")
        stack.callback(sender.stop)
        sending = _Sending(sender, receiver, file)
        curl = entrant(Backupd(receiver, asker, digests=[digest]), [file], "curl")

        def curled() -> Run:
            before = _children()
            run = curl.go()
            by_curl.append(_children() - before)
            return run

        def digested() -> Run:
            begun = time.perf_counter()
            with subprocess.Popen([sys.executable, "-c", _DIGEST, str(file)]) as digest:
                run = curl.go()
                if digest.wait():
                    raise RuntimeError("the digest was not computed")
            return Run(run.size, time.perf_counter() - begun, run.usage)

        def summed() -> Run:
            before, begun = _children(), time.perf_counter()
            subprocess.run(["sha256sum", str(file)], check=True, capture_output=True)
            seconds = time.perf_counter() - begun
            return Run(bench.size, seconds, Usage(user=_children() - before))

        entrants = [
            Entrant("our sender", [file], sending.go, clear=sending.clear),
            Entrant("curl", [file], curled, curl.ready, curl.clear),
            Entrant("curl and a digest", [file], digested, curl.ready, curl.clear),
            Entrant("sha256sum", [file], summed),
        ]
        runs = rounds("sending", entrants, bench.runs, bench.say)
    ours, its = runs["our sender"], runs["curl"]
    title = f"sending {bench.size / GIB:g} GiB to our receiver"
    yield beside(
        f"{title}: MiB/s until stored",
        [run.speed for run in ours],
        "curl, until durable",
        [run.speed for run in its],
        at_least=0.9,
    )
    yield beside(
        f"{title}: MiB/s until stored",
        [run.speed for run in ours],
        "curl, and a SHA-256 of the file meanwhile, as our sender computes",
        [run.speed for run in runs["curl and a digest"]],
    )
    both = [cpu + run.usage.cpu for cpu, run in zip(by_curl, runs["sha256sum"], strict=True)]
    yield beside(
        f"{title}: CPU-seconds of the client",
        [run.usage.cpu for run in ours],
        "curl and sha256sum",
        both,
        form="{:.2f}",
        at_most=1.3,
    )
