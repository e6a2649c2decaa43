"""How many connections an upload gets: a decision from bytes and time alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.sender.lanes import LEAST, LONG, Lanes, part_length

MIB = 1024 * 1024


def used(*, each: float, shared: float = 1e12, round_trip: float = 0.2) -> list[int]:
    """The numbers of connections that a link gets, one after the other.

    ``each`` connection brings so many bytes a second, and all of them ``shared``.
    """
    lanes, now, found = Lanes(round_trip), 0.0, [1]
    while not lanes.settled:
        wanted, part = lanes.wanted, lanes.trial
        began, now = now, now + 3 * round_trip + part / min(each, shared / wanted)
        for _ in range(wanted):
            lanes.arrived(began, now, part)
        if lanes.wanted != found[-1]:
            found.append(lanes.wanted)
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
    assert used(**link) == numbers


def test_only_what_began_with_that_many_connections_tells_of_them() -> None:
    """One that was under way when a second was opened had the link for itself at first."""
    lanes = Lanes(0.2)
    assert lanes.arrived(0, 4, 16 * MIB) == 2
    assert lanes.arrived(3, 5, 16 * MIB) == 2
    assert lanes.arrived(4, 12, 16 * MIB) == 2
    assert not lanes.settled
    assert lanes.arrived(4, 12, 16 * MIB) == 1


def test_what_was_found_out_is_kept_over_broken_connections() -> None:
    lanes = Lanes(0.2)
    lanes.arrived(0, 4, 16 * MIB)
    lanes.again()
    assert (lanes.wanted, lanes.settled) == (2, True)
    assert lanes.arrived(10, 1000, MIB) == 2


def test_a_part_that_is_there_at_once_says_little() -> None:
    """The next one is larger; what cannot be larger has to do."""
    lanes = Lanes(0.2)
    assert lanes.arrived(0, 1, 16 * MIB) == 1
    assert (lanes.trial, part_length(10 << 30, 9 << 30, lanes)) == (64 * MIB, 64 * MIB)
    assert part_length(80 * MIB, 64 * MIB, lanes) == 8 * MIB
    assert lanes.arrived(1, 2, 8 * MIB) == 2


def test_what_is_left_of_an_old_part_tells_nothing() -> None:
    """After a restart a part may be whole already, or nearly so."""
    lanes = Lanes(0.2)
    assert [lanes.arrived(0, 4, length) for length in (0, 1, LEAST - 1)] == [1, 1, 1]
    assert not lanes.settled
    assert lanes.arrived(0, 4, LEAST) == 2


def test_over_a_longer_way_a_part_has_to_take_longer_to_tell() -> None:
    """By its round trips alone more connections would look better, and bring nothing."""
    assert Lanes(0.5).arrived(0, 4.9, 16 * MIB) == 1
    assert Lanes(0.5).arrived(0, 5.0, 16 * MIB) == 2


def test_connections_that_break_before_anything_is_known_are_tried_again() -> None:
    lanes = Lanes(0.2)
    lanes.again()
    assert not lanes.settled
    assert lanes.arrived(0, 4, 16 * MIB) == 2


TRIALS = 3 + 1 + 2 + 4 + 3
"""Parts until it is known: some that are too short, of each number of lanes as many, and those that
were under way."""


@given(size=st.integers(1, 2**45), settle=st.integers(0, TRIALS), wanted=st.sampled_from([1, 2, 4]))
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
    assert count <= 45
