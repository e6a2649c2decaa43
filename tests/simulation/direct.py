"""A stranger that nobody calls back: it brings its videos by direct uploads (tus 1.0.0)."""

from __future__ import annotations

import hashlib
import random
from base64 import b64encode
from typing import TYPE_CHECKING, Any

from backupd.peer.exchange import Reply
from tests.simulation.stranger import Stranger

if TYPE_CHECKING:
    from tests.simulation.history import History
    from tests.simulation.machine import Machine

__all__ = ["visit_directly"]

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {"Content-Type": "application/offset+octet-stream"}
STEPS = ("go on", "go on", "go on", "look", "wait")
LIES = ("wrong offset", "wrong checksum", "too long", "end it")


def _coded(text: str) -> str:
    return b64encode(text.encode()).decode()


class Direct:
    """One video, whole or in two parts that are joined."""

    def __init__(
        self, history: History, stranger: Stranger, receiver: Machine, what: dict[str, Any]
    ) -> None:
        self._history = history
        self._stranger = stranger
        self._receiver = receiver
        self._what = what
        self._rng = random.Random(f"{history.plan.seed}:direct:{what['number']}")
        self._looks = random.Random(f"{history.plan.seed}:look:{what['number']}")
        self._content = self._rng.randbytes(what["size"])
        self._video = f"d{what['number'] // 2 if what['twice'] else what['number']}"
        self._least: dict[str, int] = {}
        self._lengths: dict[str, int] = {}
        self._over: dict[str, None] = {}
        self._peer = stranger.peer if stranger.tokens else "local"

    async def go(self) -> None:
        """Bring it, in as many steps as it takes or patience lasts."""
        self._history.visiting += 1
        try:
            await self._go()
        finally:
            self._history.visiting -= 1

    async def _go(self) -> None:
        what, content, video = self._what, self._content, self._video
        self._history.watch.allow(self._peer, video, content)
        halves = len(content) > 1 and self._rng.random() < 0.3
        if not halves:
            said = {"none": None, "right": hashlib.sha256(content).hexdigest(), "wrong": "0" * 64}
            names = {"videoId": video, "sha256": said[what["announced"]]}
            told = ",".join(f"{key} {_coded(one)}" for key, one in names.items() if one)
            url = await self._create({"Upload-Metadata": told}, content)
            if url is not None:
                await self._bring(url, content)
            return
        cut = len(content) // 2
        urls = []
        for part in (content[:cut], content[cut:]):
            self._history.watch.allow_part(self._peer, part)
            url = await self._create({"Upload-Concat": "partial"}, part)
            if url is None:
                return
            urls.append(url)
            await self._bring(url, part)
        told = f"videoId {_coded(video)}"
        headers = {"Upload-Concat": f"final;{' '.join(urls)}", "Upload-Metadata": told}
        for _ in range(3):
            reply = await self._request("POST", self._at, headers, None)
            if reply is not None and reply.status == 201:
                await self._look(reply.headers["Location"], content)
                return
            await self._stranger.sleep(self._rng.uniform(1.0, 20.0))

    @property
    def _at(self) -> str:
        return f"{self._receiver.url}/api/v1/uploads"

    def _lie(self, what: str) -> None:
        if self._what["twice"]:
            return  # another may have begun the same video anew, with other bytes
        self._history.violations.append(f"{self._receiver.name} {what}")

    async def _request(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, **more: Any
    ) -> Reply | None:
        kind = {} if body is None else BYTES
        return await self._stranger.request(method, url, body or b"", TUS | kind | headers, **more)

    async def _create(self, headers: dict[str, str], content: bytes) -> str | None:
        """The URL of a new upload; now and then with the first bytes in it."""
        rng, length = self._rng, {"Upload-Length": str(len(content))}
        for _ in range(6):
            first = content if rng.random() < 0.3 and self._what["announced"] != "wrong" else None
            reply = await self._request("POST", self._at, headers | length, first)
            if reply is not None and reply.status == 201:
                url = reply.headers["Location"]
                self._told(url, reply, len(content))
                return url
            await self._stranger.sleep(rng.uniform(1.0, 20.0))
        return None

    def _told(self, url: str, reply: Reply, length: int) -> None:
        """An offset was answered; it is there from then on."""
        said = reply.headers.get("Upload-Offset")
        if said is None:
            return
        offset = int(said)
        if offset < self._least.get(url, 0) and url not in self._over:
            self._lie(f"answered {offset} after {self._least[url]} at {url}")
        if offset > length:
            self._lie(f"answered an offset of {offset}, of {length}")
        self._least[url] = offset

    async def _bring(self, url: str, content: bytes) -> None:
        rng, what = self._rng, self._what
        for _ in range(what["steps"] + 4):
            lies = rng.random() < what["lies"]
            step = rng.choice(LIES if lies else STEPS)
            self._history.note(f"stranger: {step} {url}")
            if await self._step(step, url, content):
                return
            await self._stranger.sleep(rng.choice((0.0, 0.0, 0.5, 7.0, what["pause"])))

    async def _step(self, step: str, url: str, content: bytes) -> bool:
        """Do this; whether nothing is left to be done."""
        rng = self._rng
        match step:
            case "go on":
                return await self._go_on(url, content)
            case "look":
                return await self._look(url, content) is None
            case "wrong offset":
                stands = await self._look(url, content)
                if stands is not None and stands < len(content):
                    headers = {"Upload-Offset": str(stands + 1)}
                    data = content[stands + 1 : stands + 2] or b"x"
                    self._refused(await self._request("PATCH", url, headers, data), step)
            case "wrong checksum":
                stands = await self._look(url, content)
                if stands is not None and stands < len(content):
                    wrong = b64encode(hashlib.sha256(b"other").digest()).decode()
                    headers = {
                        "Upload-Offset": str(stands),
                        "Upload-Checksum": f"sha256 {wrong}",
                    }
                    reply = await self._request("PATCH", url, headers, content[stands:])
                    self._refused(reply, step)
            case "too long":
                stands = await self._look(url, content)
                if stands is not None and self._lengths.get(url) == len(content):
                    headers = {"Upload-Offset": str(stands)}
                    data = content[stands:] + b"more"
                    if self._what["twice"]:
                        # Meanwhile another may have begun one that is longer.
                        self._history.watch.allow(self._peer, self._video, content + b"more")
                    self._refused(await self._request("PATCH", url, headers, data), step)
            case "end it":
                if rng.random() < 0.2:
                    self._over[url] = None
                    await self._request("DELETE", url, {}, None)
                    return True
        return False

    async def _look(self, url: str, content: bytes) -> int | None:
        """Where it stands; None when it is over, or nobody says."""
        reply = await self._request("HEAD", url, {}, None)
        if reply is None or reply.status >= 500:
            return 0 if reply is not None else None
        if reply.status != 200:
            self._over[url] = None
            return None
        self._told(url, reply, len(content))
        self._lengths[url] = int(reply.headers["Upload-Length"])
        offset = reply.headers.get("Upload-Offset")
        return None if offset is None else int(offset)

    async def _go_on(self, url: str, content: bytes) -> bool:
        reply = await self._request("HEAD", url, {}, None)
        if reply is None or reply.status != 200:
            return reply is not None and reply.status in (404, 410)
        self._told(url, reply, len(content))
        offset = self._least.get(url, 0)
        if offset == len(content):
            self._done(content)
            return True
        rest = content[offset:]
        sent = self._rng.choice((None, None, self._rng.randint(0, len(rest))))
        headers = {"Upload-Offset": str(offset)}
        then = "wait" if sent is None else "close"
        looking = self._stranger.look_meanwhile(url, self._looks)
        reply = await self._request("PATCH", url, headers, rest, sent=sent, then=then)
        await looking
        if reply is not None and reply.status == 422:
            self._least.pop(url, None)  # they were other bytes than were announced, and are gone
        if reply is None or reply.status != 204:
            return False
        self._told(url, reply, len(content))
        if self._least[url] == len(content):
            self._done(content)
            return True
        return False

    def _done(self, content: bytes) -> None:
        """It says that it is whole: it is kept, unless it is a part."""
        if content != self._content:
            return
        digest = hashlib.sha256(content).hexdigest()
        books, watch = self._receiver.books, self._history.watch
        kept = [one for _, one in books.backups.values() if one.peer == self._peer]
        known = any(one.sha256 == digest for one in kept)
        going = any(row.request.ask.peer == self._peer for row in books.alive.values())
        if not known and not going and not watch.kept.was_there(digest):
            self._lie("says that a direct upload is whole, and does not keep it")

    def _refused(self, reply: Reply | None, step: str) -> None:
        if reply is not None and reply.status < 300:
            self._lie(f"answered {reply.status} to {step}")


def visit_directly(
    history: History, stranger: Stranger, receiver: Machine, what: dict[str, Any]
) -> None:
    """Begin to bring a video."""

    def failed(failure: Any) -> None:
        history.violations.append(f"the stranger failed: {failure.getTraceback()}")

    stranger.start(Direct(history, stranger, receiver, what).go()).addErrback(failed)
