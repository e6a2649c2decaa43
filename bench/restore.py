"""How fast a kept file is given back, beside nginx with ``sendfile``: both give the same file.

It is either wholly in the page cache or not at all, and all of it is asked for, half, or a little.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from backupd.storage.page_cache import residence
from bench import servers
from bench.asking import Asker, complete
from bench.blocking import longest
from bench.machine import GIB, MIB, flush, make_file, read
from bench.report import Bench, Row, beside, spread, within
from bench.server import Server, Usage
from bench.targets import Entrant, Run, curl, rounds

__all__ = ["measure"]

RANGE = 64 * MIB
STATES = ("warm", "cold")
PAST, DISK = "nginx, directio", "dd iflag=direct"
"""What else leaves nothing in the page cache; the second sends nothing."""


def measure(bench: Bench) -> Iterator[Row]:
    """Rounds of one download each."""
    source = bench.folder / "source"
    digest = make_file(source, bench.size)
    size = f"{bench.size / GIB:g} GiB"
    with ExitStack() as stack:

        def run(server: Server) -> Server:
            stack.callback(server.stop)
            return server

        ours = servers.backupd(bench.folder / "backupd")
        try:
            path, kept = _keep(ours, source)
            _check(f"http://localhost:{ours.port}{path}", digest)
            source.unlink()
            nginx, _, direct = servers.nginx(bench.folder / "nginx", bench.peers)
            run(nginx)
            os.link(kept, nginx.folder / "files" / "kept")  # the same bytes, and the same pages
            links = {
                "backupd": (ours, f"http://localhost:{ours.port}{path}"),
                "nginx": (nginx, f"http://localhost:{nginx.port}/kept"),
                PAST: (nginx, f"http://localhost:{direct}/kept"),
            }
            half = bench.size // 2
            for span, what in (
                ("", size),
                (_middle(bench.size, half), f"{half / GIB:g} GiB of it"),
                (_middle(bench.size, RANGE), f"{RANGE / MIB:.0f} MiB of it"),
            ):
                left: dict[str, list[float]] = {name: [] for name in links}
                entrants = [
                    _entrant(f"{name} {state}", server, link, span, kept, state, left[name])
                    for state in STATES
                    for name, (server, link) in links.items()
                    if state == "cold" or name != PAST
                ]
                entrants.append(_disk(kept, span))
                runs = rounds(f"restore of {what}", entrants, bench.runs, bench.say)
                yield from _rows(f"restore of {what}", runs, left, cpu=not span)
        finally:
            ours.stop()
        notes = bench.folder / "turns"
        program: list[str | Path] = [sys.executable, "-m", "bench.blocking", notes]
        watched = run(servers.backupd(bench.folder / "backupd", program=program))
        link = f"http://localhost:{watched.port}{path}"
        blocks: list[float] = []

        def clear() -> None:
            notes.write_text("")
            _cold(kept)

        noted = _entrant("backupd, watched", watched, link, "", kept, "cold", [], clear)
        for _ in range(bench.runs):
            rounds("the reactor's turns", [noted], 1, bench.say)
            blocks.append(longest(notes))
    yield within(
        f"restore of {size}, cold: longest turn of the reactor, ms",
        blocks,
        form="{:.1f}",
        at_most=20,
    )


def _rows(
    title: str, runs: dict[str, list[Run]], left: dict[str, list[float]], *, cpu: bool
) -> Iterator[Row]:
    for state in STATES:
        ours, nginx = runs[f"backupd {state}"], runs[f"nginx {state}"]
        speeds = [run.speed for run in ours], [run.speed for run in nginx]
        yield beside(f"{title}, {state}: MiB/s", speeds[0], "nginx", speeds[1], at_least=0.8)
        for name in (f"{PAST} cold", DISK) if state == "cold" else ():
            others = [run.speed for run in runs[name]]
            yield beside(f"{title}, {state}: MiB/s", speeds[0], name.removesuffix(" cold"), others)
        if cpu:
            costs = [run.cpu for run in ours], [run.cpu for run in nginx]
            what = f"{title}, {state}: server CPU-seconds per GiB"
            yield beside(what, costs[0], "nginx", costs[1], form="{:.2f}")
    yield Row(
        what=f"{title}, cold: MiB left in the page cache",
        ours=spread(left["backupd"]),
        beside="\n".join(f"{name}\n{spread(left[name])}" for name in ("nginx", PAST)),
        expected="0",
        held=not any(left["backupd"]),
        raw=left,
    )


def _keep(server: Server, file: Path) -> tuple[str, Path]:
    """Back the file up; the path of its content, and where it lies."""
    with Asker() as asker:
        (offer,) = asker.offers(server, file.stat().st_size)
        curl([offer.link], [file], 'request = "POST"')
        path = complete(server, offer)
    (sidecar,) = (server.folder / "root").glob("*/*/*/backup.json")
    (kept,) = (one for one in sidecar.parent.iterdir() if one != sidecar)
    return path, kept


def _check(link: str, digest: str) -> None:
    command = ["curl", "-qsS", "--noproxy", "*", link]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        found = hashlib.file_digest(client.stdout, "sha256").hexdigest()  # type: ignore[arg-type]
    if found != digest:
        raise RuntimeError("what came back is not what was sent")


def _middle(size: int, length: int) -> str:
    start = (size - length) // 2
    return f"{start}-{start + length - 1}"


def _length(span: str, size: int) -> int:
    """Bytes of a range, or of all."""
    start, _, last = span.partition("-")
    return int(last) - int(start) + 1 if span else size


def _entrant(
    name: str,
    server: Server,
    link: str,
    span: str,
    kept: Path,
    state: str,
    left: list[float],
    ready: Callable[[], None] | None = None,
) -> Entrant:
    """Downloads, from the cache or the disk; ``left`` gets what a cold run leaves in the cache."""
    command = ["curl", "-qsS", "--noproxy", "*", "--fail", "-o", "/dev/null"]
    command += ["-w", "%{size_download} %{time_total}", *(["-r", span] if span else []), link]
    length = _length(span, kept.stat().st_size)

    def go() -> Run:
        with server.watched() as usage:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        size, seconds = done.stdout.split()
        if int(size) != length:
            raise RuntimeError(f"{size} bytes came instead of {length}")
        if state == "cold":
            left.append(_cached(kept) / MIB)
        return Run(length, float(seconds), usage)

    prepare = {"cold": lambda: _cold(kept), "warm": lambda: read(kept)}[state]
    return Entrant(name, [], go, ready or prepare)


def _disk(kept: Path, span: str) -> Entrant:
    """What the disk gives to whoever reads past the page cache, and does nothing else."""
    size = kept.stat().st_size
    start, length = int(span.partition("-")[0] or 0), _length(span, size)
    command = ["dd", f"if={kept}", "of=/dev/null", "bs=2M", "iflag=direct,skip_bytes,count_bytes"]
    command += [f"skip={start}", f"count={length}"]

    def go() -> Run:
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return Run(length, time.perf_counter() - begun, Usage())

    return Entrant(DISK, [], go, lambda: _cold(kept))


def _cached(file: Path) -> int:
    """Bytes of the file that are in the page cache."""
    with file.open("rb") as opened:
        pages = residence(opened.fileno(), 0, file.stat().st_size)
    if pages is None:
        raise RuntimeError(f"the kernel does not tell what of {file} is in the page cache")
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def _cold(file: Path) -> None:
    """Have nothing of the file in the page cache."""
    flush(file)
    for _ in range(100):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not _cached(file):
            return
        time.sleep(0.1)  # a connection that is closing has pages still
    raise RuntimeError(f"{file} does not leave the page cache: {_cached(file)} bytes")
