"""The live requests in memory: what is read beside the work never covers what the work changed."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from backupd.ledger.sql import SqlLedger
from backupd.receiver.live import LiveRequests
from backupd.requests import BackupRequest
from backupd.waiting import go_on
from tests.conformance.ledger_case import cancel
from tests.conformance.samples import NOW, an_ask, plenty, to_offered
from tests.ledger.offs import WhenTold, at_once
from tests.outcomes import pending, result_of


class LiveTests(SynchronousTestCase):
    """Twelve wait and one is offered; pages are of two, and four requests are read at the start."""

    def setUp(self) -> None:
        self.told: list[BackupRequest] = []
        self.reads = WhenTold()
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        self.ledger = SqlLedger(f"sqlite:///{folder}/l", write_off=at_once, read_off=self.reads)
        self.ledger.open()
        self.addCleanup(self.close)
        for number in range(13):
            result_of(self.ledger.admit(an_ask(f"{number:02}"), plenty, now=NOW, max_pending=99))
        result_of(self.ledger.change("request-12", to_offered))
        self.live = LiveRequests(self.ledger, self.told.append, at_start=4, page=2)
        self.ledger.watch(self.live.observe)

    def close(self) -> None:
        closing = self.ledger.close()
        while pending(closing):
            self.reads.run()

    def run_all(self, work: Any) -> None:
        while pending(work):
            self.reads.run()
        result_of(work)

    def waiting(self) -> str:
        return " ".join(key.removeprefix("request-") for key in sorted(self.live.pending))

    def test_the_start_waits_for_a_few(self) -> None:
        """Whatever is in progress is read first, then the oldest; the rest comes later."""
        self.run_all(go_on(self.live.begin()))
        assert list(self.live.in_progress) == ["request-12"]
        assert self.waiting() == "00 01 02 03"
        self.run_all(go_on(self.live.go_on()))
        assert self.waiting() == "00 01 02 03 04 05 06 07 08 09 10 11"
        assert list(self.live.in_progress) == ["request-12"]
        assert self.told[0].ask.request_id == "request-12"

    def test_a_commit_is_newer_than_a_page(self) -> None:
        """What was committed while a page was on its way stands, an end too."""
        self.run_all(go_on(self.live.begin()))
        work = go_on(self.live.go_on())
        (read, done) = self.reads.waiting.pop()
        page = read()
        assert [request.ask.request_id for _, request in page] == ["request-04", "request-05"]
        result_of(self.ledger.change("request-04", to_offered))
        result_of(self.ledger.change("request-05", cancel))
        done.callback(page)
        self.run_all(work)
        assert sorted(self.live.in_progress) == ["request-04", "request-12"]
        assert self.waiting() == "00 01 02 03 06 07 08 09 10 11"

    def test_stop(self) -> None:
        """When it is stopped, the page under way is the last."""
        self.run_all(go_on(self.live.begin()))
        work = go_on(self.live.go_on())
        self.live.stop()
        self.reads.run()
        result_of(work)
        assert self.reads.waiting == []
