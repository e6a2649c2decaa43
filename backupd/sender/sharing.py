"""Whose step is begun next, of all the servers that something goes to: none waits for another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable

from twisted.internet.defer import Deferred

from backupd.interfaces import Entry

__all__ = ["UnderWay", "longest_due", "share"]

AHEAD = 3600.0
"""Seconds by which those that the receiver waits for are before those that wait for it."""


def share(
    due: Iterable[str], *, busy: Counter[str], silent: Container[str], places: int, each: int
) -> Counter[str]:
    """How many steps each of ``due`` may begin; they come in the order of their turns.

    Each gets a place, one after the other, and again, until it has ``each`` or no place is free.
    A silent one holds a place for as long as we wait for it, so it has one at most, and all that
    are silent have half of the places: they never hold up what goes elsewhere.
    """
    given: Counter[str] = Counter()
    free = places - busy.total()
    for_silent = places // 2 - sum(count for to, count in busy.items() if to in silent)
    waiting = list(due)
    while waiting and free > 0:
        still = []
        for to in waiting:
            mute = to in silent
            most = 1 if mute else each
            if free <= 0 or busy[to] + given[to] >= most or (mute and for_silent <= 0):
                continue
            given[to] += 1
            free -= 1
            for_silent -= mute
            still.append(to)
        waiting = still
    return given


def longest_due(entries: Iterable[Entry], limit: int) -> list[Entry]:
    """Those that are first in line among what goes to one server.

    What the receiver has turn or room for comes first, but nobody waits behind it for ever.
    """

    def since(entry: Entry) -> float:
        return entry.due_at - (AHEAD if entry.state in ("READY", "SENT") else 0.0)

    return sorted(entries, key=since)[:limit]


class UnderWay:
    """Steps that are under way, ``most`` at once, and when each server had its last turn."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.works: dict[str, Deferred[None]] = {}
        self._to: dict[str, str] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0

    def begin(self, entry: Entry) -> None:
        """It is the turn of the server that ``entry`` goes to."""
        self._turn += 1
        self._turns[entry.to] = self._turn
        self._to[entry.entry_id] = entry.to

    def end(self, entry_id: str) -> None:
        """The step of this entry is over."""
        self.works.pop(entry_id, None)
        self._to.pop(entry_id, None)

    def busy(self) -> Counter[str]:
        """How many steps of each server are under way."""
        return Counter(self._to.values())

    def in_turn(self, servers: Iterable[str]) -> list[str]:
        """Those of which least is under way first; of these, whose last turn is longest ago."""
        busy = self.busy()
        return sorted(servers, key=lambda to: (busy[to], self._turns.get(to, 0)))

    def forget_all_but(self, servers: Collection[str]) -> None:
        """Nothing goes to the others any more."""
        self._turns = {to: turn for to, turn in self._turns.items() if to in servers}

    def __contains__(self, entry_id: str) -> bool:
        return entry_id in self._to

    @property
    def full(self) -> bool:
        """Whether none is free."""
        return len(self._to) >= self.most
