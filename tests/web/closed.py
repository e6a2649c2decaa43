"""A whole daemon in memory, with peers configured, spoken to by HTTP over in-memory connections."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shutil import rmtree
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from backupd.errors import StorageFailed
from backupd.ledger.sql import SqlLedger
from backupd.own_folder import OwnFolder
from backupd.settings import Settings
from backupd.storage.system import SYSTEM
from backupd.tap import chance_from, join
from backupd.trust.audit import Audit
from backupd.trust.peers import Peer, Right, token_hash
from backupd.trust.registry import InMemory
from tests.receiver.fakes import sync
from tests.receiver.world import now
from tests.web.connection import Transport

__all__ = ["CONTROL", "START", "ClosedCase", "Events", "Said", "Served", "Talk"]

CONTROL = "c" * 43
START = 1_800_000_000


@dataclass(frozen=True)
class Said:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Talk:
    """One connection."""

    def __init__(self, site: Any) -> None:
        self.channel = site.buildProtocol(IPv4Address("TCP", "192.0.2.9", 4711))
        self.transport: Any = Transport(peerAddress=IPv4Address("TCP", "192.0.2.9", 4711))
        self.transport.protocol = self.channel
        self.channel.makeConnection(self.transport)

    def say(self, data: bytes) -> None:
        self.channel.dataReceived(data)

    def heard(self) -> Said:
        """The answer so far."""
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (one.partition(": ") for one in lines[1:])
        }
        return Said(int(lines[0].split()[1]), headers, body)

    def hang_up(self) -> None:
        if self.transport.connected:
            self.channel.connectionLost(Failure(ConnectionDone()))


class Events:
    """An audit log in memory, which fails while it ``fails``."""

    def __init__(self) -> None:
        self.written: list[dict[str, Any]] = []
        self.fails: str | None = None

    def append(self, events: Sequence[Mapping[str, Any]]) -> None:
        if self.fails is not None:
            raise StorageFailed(self.fails)
        for event in events:
            self.written.append({"n": len(self.written) + 1} | dict(event))

    def read(self, after: int | None, limit: int) -> list[dict[str, Any]]:
        return self.written[-limit:] if after is None else self.written[after : after + limit]


class Served:
    """A daemon in memory; it listens nowhere, and is spoken to all the same."""

    def __init__(self, case: SynchronousTestCase, reactor: Any, name: str, **settings: Any) -> None:
        root = tempfile.mkdtemp()
        case.addCleanup(rmtree, root)
        self.reactor = reactor
        self.events = Events()
        rng = random.Random(name)
        numbers = iter(range(10_000))
        told: dict[str, Any] = {"root": root, "reserved_space": 0, "listen": ()} | settings
        self.service = join(
            Settings(**told),
            reactor=reactor,
            own=OwnFolder(Settings(**told), lambda: CONTROL),
            ledger=SqlLedger("sqlite://", write_off=sync, read_off=sync),
            fs=SYSTEM,
            off=sync,
            rng=rng,
            chance=chance_from(
                rng,
                lambda n: f"secret-of-{name}-{next(numbers):030}",
                lambda: f"id-{next(numbers)}",
            ),
            threads=[],
            peer_records=InMemory(),
            audit=Audit(self.events, sync, reactor),
        )
        self.site: Any = self.service.site
        self.service.site = None
        self.service.startService()
        assert self.service.ready
        self.talks: list[Talk] = []
        case.addCleanup(self.stop)

    def stop(self) -> None:
        for talk in self.talks:
            talk.hang_up()
        stopping = self.service.stopService()
        self.reactor.pump([1.0] * 40)
        now(stopping)

    def put(self, name: str, *rights: Right, **more: Any) -> Peer:
        """A peer whose token is its name."""
        told: dict[str, Any] = {
            "shows": (token_hash(name),),
            "origins": (f"https://{name}.example",),
            "rights": frozenset(rights),
        } | more
        peer = Peer(name=name, created_at=0.0, **told)
        changed: Peer = now(self.service.peers.change(name, lambda _: peer))
        return changed

    # -- asking -----------------------------------------------------------------------------------

    def talk(self) -> Talk:
        talk = Talk(self.site)
        self.talks.append(talk)
        return talk

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Said:
        """One request and its answer; a body that is no bytes goes as JSON."""
        sent = {"Host": "a.example", "Connection": "close"}
        data = b""
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            if not isinstance(body, bytes):
                sent["Content-Type"] = "application/json"
        if data or method in ("POST", "PUT", "PATCH"):
            sent["Content-Length"] = str(len(data))
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        lines = [f"{name}: {value}" for name, value in (sent | dict(headers or {})).items()]
        talk = self.talk()
        talk.say("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + data)
        return talk.heard()

    def room(self, token: str, video: object = 2, **more: Any) -> Said:
        """can-accept-backup, called back on the origin of the peer ``token``."""
        body = {
            "videoId": video,
            "diskEmptySpaceRequire": 5,
            "linkForServerAtoNoticeServerBWhenServerAIsReady": f"https://{token}.example/ready",
        }
        return self.ask("POST", "/api/v1/backup/can-accept-backup", body | more, token)

    def capability(self, request_id: str) -> str:
        found: str = now(self.service.ledger.request(request_id)).ask.capability
        return found

    def kept(self, token: str, video: object = 2) -> str:
        """The id of a backup that this peer has stored."""
        request_id = self.room(token, video).json["requestId"]
        capability = self.capability(request_id)
        link = f"/api/v1/backup/receive-backup/{capability}"
        octets = {"Content-Type": "application/octet-stream"}
        sent = self.ask("POST", link, b"video", headers=octets)
        assert sent.status == 200, sent.body
        done = self.ask(
            "POST",
            f"/api/v1/backup/complete-backup/{capability}",
            {"videoId": video, "success": True},
        )
        assert done.status == 200, done.body
        backup: str = done.json["backupId"]
        return backup


class ClosedCase(SynchronousTestCase):
    """Peers ``b`` and ``c``, each with the token of its name and every right but admin."""

    access = "peers"

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.advance(START)
        self.server = Served(self, self.reactor, "a", access=self.access)
        self.service = self.server.service
        server = self.server
        self.ask, self.talk, self.put = server.ask, server.talk, server.put
        self.room, self.capability, self.kept = server.room, server.capability, server.kept
        if self.access == "peers":
            for name in "bc":
                self.server.put(name, Right.SEND, Right.RESTORE, Right.DELETE)
