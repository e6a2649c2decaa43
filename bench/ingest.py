"""How fast one large file becomes durable, and what that takes: backupd beside the others, and
beside what disk, digest and network allow.

All get the same file over loopback from one client, in turns, on the same disk.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench import servers
from bench.asking import Asker
from bench.machine import GIB, MIB, make_file
from bench.metrics import block_noted
from bench.report import Bench, Row, beside, found, within
from bench.server import Server, Usage, free_port
from bench.targets import (
    BARE,
    Backupd,
    Entrant,
    Put,
    Rsync,
    Run,
    Target,
    Tus,
    curl,
    entrant,
    rounds,
)

__all__ = ["measure"]

EXPECTED = {"nginx": 1.3, "nginx, 1 MiB buffer": 0.8, "@tus/server": 2.0, "rsync --fsync": 1.25}
DISK, DIGEST, LOOPBACK = "dd oflag=direct", "SHA-256, one thread", "loopback, nothing kept"
_BUFFER = 2 * MIB
LONGEST_BLOCK = 20
"""Milliseconds."""


def _disk(file: Path, folder: Path) -> Entrant:
    copy = folder / "dd"

    def go() -> Run:
        begun = time.perf_counter()
        command = ["dd", f"if={file}", f"of={copy}", "bs=4M", "oflag=direct", "conv=fsync"]
        subprocess.run(command, check=True, capture_output=True)
        return Run(copy.stat().st_size, time.perf_counter() - begun, Usage())

    return Entrant(DISK, [file], go, clear=lambda: copy.unlink(missing_ok=True))


def _digest(file: Path) -> Entrant:
    size = file.stat().st_size

    def go() -> Run:
        buffer, digest = b"\x5a" * _BUFFER, hashlib.sha256()
        begun, began = time.perf_counter(), time.process_time()
        for _ in range(0, size, len(buffer)):
            digest.update(buffer)
        cpu = time.process_time() - began
        return Run(size, time.perf_counter() - begun, Usage(user=cpu))

    return Entrant(DIGEST, [file], go)


def _loopback(file: Path, server: Server) -> Entrant:
    def go() -> Run:
        with server.watched() as usage:
            begun = time.perf_counter()
            curl([f"http://127.0.0.1:{server.port}/"], [file], 'header = "Expect:"')
            seconds = time.perf_counter() - begun
        return Run(file.stat().st_size, seconds, usage)

    return Entrant(LOOPBACK, [file], go)


def _sink(folder: Path) -> Server:
    port = free_port()
    server = Server([sys.executable, "-m", "bench.sink", str(port)], folder, port)
    server.wait_until_listening()
    return server


def measure(bench: Bench) -> Iterator[Row]:
    """Rounds of one upload each."""
    folder, peers = bench.folder, bench.peers
    file = folder / "video.bin"
    digest = make_file(file, bench.size)
    blocks: list[float] = []
    with ExitStack() as stack:
        stack.callback(file.unlink)

        def run(server: Server) -> Server:
            stack.callback(server.stop)
            return server

        asker = stack.enter_context(Asker())
        ours = run(servers.backupd(folder / "backupd"))
        nginx, tuned, _ = servers.nginx(folder / "nginx", peers)
        run(nginx)
        targets: list[Target] = [
            Backupd(ours, asker, digests=[digest]),
            Put("nginx", nginx),
            Put("nginx, 1 MiB buffer", nginx, port=tuned),
            Tus(run(servers.tus(folder / "tus", peers))),
            Rsync(run(servers.rsync(folder / "rsync", peers)), peers),
            Put("stock Klein", run(servers.stock_klein(folder / "klein")), synced=True),
            Put(BARE, run(servers.bare(folder / "bare")), synced=True),
        ]
        entrants = [entrant(target, [file]) for target in targets]
        entrants[0] = block_noted(entrants[0], ours, blocks)
        entrants += [_disk(file, folder), _digest(file), _loopback(file, run(_sink(folder / "s")))]
        runs = rounds("one upload", entrants, bench.runs, bench.say)
    title = f"one upload of {bench.size / GIB:g} GiB"
    yield from _rows(title, runs)
    what = f"{title}: longest turn of the reactor, ms"
    yield within(what, blocks, form="{:.1f}", at_most=LONGEST_BLOCK)


def _rows(title: str, runs: dict[str, list[Run]]) -> Iterator[Row]:
    speeds = {name: [run.speed for run in of] for name, of in runs.items()}
    ours = speeds.pop("backupd")
    others = [name for name in speeds if name not in (DISK, DIGEST, LOOPBACK)]
    for name in others:
        what = f"{title}: MiB/s until durable"
        yield beside(what, ours, name, speeds[name], at_least=EXPECTED.get(name))
    slower = [min(pair) for pair in zip(speeds[DISK], speeds[DIGEST], strict=True)]
    limit = f"the slower of {DISK} and {DIGEST}"
    yield beside(f"{title}: MiB/s", ours, limit, slower, at_least=0.65)
    for name in (DISK, DIGEST, LOOPBACK):
        yield found("limit: MiB/s", name, speeds[name])

    cpu = {name: [run.cpu for run in of] for name, of in runs.items()}
    usages = [(run.usage, run.size / GIB) for run in runs["backupd"]]
    user = sorted(usage.user / size for usage, size in usages)[len(usages) // 2]
    system = sorted(usage.system / size for usage, size in usages)[len(usages) // 2]
    yield within(
        f"{title}: server CPU-seconds per GiB",
        cpu["backupd"],
        form="{:.2f}",
        at_most=1.2,
        note=f"user {user:.2f}, system {system:.2f}",
    )
    for name in others:
        yield beside(f"{title}: server CPU", cpu["backupd"], name, cpu[name], form="{:.2f}")
    memory = [run.usage.memory / MIB for run in runs["backupd"]]
    yield within(f"{title}: memory above idle, MiB", [max(memory)], form="{:.1f}", at_most=16)
    temporary = [run.usage.temporary / MIB for run in runs["backupd"]]
    stock = [run.usage.temporary / MIB for run in runs["stock Klein"]]
    yield Row(
        what=f"{title}: temporary disk, MiB at most",
        ours=f"{max(temporary):.0f}",
        beside=f"stock Klein\n{max(stock):.0f}",
        expected="0",
        held=max(temporary) == 0,
        raw={"backupd": temporary, "stock Klein": stock},
    )
