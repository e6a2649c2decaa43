"""Two thousand slow connections (slowhttptest in its four modes) do not keep others from answers.

The figures go to the log of the test (``pytest -rP``); ``python -m bench --only slow`` measures
them on a quiet machine. Here the machine may be busy with anything, the attack too: so an idle
server of stock Twisted is asked in turn with the daemon, and its waits are not counted as ours.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.slow import CONNECTIONS, MODES, attack
from tests.integration.daemons import TWISTD, Answer, Daemon, call, free_port, wait_until
from tests.integration.plain import PlainSender
from tests.integration.proxies import needs

SECONDS = 6.0
"""The connections come in two of them."""

OTHER = "127.0.0.2"
"""Others ask from here."""

LIMIT = 0.1
"""Seconds in which nine of ten are answered, beyond what the idle server takes."""


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


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that nobody attacks."""
    port = free_port()
    command = [*TWISTD, "--nodaemon", "--pidfile=", "web", "--path", "."]
    command += ["--listen", f"tcp:{port}:interface=127.0.0.1"]
    folder = tmp_path_factory.mktemp("idle")
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        url = f"http://localhost:{port}/"

        def answers() -> bool:
            try:
                return call("GET", url, source=OTHER).status == 200
            except OSError:
                return False

        try:
            wait_until(answers, "the idle server answers")
            yield url
        finally:
            server.terminate()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", sorted(MODES))
def test_others_are_answered_meanwhile(
    attacked: Daemon, idle: str, content: str, mode: str
) -> None:
    needs("slowhttptest")
    took: list[float] = []
    usual: list[float] = []
    most = 0
    with attack(mode, attacked.port, content, CONNECTIONS, SECONDS + 10):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for url, waits in ((f"{attacked.url}/healthz", took), (idle, usual)):
                begun = time.perf_counter()
                assert call("GET", url, source=OTHER, timeout=10).status == 200
                waits.append(time.perf_counter() - begun)
            most = max(most, connected(attacked))
            time.sleep(0.02)
    took.sort()
    usual.sort()
    p50, p90, p99 = (took[len(took) * percent // 100] for percent in (50, 90, 99))
    others = usual[len(usual) * 90 // 100]
    print(  # noqa: T201
        f"{mode}: {most} connections at once; others were answered within {p50 * 1000:.1f} ms "
        f"(p50), {p90 * 1000:.1f} ms (p90), {p99 * 1000:.1f} ms (p99), {took[-1] * 1000:.1f} ms "
        f"(all); an idle server {others * 1000:.1f} ms (p90)"
    )
    assert most > (0 if mode == "ranges" else CONNECTIONS // 4), "that was no attack"
    assert p90 < LIMIT + 3 * others
    assert took[-1] < 3.0


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
