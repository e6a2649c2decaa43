"""What a backup occupies beside its own bytes is promised too."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from backupd.interfaces import Room
from backupd.ledger.sql import SqlLedger
from backupd.requests import Failed, ended
from tests.conformance.samples import NOW, an_ask
from tests.ledger.offs import at_once
from tests.outcomes import result_of

FOOTPRINT = 1000


class FootprintTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ledger = SqlLedger(
            "sqlite://", write_off=at_once, read_off=at_once, footprint=FOOTPRINT
        )
        self.ledger.open()
        self.addCleanup(self.ledger.close)

    def admit(self, name: str, volume: int) -> bool:
        """Ask for 1 byte on a volume of so many."""

        def room(promised: int, growth: int) -> Room:
            fits = promised + growth <= volume
            return Room(available=volume, reason=None if fits else "insufficient-space")

        asked = self.ledger.admit(an_ask(name, size=1), room, now=NOW, max_pending=99)
        return result_of(asked)[0] is not None

    def test_small_videos_fill_a_volume(self) -> None:
        """Of requests for one byte only as many fit as their folders and sidecars allow."""
        volume = 3 * (FOOTPRINT + 1)
        assert [self.admit(name, volume) for name in "12345"] == [True, True, True, False, False]

    def test_released(self) -> None:
        """It is released with the reservation, and counted anew at a start."""
        assert self.admit("1", 10**6)
        assert result_of(self.ledger.totals()).promised == FOOTPRINT + 1
        end = self.ledger.change("request-1", lambda r: ended(r, Failed, reason="no", now=NOW))
        result_of(end)
        assert result_of(self.ledger.totals()).promised == 0
