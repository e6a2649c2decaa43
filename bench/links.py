"""Our sender to our receiver over a long, thin link: one connection against several.

``python -m bench.links`` prints the ratio; the link is the tests' own proxy, on loopback.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.report import Bench, Row, beside
from tests.integration.daemons import Daemon, wait_until
from tests.integration.slow_proxy import SlowProxy

__all__ = ["Way", "measure", "rows"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Way:
    """One file over the link."""

    size: int
    seconds: float
    connections: int

    @property
    def speed(self) -> float:
        """MiB per second."""
        return self.size / MIB / self.seconds


@contextmanager
def _most(connections: int | None) -> Iterator[dict[str, str]]:
    """The sender's environment for at most so many connections."""
    with tempfile.TemporaryDirectory() as folder:
        extra: dict[str, str] = {}
        if connections is not None:
            code = f"from backupd.sender import lanes; lanes.MOST = {connections}"
            Path(folder, "sitecustomize.py").write_text(f"{code}\n")
            extra["PYTHONPATH"] = folder
        yield extra


def _send(folder: Path, file: Path, rate: float, delay: float, most: int | None) -> Way:
    size = file.stat().st_size
    folder.mkdir()
    receiver = Daemon(folder, "receiver", loop_interval="0.2")
    with SlowProxy(receiver.port, delay=delay, rate=rate) as proxy, _most(most) as extra:
        far = f"http://localhost:{proxy.port}"
        receiver.settings["public_url"] = far
        sender = Daemon(folder, "sender", loop_interval="0.2")
        if extra:
            paths = [extra["PYTHONPATH"], os.environ.get("PYTHONPATH", ""), os.getcwd()]
            sender.extra_environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with receiver, sender:
            begun = time.monotonic()
            order = {"path": str(file), "to": far}
            answer = sender.call("POST", "/api/v1/outbox", order, operator=True).json
            entry_id = answer["entry"]["entryId"]

            def verified() -> bool:
                now = sender.call("GET", f"/api/v1/outbox/{entry_id}", operator=True).json
                if now["state"] in ("FAILED", "UNVERIFIED"):
                    raise RuntimeError(f"it was not verified: {now}")
                return bool(now["state"] == "VERIFIED")

            wait_until(verified, "the file is verified", 20 * size / rate)
            return Way(size, time.monotonic() - begun, proxy.most_busy)


def measure(
    folder: Path, size: int = 256 * MIB, rate: float = 4 * MIB, delay: float = 0.1
) -> tuple[Way, Way]:
    """The same file by one connection, and by as many as the sender finds useful."""
    file = folder / "video.bin"
    file.write_bytes(os.urandom(size))
    one = _send(folder / "one", file, rate, delay, 1)
    several = _send(folder / "several", file, rate, delay, None)
    return one, several


def rows(bench: Bench) -> Iterator[Row]:
    """An eighth of the bytes, over a link on which each connection gets 4 MiB/s."""
    bench.say("a long, thin link")
    one, several = measure(bench.folder, bench.size // 8)
    yield beside(
        f"sending {one.size / MIB:g} MiB over a long, thin link: MiB/s",
        [several.speed],
        f"by one connection, not {several.connections}",
        [one.speed],
        form="{:.1f}",
        at_least=1.5,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.links", description=__doc__)
    parser.add_argument("--size", type=int, default=256, help="MiB of the file, 256")
    parser.add_argument("--rate", type=float, default=4.0, help="MiB/s of a connection, 4")
    parser.add_argument("--delay", type=float, default=0.1, help="seconds each way, 0.1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, several = measure(Path(folder), options.size * MIB, options.rate * MIB, options.delay)
    for way in (one, several):
        print(f"{way.connections} connections: {way.seconds:.1f} s, {way.speed:.2f} MiB/s")
    print(f"{several.speed / one.speed:.2f} times as fast")


if __name__ == "__main__":
    main()
