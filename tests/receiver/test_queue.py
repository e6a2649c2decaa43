"""Whose turn it is: offers, retries, fairness, and never a turn too many."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from backupd.errors import LedgerFailed, NotYourTurn, PeerFailed
from backupd.interfaces import Line
from backupd.receiver import queue as queue_module
from backupd.receiver.queue import PATIENCE, choose
from backupd.requests import Ask, Offered, Pending, Receiving, lapsed, receiving, rejected
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
    set_attribute,
)

Busy = queue_module._Busy


def pending(peer: str, number: int, *, origin: str = "", due_at: float = 0.0) -> Pending:
    ask = Ask(
        request_id=f"{peer}{origin}-{number}",
        peer=peer,
        origin=origin or peer,
        video=number,
        callback=f"http://{peer}/",
        size=1,
        capability=f"secret-{peer}-{number}",
        created_at=0.0,
    )
    return Pending(ask=ask, due_at=due_at)


def line(
    peer: str, count: int = 1, *, failures: int = 0, ready_at: float = 0.0, origin: str = ""
) -> Line:
    """One peer's line, of so many requests."""
    return Line(
        peer=peer,
        origin=origin or peer,
        failures=failures,
        ready_at=ready_at,
        last_turn=0,
        heads=tuple(pending(peer, number, origin=origin) for number in range(count)),
    )


def busy(*peers: str, offering: bool = False) -> dict[str, Any]:
    """Turns that are taken by requests of these peers."""
    return {
        f"busy-{number}": Busy(peer, peer, offering=offering) for number, peer in enumerate(peers)
    }


def chosen(lines: list[Line], **more: Any) -> list[str]:
    """Who is chosen, by peer."""
    told: dict[str, Any] = {"busy": {}, "turns": 4, "per_peer": 2, "now": 0.0} | more
    return [one.ask.peer for one in choose(lines, **told)]


class ChooseTests(SynchronousTestCase):
    """`choose`"""

    def test_round_robin(self) -> None:
        """Peers take turns, however long the line of one is."""
        assert chosen([line("a", 9), line("b", 1), line("c", 9)]) == ["a", "b", "c", "a"]

    def test_first_come_first_served(self) -> None:
        """Within a peer's line the order of the ledger holds."""
        found = choose([line("a", 9)], busy={}, turns=4, per_peer=2, now=0.0)
        assert [one.ask.video for one in found] == [0, 1]

    def test_one_peer_with_two_origins(self) -> None:
        """Round-robin is among peers: another callback address is not another turn."""
        lines = [line("a", 3, origin="one"), line("a", 3, origin="two"), line("b", 3)]
        assert chosen(lines, turns=2) == ["a", "b"]

    def test_first_come_first_served_over_origins(self) -> None:
        """Within a peer, who is due first comes first, whatever line he stands in."""
        late = replace(line("a", origin="one"), heads=(pending("a", 1, origin="one", due_at=9.0),))
        early = replace(line("a", origin="two"), heads=(pending("a", 2, origin="two", due_at=1.0),))
        found = choose([late, early], busy={}, turns=1, per_peer=2, now=10.0)
        assert [one.ask.video for one in found] == [2]

    def test_limits(self) -> None:
        """Neither all turns nor those of one peer are exceeded, counting those that are taken."""
        assert chosen([line("a", 9)], turns=9) == ["a", "a"]
        assert chosen([line("a", 9), line("b", 9)], busy=busy("a", "c", "c")) == ["a"]
        assert chosen([line("a", 9), line("b", 9)], busy=busy("a", "a")) == ["b", "b"]
        assert chosen([line("a", 9)], busy=busy("b", "b", "c", "c")) == []

    def test_not_twice(self) -> None:
        """A request that has a turn, or an offer on its way, is passed over."""
        lines = [line("a", 3)]
        first = lines[0].heads[0].ask.request_id
        found = choose(lines, busy={first: Busy("a", "a", False)}, turns=4, per_peer=3, now=0.0)
        assert [one.ask.video for one in found] == [1, 2]

    def test_failing_gets_one_probe(self) -> None:
        """An origin that failed gets one probe, after the others."""
        lines = [line("dead", 9, failures=1), line("a", 1)]
        assert chosen(lines) == ["a", "dead"]
        assert chosen(lines, busy=busy("dead", offering=True)) == ["a"]

    def test_one_probe_for_an_origin(self) -> None:
        """Also when two peers are called back there."""
        lines = [line("p", failures=1, origin="dead"), line("q", failures=1, origin="dead")]
        assert chosen(lines) == ["p"]

    def test_never_the_last_turn(self) -> None:
        """What is free stays free for one who answers."""
        lines = [line("dead", 9, failures=1)]
        assert chosen(lines, busy=busy("a", "a", "b")) == []
        assert chosen(lines, busy=busy("a", "a")) == ["dead"]
        many = [line(f"dead{n}", 1, failures=1) for n in range(9)]
        assert len(chosen(many)) == 3

    def test_patience(self) -> None:
        """One that waited long goes first, once in a while, also when all turns but one are taken.

        A probe is short, an upload is not: else a sender that is back would wait for ever.
        """
        lines = [line("a", 9), line("b", 9), line("dead", 9, failures=1)]
        assert chosen(lines, now=PATIENCE - 1) == ["a", "b", "a", "b"]
        assert chosen(lines, now=PATIENCE) == ["dead", "a", "b", "a"]
        taken = busy("c", "c", "d")
        assert chosen(lines, busy=taken, now=PATIENCE) == ["dead"]
        assert chosen(lines, busy=taken, now=PATIENCE, probed_at=1.0) == ["a"]

    def test_many_dead(self) -> None:
        """However many are dead, those who answer lose one turn, for one probe, once a minute."""
        lines = [line(f"dead{n}", 1, failures=3) for n in range(99)] + [line("a", 9), line("b", 9)]
        assert chosen(lines, now=PATIENCE) == ["dead0", "a", "b", "a"]
        assert chosen(lines, now=2 * PATIENCE, probed_at=PATIENCE + 1) == ["a", "b", "a", "b"]

    def test_patience_with_one_who_cannot(self) -> None:
        """Nobody waits for a line that could not take its turn anyway."""
        lines = [line("a", 9), line("dead", 9, failures=1)]
        assert chosen(lines, busy=busy("dead", "dead", "c"), now=999.0) == ["a"]

    def test_one_turn(self) -> None:
        """With one turn in all, a probe has it while nobody else is due, or after long."""
        dead = line("dead", 1, failures=1)
        assert chosen([dead], turns=1) == ["dead"]
        assert chosen([line("a"), dead], turns=1) == ["a"]
        assert chosen([line("a"), dead], turns=1, now=PATIENCE) == ["dead"]
        assert chosen([line("a"), dead], turns=1, now=PATIENCE, busy=busy("a")) == []

    @given(
        st.lists(
            st.builds(
                line,
                st.sampled_from("abcdef"),
                st.integers(1, 5),
                failures=st.sampled_from([0, 0, 1, 7]),
                ready_at=st.sampled_from([0.0, 50.0, 100.0]),
            ),
            unique_by=lambda one: one.peer,
        ),
        st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=5),
        st.integers(1, 6),
        st.integers(1, 4),
        st.sampled_from([float("-inf"), 90.0]),
    )
    def test_invariants(
        self,
        lines: list[Line],
        taken: list[tuple[str, bool]],
        turns: int,
        per_peer: int,
        probed_at: float,
    ) -> None:
        """Limits hold, nobody is asked twice, no turn is left while one who answers is due."""
        held = {f"x{n}": Busy(peer, peer, offering) for n, (peer, offering) in enumerate(taken)}
        before = (list(lines), dict(held))
        found = choose(
            lines, busy=held, turns=turns, per_peer=per_peer, now=100.0, probed_at=probed_at
        )
        assert (lines, held) == before
        assert found == choose(
            lines, busy=held, turns=turns, per_peer=per_peer, now=100.0, probed_at=probed_at
        )
        assert len(found) <= max(0, turns - len(held))
        assert len({one.ask.request_id for one in found}) == len(found)
        mine = Counter(one.ask.peer for one in found)
        had = Counter(one.peer for one in held.values())
        failing = {one.origin for one in lines if one.failures}
        for one in lines:
            assert not mine[one.peer] or mine[one.peer] + had[one.peer] <= per_peer
            theirs = [request for request in found if request.ask.peer == one.peer]
            assert theirs == list(one.heads[: len(theirs)])
        for origin in failing:
            assert mine[origin] <= 1
            if any(busy.origin == origin and busy.offering for busy in held.values()):
                assert mine[origin] == 0
        left = turns - len(held) - len(found)
        for one in lines:
            full = mine[one.peer] + had[one.peer] >= per_peer or mine[one.peer] == len(one.heads)
            assert one.failures or full or left <= 0
            for other in lines:
                if not (one.failures or other.failures or full):
                    assert mine[other.peer] <= mine[one.peer] + 1
        probes = sum(mine[origin] for origin in failing)
        if probes > 1 and turns > 1:
            assert left >= 1


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
