"""The ledger on SQLite: what every ledger does, in memory and in a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from shutil import rmtree

from twisted.trial.unittest import SynchronousTestCase

from backupd.ledger.sql import SqlLedger
from tests.conformance import ledger_roots
from tests.conformance.ledger import make_ledger_tests
from tests.ledger.offs import at_once


def _in_memory(test: SynchronousTestCase) -> SqlLedger:
    return _opened(test, "sqlite://")


def _in_a_file(test: SynchronousTestCase) -> SqlLedger:
    folder = tempfile.mkdtemp()
    test.addCleanup(rmtree, folder)
    return _opened(test, f"sqlite:///{Path(folder, 'ledger.sqlite3')}")


def _opened(test: SynchronousTestCase, url: str) -> SqlLedger:
    ledger = SqlLedger(url, write_off=at_once, read_off=at_once)
    ledger.open()
    test.addCleanup(ledger.close)
    return ledger


class InMemoryTests(make_ledger_tests(_in_memory)):  # type: ignore[misc]
    """`SqlLedger` in memory is an `ILedger`."""


class FileTests(make_ledger_tests(_in_a_file), ledger_roots.RootTests):  # type: ignore[misc]
    """`SqlLedger` in a file, with a connection for readers, is an `ILedger`."""
