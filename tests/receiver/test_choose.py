"""Who is called next: a pure function, fair, and never beyond the limits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from backupd.interfaces import Line
from backupd.receiver import queue as queue_module
from backupd.receiver.queue import PATIENCE, choose
from backupd.requests import Ask, Pending

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
        f"busy-{number}": Busy(peer, peer, f"busy-{number}", offering, False)
        for number, peer in enumerate(peers)
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
        found = choose(
            lines, busy={first: Busy("a", "a", first, False, False)}, turns=4, per_peer=3, now=0.0
        )
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
        held = {
            f"x{n}": Busy(peer, peer, f"x{n}", offering, False)
            for n, (peer, offering) in enumerate(taken)
        }
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
