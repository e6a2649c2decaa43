"""What our own senders may count on at a receiver while nothing goes wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backupd.interfaces import Entry
from backupd.requests import BackupRequest
from backupd.sender.places import Places, recorded

if TYPE_CHECKING:
    from tests.simulation.history import History
    from tests.simulation.machine import Machine

__all__ = ["SendersWatch"]

SOON = 12.0
"""Seconds from the end of a connection that is cut until what follows from it is committed."""

PROMPT = 10.0
"""Seconds within which what is due is done where nothing hinders it, a tick of the loop with it."""


class SendersWatch:
    """Follows the requests of our own senders."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._ours = {machine.peer for machine in history.machines.values()}
        kinds = {action.kind for action in history.plan.actions}
        self._honest = kinds.isdisjoint(("touch", "recut", "take"))
        """No file changes or is taken away: they send what they say, at the first try."""
        self._left: dict[str, float] = {}
        self._places: dict[str, tuple[str | None, Places]] = {}
        self._queued: dict[str, str] = {}

    def left(self, request_id: str) -> None:
        """Its sender has ended a connection before it was answered, and has to come again."""
        self._left[request_id] = self._history.timeline.now

    def gone(self, request_id: str) -> None:
        """Its sender has waited for an answer for as long as it does."""
        self._left[request_id] = self._history.timeline.now - SOON

    def queued(self, entry: Entry, content: bytes | None) -> None:
        """The operator has queued a file, once more perhaps, that had this content."""
        if content is not None:
            self._queued[entry.entry_id] = hashlib.sha256(content).hexdigest()

    def outdated(self, entry: Entry, versions: Sequence[bytes]) -> str | None:
        """What is wrong with an entry that is over, of a video that has had these ``versions``."""
        meant = self._queued.get(entry.entry_id)
        digests = [hashlib.sha256(one).hexdigest() for one in versions]
        if meant is None or entry.sha256 in digests[digests.index(meant) :]:
            return None
        return f"has brought video {entry.video} as it was before it was queued"

    def wrong(self, before: str, state: str, request: BackupRequest) -> str | None:
        """What is wrong with a request that was in the state ``before``, and is in ``state``."""
        request_id = request.ask.request_id
        if state != before and before == "RECEIVING" and state in ("PENDING", "EXPIRED"):
            now = self._history.timeline.now
            # A connection that the receiver itself cuts, for the lease, has ended just now.
            came = now - self._left.get(request_id, now) < SOON
            if self._history.plan.unhindered and came:
                return f"lets {request_id} go to {state} while its bytes come"
        if self._honest and getattr(request, "tries", 0) > 0 and request.ask.peer in self._ours:
            return f"has got other bytes for {request_id} than it was told"
        return None

    def late(self, machine: Machine) -> str | None:
        """What waits, though it goes to somebody who answers, while another says nothing."""
        history, silent = self._history, self._history.plan.silent
        if silent is None or history.ceased or machine.process is None or not machine.ready:
            return None
        now, mute = machine.process.seconds(), history.machines[silent].url
        for entry_id in machine.books.going:
            entry = machine.books.entry(entry_id)
            if entry.to != mute and entry.due_at < now - PROMPT:
                return f"lets {entry_id} wait, {entry.state}, and {silent} alone is silent"
        return None

    def forgets(self, entry: Entry, receiver: Machine) -> str | None:
        """What is wrong with where an entry now says that its bytes are: those that it gives up, to
        send them again, have not all stayed where they were, or become a part of a whole.
        """
        text, before = self._places.get(entry.entry_id, (None, Places("")))
        if text == entry.uploads:
            return None
        now = recorded(entry)
        self._places[entry.entry_id] = entry.uploads, now
        if entry.uploads is None or before.link != now.link:
            return None  # of other bytes, or for another request
        known = [one for _, one in receiver.books.uploads.values()]
        there = {one.upload_id for one in known}.union(*(one.parts for one in known))
        given_up = _uploads(before) - _uploads(now)
        if given_up and _uploads(before) <= there:
            return f"gives up what {receiver.name} has of video {entry.video}"
        return None


def _uploads(places: Places) -> set[str]:
    """The ids of the uploads there, as the end of each URL tells them."""
    urls = [part.url for part in places.parts]
    if places.whole is not None:
        urls.append(places.whole)
    return {url.rpartition("/")[2] for url in urls}
