"""The life of an outbox entry: pure steps from one state to the next.

ASKING -> WAITING -> READY -> SENT -> VERIFIED or UNVERIFIED; FAILED and CANCELLED from anywhere
before that. A receiver whose copy is damaged brings a stored one back to READY. Notices, carriers
and the operator change one entry at the same time, so every step names the states that it leaves,
and changes nothing in any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from backupd.interfaces import Entry

__all__ = [
    "ASKED",
    "GOING",
    "OVER",
    "STORED",
    "again",
    "changed",
    "moved",
    "noticed",
    "said_yes",
    "sent_again",
]

ASKED = frozenset({"ASKING", "WAITING"})
GOING = frozenset({"ASKING", "WAITING", "READY", "SENT"})
STORED = frozenset({"VERIFIED", "UNVERIFIED"})
OVER = frozenset({"VERIFIED", "UNVERIFIED", "FAILED", "CANCELLED"})

Step = Callable[[Entry], Entry]


def moved(state: str, *, leaving: frozenset[str] | set[str], now: float, **changes: Any) -> Step:
    """To ``state`` from one of ``leaving``; due at ``now`` unless ``changes`` say otherwise.

    ``changed_at`` says when the state was left last.
    """

    def step(entry: Entry) -> Entry:
        if entry.state not in leaving:
            return entry
        changed_at = entry.changed_at if entry.state == state else now
        return replace(
            entry, **{"state": state, "changed_at": changed_at, "due_at": now, **changes}
        )

    return step


def changed(queued: Entry, *, now: float) -> Step:
    """What is being sent is not the file that was queued: ask for that."""
    asking = moved(
        "ASKING",
        leaving={"WAITING", "READY"},
        now=now,
        deadline=queued.deadline,
        attempts=0,
        last_error="The file has changed.",
        request_id=None,
        status_url=None,
    )

    def step(entry: Entry) -> Entry:
        same = (entry.size, entry.modified_ns) == (queued.size, queued.modified_ns)
        return entry if same else asking(entry)

    return step


def said_yes(*, request_id: str | None, status_url: str | None, due_at: float, now: float) -> Step:
    """The receiver has room. Its notice may have come before its answer."""
    waiting = moved("WAITING", leaving=ASKED, now=now, due_at=due_at, attempts=0, last_error=None)

    def step(entry: Entry) -> Entry:
        if entry.state in OVER:
            return entry
        return waiting(replace(entry, request_id=request_id, status_url=status_url))

    return step


def noticed(*, now: float, upload_link: str, complete_link: str) -> Step:
    """READY with these links.

    One that came back to ASKING from this very link, as when its file has changed, would come back
    from it again: it is time to ask.
    """
    links = {"upload_link": upload_link, "complete_link": complete_link}
    ready = moved("READY", leaving=ASKED, now=now, attempts=0, last_error=None, **links)
    asking = moved("ASKING", leaving={"ASKING"}, now=now)

    def step(entry: Entry) -> Entry:
        known = entry.state == "ASKING" and entry.upload_link == upload_link
        return asking(entry) if known else ready(entry)

    return step


def sent_again(entry: Entry, *, now: float, deadline: float, **links: str) -> Step:
    """READY once more, with new links, unless another notice was first."""
    ready = moved(
        "READY",
        leaving=STORED,
        now=now,
        deadline=deadline,
        attempts=0,
        last_error=None,
        request_id=None,
        status_url=None,
        backup_id=None,
        content_url=None,
        uploads=None,
        **links,
    )
    return lambda current: ready(current) if current.upload_link == entry.upload_link else current


def again(entry: Entry, *, why: str, due_at: float) -> Step:
    """Try the same once more, unless the entry has left its state meanwhile."""

    def step(current: Entry) -> Entry:
        if current.state != entry.state:
            return current
        return replace(current, attempts=current.attempts + 1, last_error=why, due_at=due_at)

    return step
