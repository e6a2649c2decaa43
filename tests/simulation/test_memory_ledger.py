"""The ledger of the simulation does what every ledger does."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.conformance import ledger_roots
from tests.conformance.ledger import make_ledger_tests
from tests.ledger.offs import at_once
from tests.simulation.books import Books
from tests.simulation.memory_ledger import MemoryLedger


def _opened(test: SynchronousTestCase) -> MemoryLedger:
    ledger = MemoryLedger(Books(0), write_off=at_once, read_off=at_once)
    ledger.open()
    test.addCleanup(ledger.close)
    return ledger


class MemoryLedgerTests(make_ledger_tests(_opened), ledger_roots.RootTests):  # type: ignore[misc]
    """`MemoryLedger` is an `ILedger`."""
