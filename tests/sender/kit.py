"""An outbox on a clock, with a real ledger in memory and a receiver made of words."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import Clock
from zope.interface import implementer

from backupd.errors import PeerRefused
from backupd.interfaces import Entry, ILedger, OffThread
from backupd.ledger.sql import SqlLedger
from backupd.links import Links
from backupd.peer.answers import Answer, accepted, answer_of
from backupd.peer.client import PeerClient
from backupd.peer.file_body import FileBody
from backupd.sender.outbox import Outbox
from backupd.settings import Settings
from backupd.waiting import go_on
from tests.ledger.offs import at_once
from tests.outcomes import result_of
from tests.sender.tus_server import TusServer

__all__ = ["A", "Case", "NoChance", "Receiver", "refused"]

A = "http://localhost:3000"
UPLOAD = f"{A}/api/v1/backup/receive-backup/cap"
COMPLETE = f"{A}/api/v1/backup/complete-backup/cap"
STATUS = f"{A}/api/v1/backup/requests/r1"

Reaction = Any
"""What a message comes to: an answer, an exception, a Deferred, or a function that gives one."""


def refused(status: int, *, after: float | None = None, **answer: object) -> PeerRefused:
    """The other server's no."""
    return PeerRefused(f"{A} answered {status}.", status, dict(answer), after)


class NoChance:
    """Chance that adds nothing."""

    def random(self) -> float:
        return 0.0


@implementer(IConsumer)
class Receiver:
    """Stands in for `PeerClient`: says what it is told to say, the last thing for ever."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.body = b""
        self.tus: TusServer | None = None
        self.far: Clock | None = None
        """Takes a long way's time for every small message."""
        self.cut: Exception | None = None
        self.sha256: str | None = None
        self.says: dict[str, list[Reaction]] = {
            "ask": [{"success": True, "requestId": "r1", "statusUrl": STATUS}],
            "status": [{"state": "PENDING", "position": 3}],
            "standing": [None],
            "send": [{"success": True}],
            "resume": [{}],
            "complete": [self.stored],
        }

    def stored(self, message: dict[str, Any]) -> dict[str, object]:
        if not message["success"]:
            return {"success": True}
        same = {name: message[name] for name in ("size", "sha256")}
        return {"success": True, "backupId": "b1", "contentUrl": f"{A}/b1"} | same

    def now(self, name: str, *reactions: Reaction) -> None:
        """From now on ``name`` comes to these, one after the other."""
        self.says[name] = list(reactions)

    async def _react(self, name: str, *heard: Any) -> Any:
        self.heard.append((name, *heard))
        reactions = self.says[name]
        reaction = reactions.pop(0) if len(reactions) > 1 else reactions[0]
        if callable(reaction):
            reaction = reaction(heard[-1])
        if isinstance(reaction, Deferred):
            reaction = await reaction
        if isinstance(reaction, BaseException):
            raise reaction
        return dict(reaction) if isinstance(reaction, dict) else reaction

    async def ask(self, to: str, message: dict[str, object]) -> Any:
        return await self._react("ask", to, message)

    async def status(self, url: str) -> Any:
        return await self._react("status", url)

    async def standing(self, link: str) -> Any:
        return await self._react("standing", link)

    async def small(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: float = 15.0,
    ) -> Answer:
        """What `Tus` asks."""
        if self.tus is None:
            return answer_of(405, {}, b"", 0.0)
        if self.far is not None:
            self.far.advance(0.4)
        return self._tus(method, url, headers or {}, b"")

    def _tus(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        assert self.tus is not None
        rest = io.BytesIO(body)
        small = {name.lower(): value for name, value in headers.items()}
        told = self.tus.answer(method, urlsplit(url).path, small, rest.read)
        return answer_of(told.status, told.headers, told.body, 0.0)

    async def send(
        self,
        link: str,
        body: FileBody,
        *,
        content_type: str | None,
        file_name: str,
        sha256: str | None = None,
    ) -> Any:
        self.body = b""
        self.sha256 = sha256
        return await self._take("send", body, link, content_type, file_name)

    async def resume(self, link: str, offset: int, body: FileBody) -> Any:
        if self.tus is not None and link != UPLOAD:
            return await self._patch(link, offset, body)
        return await self._take("resume", body, link, offset)

    async def _patch(self, url: str, offset: int, body: FileBody) -> Any:
        self.body = b""
        await body.startProducing(self)
        headers = {
            "Content-Type": "application/offset+octet-stream",
            "Content-Length": str(body.length),
            "Tus-Resumable": "1.0.0",
            "Upload-Offset": str(offset),
        }
        if self.far is not None:
            self.far.advance(1.0)
        answer = self._tus("PATCH", url, headers, self.body)
        cut, self.cut = self.cut, None
        if cut is not None:
            raise cut
        return accepted(url, answer).body

    async def _take(self, name: str, body: FileBody, *heard: object) -> Any:
        answer = await self._react(name, *heard)
        await body.startProducing(self)
        return answer

    def write(self, data: bytes) -> None:
        self.body += data

    def registerProducer(self, producer: object, streaming: bool) -> None: ...

    def unregisterProducer(self) -> None: ...

    async def complete(self, link: str, message: dict[str, object]) -> Any:
        return await self._react("complete", link, message)

    def times(self, name: str) -> int:
        """How often it heard this."""
        return sum(heard[0] == name for heard in self.heard)


class Case:
    """A sender. `turn` is one look of the service's loop."""

    def __init__(
        self,
        folder: Path,
        *,
        ledger: ILedger | None = None,
        clock: Clock | None = None,
        off: OffThread = at_once,
        receiver: Receiver | None = None,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.clock = clock or Clock()
        self.receiver = receiver or Receiver()
        self.nudges = 0
        self.made = 0
        if ledger is None:
            ledger = SqlLedger("sqlite://", write_off=at_once, read_off=at_once)
            ledger.open()
        self.ledger = ledger
        self.outbox = Outbox(
            ledger=ledger,
            peer=cast(PeerClient, self.receiver),
            links=Links("http://localhost:4000"),
            settings=Settings(**settings),
            clock=self.clock,
            off=off,
            rng=NoChance(),
            new_id=self._new_id,
            new_capability=self._new_id,
            nudge=self._nudge,
        )

    def _new_id(self) -> str:
        self.made += 1
        return f"id-{os.path.basename(self.folder)}-{self.made}"

    def _nudge(self) -> None:
        self.nudges += 1

    def file(self, name: str = "2.mp4", data: bytes = b"video") -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    def queued(self, name: str = "2.mp4", data: bytes = b"video", to: str = A) -> Entry:
        """An entry for a new file."""
        return result_of(go_on(self.outbox.enqueue(to=to, path=self.file(name, data))))

    def turn(self) -> None:
        """Look until nobody nudges any more."""
        self.nudges = 1
        for _ in range(500):
            if not self.nudges:
                return
            self.nudges = 0
            result_of(go_on(self.outbox.tick()))
        raise AssertionError("a tight loop")

    def after(self, seconds: float) -> None:
        """Time passes, and the loop looks."""
        self.clock.advance(seconds)
        self.turn()

    def entry(self, entry: Entry) -> Entry:
        return result_of(self.ledger.entry(entry.entry_id))

    def state(self, entry: Entry) -> str:
        return self.entry(entry).state

    def notice(self, entry: Entry, upload: str = UPLOAD, complete: str = COMPLETE) -> Entry:
        return result_of(go_on(self.outbox.notice(entry.capability, entry.video, upload, complete)))

    def waiting(self, **more: Any) -> Entry:
        """An entry that waits for its turn."""
        entry = self.queued(**more)
        self.turn()
        assert self.state(entry) == "WAITING"
        return entry

    def until(self, entry: Entry, state: str, limit: float = 3600.0) -> float:
        """Seconds until the entry is in ``state``, in steps of one."""
        start = self.clock.seconds()
        while self.state(entry) != state:
            assert self.clock.seconds() - start < limit, self.entry(entry)
            self.after(1)
        return self.clock.seconds() - start
