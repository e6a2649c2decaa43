"""Two hosts with networks of their own, joined by a wire that can be cut, and be bad."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.daemons import Answer, Done
from tests.integration.pairs import Server

__all__ = ["Far", "Host", "Wire"]

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _tool(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        assert not os.environ.get("BACKUPD_TEST_ALL"), f"{name} is not here"
        pytest.skip(f"{name} is not here")
    return found


def _run(*words: str, given: str | None = None) -> str:
    done = subprocess.run([*words], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Host:
    """One end of a `Wire`: a network namespace that nothing leads out of."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread, and what it starts, is on this host."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(there)
            try:
                yield
            finally:
                _enter(before)
        finally:
            os.close(there)
            os.close(before)

    def ip(self, *words: str) -> str:
        return _run(_tool("ip"), "-n", self.name, *words)

    def add_address(self, address: str) -> None:
        self.ip("address", "add", f"{address}/24", "dev", "wire")

    def lose_address(self, address: str) -> None:
        self.ip("address", "delete", f"{address}/24", "dev", "wire")

    def rules(self, *rules: str, hook: str = "input") -> None:
        """What happens from now on to packets that come in over the wire, or go out by it."""
        self.calm()
        side = "iifname" if hook == "input" else "oifname"
        lines = "\n".join(f"{side} wire {rule};" for rule in rules)
        chain = f"chain weather {{\ntype filter hook {hook} priority 0;\n{lines}\n}}"
        self._nft(f"table inet wire {{\n{chain}\n}}\n")

    def calm(self) -> None:
        """Packets pass."""
        self._nft("flush ruleset\n")

    def _nft(self, script: str) -> None:
        with self.inside():
            _run(_tool("nft"), "-f", "-", given=script)


class Wire:
    """Two hosts, ``near`` and ``far``, while the ``with`` lasts.

    Skips where we may not make network namespaces, or the kernel cannot.
    """

    def __init__(self) -> None:
        self.near = Host(f"backupd-near-{os.getpid()}", "10.77.0.1")
        self.far = Host(f"backupd-far-{os.getpid()}", "10.77.0.2")

    def __enter__(self) -> Wire:
        if os.geteuid() != 0:
            pytest.skip("only root makes network namespaces")
        if not Path("/proc/self/ns/net").exists():
            pytest.skip("this kernel has no network namespaces")
        ip, made = _tool("ip"), []
        try:
            for host in (self.near, self.far):
                done = subprocess.run(
                    [ip, "netns", "add", host.name], capture_output=True, text=True, check=False
                )
                if done.returncode != 0:
                    pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")
                made.append(host)
                host.ip("link", "set", "lo", "up")
            words = ["link", "add", "wire", "netns", self.near.name, "type", "veth"]
            words += ["peer", "name", "wire", "netns", self.far.name]
            done = subprocess.run([ip, *words], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.skip(f"this kernel has no veth: {done.stderr.strip()}")
            for host in made:
                host.add_address(host.address)
                host.ip("link", "set", "wire", "up")
        except BaseException:
            for host in made:
                _run(ip, "netns", "delete", host.name)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in (self.near, self.far):
            _run(_tool("ip"), "netns", "delete", host.name)

    def need_filter(self) -> None:
        """Skips where the kernel cannot filter packets by chance."""
        _tool("nft")
        try:
            self.near.rules("numgen random mod 100 < 1 drop")
        except AssertionError as error:
            # What nft itself does not understand is a defect of ours.
            if "Could not process rule" not in str(error):
                raise
            pytest.skip(f"this kernel cannot drop packets by nft: {error}")
        self.near.calm()

    def cut(self) -> None:
        """Nobody is told: what is sent from now on arrives nowhere."""
        self.near.ip("link", "set", "wire", "down")

    def mend(self) -> None:
        self.near.ip("link", "set", "wire", "up")


class Far(Server):
    """A daemon on a host of a `Wire`."""

    def __init__(self, folder: Path, name: str, host: Host, **settings: str) -> None:
        super().__init__(folder, name, **settings)
        self.host = host
        self.settings |= {
            "listen": f"ssl:{self.port}",
            "public_url": f"https://{host.address}:{self.port}",
        } | settings

    def start(self) -> None:
        with self.host.inside():
            super().start()

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        operator: bool = False,
        token: str | None = None,
    ) -> Answer:
        with self.host.inside():
            return super().call(method, path, body, headers, operator=operator, token=token)

    def ctl(self, *arguments: str | Path, seconds: float = 60.0) -> Done:
        with self.host.inside():
            return super().ctl(*arguments, seconds=seconds)
