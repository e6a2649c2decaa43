"""Two daemons that serve TLS with keys of their own, and are paired."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.integration.daemons import Answer, Daemon, call

__all__ = ["Server", "pair", "unverified"]


def unverified() -> ssl.SSLContext:
    """For a test that looks at what is answered, not at who answers."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class Server(Daemon):
    """A daemon for peers only, by TLS with a key of its own; not even loopback is named for it."""

    def __init__(self, folder: Path, name: str, **settings: str) -> None:
        super().__init__(folder, name, **settings)
        self.url = f"https://localhost:{self.port}"
        told = {"access": "peers", "listen": f"ssl:{self.port}:interface=127.0.0.1"}
        self.settings |= told | {"loop_interval": "0.3"} | settings

    def _is_ready(self) -> bool:
        assert self.process is not None
        code = self.process.poll()
        assert code is None, f"{self.name} ended with {code}:\n{self.text()}"
        try:
            return self.call("GET", "/readyz", operator=True).status == 200
        except OSError:
            return False

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
        """One request; with a peer's ``token``, or the control token as ``operator``."""
        sent = dict(headers or {})
        if operator or token is not None:
            sent["Authorization"] = f"Bearer {self.token if token is None else token}"
        return call(method, self.url + path, body, sent, context=unverified())

    def add(self, name: str, may: str, *more: str) -> str:
        """The token of a peer that is no backupd."""
        done = self.ctl("peer", "add", name, "--may", may, "--json", *more)
        assert done.code == 0, done.err
        token: str = done.json["token"]
        return token


def pair(
    keeper: Server, owner: Server, *, may: str = "send,restore", network: str = "loopback"
) -> tuple[str, str]:
    """``owner`` joins ``keeper``, each calling the other by its name; both fingerprints."""
    invited = keeper.ctl("peer", "invite", owner.name, "--may", may, "--network", network, "--json")
    assert invited.code == 0, invited.err
    joined = owner.ctl(
        "peer", "join", invited.json["invitation"], "--name", keeper.name,
        "--network", network, "--json",
    )  # fmt: skip
    assert joined.code == 0, joined.err
    shown = keeper.ctl("peer", "show", owner.name, "--json").json
    return shown["fingerprint"], joined.json["peer"]["fingerprint"]
