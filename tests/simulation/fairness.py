"""Whose turn it is among peers: nobody who is due is passed over again and again."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from backupd.requests import Offered, Receiving
from tests.simulation.kept_watch import Violation

if TYPE_CHECKING:
    from tests.simulation.machine import Machine

__all__ = ["Fairness"]


class Fairness:
    """Counts the turns that others are given while a peer is due.

    Among peers it goes round: whoever had a turn comes after everybody who waits. So each of the
    others has one at most while a peer is due, beside those that were being offered before.
    """

    def __init__(self) -> None:
        self._passed: dict[tuple[str, str], Counter[str]] = {}
        """Of each machine and each peer that is due there: whose turn came meanwhile."""

    def served(self, machine: Machine, peer: str) -> None:
        """A turn was given to a peer that was in line."""
        most = 1 + machine.settings.max_concurrent_transfers
        self._passed.pop((machine.name, peer), None)
        for (name, waiting), passed in self._passed.items():
            if name != machine.name:
                continue
            passed[peer] += 1
            if passed[peer] > most:
                raise Violation(
                    f"{name} lets {waiting} wait, and has given {passed[peer]} turns to {peer}"
                )

    def look(self, machine: Machine) -> None:
        """Who is due now."""
        books, process = machine.books, machine.process
        due: dict[str, None] = {}
        if process is not None and machine.ready:
            now = process.seconds()
            for (peer, _), lane in books.lanes.items():
                if lane.ready_at is not None and lane.ready_at <= now and not lane.failures:
                    due[peer] = None
        if due:
            live = [row.request for row in books.alive.values()]
            turns = {
                one.ask.turn: one.ask.peer for one in live if isinstance(one, Offered | Receiving)
            }
            if machine.service is not None:
                # Whoever is being called is not passed over, however long it says nothing.
                for busy in machine.service.queue.busy().values():
                    if busy.offering:
                        due.pop(busy.peer, None)
            for peer, count in Counter(turns.values()).items():
                if count >= machine.settings.max_per_peer:
                    due.pop(peer, None)
        for name, peer in list(self._passed):
            if name == machine.name and peer not in due:
                del self._passed[name, peer]
        for peer in due:
            self._passed.setdefault((machine.name, peer), Counter())
