"""Turns: by link or by offer, never one too many, whatever happens at the same time."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from backupd.errors import NotYourTurn
from backupd.requests import Offered, Pending, Receiving, lapsed, receiving, rejected
from backupd.waiting import go_on
from tests.receiver.world import (
    DEAD,
    KIB,
    START,
    Answer,
    ManualOff,
    Place,
    World,
    WorldCase,
    logged,
    now,
)


class TurnTests(WorldCase):
    """Turns that are taken by using the link."""

    def test_link_used_before_the_answer(self) -> None:
        """Using the capability counts as the offer's 2xx, whatever becomes of the answer."""
        for outcome in (Answer(202), Answer(500), DEAD):
            world = self.make(str(outcome))
            world.offers.answers[""] = None
            request_id = world.admit(size=4).ask.request_id
            world.tick()
            source = world.source(b"12")
            done = world.receive(request_id, source, 4)
            assert world.state(request_id) == "RECEIVING"
            answer = world.offers.sent[0].answer
            if isinstance(outcome, Answer):
                answer.callback(outcome)
            else:
                answer.errback(outcome)
            assert world.state(request_id) == "RECEIVING"
            assert list(world.queue.busy()) == [request_id]
            source.give(b"34", b"")
            now(done)
            assert world.state(request_id) == "RECEIVED"
            assert world.queue.busy() == {}

    def test_no_turn(self) -> None:
        """Without a free turn it is `NotYourTurn`, and says when to come again."""
        for video in range(9):
            self.world.admit(video, peer=f"http://p{video // 2}:1")
        self.world.tick()
        late = self.world.admit(99, peer="http://late:1")
        with pytest.raises(NotYourTurn) as caught:
            now(self.world.queue.take_turn(late))
        assert caught.value.retry_after == 5.0
        assert len(self.world.queue.busy()) == 4

    def test_no_turn_of_this_peer(self) -> None:
        """`max_per_peer` holds here too."""
        self.world.offered(1)
        self.world.offered(2)
        third = self.world.admit(3)
        self.raises(NotYourTurn, self.world.queue.take_turn(third))

    def test_claim(self) -> None:
        """A turn that was taken is nobody else's until it is given back."""
        world = self.make("one", {"max_concurrent_transfers": 1})
        first, second = world.admit(1), world.admit(2)
        now(world.queue.take_turn(first))
        self.raises(NotYourTurn, world.queue.take_turn(second))
        world.tick()
        assert world.offers.sent == []
        nudges = world.nudges
        world.queue.give_back(first.ask.request_id)
        assert world.nudges == nudges + 1
        now(world.queue.take_turn(second))

    def test_freed_turn_is_used_at_once(self) -> None:
        """When a request stops needing its turn the queue is looked at."""
        request_id = self.world.offered(size=4)
        nudges = self.world.nudges
        self.world.send(request_id, b"1234")
        assert self.world.nudges > nudges

    def test_restart(self) -> None:
        """After a restart the turns are those of the ledger."""
        url = f"sqlite:///{self.folder}/ledger"
        world = self.make("again", ledger_url=url)
        request_id = world.offered()
        world.admit(3)
        now(world.ledger.close())
        assert list(world.restart().queue.busy()) == [request_id]


class InterleavingTests(WorldCase):
    """The ledger's thread is slow, and things happen meanwhile."""

    def manual(self, **told: Any) -> tuple[World, ManualOff]:
        off = ManualOff()
        world = self.make("manual", told, ledger_off=off)
        return world, off

    def admit(self, world: World, off: ManualOff, video: int, peer: str = "http://b:1") -> None:
        asked = go_on(
            world.admission.ask(
                peer=peer, origin=peer, video=video, size=KIB, callback=f"{peer}/ready/{video}"
            )
        )
        off.release_all()
        now(asked)

    def test_answer_while_looking(self) -> None:
        """A request whose offer fails while the lines are read is not offered from the old list."""
        world, off = self.manual()
        world.offers.answers[""] = None
        self.admit(world, off, 1)
        tick = go_on(world.queue.tick())
        off.release_all()
        now(tick)
        again = go_on(world.queue.tick())
        call = off.waiting[0]
        lines = call.run()  # read now, delivered later
        off.waiting.clear()
        world.offers.sent[0].answer.errback(DEAD)
        off.release_all()
        assert world.queue.busy() == {}
        call.done.callback(lines)
        now(again)
        assert len(world.offers.sent) == 1

    def test_turn_taken_while_looking(self) -> None:
        """A turn that is taken while the lines are read is not given away as well."""
        world, off = self.manual(max_concurrent_transfers=1)
        self.admit(world, off, 1)
        self.admit(world, off, 2, "http://c:1")
        tick = go_on(world.queue.tick())
        live = world.ledger.all_live()
        lines = off.waiting.pop(0)
        off.release_all()
        now(world.queue.take_turn(now(live)[0]))
        lines.done.callback(lines.run())
        off.release_all()
        now(tick)
        assert world.offers.sent == []

    def test_ended_while_offered(self) -> None:
        """An answer to an offer for a request that has ended meanwhile changes nothing."""
        for answer in (Answer(202), Answer(410), Answer(500)):
            world = self.make(str(answer))
            world.offers.answers[""] = None
            request_id = world.admit().ask.request_id
            world.tick()
            now(world.keeper.give_up(request_id))
            world.offers.sent[0].answer.callback(answer)
            assert world.state(request_id) == "FAILED"
            assert world.queue.busy() == {}
        assert logged(self) == []


class Turns(RuleBasedStateMachine):
    """Whatever happens in whatever order, no turn beyond the limits is ever held."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Place()
        self.clock = self.place.clock
        self.world = self.place.make(settings={"max_concurrent_transfers": 3})
        self.world.offers.answers[""] = None
        self.video = 0
        self.claimed: set[str] = set()

    def teardown(self) -> None:
        for sent in self.world.offers.waiting:
            sent.answer.callback(Answer(202))
        self.place.close()

    def live(self, number: int, *kinds: type) -> Any:
        found = [one for one in now(self.world.ledger.all_live()) if isinstance(one, kinds)]
        return found[number % len(found)] if found else None

    @rule(peer=st.sampled_from("abc"))
    def ask(self, peer: str) -> None:
        self.video += 1
        self.world.admit(self.video, peer=f"http://{peer}:1", size=KIB)

    @rule()
    def tick(self) -> None:
        self.world.tick()

    @rule(seconds=st.sampled_from([1.0, 20.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @precondition(lambda self: self.world.offers.waiting)
    @rule(number=st.integers(0, 9), status=st.sampled_from([202, 202, 500, 410, None]))
    def answer(self, number: int, status: int | None) -> None:
        waiting = self.world.offers.waiting
        sent = waiting[number % len(waiting)]
        if status is None:
            sent.answer.errback(DEAD)
        else:
            sent.answer.callback(Answer(status))

    @rule(number=st.integers(0, 9))
    def take(self, number: int) -> None:
        request = self.live(number, Pending)
        if request is not None:
            try:
                now(self.world.queue.take_turn(request))
            except NotYourTurn:
                return
            self.claimed.add(request.ask.request_id)

    @precondition(lambda self: self.claimed)
    @rule(used=st.booleans())
    def give_back(self, used: bool) -> None:
        request_id = self.claimed.pop()
        request = self.world.request(request_id)
        if used and isinstance(request, Pending | Offered):
            now(self.world.intake.announce(request_id))
        self.world.queue.give_back(request_id)

    @rule(number=st.integers(0, 9))
    def announce(self, number: int) -> None:
        request = self.live(number, Pending, Offered)
        if request is not None and request.ask.request_id not in self.claimed:
            try:
                now(self.world.intake.announce(request.ask.request_id))
            except NotYourTurn:
                assert isinstance(request, Pending)

    @rule(number=st.integers(0, 9))
    def send(self, number: int) -> None:
        request = self.live(number, Offered, Receiving)
        if request is not None:
            self.world.send(request.ask.request_id, b"bytes")

    @rule(number=st.integers(0, 9))
    def ask_again(self, number: int) -> None:
        request = self.live(number, object)
        if request is not None:
            self.world.queue.offer_again(request)

    @rule(number=st.integers(0, 9))
    def wrong(self, number: int) -> None:
        request = self.live(number, Offered, Receiving)
        if request is not None and request.ask.request_id not in self.claimed:
            step = lambda r: rejected(receiving(r, lease_until=0.0), why="bad", now=START)  # noqa: E731
            now(self.world.ledger.change(request.ask.request_id, step))

    @rule()
    def sweep(self) -> None:
        self.world.sweep()

    @rule(number=st.integers(0, 9))
    def lapse(self, number: int) -> None:
        request = self.live(number, Offered, Receiving)
        if request is not None:
            step = lambda r: lapsed(replace(r, lease_until=0.0), now=START)  # noqa: E731
            now(self.world.ledger.change(request.ask.request_id, step))

    @invariant()
    def within_limits(self) -> None:
        busy = self.world.queue.busy()
        active = {
            request.ask.request_id: request.ask.peer
            for request in now(self.world.ledger.all_live())
            if isinstance(request, Offered | Receiving)
        }
        assert active.keys() <= busy.keys()
        assert len(busy) <= 3
        assert max(Counter(one.peer for one in busy.values()).values(), default=0) <= 2
        assert now(self.world.ledger.totals()).active == len(active)


class TurnsTests(SynchronousTestCase):
    def test_turns(self) -> None:
        """No turn beyond `max_concurrent_transfers` and `max_per_peer` is ever held."""
        told = settings(max_examples=30, stateful_step_count=40, deadline=None)
        run_state_machine_as_test(Turns, settings=told)
