"""What a few histories have beyond the others, each drawn by a chance of its own: so the others
stay the histories that they were.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.plan import Plan

__all__ = ["in_parts"]

LEAST = (4096, 16_384, 65_536)
"""Bytes of a part at least, where files go in several."""


def in_parts(plan: Plan, rng: random.Random) -> None:
    """Parts that are as small as the videos, where the way is long enough to be worth it."""
    least = rng.choice(LEAST)
    plan.knobs |= {
        "LEAST": least,
        "TRIAL": least * rng.choice((1, 4)),
        "LARGER": rng.choice((2, 4)),
        "ROUNDS": rng.choice((0, 0, 10)),
        "STRIDE": rng.choice((4096, 16_384)),
    }
