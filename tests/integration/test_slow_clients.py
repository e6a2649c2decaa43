"""Two thousand slow connections (slowhttptest in its four modes) do not keep others from answers.

The figures go to the log of the test (``pytest -rP``); docs/security.md has those of one machine.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemons import Answer, Daemon, call
from tests.integration.plain import PlainSender
from tests.integration.proxies import needs

CONNECTIONS = int(os.environ.get("BACKUPD_SLOW", "2000"))
SECONDS = 12.0
OTHER = "127.0.0.2"
"""Others ask from here."""

MODES = {
    "headers": ["-H", "-i", "3", "-x", "24"],
    "body": ["-B", "-t", "POST", "-i", "3", "-s", "8192", "-x", "10"],
    "ranges": ["-R", "-t", "GET", "-a", "1", "-b", "3000"],
    "reading": ["-X", "-w", "10", "-y", "20", "-n", "5", "-z", "32", "-k", "3"],
}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """As it comes, but that one address may have every connection: nothing else protects it."""
    folder = tmp_path_factory.mktemp("attacked")
    with Daemon(folder, max_connections_per_address="4000") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def content(attacked: Daemon) -> str:
    """The path of something large."""
    with PlainSender() as sender:
        kept = sender.back_up(attacked.url, "large", os.urandom(8 * 2**20))
    return f"/api/v1/backups/{kept['backupId']}/content"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", sorted(MODES))
def test_others_are_answered_meanwhile(attacked: Daemon, content: str, mode: str) -> None:
    needs("slowhttptest")
    path = "/api/v1/backup/can-accept-backup" if mode == "body" else content
    command = ["slowhttptest", *MODES[mode], "-c", str(CONNECTIONS), "-r", "1000"]
    command += ["-l", str(int(SECONDS) + 10), "-u", f"http://127.0.0.1:{attacked.port}{path}"]
    attack = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    took: list[float] = []
    try:
        end, most = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            begun = time.perf_counter()
            assert ask(attacked).status == 200
            took.append(time.perf_counter() - begun)
            most = max(most, connected(attacked))
            time.sleep(0.05)
    finally:
        attack.kill()
        attack.wait()
    took.sort()
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    print(  # noqa: T201
        f"{mode}: {most} connections at once; others were answered within "
        f"{p50 * 1000:.1f} ms (p50), {p99 * 1000:.1f} ms (p99), {took[-1] * 1000:.1f} ms (all)"
    )
    assert most > (0 if mode == "ranges" else CONNECTIONS // 4), "that was no attack"
    assert p50 < 1.0
    assert took[-1] < 5.0


def ask(daemon: Daemon) -> Answer:
    return call("GET", f"{daemon.url}/healthz", source=OTHER, timeout=10)


def connected(daemon: Daemon) -> int:
    return sum(1 for _ in Path(f"/proc/{daemon.pid}/fd").iterdir())


def test_one_address_does_not_have_every_place(tmp_path: Path) -> None:
    """Who has too many is refused, and others are not."""
    needs("slowhttptest")
    few = {"max_connections_per_address": "50"}
    with Daemon(tmp_path, **few) as daemon:
        command = ["slowhttptest", "-H", "-c", "200", "-r", "200", "-l", "20", "-i", "5"]
        command += ["-u", f"http://127.0.0.1:{daemon.port}/"]
        attack = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            most, end = 0, time.monotonic() + 4
            while time.monotonic() < end:
                assert ask(daemon).status == 200
                found = call("GET", f"{daemon.url}/metrics", source=OTHER).body.decode()
                (line,) = [one for one in found.splitlines() if one[:20] == "backupd_connections "]
                most = max(most, int(float(line.split()[1])))
                time.sleep(0.05)
        finally:
            attack.kill()
            attack.wait()
        assert 40 <= most <= 51
        assert "max_connections_per_address" in daemon.text()
