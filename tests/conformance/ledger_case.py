"""What the tests of every `ILedger` stand on: short ways to ask it, and steps to take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from backupd.interfaces import ILedger, Totals, Upload
from backupd.requests import (
    BackupRequest,
    Cancelled,
    Live,
    ended,
    offer_failed,
    stored,
)
from tests.conformance.samples import (
    NOW,
    an_ask,
    plenty,
)
from tests.outcomes import result_of

Step = Callable[[BackupRequest], BackupRequest]


def same(request: BackupRequest) -> BackupRequest:
    return request


def cancel(request: BackupRequest) -> BackupRequest:
    return ended(request, Cancelled, reason="taken back", now=NOW)


def store(request: BackupRequest) -> BackupRequest:
    return stored(request, now=NOW)


def refuse_offer(due_at: float) -> Step:
    return lambda r: offer_failed(r, due_at=due_at, expires_at=NOW + 86400, why="refused")


def broken(request: BackupRequest) -> BackupRequest:
    raise ZeroDivisionError


class LedgerCase(SynchronousTestCase):
    """A test case with a ledger, empty and open, anew for every test."""

    ledger: ILedger

    def admit(self, name: str = "1", **more: Any) -> Live:
        request, _ = result_of(
            self.ledger.admit(an_ask(name, **more), plenty, now=NOW, max_pending=100)
        )
        assert request is not None
        return request

    def change(
        self,
        name: str,
        step: Step = same,
        put: Upload | None = None,
        drop: tuple[str, ...] = (),
    ) -> BackupRequest:
        changed = self.ledger.change(f"request-{name}", step, put=put, drop=drop)
        return result_of(changed)

    def request(self, name: str = "1") -> BackupRequest:
        return result_of(self.ledger.request(f"request-{name}"))

    def totals(self) -> Totals:
        return result_of(self.ledger.totals())

    def lines(self, now: float = NOW, limit: int = 10, heads: int = 10) -> dict[str, list[str]]:
        """The due lines in their order: peers, and the names of what is due."""
        found = result_of(self.ledger.lines(now=now, limit=limit, heads=heads))
        return {
            line.peer: [head.ask.request_id.removeprefix("request-") for head in line.heads]
            for line in found
        }
