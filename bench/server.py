"""Servers in processes of their own, and what the kernel says of them."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Server", "Usage", "backupd", "stock_klein"]

_REPOSITORY = Path(__file__).resolve().parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")
_START_SECONDS = 30.0
_SAMPLE_SECONDS = 0.05


@dataclass(slots=True)
class Usage:
    """What a server used: CPU seconds, bytes of memory beyond those at the start, and the most
    bytes that it had in temporary files at once."""

    cpu: float = 0.0
    memory: int = 0
    temporary: int = 0


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Server:
    """A server with a folder of its own, which holds its log, its files and its ``TMPDIR``."""

    def __init__(
        self, command: Sequence[str], folder: Path, port: int, settings: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.port = port
        self._log = folder / "log"
        self._temporary = folder / "tmp"
        self._temporary.mkdir(parents=True)
        environ = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("BACKUPD_") and key not in ("HOST", "PROTOCOL")
        }
        paths = [str(_REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ |= {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(self._temporary)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env={**environ, **settings}, stdout=log, stderr=log
            )

    def wait_until(self, path: str, status: int) -> None:
        """Return once ``GET path`` is answered with ``status``; raises `RuntimeError`."""
        deadline = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            connection = http.client.HTTPConnection("localhost", self.port, timeout=5)
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", path)
                if connection.getresponse().status == status:
                    return
            connection.close()
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"a server did not start:\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """End it in order."""
        self._process.terminate()
        self._process.wait(60)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()
        self._process.wait(60)

    @contextmanager
    def watched(self) -> Iterator[Usage]:
        """What the server uses inside the block; filled in when that ends."""
        usage, over = Usage(), threading.Event()
        sampling = threading.Thread(target=self._sample, args=(usage, over))
        self._proc("clear_refs").write_text("5")  # the peak begins anew
        memory, cpu = self._memory("VmRSS"), self._cpu()
        sampling.start()
        try:
            yield usage
        finally:
            usage.cpu = self._cpu() - cpu
            usage.memory = self._memory("VmHWM") - memory
            over.set()
            sampling.join()

    def _proc(self, name: str) -> Path:
        return Path(f"/proc/{self._process.pid}/{name}")

    def _cpu(self) -> float:
        fields = self._proc("stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def _memory(self, what: str) -> int:
        lines = self._proc("status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))

    def _sample(self, usage: Usage, over: threading.Event) -> None:
        while not over.wait(_SAMPLE_SECONDS):
            usage.temporary = max(usage.temporary, self._temporary_bytes())

    def _temporary_bytes(self) -> int:
        """Bytes in ``TMPDIR``, and in files without a name, which no listing shows."""
        found = 0
        for path in self._temporary.rglob("*"):
            with suppress(FileNotFoundError):
                found += path.stat().st_blocks * 512
        for path in self._proc("fd").iterdir():
            with suppress(FileNotFoundError):
                if os.readlink(path).endswith(" (deleted)"):
                    found += path.stat().st_blocks * 512
        return found


def backupd(folder: Path) -> Server:
    """A real daemon with the default settings."""
    port = _free_port()
    config = folder / "empty.toml"
    folder.mkdir(parents=True)
    config.touch()
    settings = {
        "BACKUPD_CONFIG": str(config),
        "BACKUPD_ROOT": str(folder / "root"),
        "BACKUPD_LISTEN": f"tcp:{port}:interface=127.0.0.1",
    }
    twistd = Path(sys.executable).with_name("twistd")
    server = Server([str(twistd), "-n", "--pidfile=", "backupd"], folder, port, settings)
    server.wait_until("/readyz", 200)
    return server


def stock_klein(folder: Path) -> Server:
    """`bench.stock_klein`, keeping its files in ``folder/files``."""
    port, files = _free_port(), folder / "files"
    files.mkdir(parents=True)
    command = [sys.executable, "-m", "bench.stock_klein", str(port), str(files)]
    server = Server(command, folder, port, {})
    server.wait_until("/", 404)
    return server
