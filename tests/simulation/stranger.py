"""A sender that is not ours: it speaks plain HTTP, lies, breaks off, and does things twice."""

from __future__ import annotations

import json
import random
from base64 import b64encode
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from backupd.peer.exchange import Reply, parse
from tests.simulation.network import Network
from tests.simulation.process import Process
from tests.simulation.timeline import Timeline

__all__ = ["Asked", "Stranger"]

NOTICE = b"/notice/"
CHUNK = 3000


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class _Call(Protocol):
    """One request; its answer, or None when there is none."""

    def __init__(self, data: bytes, then: str, answer: Deferred[Reply | None]) -> None:
        self._data = data
        self._then = then
        self.answer = answer
        self._got = b""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(self._data)
        if self._then == "close":
            transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        self._got += data
        self._look(closed=False)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._look(closed=True)
        self._over(None)

    def _look(self, *, closed: bool) -> None:
        reply = parse(self._got, closed=closed)
        if reply is not None:
            self._over(reply)

    def _over(self, reply: Reply | None) -> None:
        if not self.answer.called:
            self.answer.callback(reply)
            transport: Any = self.transport
            transport.loseConnection()


class _Calling(ClientFactory):
    noisy = False

    def __init__(self, call: _Call) -> None:
        self._call = call

    def buildProtocol(self, addr: Any) -> _Call:
        return self._call

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        if not self._call.answer.called:
            self._call.answer.callback(None)


class _Notices(Protocol):
    """Takes one notice, and answers as it is told to."""

    factory: _Listening

    def __init__(self) -> None:
        self._got = b""

    def dataReceived(self, data: bytes) -> None:
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.lower().split(b"\r\n")
        length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
        if len(body) < length:
            return
        number = int(head.partition(NOTICE)[2].partition(b" ")[0])
        status = self.factory.stranger.noticed(number, json.loads(body))
        transport: Any = self.transport
        if status:
            text = f"HTTP/1.1 {status} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            transport.write(text.encode())
            transport.loseConnection()


class _Listening(Factory):
    noisy = False

    def __init__(self, stranger: Stranger) -> None:
        self.stranger = stranger

    def buildProtocol(self, addr: Any) -> Any:
        protocol = _Notices()
        protocol.factory = self
        return protocol


@dataclass
class Asked:
    """One question that was asked, and what came of it."""

    number: int
    video: str
    content: bytes
    size: int
    sha256: str | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    links: list[tuple[str, str]] = field(default_factory=list)
    """The links of every notice, oldest first."""

    told: int = 202
    """What a notice is answered; 0 is silence."""

    offset: int = 0
    backup: dict[str, Any] | None = None

    @property
    def upload(self) -> str | None:
        return self.links[-1][0] if self.links else None

    @property
    def complete(self) -> str | None:
        return self.links[-1][1] if self.links else None


class Stranger:
    """A machine without a daemon of ours."""

    def __init__(self, port: int, timeline: Timeline, network: Network, seed: str) -> None:
        self.name = "X"
        self.up = True
        self.tokens: dict[int, str] = {}
        """What it shows whom, by port."""
        self.jumped = False
        self.port = port
        self.peer = self.url
        """What others know it as."""
        self.timeline = timeline
        self.network = network
        self.rng = random.Random(f"{seed}:stranger")
        self.process = Process("X", timeline, network, self)
        self.asked: list[Asked] = []
        network.machines[port] = self
        self.process.listenTCP(port, _Listening(self))

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    # -- what a process wants of its machine ------------------------------------------------------

    def wall(self) -> float:
        return self.timeline.now

    def crashed(self, process: Process) -> None:
        raise NotImplementedError

    def ended(self) -> None:
        raise NotImplementedError

    def note(self, text: str) -> None:
        raise NotImplementedError

    def job_done(self) -> None:
        raise NotImplementedError

    # -- speaking ---------------------------------------------------------------------------------

    def start(self, work: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        """Do something that takes a while."""
        started: list[Deferred[Any]] = []
        self.timeline.within(self.process, lambda: started.append(Deferred.fromCoroutine(work)))
        return started[0]

    def noticed(self, number: int, body: dict[str, Any]) -> int:
        asked = self.asked[number]
        links = (
            body["linkForServerBtoSendBackupToSeverA"],
            body["linkForServerBtoCompleteBackupToSeverA"],
        )
        asked.links.append(links)
        return asked.told

    async def request(
        self,
        method: str,
        url: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        sent: int | None = None,
        then: str = "wait",
        chunked: bool = False,
        patience: float = 100.0,
    ) -> Reply | None:
        """One request. Of the body only ``sent`` bytes go out; ``then`` says what follows."""
        port, _, path = url.removeprefix("http://localhost:").partition("/")
        lines = [f"{method} /{path} HTTP/1.1", f"Host: localhost:{port}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if int(port) in self.tokens and not any("Authorization" in line for line in lines):
            lines.append(f"Authorization: Bearer {self.tokens[int(port)]}")
        if chunked:
            lines.append("Transfer-Encoding: chunked")
            body = b"".join(_chunk(body[at : at + CHUNK]) for at in range(0, len(body), CHUNK))
            body += _chunk(b"")
        elif method != "HEAD":
            lines.append(f"Content-Length: {len(body)}")
        data = "\r\n".join([*lines, "", ""]).encode() + body[:sent]
        answer: Deferred[Reply | None] = Deferred()
        call = _Call(data, then, answer)
        connector = self.process.connectTCP("localhost", int(port), _Calling(call), timeout=15)
        late = self.process.callLater(patience, connector.disconnect)
        reply = await answer
        if late.active():
            late.cancel()
        return reply

    async def sleep(self, seconds: float) -> None:
        done: Deferred[None] = Deferred()
        self.process.callLater(seconds, done.callback, None)
        await done

    # -- the messages of PROTOCOL.md --------------------------------------------------------------

    async def ask(
        self, to: str, video: str, size: int, *, content: bytes, sha256: str | None = None
    ) -> tuple[Asked, int]:
        """Ask for room; the status of the answer, 0 when there was none."""
        asked = Asked(len(self.asked), video, content, size, sha256)
        self.asked.append(asked)
        return asked, await self.ask_again(to, asked)

    async def ask_again(self, to: str, asked: Asked) -> int:
        message: dict[str, Any] = {
            "videoId": asked.video,
            "diskEmptySpaceRequire": str(asked.size),
            "linkForServerAtoNoticeServerBWhenServerAIsReady": f"{self.url}/notice/{asked.number}",
        }
        if asked.sha256 is not None:
            message["sha256"] = asked.sha256
        reply = await self._json(f"{to}/api/v1/backup/can-accept-backup", message)
        if reply is not None and reply.status == 200:
            asked.answer = json.loads(reply.body)
        return reply.status if reply else 0

    async def _json(self, url: str, message: dict[str, Any]) -> Reply | None:
        kind = {"Content-Type": "application/json"}
        return await self.request("POST", url, json.dumps(message).encode(), kind)

    async def announce(self, asked: Asked) -> Reply | None:
        """ "I am starting"."""
        return await self._json(asked.upload or "", {"videoId": asked.video})

    async def post(
        self,
        asked: Asked,
        content: bytes,
        *,
        digest: bytes | None = None,
        sent: int | None = None,
        then: str = "wait",
        chunked: bool = False,
    ) -> Reply | None:
        """The bytes of the video, or some of them."""
        headers = {"Content-Type": "video/mp4"}
        if digest is not None:
            headers["Content-Digest"] = f"sha-256=:{b64encode(digest).decode()}:"
        return await self.request(
            "POST", asked.upload or "", content, headers, sent=sent, then=then, chunked=chunked
        )

    async def standing(self, asked: Asked) -> tuple[int, int | None]:
        """Status and offset of a HEAD."""
        tus = {"Tus-Resumable": "1.0.0"}
        reply = await self.request("HEAD", asked.upload or "", headers=tus)
        if reply is None:
            return 0, None
        offset = reply.headers.get("Upload-Offset")
        return reply.status, None if offset is None else int(offset)

    def look_meanwhile(self, url: str, rng: random.Random) -> Deferred[Any]:
        """Now and then ask where an upload stands while it is being sent, by other connections."""
        pauses = [rng.choice((0.0, rng.random() * 0.1, rng.random() * 3.0)) for _ in range(3)]
        times = rng.choice((0, 0, 1, 3))

        async def look() -> None:
            for pause in pauses[:times]:
                await self.sleep(pause)
                await self.request("HEAD", url, headers={"Tus-Resumable": "1.0.0"})

        return self.start(look())

    async def patch(
        self, asked: Asked, offset: int, data: bytes, *, sent: int | None = None, then: str = "wait"
    ) -> Reply | None:
        """Go on at an offset."""
        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(offset),
        }
        return await self.request("PATCH", asked.upload or "", data, headers, sent=sent, then=then)

    async def finish(
        self, asked: Asked, *, success: bool = True, size: int | None = None, video: str = ""
    ) -> Reply | None:
        """``complete-backup``."""
        message: dict[str, Any] = {"videoId": video or asked.video, "success": success}
        if size is not None:
            message["size"] = size
        return await self._json(asked.complete or "", message)
