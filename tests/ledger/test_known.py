"""What the ledger remembers of requests in progress is what it would read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from shutil import rmtree
from typing import Any

import pytest
from sqlalchemy import Connection
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from backupd.errors import NoSuchRequest
from backupd.interfaces import Room, Upload
from backupd.ledger import known
from backupd.ledger.sql import SqlLedger
from backupd.requests import Ask, Cancelled, ended, receiving, taken
from tests.ledger.offs import WhenTold
from tests.receiver.world import now, set_attribute, sync


class Reading:
    """Counts the questions to the database."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, f: Any, /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        self.asked += 1
        return sync(f, *args, **kwargs)


def an_ask(number: int) -> Ask:
    return Ask(
        request_id=f"request-{number}",
        peer="http://b:1",
        origin="http://b:1",
        video=number,
        callback="http://b:1/ready",
        size=100,
        capability=f"secret-{number}",
        created_at=1.0,
    )


def an_upload(request_id: str) -> Upload:
    return Upload(upload_id="u", request_id=request_id, length=100, created_at=1.0, changed_at=1.0)


def leased(until: float) -> Callable[[Any], Any]:
    return lambda request: replace(request, lease_until=until)


class KnownTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reading = Reading()
        folder = tempfile.mkdtemp()
        self.addCleanup(rmtree, folder)
        self.ledger = SqlLedger(f"sqlite:///{folder}/ledger", write_off=sync, read_off=self.reading)
        self.ledger.open()
        self.addCleanup(lambda: now(self.ledger.close()))

    def offered(self, number: int) -> str:
        """A request whose turn it is."""
        ask = an_ask(number)
        now(self.ledger.admit(ask, lambda *_: Room(available=1000), now=1.0, max_pending=1000))
        step = lambda r: taken(r, lease_until=9.0, expires_at=99.0)  # noqa: E731
        now(self.ledger.change(ask.request_id, step))
        self.reading.asked = 0
        return ask.request_id

    def test_asked_without_the_database(self) -> None:
        """The request, also by its link, and that it has no uploads."""
        request_id = self.offered(1)
        request = now(self.ledger.request(request_id))
        assert type(request).__name__ == "Offered"
        assert now(self.ledger.by_capability("secret-1")) == request
        assert now(self.ledger.uploads(request_id)) == []
        assert self.reading.asked == 0

    def test_the_same_as_the_database(self) -> None:
        """After every step, and after a restart."""
        request_id = self.offered(1)
        upload = an_upload(request_id)
        steps: list[tuple[Any, dict[str, Any]]] = [
            (lambda r: receiving(r, lease_until=20.0), {"put": upload}),
            (leased(30.0), {"put": replace(upload, offset=5)}),
            (lambda r: r, {"drop": ["u"]}),
            (lambda r: ended(r, kind=Cancelled, reason="", now=5.0), {}),
        ]
        for step, named in steps:
            now(self.ledger.change(request_id, step, **named))
            told = (now(self.ledger.request(request_id)), now(self.ledger.uploads(request_id)))
            self.ledger._known = known.Known()
            assert told == (
                now(self.ledger.request(request_id)),
                now(self.ledger.uploads(request_id)),
            )
            assert now(self.ledger.by_capability("secret-1")) == told[0]

    def test_a_step_that_fails_teaches_nothing(self) -> None:
        """Neither alone nor beside others in a batch."""
        request_id = self.offered(1)
        before = now(self.ledger.request(request_id))

        def fails(_: object) -> Any:
            raise NoSuchRequest("no")

        upload = an_upload(request_id)
        with pytest.raises(NoSuchRequest):
            now(self.ledger.change(request_id, fails, put=upload))
        assert now(self.ledger.request(request_id)) == before
        assert now(self.ledger.uploads(request_id)) == []

    def test_beside_others_in_a_batch(self) -> None:
        """Every change of a batch is known, and nothing of a step in it that failed at its end."""
        one, other = self.offered(1), self.offered(2)
        off = WhenTold()
        self.ledger._batches._off = off
        waiting = self.ledger.change("nobody", lambda r: r)
        steps = [
            self.ledger.change(one, leased(20.0)),
            self.ledger._write(lambda c: self.fails_late(c, one)),
            self.ledger.change(other, leased(30.0)),
        ]
        while off.waiting:
            off.run()
        for failed in (waiting, steps[1]):
            with pytest.raises(NoSuchRequest):
                now(failed)
        assert [now(self.ledger.request(name)).lease_until for name in (one, other)] == [20.0, 30.0]
        assert self.reading.asked == 0
        self.ledger._batches._off = sync

    def fails_late(self, connection: Connection, request_id: str) -> None:
        """A step that has changed something when it fails."""
        self.ledger._requests.change(
            connection, request_id, lambda r: receiving(r, lease_until=99.0), None, ()
        )
        raise NoSuchRequest("no")

    def test_what_is_over_is_forgotten(self) -> None:
        """It lies in the database for as long as its link answers, and may be purged."""
        request_id = self.offered(1)
        now(self.ledger.change(request_id, lambda r: ended(r, kind=Cancelled, reason="", now=5.0)))
        assert now(self.ledger.purge(before=6.0, limit=10)) == 1
        with pytest.raises(NoSuchRequest):
            now(self.ledger.request(request_id))
        with pytest.raises(NoSuchRequest):
            now(self.ledger.by_capability("secret-1"))

    def test_bounded(self) -> None:
        """The one that has not changed for longest is asked for again."""
        set_attribute(self, known, "MOST", 2)
        ids = [self.offered(number) for number in range(3)]
        for request_id in ids:
            now(self.ledger.request(request_id))
        assert self.reading.asked == 1
        assert len(self.ledger._known._by_id) == len(self.ledger._known._ids) == 2
