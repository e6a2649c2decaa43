"""The same with peers: tokens that hold, that never held, and that hold no more; notices that are
signed rightly and wrongly; in plain HTTP and by TLS.

``python -m tests.fuzz.run --paired`` says many of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backupd.trust.signing import signed
from tests.fuzz.generate import Generator
from tests.fuzz.run import Found, Way, resident, speak
from tests.integration.daemons import CLIP, Daemon, free_port
from tests.integration.pairs import Server, pair, unverified

__all__ = ["fuzz_paired"]

NOTICE = "/api/v1/backup/serverAisReadyForBackup"
ASK = "/api/v1/backup/can-accept-backup"
BACKUP = "/api/v1/backup"
UNSET = "whsec_" + "A" * 32


@dataclass(frozen=True)
class Secrets:
    """What was given to whom."""

    tokens: dict[str, str]
    """By what they are: that of a peer, of another, of one that was revoked."""

    signing: str
    """What the other server signs with."""

    capability: str
    """Of the video that is queued for it."""

    origin: str
    """Where it is."""


class Peered(Generator):
    """Requests of peers, of those that would be some, and of the server that we send to."""

    def __init__(self, seed: int, host: str, routes: Any, known: Any, secrets: Secrets) -> None:
        super().__init__(seed, host, routes, known)
        self._secrets = secrets
        self._seen: list[dict[str, str]] = []

    def _identity(self) -> list[bytes]:
        chance, tokens = self._random, self._secrets.tokens
        kind = chance.random()
        if kind < 0.1:
            return []
        token = tokens["peer" if kind < 0.6 else "other" if kind < 0.75 else "revoked"]
        if kind > 0.9:  # nearly right
            at = chance.randrange(len(token))
            wrong = (
                token[:-1], token + "A", token.swapcase(), token[:at] + "\u00e9" + token[at + 1 :],
                token[::-1], f" {token} x", "", "A" * 5000,
            )  # fmt: skip
            token = chance.choice(wrong)
        scheme = chance.choice(("Bearer", "Bearer", "Bearer", "bearer", "BEARER ", "Basic"))
        line = f"Authorization: {scheme} {token}".encode()
        return [line, line] if chance.random() < 0.01 else [line]

    def _request(self) -> bytes:
        return self._notice() if self._random.random() < 0.1 else super()._request()

    def _notice(self) -> bytes:
        """One of the server that a video is queued for, or of somebody who would be that."""
        chance, secrets = self._random, self._secrets
        links = {
            f"linkForServerBto{what}BackupToSeverA": (
                f"{secrets.origin}{BACKUP}/{path}/abc" if chance.random() < 0.7 else self._link()
            )
            for what, path in (("Send", "receive-backup"), ("Complete", "complete-backup"))
        }
        video: object = "queued" if chance.random() < 0.8 else self._value()
        body = json.dumps({"videoId": video} | links).encode("utf-8", "replace")
        headers = self._signature(body)
        if chance.random() < 0.1:
            body += b" "
        place = f"{NOTICE}/{secrets.capability}" if chance.random() < 0.7 else NOTICE
        lines = [
            f"POST {place} HTTP/1.1",
            f"Host: {self._host}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n" + body

    def _signature(self, body: bytes) -> dict[str, str]:
        chance = self._random
        if self._seen and chance.random() < 0.2:
            return chance.choice(self._seen)  # a replay, or the signature of something else
        now = int(time.time()) + chance.choice((0, 0, 0, 0, -299, -301, 301, -(10**6), 10**12))
        secret = self._secrets.signing if chance.random() < 0.7 else UNSET
        headers = signed([secret], f"msg_{chance.randrange(10**6)}", now, body)
        self._seen = [*self._seen[-20:], headers]
        if chance.random() < 0.3:
            name = chance.choice(sorted(headers))
            value = headers[name]
            headers = headers | {
                name: chance.choice(
                    ("", value[:-1], value * 20, "v1,", "v2,AAAA", "v1,AAAA", "NaN", "1e3", "-1")
                )
            }
            if chance.random() < 0.3:
                del headers[name]
        return headers


@contextlib.contextmanager
def _places(folder: Path) -> Iterator[tuple[Server, Secrets, list[str]]]:
    """A daemon with peers, what was given to whom, and ids that mean something."""
    turns = {"max_concurrent_transfers": "50", "max_per_peer": "50", "max_pending": "50"}
    plain = free_port()
    target = Server(folder, "target", videos=str(CLIP.parent), **turns)
    target.settings["listen"] += f" tcp:{plain}:interface=127.0.0.1"
    with Server(folder, "other") as other, target:
        pair(other, target)
        origin = ("--origin", "http://localhost:9", "--network", "loopback")
        tokens = {
            "peer": target.add("peer", "send,restore", *origin),
            "other": target.add("another", "send,restore,delete"),
            "revoked": target.add("gone", "send,restore,delete,admin"),
        }
        done = target.ctl("peer", "revoke", "gone")
        assert done.code == 0, done.err
        signing = json.loads((other.root / ".backupd/peers/target.json").read_text())["signs"][0]
        other.kill()
        video = {"path": str(CLIP), "to": "other", "videoId": "queued"}
        assert target.call("POST", "/api/v1/outbox", video, operator=True).status in (201, 202)
        capability = _ledger(target, "SELECT capability FROM entries")
        kept, link = _keep(target, tokens["peer"]), _room(target, tokens["peer"], "open")
        requests = target.call("GET", "/api/v1/backup/requests", token=tokens["peer"]).json
        ids = [link, kept, *(one["requestId"] for one in requests["requests"]), capability]
        target.plain_port = plain  # type: ignore[attr-defined]
        yield target, Secrets(tokens, signing, capability, other.url), ids


def _ledger(daemon: Daemon, question: str, *values: str) -> str:
    (path,) = (daemon.root / ".backupd").glob("ledger*.sqlite*3")
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        return str(ledger.execute(question, values).fetchone()[0])


def _room(target: Server, token: str, video: str) -> str:
    """The capability of a request of this peer."""
    link = "linkForServerAtoNoticeServerBWhenServerAIsReady"
    body = {"videoId": video, "diskEmptySpaceRequire": 4000, link: "http://localhost:9/ready"}
    answer = target.call("POST", ASK, body, token=token)
    assert answer.json["success"], answer.body
    request = answer.json["requestId"]
    return _ledger(target, "SELECT capability FROM requests WHERE request_id = ?", request)


def _keep(target: Server, token: str) -> str:
    """The id of a backup of this peer."""
    capability = _room(target, token, "kept")
    octets = {"Content-Type": "application/octet-stream"}
    link = f"{BACKUP}/receive-backup/{capability}"
    sent = target.call("POST", link, b"x" * 4000, octets)
    assert sent.status == 200, sent.body
    link = f"{BACKUP}/complete-backup/{capability}"
    done = target.call("POST", link, {"videoId": "kept", "success": True})
    assert done.status == 200, done.body
    backup: str = done.json["backupId"]
    return backup


def fuzz_paired(folder: Path, requests: int, seed: int) -> Found:
    """Start a daemon with peers, say ``requests`` requests to it, and look whether it is well."""
    found = Found()
    with _places(folder) as (target, secrets, ids):
        routes = target.call("GET", "/openapi.json", operator=True).json["paths"]
        generator = Peered(seed, f"localhost:{target.port}", routes, ids, secrets)
        ways: list[Way] = [
            (target.plain_port, None),  # type: ignore[attr-defined]
            (target.port, unverified()),
        ]
        chance = random.Random(seed)
        started = time.monotonic()
        asyncio.run(speak(lambda: chance.choice(ways), generator, min(requests, 1000), found))
        warm = resident(target)
        asyncio.run(speak(lambda: chance.choice(ways), generator, requests, found))
        found.seconds = time.monotonic() - started
        found.grown = resident(target) - warm
        assert target.call("GET", "/healthz").status == 200
        listed = target.call("GET", "/api/v1/backups", operator=True).json["backups"]
        assert ids[1] in [backup["backupId"] for backup in listed], "nobody may delete it"
        # Only the server that it was queued for can have moved it; and that one is dead.
        (entry,) = target.call("GET", "/api/v1/outbox", operator=True).json["entries"]
        assert entry["state"] not in ("VERIFIED", "UNVERIFIED", "CANCELLED")
    return found
