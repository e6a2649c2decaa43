"""What the in-memory ledger has written of the outbox: the same rules as
`backupd.ledger.entry_table`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter

from backupd.errors import NoSuchEntry
from backupd.interfaces import Entry, Outgoing, Pick
from backupd.requests import VideoId, same_video

__all__ = ["OVER", "SentBooks"]

OVER = frozenset({"VERIFIED", "UNVERIFIED", "FAILED", "CANCELLED"})


class SentBooks:
    """Entries of the outbox, each with its number."""

    def __init__(self, number: Callable[[], int]) -> None:
        self._next = number
        self.entries: dict[str, tuple[int, Entry]] = {}
        self.going: dict[str, None] = {}

    # -- the outbox -------------------------------------------------------------------------------

    def enqueue(self, new: Entry) -> Entry:
        same = [
            one
            for one in self.entries_for(new.video, len(self.going))
            if (one.path, one.to) == (new.path, new.to)
        ]
        if same:
            old = same[-1]
            if old.state != "SENT" or (old.size, old.modified_ns) == (new.size, new.modified_ns):
                return old
        self._put_entry(new)
        return new

    def _put_entry(self, entry: Entry) -> None:
        number = self.entries[entry.entry_id][0] if entry.entry_id in self.entries else 0
        self.entries[entry.entry_id] = number or self._next(), entry
        if entry.state in OVER:
            self.going.pop(entry.entry_id, None)
        else:
            self.going[entry.entry_id] = None

    def entry(self, entry_id: str) -> Entry:
        if entry_id not in self.entries:
            raise NoSuchEntry(f"There is no outbox entry {entry_id}.")
        return self.entries[entry_id][1]

    def entry_by_capability(self, capability: str) -> Entry:
        for _, entry in self.entries.values():
            if entry.capability == capability:
                return entry
        raise NoSuchEntry("This link belongs to no video that is being sent.")

    def entries_for(self, video: VideoId, limit: int) -> list[Entry]:
        going = sorted((self.entries[one] for one in self.going), key=itemgetter(0))
        return [one for _, one in going if same_video(one.video, video)][:limit]

    def change_entry(self, entry_id: str, step: Callable[[Entry], Entry]) -> Entry:
        old = self.entry(entry_id)
        new = step(old)
        if new != old:
            self._put_entry(new)
        return new

    def entry_page(self, over: bool | None, after: int, limit: int) -> list[tuple[int, Entry]]:
        found = [
            (number, one)
            for number, one in self.entries.values()
            if number > after and over in (None, one.state in OVER)
        ]
        return found[:limit]

    def outgoing(self) -> list[Outgoing]:
        due: dict[str, dict[str, float]] = {}
        for entry_id in self.going:
            one = self.entries[entry_id][1]
            first = due.setdefault(one.to, {})
            first[one.state] = min(one.due_at, first.get(one.state, one.due_at))
        return [Outgoing(to, due[to]) for to in sorted(due)]

    def entries_due(self, picks: Sequence[Pick], now: float, without: Sequence[str]) -> list[Entry]:
        going = [self.entries[one][1] for one in self.going if one not in without]
        found: list[Entry] = []
        for pick in picks:
            these = [one for one in going if (one.to, one.state) == (pick.to, pick.state)]
            these = [one for one in these if one.due_at <= now]
            these.sort(key=lambda one: one.due_at)
            found += these[: pick.limit]
        return found

    def set_entries_back(self, by: float) -> None:
        for entry_id in self.going:
            number, one = self.entries[entry_id]
            earlier = replace(one, due_at=one.due_at - by, deadline=one.deadline - by)
            self.entries[entry_id] = number, earlier

    def purge_entries(self, before: float, limit: int) -> int:
        newest: dict[tuple[str, str], int] = {}
        for number, one in self.entries.values():
            key = one.path, one.to
            newest[key] = max(number, newest.get(key, 0))
        old = [
            one
            for number, one in self.entries.values()
            if one.state in OVER
            and one.changed_at < before
            and not (one.state in ("VERIFIED", "UNVERIFIED") and newest[one.path, one.to] == number)
        ]
        old.sort(key=lambda one: one.changed_at)
        for one in old[:limit]:
            del self.entries[one.entry_id]
        return len(old[:limit])
