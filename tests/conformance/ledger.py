"""What every `ILedger` does, whatever database lies below it."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from backupd.interfaces import ILedger
from tests.conformance.ledger_keeping import KeepingTests
from tests.conformance.ledger_lines import LineTests
from tests.conformance.ledger_lists import ListTests
from tests.conformance.ledger_quota import QuotaTests
from tests.conformance.ledger_repairs import RepairTests
from tests.conformance.ledger_requests import RequestTests
from tests.conformance.ledger_times import TimeTests

__all__ = ["make_ledger_tests"]


def make_ledger_tests(
    fixture: Callable[[SynchronousTestCase], ILedger],
) -> type[SynchronousTestCase]:
    """A test case for the ledger that ``fixture`` opens: empty, anew for every test, and with
    "off the reactor thread" meaning at once.
    """

    class LedgerTests(
        RequestTests, LineTests, ListTests, RepairTests, QuotaTests, KeepingTests, TimeTests
    ):
        def setUp(self) -> None:
            self.ledger = fixture(self)

        def test_interface(self) -> None:
            """The ledger provides what it promises."""
            verifyObject(ILedger, self.ledger)

        def test_no_trouble(self) -> None:
            """A ledger that commits is not in trouble."""
            assert self.successResultOf(self.ledger.trouble()) is None

    return LedgerTests
