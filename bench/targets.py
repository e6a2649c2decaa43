"""Where the bytes of a measurement go to: each takes files and keeps them durably."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.asking import Asker, Offer, give_up
from bench.machine import GIB, MIB, flush, settle
from bench.peers import Peers
from bench.server import Server, Usage

__all__ = [
    "BARE",
    "Backupd",
    "Entrant",
    "Put",
    "Rsync",
    "Run",
    "Target",
    "Tus",
    "curl",
    "entrant",
    "rounds",
]

BARE = "a bare script"
"""`bench.bare`."""

AT_ONCE = 8
"""Uploads that one curl has under way."""


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes sent, the seconds until they were durable, and what the server used."""

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


class Target(Protocol):
    """Takes files. Only ``send`` is measured."""

    name: str
    server: Server

    def prepare(self, files: Sequence[Path]) -> None:
        """What comes before the bytes."""

    def send(self, files: Sequence[Path]) -> float:
        """Return once all is durable: the CPU seconds that others used to make it so."""

    def clear(self) -> None:
        """Delete what was sent, if there is anything."""


def curl(links: Sequence[str], files: Sequence[Path], *options: str, at_once: int = AT_ONCE) -> str:
    """Send each file to its link by one curl; what was answered. Raises `RuntimeError`."""
    each = "\n".join(
        ["silent", "show-error", "fail-with-body", 'noproxy = "*"', "globoff", *options]
    )
    parts = [
        f'{each}\nurl = "{link}"\nupload-file = "{file}"'
        for link, file in zip(links, files, strict=True)
    ]
    command = ["curl", "-q", "-K", "-"]
    if len(files) > 1:
        command += ["--parallel", "--parallel-immediate", "--parallel-max", str(at_once)]
    done = subprocess.run(command, input="\nnext\n".join(parts), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"curl failed: {done.stderr.strip()} {done.stdout[-500:]}")
    return done.stdout


class Backupd:
    """Ours: the requests are accepted and offered before the clock starts, the answers hold the
    digests."""

    def __init__(
        self,
        server: Server,
        asker: Asker,
        *,
        digests: Sequence[str] | None = None,
        name: str = "backupd",
        at_once: int = AT_ONCE,
    ) -> None:
        self.name = name
        self.server = server
        self._asker = asker
        self._digests = digests
        self._at_once = at_once
        self._offers: list[Offer] = []

    def prepare(self, files: Sequence[Path]) -> None:
        size = max(file.stat().st_size for file in files)
        self._offers = self._asker.offers(self.server, size, len(files))

    def send(self, files: Sequence[Path]) -> float:
        links = [offer.link for offer in self._offers]
        said = curl(links, files, 'request = "POST"', at_once=self._at_once)
        for digest in self._digests or ():
            if digest not in said:
                raise RuntimeError(f"a digest is missing in what was answered: {said[-500:]}")
        return 0.0

    def clear(self) -> None:
        for offer in self._offers:
            give_up(self.server, offer)
        self._offers = []


class Put:
    """A server that takes ``PUT /name`` into its folder ``files``. ``synced``: it answers only
    when the bytes are on the disk; for one that does not, the clock goes on until they are."""

    def __init__(
        self, name: str, server: Server, *, port: int | None = None, synced: bool = False
    ) -> None:
        self.name = name
        self.server = server
        self._url = f"http://localhost:{port or server.port}"
        self._synced = synced
        self._files = server.folder / "files"

    def prepare(self, files: Sequence[Path]) -> None:
        pass

    def send(self, files: Sequence[Path]) -> float:
        curl([f"{self._url}/{file.name}" for file in files], files)
        return _arrived(self._files, files, synced=self._synced)

    def clear(self) -> None:
        _empty(self._files)


class Tus:
    """A tus server: creation, then the bytes in one PATCH; one file at a time."""

    name = "@tus/server"

    def __init__(self, server: Server) -> None:
        self.server = server
        self._files = server.folder / "files"

    def prepare(self, files: Sequence[Path]) -> None:
        pass

    def send(self, files: Sequence[Path]) -> float:
        version = "Tus-Resumable: 1.0.0"
        for file in files:
            length = f"Upload-Length: {file.stat().st_size}"
            create = ["curl", "-qsS", "--noproxy", "*", "-X", "POST", "-H", version, "-H", length]
            create += ["-D", "-", "-o", "/dev/null", f"http://localhost:{self.server.port}/files"]
            done = subprocess.run(create, capture_output=True, text=True, check=True)
            heads = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
            link = next(value for name, value in heads.items() if name.lower() == "location")
            curl(
                [link],
                [file],
                'request = "PATCH"',
                f'header = "{version}"',
                'header = "Upload-Offset: 0"',
                'header = "Content-Type: application/offset+octet-stream"',
            )
        return _arrived(self._files, files)

    def clear(self) -> None:
        _empty(self._files)


class Rsync:
    """rsync's daemon, which syncs each file, as the client asks it to; all files in one call."""

    name = "rsync --fsync"

    def __init__(self, server: Server, peers: Peers) -> None:
        self.server = server
        self._peers = peers
        self._files = server.folder / "files"

    def prepare(self, files: Sequence[Path]) -> None:
        pass

    def send(self, files: Sequence[Path]) -> float:
        to = f"rsync://localhost:{self.server.port}/files/"
        command = [self._peers.program("rsync"), "--fsync", *map(str, files), to]
        environment = {**os.environ, **self._peers.environment}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"rsync failed: {done.stderr[-2000:]}")
        return _arrived(self._files, files, synced=True)

    def clear(self) -> None:
        _empty(self._files)


def _arrived(folder: Path, files: Sequence[Path], *, synced: bool = False) -> float:
    """See that all is there, and have it on the disk: the CPU seconds that it took."""
    kept = sorted(path.stat().st_size for path in folder.iterdir())
    if kept[-len(files) :] != sorted(file.stat().st_size for file in files):
        raise RuntimeError(f"{folder} does not hold what was sent")
    return 0.0 if synced else flush(folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@dataclass(frozen=True, slots=True)
class Entrant:
    """Who takes part in a round: ``go`` is measured by itself and tells what it took; ``ready``
    comes before it, ``clear`` undoes it."""

    name: str
    files: Sequence[Path]
    go: Callable[[], Run]
    ready: Callable[[], None] = lambda: None
    clear: Callable[[], None] = lambda: None


def entrant(target: Target, files: Sequence[Path], name: str | None = None) -> Entrant:
    """``target``, to be sent ``files``."""
    size = sum(file.stat().st_size for file in files)

    def go() -> Run:
        with target.server.watched() as usage:
            begun = time.perf_counter()
            extra = target.send(files)
            seconds = time.perf_counter() - begun
        usage.system += extra
        return Run(size, seconds, usage)

    return Entrant(name or target.name, files, go, lambda: target.prepare(files), target.clear)


def rounds(
    title: str, entrants: Sequence[Entrant], runs: int, say: Callable[[str], None]
) -> dict[str, list[Run]]:
    """``runs`` runs of each, in turns, and each finds the same: quiet, warm, and empty folders."""
    found: dict[str, list[Run]] = {one.name: [] for one in entrants}
    for number in range(runs):
        for one in entrants:
            say(f"{title}, run {number + 1} of {runs}: {one.name}")
            settle(sum(file.stat().st_size for file in one.files), *one.files)
            # Only now, so that every run finds the same: one run's pages, just freed.
            for other in entrants:
                other.clear()
            one.ready()
            found[one.name].append(one.go())
    for one in entrants:
        one.clear()
    return found
