"""nginx and HAProxy as `deploy/` configures them, in front of a daemon; only places differ."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import pytest

from tests.integration.daemons import (
    REPOSITORY,
    Answer,
    Daemon,
    call,
    free_port,
    run,
    wait_until,
)

__all__ = ["PROXIES", "HAProxy", "Nginx", "Proxy", "needs"]

CLIENT = "127.0.0.2"
"""Clients of the tests come from here, for the daemon to tell them from the proxy."""


def needs(*programs: str) -> None:
    """Skip where a program is missing; fail where all tests are due."""
    for program in programs:
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            assert not os.environ.get("BACKUPD_TEST_ALL"), f"{program} is not here"
            pytest.skip(f"{program} is not here")


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    needs("openssl")
    cert, key = folder / "cert.pem", folder / "key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-days", "2", *curve, *names]
    done = run([*command, "-keyout", key, "-out", cert], os.environ)
    assert done.code == 0, done.err
    return cert, key


class Proxy:
    """A proxy with TLS in front of a daemon, both running while the ``with`` lasts.

    ``temporary`` is where it may put what it does not hold in memory.
    """

    program: ClassVar[str]
    example: ClassVar[str]

    def __init__(self, folder: Path, **settings: str) -> None:
        needs(self.program)
        self.folder = folder
        self.port = free_port()
        self.url = f"https://localhost:{self.port}"
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.certificate, self._key = certificate(folder)
        self.context = ssl.create_default_context(cafile=str(self.certificate))
        behind = {"public_url": self.url, "trusted_proxies": "127.0.0.1 ::1"}
        self.daemon = Daemon(folder, **(behind | settings))
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def configure(self, example: str) -> list[str]:
        """Write the configuration; the command that runs with it in the foreground."""

    def replace(self, text: str, places: Mapping[str, object]) -> str:
        """The example with other places in it, and nothing else changed."""
        for old, new in places.items():
            assert old in text, f"{self.example} does not say {old!r} any more"
            text = text.replace(old, str(new))
        return text

    def logs(self) -> str:
        """All that it has written to its logs."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("proxy*.log")))

    # -- life -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.daemon.__enter__()
        try:
            example = (REPOSITORY / "deploy" / self.example).read_text()
            command = self.configure(example)
            with (self.folder / "proxy-output.log").open("ab") as log:
                self.process = subprocess.Popen(
                    command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            wait_until(self._answers, f"{self.program} answers")
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.logs()
        with contextlib.suppress(OSError):
            return self.call("GET", "/healthz").status == 200
        return False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if kind is not None:
            print(f"--- logs of {self.program} ---", self.logs()[-20000:], sep="\n")  # noqa: T201
        self.daemon.__exit__(kind, error, trace)

    # -- looking ----------------------------------------------------------------------------------

    def processes(self) -> list[Path]:
        """It and its workers, in /proc."""
        assert self.process is not None
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [Path("/proc", str(one)) for one in (pid, *children)]

    def spooled(self) -> list[str]:
        """Every file that it holds something in, unlinked ones too."""
        found = [str(path) for path in self.temporary.rglob("*") if path.is_file()]
        for process in self.processes():
            for handle in (process / "fd").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if (target := os.readlink(handle)).startswith(str(self.temporary)):
                        found.append(target)
        return found

    def memory(self) -> int:
        """The most resident memory that it and its workers ever had together, in bytes."""
        peak = 0
        for process in self.processes():
            lines = (process / "status").read_text().splitlines()
            peak += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        return peak * 1024

    # -- asking -----------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        where: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request through the proxy, to a path or a link."""
        url = where if where.startswith("https:") else self.url + where
        return call(method, url, body, headers, context=self.context, source=CLIENT)

    def connect(self, seconds: float = 30.0) -> ssl.SSLSocket:
        """A connection to the proxy."""
        address = ("127.0.0.1", self.port)
        plain = socket.create_connection(address, seconds, source_address=(CLIENT, 0))
        return self.context.wrap_socket(plain, server_hostname="localhost")


class Nginx(Proxy):
    """nginx, with deploy/nginx.conf.example."""

    program = "nginx"
    example = "nginx.conf.example"

    def configure(self, example: str) -> list[str]:
        places = {
            "127.0.0.1:3000": f"127.0.0.1:{self.daemon.port}",
            "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
            "/etc/ssl/backup.example.org/fullchain.pem": self.certificate,
            "/etc/ssl/backup.example.org/privkey.pem": self._key,
            "/var/log/nginx/backupd.log": self.folder / "proxy-access.log",
            "/var/log/nginx/backupd-error.log": self.folder / "proxy-error.log",
        }
        site = self.folder / "site.conf"
        site.write_text(self.replace(example, places))
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {self.temporary}/{kind};\n" for kind in kinds)
        main = self.folder / "nginx.conf"
        main.write_text(
            f"{'user root;' if os.geteuid() == 0 else ''} daemon off; worker_processes 1;\n"
            f"pid {self.folder}/nginx.pid; error_log {self.folder}/proxy-main.log;\n"
            f"events {{}} http {{ {temporary} include {site}; }}\n"
        )
        return [_path("nginx"), "-p", str(self.folder), "-c", str(main)]


class HAProxy(Proxy):
    """HAProxy, with deploy/haproxy.cfg.example; it has no temporary files at all."""

    program = "haproxy"
    example = "haproxy.cfg.example"

    def configure(self, example: str) -> list[str]:
        both = self.folder / "both.pem"
        both.write_text(self.certificate.read_text() + self._key.read_text())
        places = {
            "127.0.0.1:3000": f"127.0.0.1:{self.daemon.port}",
            "bind :443": f"bind 127.0.0.1:{self.port}",
            "/etc/haproxy/backup.example.org.pem": both,
        }
        file = self.folder / "haproxy.cfg"
        file.write_text(self.replace(example, places))
        return [_path("haproxy"), "-db", "-f", str(file)]


PROXIES: dict[str, type[Proxy]] = {"nginx": Nginx, "haproxy": HAProxy}


def _path(program: str) -> str:
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found is not None
    return found
