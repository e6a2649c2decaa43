"""How many connections an upload gets: a decision from bytes and time alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from backupd.sender.lanes import LONG, MOST, Lanes, part_length

MIB = 1024 * 1024


def used(
    *, each: float, shared: float = 1e12, round_trip: float = 0.2, seconds: int = 30
) -> list[int]:
    """The numbers of connections that a link gets, one after the other."""
    clock, sent, lanes = Clock(), 0.0, Lanes(round_trip)
    found = [lanes.look(clock.seconds(), 0)]
    for _ in range(seconds * 10):
        clock.advance(0.1)
        sent += 0.1 * min(each * found[-1], shared)
        wanted = lanes.look(clock.seconds(), int(sent))
        if wanted != found[-1]:
            found.append(wanted)
    assert lanes.settled
    return found


@pytest.mark.parametrize(
    ("link", "numbers"),
    [
        ({"each": 2 * MIB}, [1, 2, 4]),
        ({"each": 2 * MIB, "shared": 2 * MIB}, [1, 2, 1]),
        ({"each": 2 * MIB, "shared": 4 * MIB}, [1, 2, 4, 2]),
        ({"each": 2 * MIB, "shared": 2.2 * MIB}, [1, 2, 1]),
        ({"each": 2 * MIB, "shared": 7 * MIB}, [1, 2, 4]),
        ({"each": 2 * MIB, "round_trip": LONG / 2}, [1]),
        ({"each": 0.1 * MIB, "round_trip": 0.0}, [1]),
        ({"each": 200 * MIB}, [1]),
    ],
)
def test_connections_are_opened_as_long_as_they_bring_more(
    link: dict[str, float], numbers: list[int]
) -> None:
    """Those that bring nothing are taken back; a short way or a fast one gets no second."""
    assert used(**link) == numbers  # type: ignore[arg-type]


def test_nothing_is_decided_before_a_connection_is_at_its_speed() -> None:
    """What the buffers swallow at first is no throughput."""
    lanes = Lanes(0.2)
    lanes.look(0, 0)
    assert lanes.look(1.9, 50 * MIB) == 1
    lanes.look(2.0, 50 * MIB)
    assert lanes.look(3.9, 54 * MIB) == 1
    assert lanes.look(4.0, 54 * MIB) == 2


def test_what_was_found_out_is_kept_over_a_broken_connection() -> None:
    lanes = Lanes(0.2, MOST)
    assert [lanes.look(now, 0) for now in (0, 10, 100)] == [MOST] * 3


@given(size=st.integers(1, 2**45), settle=st.integers(0, 40), wanted=st.sampled_from([1, 2, 4]))
def test_parts_cover_the_file_and_are_few(size: int, settle: int, wanted: int) -> None:
    """Their names go in one line of a header."""
    lanes, rest, count = Lanes(0.2), size, 0
    while rest:
        if count == settle:
            lanes.wanted, lanes.settled = wanted, True
        length = part_length(size, rest, lanes)
        assert 0 < length <= rest
        rest -= length
        count += 1
    assert count <= 40
