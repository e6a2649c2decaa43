"""Offers: what goes out, when again, and what becomes of the answer."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from backupd.errors import LedgerFailed, PeerFailed
from backupd.requests import Offered
from tests.receiver.world import (
    DEAD,
    Answer,
    WorldCase,
    logged,
    now,
    set_attribute,
)


class OfferTests(WorldCase):
    """What goes out, and what becomes of the answer."""

    def test_body(self) -> None:
        """Exactly the three members of the original, the video as the sender gave it."""
        request = self.world.admit("zwei", callback="http://b:1/ready?x=1")
        self.world.tick()
        (sent,) = self.world.offers.sent
        assert sent.link == "http://b:1/ready?x=1"
        base = "http://localhost:3000/api/v1/backup"
        assert json.loads(sent.body) == {
            "videoId": "zwei",
            "linkForServerBtoSendBackupToSeverA": f"{base}/receive-backup/{request.ask.capability}",
            "linkForServerBtoCompleteBackupToSeverA": (
                f"{base}/complete-backup/{request.ask.capability}"
            ),
        }

    def test_number_stays_number(self) -> None:
        self.world.admit(2)
        self.world.tick()
        assert json.loads(self.world.offers.sent[0].body)["videoId"] == 2

    def test_taken(self) -> None:
        """2xx: OFFERED, with a lease, and a day to be done."""
        request_id = self.world.offered()
        request = self.world.request(request_id)
        assert isinstance(request, Offered)
        assert request.lease_until == self.clock.seconds() + 600
        assert request.expires_at == self.clock.seconds() + 86400
        assert list(self.world.queue.busy()) == [request_id]

    def test_gone(self) -> None:
        """410: CANCELLED, the turn and the room are free."""
        request_id = self.world.admit().ask.request_id
        self.world.offers.answers["http://b:1"] = Answer(410)
        self.world.tick()
        assert self.world.state(request_id) == "CANCELLED"
        assert self.world.queue.busy() == {}
        assert now(self.world.ledger.totals()).promised == 0

    def test_answer_of_an_old_link(self) -> None:
        """Who has asked again with another link is not bound by what the old one answers."""
        for status in (200, 410, 500):
            world = self.make(str(status))
            world.offers.answers["http://b:1/old"] = None
            request = world.admit(callback="http://b:1/old")
            world.tick()
            world.admit(callback="http://b:1/new")
            (old,) = world.offers.waiting
            old.answer.callback(Answer(status))
            assert world.state(request.ask.request_id) == "PENDING"
            self.clock.advance(0)
            world.tick()
            assert [sent.link for sent in world.offers.sent][1:] == ["http://b:1/new"]
            assert world.state(request.ask.request_id) == "OFFERED"

    def test_again_while_an_offer_is_out(self) -> None:
        """A sender that restarts while it is being called again is called once more."""
        request_id = self.world.offered()
        self.world.offers.answers["http://b:1"] = None
        request = self.world.request(request_id)
        assert isinstance(request, Offered)
        self.world.queue.offer_again(request)
        self.world.queue.offer_again(request)
        (out,) = self.world.offers.waiting
        del self.world.offers.answers["http://b:1"]
        out.answer.callback(Answer(500))
        assert len(self.world.offers.sent) == 3

    def test_asked_again_is_new_time(self) -> None:
        """A sender that asks again has a day from then, not from its first refused offer."""
        self.world.offers.answers["http://b:1"] = DEAD
        request_id = self.world.admit().ask.request_id
        self.world.tick()
        self.clock.advance(86000)
        self.world.admit()
        self.world.tick()
        self.clock.advance(1000)
        self.world.sweep()
        assert self.world.state(request_id) == "PENDING"

    def test_schedule(self) -> None:
        """Anything else: again after 5 s, 10 s, 20 s … and never more than 5 min."""
        for answer in (DEAD, Answer(500), Answer(404), Answer(302), Answer(199)):
            world = self.make(str(answer))
            world.offers.answers[""] = answer
            world.admit()
            for _ in range(300):
                world.tick()
                self.clock.advance(5)
            times = [round(sent.at - world.offers.sent[0].at) for sent in world.offers.sent]
            gaps = [later - earlier for earlier, later in pairwise(times)]
            assert gaps == [5, 10, 20, 40, 80, 160, 300, 300, 300]

    def test_schedule_is_per_origin(self) -> None:
        """A dead server with many requests is not asked more often than one with one."""
        self.world.offers.answers[""] = DEAD
        for video in range(50):
            self.world.admit(video)
        for _ in range(300):
            self.world.tick()
            self.clock.advance(5)
        # At first both of its turns are tried at once.
        assert len(self.world.offers.sent) <= 11

    def test_one_bad_video(self) -> None:
        """A video whose offers fail is tried less and less, though others at its origin go well."""
        self.world.offers.answers["http://b:1/ready/0"] = Answer(500)
        self.world.admit(0)
        for video in range(1, 400):
            if video > 1:
                self.world.admit(video)
            self.world.tick()
            for request in now(self.world.ledger.all_live()):
                if isinstance(request, Offered):
                    now(self.world.keeper.give_up(request.ask.request_id))
            self.clock.advance(2)
        bad = [sent for sent in self.world.offers.sent if sent.link.endswith("/0")]
        assert 5 <= len(bad) <= 9
        assert len(self.world.offers.sent) > 390

    def test_retry_after(self) -> None:
        """``Retry-After`` is honoured, when it is longer, up to an hour."""
        for said, gap in ((42.0, 42), (1.0, 5), (1e9, 3600)):
            world = self.make(str(said))
            world.offers.answers[""] = Answer(503, said)
            world.admit()
            world.tick()
            self.clock.advance(gap - 0.5)
            world.tick()
            assert len(world.offers.sent) == 1
            self.clock.advance(1)
            world.tick()
            assert len(world.offers.sent) == 2

    def test_retry_after_without_answer(self) -> None:
        self.world.offers.answers[""] = PeerFailed("Busy.", 42.0)
        self.world.admit()
        self.world.tick()
        self.clock.advance(41)
        self.world.tick()
        assert len(self.world.offers.sent) == 1

    def test_on_time(self) -> None:
        """The next try does not wait for the loop."""
        self.world.offers.answers[""] = DEAD
        self.world.admit()
        self.world.tick()
        self.clock.advance(0)
        nudges = self.world.nudges
        self.clock.advance(4.9)
        assert self.world.nudges == nudges
        self.clock.advance(0.1)
        assert self.world.nudges == nudges + 1

    def test_deadline(self) -> None:
        """EXPIRED `offer_deadline` after the first offer, not after the last."""
        self.world.offers.answers[""] = DEAD
        request_id = self.world.admit().ask.request_id
        self.world.tick()
        for _ in range(24):
            assert self.world.state(request_id) == "PENDING"
            self.clock.advance(3600)
            self.world.tick()
            self.world.sweep()
        assert self.world.state(request_id) == "EXPIRED"
        assert now(self.world.ledger.totals()).promised == 0

    def test_waiting_is_not_expiring(self) -> None:
        """Who was never called does not expire, however long the others take."""
        request_id = self.world.admit().ask.request_id
        self.clock.advance(30 * 86400)
        self.world.sweep()
        assert self.world.state(request_id) == "PENDING"

    def test_dead_sender_delays_nobody(self) -> None:
        """While one does not answer, the others are called, at once, and no turn is lost."""
        self.world.offers.answers["http://dead:1"] = None
        for video in range(9):
            self.world.admit(video, peer="http://dead:1")
        self.world.tick()
        for video in range(9):
            self.world.admit(video)
        self.world.tick()
        assert len(self.world.offers.to("http://b:1")) == 2
        for sent in self.world.offers.waiting:
            if sent.link.startswith("http://dead"):
                sent.answer.errback(DEAD)
        self.world.admit(1, peer="http://c:1")
        self.world.tick()
        assert len(self.world.offers.to("http://c:1")) == 1

    def test_same_capability(self) -> None:
        """The links stay the same over all tries, and are committed before the first."""
        self.world.offers.answers[""] = DEAD
        request = self.world.admit()
        for _ in range(5):
            self.world.tick()
            self.clock.advance(300)
        assert len({sent.body for sent in self.world.offers.sent}) == 1
        found = now(self.world.ledger.by_capability(request.ask.capability))
        assert found.ask.request_id == request.ask.request_id

    def test_again(self) -> None:
        """A sender that asks again is offered again at once, without a second turn."""
        request_id = self.world.offered()
        again = self.world.admit()
        assert again.ask.request_id == request_id
        self.world.offers.answers[""] = None
        self.world.queue.offer_again(again)
        assert len(self.world.offers.sent) == 2
        self.world.queue.offer_again(again)
        assert len(self.world.offers.sent) == 2
        assert list(self.world.queue.busy()) == [request_id]
        self.world.offers.waiting[-1].answer.callback(Answer(202))
        assert self.world.state(request_id) == "OFFERED"

    def test_again_for_one_without_a_turn(self) -> None:
        """Telling one whose bytes are all there takes no turn from the others."""
        world = self.make("one", {"max_concurrent_transfers": 1})
        request_id = world.offered(size=4)
        world.send(request_id, b"1234")
        assert world.state(request_id) == "RECEIVED"
        world.offers.answers["http://b:1"] = None
        world.queue.offer_again(world.admit(size=4))
        assert len(world.offers.waiting) == 1
        world.offers.answers["http://c:1"] = Answer(202)
        other = world.offered(3, peer="http://c:1")
        assert list(world.queue.busy()) == [other]
        world.offers.waiting[0].answer.callback(Answer(200))
        assert world.state(request_id) == "RECEIVED"
        assert list(world.queue.busy()) == [other]

    def test_again_while_waiting(self) -> None:
        """One that still waits for its turn is looked at, and waits for its turn."""
        request = self.world.admit()
        nudges = self.world.nudges
        self.world.queue.offer_again(request)
        assert (self.world.nudges, self.world.offers.sent) == (nudges + 1, [])

    def test_failed_repeat(self) -> None:
        """When telling it again fails, the turn is not lost."""
        request_id = self.world.offered()
        self.world.offers.answers[""] = DEAD
        self.world.queue.offer_again(self.world.admit())
        assert self.world.state(request_id) == "OFFERED"

    def test_stop(self) -> None:
        """Stopping ends the offers on their way, and no more go out."""
        self.world.offers.answers["http://b:1/ready/1"] = DEAD
        self.world.admit(1)
        self.world.tick()
        self.world.offers.answers[""] = None
        self.world.admit(2, peer="http://c:1")
        self.world.tick()
        now(self.world.queue.stop())
        assert self.world.queue.busy() == {}
        self.world.admit(3, peer="http://d:1")
        self.world.tick()
        assert len(self.world.offers.sent) == 2
        self.clock.advance(0)
        assert self.clock.getDelayedCalls() == []


class FailingLedgerTests(WorldCase):
    """The ledger fails: the loop's own pace is fast enough."""

    def test_no_tight_loop(self) -> None:
        """An answer that cannot be recorded does not make the queue look again at once."""
        self.world.admit()

        def change(*_: Any, **__: Any) -> Any:
            raise LedgerFailed("The ledger could not commit.")

        set_attribute(self, self.world.ledger, "change", change)
        self.clock.advance(1)
        nudges = self.world.nudges
        for answer in (Answer(202), Answer(500), DEAD):
            self.world.offers.answers[""] = answer
            self.world.tick()
            self.clock.advance(0)
            assert self.world.queue.busy() == {}
        assert self.world.nudges == nudges
        assert self.clock.getDelayedCalls() == []

    def test_cannot_read(self) -> None:
        """A look that fails says so to the loop, and holds nothing."""
        self.world.admit()

        def lines(**_: Any) -> Any:
            raise LedgerFailed("The ledger is closed.")

        with_fault = self.world.ledger
        set_attribute(self, with_fault, "lines", lines)
        self.raises(LedgerFailed, self.world.queue.tick())
        assert self.world.queue.busy() == {}

    def test_defect(self) -> None:
        """A defect in making an offer is logged, and the turn is free again."""
        self.world.offers.answers[""] = ValueError("a defect")
        self.world.admit()
        self.world.tick()
        assert len(logged(self)) == 1
        assert self.world.queue.busy() == {}
