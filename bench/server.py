"""Servers in processes of their own, and what the kernel says of them."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["REPOSITORY", "Server", "Usage", "free_port"]

REPOSITORY = Path(__file__).resolve().parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")
_START_SECONDS = 30.0
_SAMPLE_SECONDS = 0.05


@dataclass(slots=True)
class Usage:
    """What a server used: CPU seconds, bytes of memory beyond those at the start, and the most
    bytes that it had in temporary files at once."""

    user: float = 0.0
    system: float = 0.0
    memory: int = 0
    temporary: int = 0

    @property
    def cpu(self) -> float:
        """In user mode and in the kernel."""
        return self.user + self.system


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Server:
    """A server with a folder of its own, which holds its log, its files and its ``TMPDIR``.

    What it uses is what all its processes use, those that have ended included.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        folder: Path,
        port: int,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = port
        self._log = folder / "log"
        self._temporary = folder / "tmp"
        self._temporary.mkdir(parents=True, exist_ok=True)
        environ = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("BACKUPD_") and key not in ("HOST", "PROTOCOL")
        }
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ |= {"PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(self._temporary)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env={**environ, **(settings or {})}, stdout=log, stderr=log
            )

    def wait_until(self, path: str, status: int, seconds: float = _START_SECONDS) -> None:
        """Return once ``GET path`` is answered with ``status``; raises `RuntimeError`."""

        def answers() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            try:
                connection.request("GET", path)
                return connection.getresponse().status == status
            except http.client.HTTPException:
                return False
            finally:
                connection.close()

        self._wait(answers, seconds)

    def wait_until_listening(self) -> None:
        """Return once connections are taken; raises `RuntimeError`."""

        def listens() -> bool:
            with socket.create_connection(("127.0.0.1", self.port), 5):
                return True

        self._wait(listens, _START_SECONDS)

    def _wait(self, holds: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                if holds():
                    return
            time.sleep(0.02)
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
        for process in self._processes():
            _write(process / "clear_refs", "5")  # the peak begins anew
        memory, (user, system) = self.memory(), self._cpu()
        sampling.start()
        try:
            yield usage
        finally:
            ended = self._cpu()
            usage.user, usage.system = ended[0] - user, ended[1] - system
            usage.memory = self.memory(peak=True) - memory
            over.set()
            sampling.join()

    def memory(self, *, peak: bool = False) -> int:
        """Bytes that are resident now, or were at most since `watched` began."""
        what = "VmHWM:" if peak else "VmRSS:"
        return sum(
            int(line.split()[1]) * 1024
            for process in self._processes()
            for line in _read(process / "status").splitlines()
            if line.startswith(what)
        )

    def _processes(self) -> list[Path]:
        """Of the server itself and of all that it has started."""
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*"):
            if fields := _stat(path):
                children.setdefault(int(fields[1]), []).append(int(path.name))
        found = [self._process.pid]
        for pid in found:
            found += children.get(pid, [])
        return [Path(f"/proc/{pid}") for pid in found]

    def _cpu(self) -> tuple[float, float]:
        """Seconds in user mode and in the kernel, with those of children that have ended."""
        found = [list(map(int, f[11:15])) for f in map(_stat, self._processes()) if f]
        user = sum(own + reaped for own, _, reaped, _ in found)
        return user / _TICKS, sum(own + reaped for _, own, _, reaped in found) / _TICKS

    def _sample(self, usage: Usage, over: threading.Event) -> None:
        while not over.wait(_SAMPLE_SECONDS):
            usage.temporary = max(usage.temporary, self._temporary_bytes())

    def _temporary_bytes(self) -> int:
        """Bytes in ``TMPDIR``, and in files without a name, which no listing shows."""
        found = 0
        for path in self._temporary.rglob("*"):
            with suppress(FileNotFoundError):
                found += path.stat().st_blocks * 512
        for process in self._processes():
            with suppress(OSError):
                for path in (process / "fd").iterdir():
                    with suppress(FileNotFoundError):
                        if os.readlink(path).endswith(" (deleted)"):
                            found += path.stat().st_blocks * 512
        return found


def _read(path: Path) -> str:
    """A process may end while it is looked at."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _write(path: Path, text: str) -> None:
    with suppress(OSError):
        path.write_text(text)


def _stat(process: Path) -> list[str]:
    """The fields of ``/proc/<pid>/stat`` behind the name; the first is the state."""
    return _read(process / "stat").rpartition(")")[2].split()
