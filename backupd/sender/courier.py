"""Carries one entry of the outbox from state to state; every step is durable before the next."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.bandwidth import Pace
from backupd.errors import PeerFailed, PeerRefused, PeerSilent
from backupd.interfaces import Entry, IFileSystem, ILedger, OffThread
from backupd.links import Links
from backupd.peer.answers import seconds_in, words_in
from backupd.peer.backoff import Chance, backoff
from backupd.peer.client import PeerClient
from backupd.peer.open_file import FileChanged, FileGone
from backupd.peer.origins import origin_of, place_of, same_origin
from backupd.sender import steps
from backupd.sender.catalogue import examine
from backupd.sender.delivery import ArrivedWrong, Delivery, digest_in
from backupd.sender.steps import ASKED, GOING, OVER

__all__ = ["MAX_WRONG", "Courier"]

ASK_CAP = 300.0
SEND_CAP = 60.0
ASK_AGAIN = 300.0
"""Seconds between two questions to a receiver that gives no ``statusUrl``."""

POLL = (5.0, 60.0)
"""Seconds between two looks at what is waited for: the longer that takes, the longer."""

MOST_VERSIONS = 100
"""Entries of one video that are looked at: one for each server, and its versions."""

LONGEST = 3600.0
"""The longest wait that another server can ask of us, in seconds."""

MAX_WRONG = 5
"""How often the bytes may arrive wrong before an entry has failed."""

_UNKNOWN: dict[str, Any] = {"request_id": None, "status_url": None}
"""Of an entry that asks again: its request may be over, and the answer that names the next lost."""

LOST = frozenset({"EXPIRED", "CANCELLED", "FAILED", "STORED"})
TURN = frozenset({"OFFERED", "RECEIVING", "RECEIVED"})


class Courier:
    """Does what an entry's state calls for. What it keeps in memory may be lost."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        peer: PeerClient,
        links: Links,
        clock: IReactorTime,
        off: OffThread,
        rng: Chance,
        fs: IFileSystem = os,
        pace: Pace | None = None,
    ) -> None:
        self._ledger = ledger
        self._peer = peer
        self._links = links
        self._clock = clock
        self._off = off
        self._rng = rng
        self._fs = fs
        self._delivery = Delivery(ledger=ledger, peer=peer, clock=clock, off=off, fs=fs, pace=pace)
        self.sent = self._delivery.sent
        self.positions: dict[str, int] = {}
        self._setbacks: Counter[str] = Counter()
        self._wrong: Counter[str] = Counter()
        self._afresh: set[str] = set()
        self.silent: set[str] = set()
        """Servers that we have waited for in vain, and that have not been heard since."""

    async def carry(self, entry: Entry) -> Entry:
        """Take the step that is due, and from READY the one behind it too.

        What the other server or the file does wrong is written into the entry; raises what our
        own ledger or a defect raises.
        """
        entry = await self._step(entry)
        if entry.state == "SENT" and entry.due_at <= self._clock.seconds():
            entry = await self._step(entry)
        return entry

    async def _step(self, entry: Entry) -> Entry:
        if self._clock.seconds() >= entry.deadline:
            why = entry.last_error or "the receiver never said that it is our turn"
            return await self._fail(entry, f"Given up, its time is over. Last: {why}")
        if entry.state == "ASKING":
            given_way = await self._give_way(entry)
            if given_way is not None:
                return given_way
        actions = {
            "ASKING": self._ask,
            "WAITING": self._wait,
            "READY": self._knock if entry.to in self.silent else self._send,
            "SENT": self._confirm,
        }
        try:
            entry = await actions[entry.state](entry)
            self.silent.discard(entry.to)
            return entry
        except FileGone as error:
            return await self._fail(entry, str(error))
        except FileChanged as error:
            # What has arrived of the old bytes must not become a part of the new.
            self._afresh.add(entry.entry_id)
            return await self._back(entry, "ASKING", str(error), sha256=None, uploads=None)
        except PeerFailed as error:
            if isinstance(error, PeerSilent):
                self.silent.add(entry.to)
            else:
                self.silent.discard(entry.to)
            return await self.again(entry, str(error), error.retry_after)
        except OSError as error:
            why = f"{entry.path} cannot be read: {error.strerror or type(error).__name__}."
            return await self.again(entry, why)

    async def _give_way(self, entry: Entry) -> Entry | None:
        """What becomes of an entry that may not ask, for another sends a version of its file there:
        it waits until the older is confirmed, and is over where the newer is to be sent.

        The receiver knows one request for a video: it would confirm the one as the other, and call
        by the link of the one for the other when that is damaged.
        """
        going = await self._ledger.entries_for(entry.video, MOST_VERSIONS)
        same = [one.entry_id for one in going if (one.path, one.to) == (entry.path, entry.to)]
        if entry.entry_id not in same or len(same) == 1:
            return None
        now = self._clock.seconds()
        if same[-1] != entry.entry_id:
            why = f"The file has changed; entry {same[-1]} sends it."
            step = steps.moved("CANCELLED", leaving={"ASKING"}, now=now, last_error=why)
        else:
            why = "The version before it is to be confirmed first."
            due_at = now + self._poll(now - entry.changed_at)
            step = steps.moved("ASKING", leaving={"ASKING"}, now=now, due_at=due_at, last_error=why)
        return await self._change(entry, step)

    # -- the states -------------------------------------------------------------------------------

    async def _ask(self, entry: Entry) -> Entry:
        size, modified_ns = await self._off(examine, entry.path, self._fs)
        changes: dict[str, Any] = {}
        if (size, modified_ns) != (entry.size, entry.modified_ns):
            self._afresh.add(entry.entry_id)
            changes = {"size": size, "modified_ns": modified_ns, "sha256": None, "uploads": None}
        if entry.upload_link is not None:
            changes["upload_link"] = None  # a notice from here on may be the answer to this
        if changes:
            now = self._clock.seconds()
            change = steps.moved(entry.state, leaving=ASKED, now=now, **changes)
            entry = await self._ledger.change_entry(entry.entry_id, change)
            if entry.state not in ASKED:
                return entry
        message: dict[str, object] = {
            "videoId": entry.video,
            "diskEmptySpaceRequire": str(entry.size),
            "linkForServerAtoNoticeServerBWhenServerAIsReady": self._links.notice(entry.capability),
            "fileName": entry.file_name,
        }
        if entry.content_type is not None:
            message["contentType"] = entry.content_type
        answer = await self._peer.ask(entry.to, message)
        now = self._clock.seconds()
        if not answer["success"]:
            why = words_in(answer) or f"{origin_of(entry.to)} has no room."
            wait = self._pause(entry.attempts + 1, ASK_CAP, seconds_in(answer))
            return await self._change(
                entry,
                steps.moved(
                    "ASKING",
                    leaving=ASKED,
                    now=now,
                    due_at=now + wait,
                    attempts=entry.attempts + 1,
                    last_error=why,
                    **_UNKNOWN,
                ),
            )
        status_url = _status_url(answer, entry.to)
        waited = now - entry.changed_at if entry.state == "WAITING" else 0.0
        return await self._change(
            entry,
            steps.said_yes(
                request_id=_identifier(answer.get("requestId")),
                status_url=status_url,
                due_at=now + (self._poll(waited) if status_url else ASK_AGAIN),
                now=now,
            ),
        )

    async def _wait(self, entry: Entry) -> Entry:
        """The notice is what counts; meanwhile see whether the receiver still knows of us."""
        if entry.status_url is None:
            return await self._ask(entry)
        gone = "The receiver does not know the request any more; asking again."
        try:
            status = await self._peer.status(entry.status_url)
        except PeerRefused as error:
            if error.status in (404, 410):
                return await self._back(entry, "ASKING", gone)
            raise
        state, position = status.get("state"), status.get("position")
        if state in LOST:
            reason = words_in({"message": status.get("reason")})
            why = f"The receiver says that the request is {state}{': ' if reason else '.'}{reason}"
            return await self._back(entry, "ASKING", why)
        if state in TURN:
            # It thinks that we know. Asked again, it repeats its offer.
            return await self._ask(entry)
        if isinstance(position, int) and position > 0:
            self.positions[entry.entry_id] = position
        now = self._clock.seconds()
        due_at = now + self._poll(now - entry.changed_at)
        return await self._change(
            entry,
            steps.moved(
                "WAITING", leaving={"WAITING"}, now=now, due_at=due_at, attempts=0, last_error=None
            ),
        )

    async def _knock(self, entry: Entry) -> Entry:
        """The receiver was silent, and an upload to it takes long to fail: is it there again?"""
        with suppress(PeerRefused):  # that is an answer, too
            await self._peer.standing(str(entry.upload_link))
        step = steps.moved("READY", leaving={"READY"}, now=self._clock.seconds())
        return await self._change(entry, step)

    async def _send(self, entry: Entry) -> Entry:
        if entry.upload_link is None or entry.complete_link is None:
            return await self._back(entry, "ASKING", "The receiver's links are missing.")
        try:
            afresh = entry.entry_id in self._afresh
            sha256 = await self._delivery.deliver(entry, afresh=afresh)
        except PeerRefused as error:
            return await self._refused(entry, error)
        except ArrivedWrong as error:
            return await self._arrived_wrong(entry, str(error))
        self._afresh.discard(entry.entry_id)
        return await self._change(
            entry,
            steps.moved(
                "SENT",
                leaving={"READY"},
                now=self._clock.seconds(),
                sha256=sha256,
                attempts=0,
                last_error=None,
            ),
        )

    async def _refused(self, entry: Entry, error: PeerRefused) -> Entry:
        """The upload link did not take the bytes."""
        why = str(error)
        match error.status:
            case 404 | 410 | 413:
                return await self._back(entry, "ASKING", why)
            case 409 if "receivedBytes" not in error.answer and error.retry_after is None:
                # Stored, as far as the receiver is concerned: it will say so once more.
                now = self._clock.seconds()
                return await self._change(entry, steps.moved("SENT", leaving={"READY"}, now=now))
            case 422:
                return await self._arrived_wrong(entry, why)
            case 503:
                return await self._back(entry, "WAITING", why, error.retry_after)
        raise error

    async def _confirm(self, entry: Entry) -> Entry:
        link = entry.complete_link
        if link is None:
            return await self._back(entry, "ASKING", "The receiver's links are missing.")
        sha256 = entry.sha256 or await self._delivery.digested(entry)
        message = {
            "videoId": entry.video,
            "success": True,
            "size": entry.size,
            "sha256": sha256,
        }
        try:
            answer = await self._peer.complete(link, message)
        except PeerRefused as error:
            if error.status == 409:
                return await self._back(entry, "READY", str(error))
            if error.status == 422:
                return await self._arrived_wrong(entry, str(error), state="WAITING")
            if error.status in (404, 410):
                return await self._back(entry, "ASKING", str(error))
            raise
        if answer.get("success") is False:
            raise PeerFailed(words_in(answer) or "The receiver says that it did not work.")
        return await self._judge(entry, answer, sha256)

    async def _judge(self, entry: Entry, answer: dict[str, object], sha256: str) -> Entry:
        """The receiver says that it is stored: does it have what we have?

        What was stored before this entry sent all of its bytes may be the version before.
        """
        theirs, size = digest_in(answer), answer.get("size")
        state, why = "VERIFIED", None
        if isinstance(size, int) and size != entry.size:
            state, why = "FAILED", f"The receiver stored {size} bytes, not {entry.size}."
        elif theirs is None:
            state = "UNVERIFIED"
            why = "The receiver says that it is stored, but names no SHA-256 to compare with."
        elif theirs != sha256:
            state = "FAILED"
            why = f"The receiver stored other bytes: SHA-256 {theirs[:64]}, not {sha256}."
        if state == "FAILED" and entry.sha256 is None:
            return await self._arrived_wrong(entry, str(why), state="ASKING")
        content_url = answer.get("contentUrl")
        return await self._change(
            entry,
            steps.moved(
                state,
                leaving={"SENT"},
                now=self._clock.seconds(),
                last_error=why,
                sha256=sha256,
                backup_id=_identifier(answer.get("backupId")),
                content_url=_callable_url(content_url),
            ),
        )

    # -- what goes wrong --------------------------------------------------------------------------

    async def again(self, entry: Entry, why: str, retry_after: float | None = None) -> Entry:
        """The same once more, later."""
        cap = ASK_CAP if entry.state in ASKED else SEND_CAP
        wait = self._pause(entry.attempts + 1, cap, retry_after)
        due_at = self._clock.seconds() + wait
        return await self._change(entry, steps.again(entry, why=why, due_at=due_at))

    async def _back(
        self,
        entry: Entry,
        state: str,
        why: str,
        retry_after: float | None = None,
        **changes: Any,
    ) -> Entry:
        """To an earlier state. Each time it is longer until the next step, so that no circle
        between two servers that misunderstand each other becomes a whirl."""
        self._setbacks[entry.entry_id] += 1
        now = self._clock.seconds()
        if state == "ASKING":
            changes |= _UNKNOWN
        wait = self._pause(self._setbacks[entry.entry_id], ASK_CAP, None)
        if retry_after is not None:
            wait = max(wait, self._pause(1, ASK_CAP, retry_after))
        step = steps.moved(
            state, leaving={entry.state}, now=now, due_at=now + wait, last_error=why, **changes
        )
        return await self._change(entry, step)

    async def _arrived_wrong(self, entry: Entry, why: str, state: str = "READY") -> Entry:
        self._wrong[entry.entry_id] += 1
        if self._wrong[entry.entry_id] >= MAX_WRONG:
            return await self._fail(entry, f"The bytes arrived wrong {MAX_WRONG} times: {why}")
        self._afresh.add(entry.entry_id)
        self._delivery.forget(entry.entry_id)
        return await self._back(entry, state, why, sha256=None, uploads=None)

    async def _fail(self, entry: Entry, why: str) -> Entry:
        now = self._clock.seconds()
        step = steps.moved("FAILED", leaving=GOING, now=now, last_error=why)
        return await self._change(entry, step)

    async def tell_given_up(self, entry: Entry) -> None:
        """Tell the receiver, so that its room is free at once; if it does not hear it, so be it."""
        if entry.complete_link is None:
            return
        try:
            message = {"videoId": entry.video, "success": False}
            await self._peer.complete(entry.complete_link, message)
        except PeerFailed as error:
            self._log.info(
                "entry {entry_id}: the receiver was not told that it is over: {why}",
                entry_id=entry.entry_id,
                why=str(error),
            )

    # -- small things -----------------------------------------------------------------------------

    def _pause(self, attempt: int, cap: float, asked: float | None) -> float:
        """Seconds until the next try; what the other server asked for, within reason."""
        if asked is not None:
            return min(max(asked, 1.0), LONGEST) * (1 + self._rng.random() / 10)
        return backoff(attempt, first=1.0, cap=cap, rng=self._rng)

    def _poll(self, waited: float) -> float:
        """Seconds until the next look, after so many that have been waited."""
        return min(max(POLL[0], waited / 2), POLL[1]) * (1 + self._rng.random() / 10)

    async def _change(self, entry: Entry, step: steps.Step) -> Entry:
        changed = await self._ledger.change_entry(entry.entry_id, step)
        if (changed.state, changed.last_error) != (entry.state, entry.last_error):
            self._log.info(
                "entry {entry_id} (request {request_id}) to {to} is {state}: {why}",
                entry_id=entry.entry_id,
                request_id=changed.request_id or "unknown",
                video=entry.video,
                to=origin_of(entry.to),
                state=changed.state,
                why=changed.last_error or "well",
            )
        if changed.state != "WAITING":
            self.positions.pop(entry.entry_id, None)
        if changed.state in OVER:
            self.forget(entry.entry_id)
            if changed.state == "FAILED" and entry.state != "FAILED":
                await self._told(changed)
        return changed

    async def _told(self, entry: Entry) -> None:
        try:
            await self.tell_given_up(entry)
        except CancelledError:
            raise
        except Exception:
            # The entry has failed; that must not be undone by how it is told.
            self._log.failure("entry {entry_id}: telling the receiver", entry_id=entry.entry_id)

    def forget(self, entry_id: str) -> None:
        """It is over: nothing is remembered but what the ledger has."""
        for memory in (self.positions, self._setbacks, self._wrong):
            memory.pop(entry_id, None)
        self._delivery.forget(entry_id)
        self._afresh.discard(entry_id)


def _identifier(value: object) -> str | None:
    """An id as another server gives it, if it can be one."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return (
        value if isinstance(value, str) and 0 < len(value) <= 256 and value.isprintable() else None
    )


def _callable_url(value: object) -> str | None:
    try:
        place_of(value if isinstance(value, str) else "")
    except ValueError:
        return None
    return str(value)


def _status_url(answer: dict[str, object], to: str) -> str | None:
    """The ``statusUrl``, if it is on the origin that was asked."""
    url = _callable_url(answer.get("statusUrl"))
    return url if url is not None and same_origin(url, to) else None
