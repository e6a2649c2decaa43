"""What every `ILedger` does with the allowance of a peer."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

from backupd.interfaces import Allowance, Room, Usage
from backupd.requests import Live
from tests.conformance.ledger_case import LedgerCase, cancel, store
from tests.conformance.samples import (
    NOW,
    PEER,
    a_kept_backup,
    an_ask,
    an_upload,
    plenty,
    to_offered,
    to_receiving,
    to_storing,
)
from tests.outcomes import result_of

__all__ = ["QuotaTests"]

QUOTA = Allowance(quota=100)
_numbers = itertools.count()


class QuotaTests(LedgerCase):
    """What is kept and what is reserved count together, in the step that admits."""

    def ask(
        self, name: str, size: int, allowance: Allowance = QUOTA, peer: str = PEER
    ) -> tuple[Live | None, Room]:
        asked = an_ask(name, size=size, peer=peer)
        return result_of(
            self.ledger.admit(asked, plenty, now=NOW, max_pending=100, allowance=allowance)
        )

    def usage(self) -> Usage:
        return result_of(self.ledger.usage(PEER))

    def test_exactly(self) -> None:
        """The quota can be used to the last byte, and not passed by one."""
        assert self.ask("1", 60)[0] is not None
        refused, room = self.ask("2", 41)
        assert (refused, room.reason, room.available) == (None, "quota-exceeded", 40)
        assert self.ask("3", 40)[0] is not None
        assert self.usage() == Usage(kept=0, reserved=100, pending=2)

    def test_others(self) -> None:
        """What others have does not count."""
        assert self.ask("1", 90, peer="other")[0] is not None
        assert self.ask("2", 100)[0] is not None

    def test_growth(self) -> None:
        """Asking again for more counts the difference; what is refused leaves the old promise."""
        assert self.ask("1", 60)[0] is not None
        refused, room = self.ask("1", 101)
        assert (refused, room.reason) == (None, "quota-exceeded")
        assert self.request("1").ask.size == 60
        grown, _ = self.ask("1", 100)
        assert grown is not None
        shrunk, _ = self.ask("1", 10)
        assert shrunk is not None
        assert self.usage().reserved == 10

    def test_shrunk_below_what_has_come(self) -> None:
        """Asking for less gives back only what has not come: the rest is there, and counts."""
        self.ask("1", 60)
        self.change("1", to_receiving, put=an_upload("1", allocated=40, offset=10))
        shrunk, _ = self.ask("1", 1)
        assert shrunk is not None
        assert shrunk.ask.size == 40
        assert self.usage().reserved == 40
        assert self.ask("2", 61)[0] is None

    def test_shrunk_to_another_video(self) -> None:
        """A digest is of the size that was announced with it, also where that stays promised."""
        asked = replace(an_ask("1", size=60, peer=PEER), sha256="ab" * 32)
        result_of(self.ledger.admit(asked, plenty, now=NOW, max_pending=100))
        self.change("1", to_receiving, put=an_upload("1", allocated=60, offset=10))
        other = replace(an_ask("1", size=30, peer=PEER), sha256=None)
        shrunk, _ = result_of(self.ledger.admit(other, plenty, now=NOW, max_pending=100))
        assert shrunk is not None
        assert (shrunk.ask.size, shrunk.ask.sha256) == (60, None)

    def test_released(self) -> None:
        """A request that ends gives its part of the quota back."""
        self.ask("1", 100)
        self.change("1", cancel)
        assert self.usage() == Usage()
        assert self.ask("2", 100)[0] is not None

    def test_kept(self) -> None:
        """What is stored goes on counting, by its own size, until it is deleted."""
        self.ask("1", 100)
        self.change("1", to_storing)
        self.change("1", store)
        assert self.usage() == Usage(kept=50, reserved=0, pending=0)
        assert self.ask("2", 51)[0] is None
        assert self.ask("2", 50)[0] is not None
        result_of(self.ledger.drop_backup("backup-1"))
        assert self.usage().kept == 0

    def test_found(self) -> None:
        """What a rebuild lists counts once, also when it is listed again or corrected."""
        kept = a_kept_backup("7", peer=PEER, size=70)
        result_of(self.ledger.list_backup(kept))
        result_of(self.ledger.list_backup(kept))
        result_of(self.ledger.put_backup(kept))
        assert self.usage().kept == 70
        assert self.ask("1", 31)[0] is None

    def test_pending(self) -> None:
        """A bounded number of a peer's requests waits."""
        few = Allowance(max_pending=1)
        assert self.ask("1", 1, few)[0] is not None
        refused, room = self.ask("2", 1, few)
        assert (refused, room.reason) == (None, "queue-full")
        assert self.ask("1", 2, few)[0] is not None
        self.change("1", to_offered)
        assert self.ask("2", 1, few)[0] is not None

    def test_at_once(self) -> None:
        """Asks that come at the same time never pass the quota together."""
        chance = random.Random(1)
        for _ in range(30):
            sizes = [chance.randint(1, 60) for _ in range(chance.randint(1, 12))]
            asked = [
                self.ledger.admit(
                    an_ask(f"at-once-{next(_numbers)}", size=size),
                    plenty,
                    now=NOW,
                    max_pending=100,
                    allowance=QUOTA,
                )
                for size in sizes
            ]
            yes = [found.ask for found, _ in map(result_of, asked) if found is not None]
            assert self.usage().reserved == sum(ask.size for ask in yes) <= 100
            assert len(yes) == len(sizes) or sum(sizes) > 100
            for ask in yes:
                result_of(self.ledger.change(ask.request_id, cancel))
