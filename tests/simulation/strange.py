"""What a stranger does in a history: a walk by chance through the protocol, and beside it.

An answer may be anything that a broken machine gives; what it may never do is to say of bytes that
they are kept when they are not.
"""

from __future__ import annotations

import hashlib
import json
import random
from typing import TYPE_CHECKING, Any

from backupd.peer.exchange import Reply
from backupd.requests import Stored, Storing
from tests.simulation.stranger import Asked, Stranger
from tests.simulation.trespass import trespass

if TYPE_CHECKING:
    from tests.simulation.history import History
    from tests.simulation.machine import Machine

__all__ = ["visit"]

STEPS = ("post", "post", "cut", "go on", "go on", "announce", "complete", "complete", "wait")
LONG = 600.0
LIES = ("wrong digest", "too long", "wrong offset", "wrong size", "wrong video", "both at once")


class Walk:
    """One request of a stranger."""

    def __init__(
        self, history: History, stranger: Stranger, receiver: Machine, what: dict[str, Any]
    ) -> None:
        self._history = history
        self._stranger = stranger
        self._receiver = receiver
        self._what = what
        self._rng = random.Random(f"{history.plan.seed}:walk:{what['number']}")
        self._looks = random.Random(f"{history.plan.seed}:look:{what['number']}")
        self._strays = random.Random(f"{history.plan.seed}:stray:{what['number']}")
        self._content = self._rng.randbytes(what["size"])
        self._room = what["size"] + what["spare"]
        """What it asks for: as much as it has, or more."""
        self._least = 0
        self._doubtful_until = 0.0

    async def go(self) -> None:
        """Ask, wait for the turn, walk, and leave."""
        self._history.visiting += 1
        try:
            await self._go()
        finally:
            self._history.visiting -= 1

    async def _go(self) -> None:
        what, stranger = self._what, self._stranger
        video = f"x{what['number'] // 2 if what['twice'] else what['number']}"
        self._history.watch.allow(stranger.peer, video, self._content)
        digest = hashlib.sha256(self._content).hexdigest()
        said = {"none": None, "right": digest, "wrong": "0" * 64}[what["announced"]]
        asked = None
        for _ in range(6):
            if asked is None:
                asked, status = await stranger.ask(
                    self._receiver.url, video, self._room, content=self._content, sha256=said
                )
                asked.told = what["told"]
            else:
                status = await stranger.ask_again(self._receiver.url, asked)
            if status == 200:
                break
            await stranger.sleep(self._rng.uniform(1.0, 20.0))
        if asked is None or not asked.answer.get("success"):
            return
        if asked.answer["requestId"] not in self._receiver.books.rows:
            self._lie("said yes to what it has no record of")
        if what["habit"] == "eager":
            await self._eagerly(asked)
            return
        for _ in range(what["steps"]):
            for _ in range(60):
                if asked.upload is not None:
                    break
                await stranger.sleep(10.0)
            if asked.upload is None:
                return
            if self._strays.random() < 0.3:
                granted = await trespass(stranger, self._receiver, asked, self._strays)
                if granted is not None:
                    self._lie(granted)
            lies = self._rng.random() < what["lies"]
            step = self._rng.choice(LIES if lies else STEPS)
            if what["habit"] is not None and self._rng.random() < 0.7:
                step = what["habit"]
            await self._step(asked, step)
            await stranger.sleep(self._rng.choice((0.0, 0.0, 0.5, 7.0, what["pause"])))
        if what["gives_up"] and asked.complete is not None:
            self._finished(asked, await stranger.finish(asked, success=False), success=False)

    def _lie(self, what: str) -> None:
        self._history.violations.append(f"{self._receiver.name} {what}")

    async def _eagerly(self, asked: Asked) -> None:
        """Use the link as soon as it is known, and complete."""
        while asked.upload is None:
            await self._stranger.sleep(1.0)
        self._posted(await self._stranger.post(asked, self._content))
        self._finished(asked, await self._stranger.finish(asked))

    async def _step(self, asked: Asked, step: str) -> None:
        stranger, content, rng = self._stranger, self._content, self._rng
        digest = hashlib.sha256(content).digest()
        self._history.note(f"stranger: {step} {asked.video}")
        match step:
            case "post":
                self._least = 0
                chunked = rng.random() < (0.6 if self._what["spare"] else 0.3)
                looking = stranger.look_meanwhile(asked.upload or "", self._looks)
                self._posted(await stranger.post(asked, content, digest=digest, chunked=chunked))
                await looking
                if rng.random() < 0.3:
                    self._finished(asked, await stranger.finish(asked))
            case "cut":
                self._least = 0
                sent = rng.choice((rng.randint(0, len(content) - 1), min(1, len(content) - 1)))
                then = rng.choice(("close", "wait"))
                # It may arrive, and begin a new upload, long after it was sent.
                self._doubtful_until = stranger.timeline.now + LONG
                await stranger.post(asked, content, sent=sent, then=then)
            case "go on":
                await self._go_on(asked)
            case "announce":
                await stranger.announce(asked)
            case "complete":
                size = rng.choice((None, len(content)))
                self._finished(asked, await stranger.finish(asked, size=size))
            case "wrong digest":
                self._least = 0
                other = hashlib.sha256(content + b"!").digest()
                self._refused(await stranger.post(asked, content, digest=other), step)
            case "too long":
                self._least = 0
                long = content + bytes(self._room)
                if self._what["twice"] or self._what["spare"]:
                    # Its beginning fits, or another has asked for so much under the same name.
                    self._history.watch.allow(stranger.peer, asked.video, long)
                reply = await stranger.post(asked, long, chunked=rng.random() < 0.5)
                if not self._what["twice"]:
                    self._refused(reply, step)
            case "wrong offset":
                offset = rng.randint(1, len(content) + 5)
                status, stands = await stranger.standing(asked)
                if status == 200 and stands is not None and stands != offset:
                    data = content[offset : offset + 1] or b"x"
                    self._refused(await stranger.patch(asked, offset, data), step)
            case "wrong size":
                if rng.random() < 0.5:
                    self._least = 0
                    self._posted(await stranger.post(asked, content, digest=digest))
                size = len(content) + rng.choice((-1, 1))
                before = self._receiver.books.rows.get(asked.answer["requestId"])
                reply = await stranger.finish(asked, size=size)
                if before is not None and not isinstance(before.request, Stored | Storing):
                    self._refused(reply, step)
            case "wrong video":
                self._refused(await stranger.finish(asked, video="another"), step)
            case "both at once":
                self._least = 0
                one = stranger.start(stranger.post(asked, content, digest=digest))
                self._posted(await stranger.post(asked, content, digest=digest))
                self._posted(await one)

    async def _go_on(self, asked: Asked) -> None:
        stranger, content = self._stranger, self._content
        status, offset = await stranger.standing(asked)
        if status != 200 or offset is None:
            return
        alone = not self._what["twice"]
        if alone and offset < self._least:
            self._lie(f"answered {offset} after {self._least}")
        if alone and offset > len(content):
            self._lie(f"answered an offset of {offset}, of {len(content)}")
        self._answered(offset)
        if offset < len(content):
            sent = self._rng.choice((None, self._rng.randint(0, len(content) - offset)))
            looking = stranger.look_meanwhile(asked.upload or "", self._looks)
            reply = await stranger.patch(
                asked, offset, content[offset:], sent=sent, then="wait" if sent is None else "close"
            )
            await looking
            if reply is not None and reply.status == 204:
                self._answered(int(reply.headers.get("Upload-Offset") or 0))
            elif reply is not None and reply.status == 422:
                self._least = 0  # they were other bytes than were announced, and are gone

    def _answered(self, offset: int) -> None:
        """It will be so much at least, unless another upload may have begun meanwhile."""
        if self._stranger.timeline.now >= self._doubtful_until:
            self._least = offset

    def _posted(self, reply: Reply | None) -> None:
        if reply is not None and reply.status == 200:
            said = json.loads(reply.body)
            if said["sha256"] != hashlib.sha256(self._content).hexdigest():
                self._lie("says that it received other bytes than were sent")
            if self._what["announced"] == "wrong" and not self._what["twice"]:
                self._lie("took other bytes than were announced")

    def _refused(self, reply: Reply | None, step: str) -> None:
        self._least = 0
        if reply is not None and reply.status < 300:
            self._lie(f"answered {reply.status} to {step}")

    def _finished(self, asked: Asked, reply: Reply | None, *, success: bool = True) -> None:
        self._least = 0
        known = "" if asked.backup is None else asked.backup["backupId"]
        there = known and not self._history.watch.kept.may_be_gone(known)
        if there and success and reply is not None and reply.status in (409, 410, 422):
            self._lie(f"answers {reply.status} where it had said that it is stored")
        if reply is None or reply.status != 200:
            return
        said = json.loads(reply.body)
        if not success:
            if asked.backup is not None:
                self._lie("let go of what it had said was stored")
            return
        if asked.backup not in (None, said):
            self._lie("says something else when it is asked again")
        asked.backup = said
        kept = self._receiver.books.backups.get(said["backupId"])
        if kept is None:
            self._lie("says that it has stored what it does not list")
        elif kept[1].sha256 != said["sha256"]:
            self._lie("lists other bytes than it said were stored")


def visit(history: History, stranger: Stranger, receiver: Machine, what: dict[str, Any]) -> None:
    """Begin a walk."""
    walk = Walk(history, stranger, receiver, what)

    def failed(failure: Any) -> None:
        history.violations.append(f"the stranger failed: {failure.getTraceback()}")

    stranger.start(walk.go()).addErrback(failed)
