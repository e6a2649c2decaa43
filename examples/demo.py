"""A real video goes from Server B to Server A, is kept for good, and comes back identical.

``make demo [VIDEO=path]``. Two daemons in processes of their own, and ``backupctl``: nothing here
that you could not type. The folders are left in ``demo-data/`` for you to look at.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "demo-data"
PROGRAMS = Path(sys.executable).parent
VIDEO_ID = "2"
START_SECONDS = 30
STOP_SECONDS = 45


class DemoFailed(Exception):
    """One sentence for the person who looks on."""


@dataclass
class Server:
    """One daemon in a process of its own."""

    name: str
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    @property
    def root(self) -> Path:
        return DATA / self.name

    @property
    def log(self) -> Path:
        return DATA / f"{self.name}.log"

    @property
    def environment(self) -> dict[str, str]:
        """Ours, less every setting of a daemon that may run here for real."""
        mine = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("BACKUPD_") and name not in ("HOST", "PROTOCOL")
        }
        return mine | {
            "BACKUPD_CONFIG": os.devnull,
            "BACKUPD_ROOT": str(self.root),
            "BACKUPD_LISTEN": f"tcp:{self.port}:interface=127.0.0.1",
            "BACKUPD_RESERVED_SPACE": "100 MB",
            "HOST": f"localhost:{self.port}",
        }

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [PROGRAMS / "twistd", "--nodaemon", "--pidfile=", "backupd"],
                cwd=DATA,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_until_ready(self) -> None:
        """Return once /readyz answers 200."""
        assert self.process is not None  # noqa: S101 - start() came first
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise DemoFailed(f"{self.name} has ended: {self.log.read_text().strip()}")
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(f"{self.url}/readyz", timeout=5),
            ):
                return
            time.sleep(0.05)
        raise DemoFailed(f"{self.name} is not ready: {self.log.read_text().strip()}")

    def stop(self) -> None:
        """Ask it to end as a service manager does, and wait."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise DemoFailed(f"{self.name} had to be killed; see {shown(self.log)}") from None

    def backupctl(self, *arguments: str | Path, capture: bool = False) -> str:
        """What you would type, with the output on your terminal or captured."""
        sys.stdout.flush()
        done = subprocess.run(
            [PROGRAMS / "backupctl", "--url", self.url, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE if capture else None,
            check=False,
        )
        if done.returncode != 0:
            raise DemoFailed(
                f"backupctl {arguments[0]} ended with {done.returncode}; "
                f"the servers' logs are in {shown(DATA)}"
            )
        return done.stdout.decode() if capture else ""


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on."""
    with contextlib.ExitStack() as sockets:
        bound = [
            sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [one.getsockname()[1] for one in bound]


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Both servers while the body runs, and none afterwards, however it ends."""
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_until_ready()
        yield
    finally:
        # A second Ctrl-C must not leave one of them behind.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        with contextlib.ExitStack() as stopping:
            for server in servers:
                stopping.callback(server.stop)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identical(one: Path, other: Path) -> bool:
    """Byte for byte."""
    block = 1024 * 1024
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(block), right.read(block)
            if a != b:
                return False
            if not a:
                return True


def shown(path: Path) -> str:
    """A path as short as it goes."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def say(text: str = "") -> None:
    print(text, flush=True)


def demo(video: Path) -> None:
    """Raises `DemoFailed` unless the copy and the restored file are the video."""
    if not video.is_file() or video.stat().st_size == 0:
        raise DemoFailed(f"there is no video {video}")
    if DATA.exists():
        shutil.rmtree(DATA)
    DATA.mkdir()
    server_a, server_b = (
        Server(name, port)
        for name, port in zip(("server-a", "server-b"), free_ports(2), strict=True)
    )

    say("1/4  Two servers start")
    with running(server_a, server_b):
        say(f"     Server A, which keeps backups:  {server_a.url}")
        say(f"     Server B, which owns the video: {server_b.url}")

        say(f"\n2/4  Server B backs {video.name} up to Server A")
        server_b.backupctl("send", video, "--to", server_a.url, "--video-id", VIDEO_ID)

        say("\n3/4  What Server A keeps now")
        server_a.backupctl("list")
        (backup,) = json.loads(server_a.backupctl("list", "--json", capture=True))["backups"]

        say("\n4/4  Server A gives it back")
        restored = DATA / f"restored{video.suffix}"
        server_a.backupctl("restore", backup["backupId"], "-o", restored)

    beside = server_a.root.glob(f"*/*/{backup['backupId']}/*")
    kept = [path for path in beside if path.name != "backup.json"]
    if len(kept) != 1:
        raise DemoFailed(f"Server A's disk should hold one file, not {len(kept)}")
    say()
    say(f"     the video      {sha256(video)}  {shown(video)}")
    say(f"     the kept copy  {sha256(kept[0])}  {shown(kept[0])}")
    say(f"     restored       {sha256(restored)}  {shown(restored)}")
    for copy in (kept[0], restored):
        if sha256(copy) != sha256(video) or not identical(copy, video):
            raise DemoFailed(f"{shown(copy)} differs from the video")
    say("\nAll three are identical, byte for byte. Both servers have stopped.")


def interrupted(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """0 only when everything was identical."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    video = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "examples/clip.mp4"
    try:
        demo(video.resolve())
    except DemoFailed as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted; both servers have stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
