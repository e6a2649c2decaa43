"""How long to wait before trying again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backupd.peer.backoff import backoff


class Fixed:
    """Chance that always says the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


def test_it_doubles_up_to_the_cap() -> None:
    waits = [backoff(n, first=1, cap=60, rng=Fixed(0)) for n in range(1, 9)]
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


@given(
    attempt=st.integers(-5, 10**12),
    first=st.floats(0.001, 1000),
    cap=st.floats(0.001, 1e6),
    chance=st.floats(0, 1, exclude_max=True),
)
def test_it_never_exceeds_the_cap_by_more_than_a_tenth(
    attempt: int, first: float, cap: float, chance: float
) -> None:
    wait = backoff(attempt, first=first, cap=cap, rng=Fixed(chance))
    assert min(first, cap) <= wait <= cap * 1.1
