"""How long to wait before trying again."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Chance", "backoff"]


class Chance(Protocol):
    """The part of `random.Random` that is needed."""

    def random(self) -> float: ...


def backoff(attempt: int, *, first: float, cap: float, rng: Chance) -> float:
    """Seconds to wait after ``attempt`` failures in a row, from 1 on.

    It doubles from ``first`` to ``cap``; up to a tenth of it is added by chance, so that those
    who failed together do not come back together.
    """
    doublings = min(max(attempt, 1) - 1, 60)
    return min(cap, first * 2.0**doublings) * (1 + rng.random() / 10)
