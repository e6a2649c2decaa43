"""Daemons in processes of their own, and plain HTTP to talk to them with."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = [
    "BACKUPCTL",
    "CLIP",
    "REPOSITORY",
    "TWISTD",
    "Answer",
    "Daemon",
    "Done",
    "answer_on",
    "call",
    "clean_environment",
    "exchange",
    "free_port",
    "run",
    "wait_until",
]

REPOSITORY = Path(__file__).resolve().parents[2]
CLIP = REPOSITORY / "examples" / "clip.mp4"
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
BACKUPCTL = [sys.executable, "-c", "from backupd.cli import main; main()"]
START_SECONDS = 30.0
STOP_SECONDS = 40.0
DEFECTS = re.compile(r"Traceback|defect|Unhandled|ResourceWarning|never awaited")
INCIDENT = re.compile("incident")


def free_port() -> int:
    """A port of the loopback address that nobody listens on, and that no client is given."""
    while True:
        port = random.randrange(10000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def wait_until(holds: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """The first true value of ``holds()``; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain until {what}"
        time.sleep(0.05)
    return value


def clean_environment(**settings: str) -> dict[str, str]:
    """Ours, less every setting of a daemon, and with these."""
    mine = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BACKUPD_") and name not in ("HOST", "PROTOCOL", "NOTIFY_SOCKET")
    }
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {f"BACKUPD_{name.upper()}": value for name, value in settings.items()}
    return mine | {"PYTHONPATH": os.pathsep.join(paths), "BACKUPD_CONFIG": os.devnull} | given


@dataclass(frozen=True)
class Done:
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(
    command: Iterable[str | Path],
    environment: Mapping[str, str],
    *,
    cwd: Path | None = None,
    seconds: float = 60.0,
) -> Done:
    """Run a command to its end."""
    done = subprocess.run(
        [str(word) for word in command],
        env=dict(environment),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Daemon:
    """One daemon, its root and its log under ``folder``; ready when the ``with`` begins.

    Leaving the ``with`` stops it, and fails when its log tells of a defect, or of an incident
    unless these are expected.
    """

    incidents_expected = False
    start_seconds = START_SECONDS

    def __init__(self, folder: Path, name: str = "daemon", **settings: str) -> None:
        self.folder = folder
        self.name = name
        self.port = free_port()
        self.root = folder / name
        self.log = folder / f"{name}.log"
        self.url = f"http://localhost:{self.port}"
        self.extra_environment: dict[str, str] = {}
        self.settings = {
            "root": str(self.root),
            "listen": f"tcp:{self.port}:interface=127.0.0.1",
            "reserved_space": "0",
            "shutdown_grace": "5",
        } | settings
        self.program = TWISTD
        self.command = ["--nodaemon", "--pidfile=", "backupd"]
        self.process: subprocess.Popen[bytes] | None = None

    # -- life -------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        return clean_environment(**self.settings) | self.extra_environment

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, *self.command],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_ready(self) -> None:
        wait_until(self._is_ready, f"{self.name} is ready", self.start_seconds)

    def _is_ready(self) -> bool:
        assert self.process is not None
        code = self.process.poll()
        assert code is None, f"{self.name} ended with {code}:\n{self.text()}"
        try:
            # 401: with peers, and so for those who show a token.
            return call("GET", f"{self.url}/readyz", timeout=5).status in (200, 401)
        except OSError:
            return False

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what a power cut is to a process."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        process = self.process
        assert process is not None
        process.send_signal(number)
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not stop:\n{self.text()}") from None
        self.process = None
        return code

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            if self.process is not None:
                self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self.process is not None:
                self.stop()
        finally:
            if kind is not None:
                lines = [one for one in self.text().splitlines() if "#debug]" not in one]
                print(f"--- log of {self.name} ---", *lines[-200:], sep="\n")  # noqa: T201
        if kind is None:
            text = self.text()
            found = DEFECTS.search(text)
            if not self.incidents_expected:
                found = found or INCIDENT.search(text)
            assert found is None, f"{self.name} logged a defect:\n{self.text()}"

    # -- looking ----------------------------------------------------------------------------------

    def text(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def token(self) -> str:
        return (self.root / ".backupd" / "control-token").read_text().strip()

    @property
    def incoming(self) -> list[str]:
        """The names of the unfinished uploads on the disk."""
        return sorted(os.listdir(self.root / ".backupd" / "incoming"))

    def memory(self) -> int:
        """The most resident memory that it ever had, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    # -- asking -----------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        operator: bool = False,
    ) -> Answer:
        """One request; with the control token as ``operator``."""
        sent = dict(headers or {})
        if operator:
            sent["Authorization"] = f"Bearer {self.token}"
        return call(method, self.url + path, body, sent)

    def ready(self) -> Any:
        return self.call("GET", "/readyz").json

    def requests(self) -> list[Any]:
        """Every request that is alive."""
        found: list[Any] = self.call("GET", "/api/v1/backup/requests?state=live").json["requests"]
        return found

    def backups(self) -> list[Any]:
        """Everything that is kept."""
        found: list[Any] = self.call("GET", "/api/v1/backups").json["backups"]
        return found

    def ctl(self, *arguments: str | Path, seconds: float = 60.0) -> Done:
        """``backupctl`` with this daemon's settings."""
        command = [*BACKUPCTL, "--url", self.url, *arguments]
        return run(command, self.environment, cwd=self.folder, seconds=seconds)


# -- plain HTTP ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """An answer as it came."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    method: str,
    url: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 30.0,
    *,
    context: ssl.SSLContext | None = None,
    source: str = "",
) -> Answer:
    """One request on a connection of its own, from ``source``, by TLS with ``context``.

    A body that is no bytes goes as JSON.
    """
    parts = urlsplit(url)
    sent = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body, sent = json.dumps(body).encode(), {"Content-Type": "application/json"} | sent
    # The name is not looked up: a resolver that tries ::1 first costs nothing but time.
    how: dict[str, Any] = {"timeout": timeout, "source_address": (source, 0) if source else None}
    connection = (
        http.client.HTTPConnection("127.0.0.1", parts.port or 80, **how)
        if context is None
        else http.client.HTTPSConnection("127.0.0.1", parts.port or 443, context=context, **how)
    )
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body, {"Host": parts.netloc} | sent)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def answer_on(connection: socket.socket, method: str = "POST") -> Answer:
    """The next answer on a connection, interim ones left out."""
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    return Answer(response.status, response.headers, response.read())


def exchange(port: int, data: bytes, method: str = "POST", *, seconds: float = 10.0) -> Answer:
    """The answer to these bytes."""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        connection.sendall(data)
        return answer_on(connection, method)
