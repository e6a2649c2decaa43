"""What every `ILedger` that outlives its process knows of the root, before it is opened."""

from __future__ import annotations

from backupd.interfaces import Remembered
from tests.conformance.ledger_case import LedgerCase
from tests.conformance.samples import a_kept_backup, an_upload, to_receiving
from tests.outcomes import result_of

__all__ = ["RootTests"]


class RootTests(LedgerCase):
    """The mark of the root; where none is known, what must be there."""

    def test_nothing_is_known(self) -> None:
        """A new ledger takes any root."""
        assert self.ledger.remembered() == Remembered()

    def test_the_mark(self) -> None:
        """The last that it was opened with; opening without one leaves it."""
        for told, known in (("a", "a"), (None, "a"), ("a", "a"), ("b", "b")):
            self.again(told)
            assert self.ledger.remembered() == Remembered(known)

    def test_what_must_be_there(self) -> None:
        """Backups, in the trash too, and uploads with bytes; asked for while no mark is known."""
        kept = [a_kept_backup("1"), a_kept_backup("2", deleted_at=1.0, deleted_by="p")]
        for one in kept:
            result_of(self.ledger.list_backup(one))
        self.admit()
        self.change("1", to_receiving, put=an_upload("1", "1", offset=10, allocated=10))
        self.change("1", put=an_upload("2", "1", offset=0))
        known = self.ledger.remembered()
        assert (known.root, set(known.folders)) == (None, {one.folder for one in kept})
        assert known.uploads == (an_upload("1").upload_id,)
        self.again("a")
        assert self.ledger.remembered() == Remembered("a")

    def again(self, root: str | None) -> None:
        """It is opened again, as by the next start."""
        result_of(self.ledger.close())
        self.ledger.open(root)
