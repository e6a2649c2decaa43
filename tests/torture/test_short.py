"""Short forms of the torture, for every run of the tests."""

from __future__ import annotations

import random

from tests.torture import kills, long
from tests.torture.clients import Client, Direct, Ours, Raw, ThroughLink
from tests.torture.nuisances import Leaves, Refuses, Small, Takes, Trashed, Versions
from tests.torture.videos import MIB


def told(line: str) -> None:
    """Shown when the test fails."""
    print(line)


def test_ten_kills() -> None:
    """Nothing acknowledged is lost, nothing stays reserved, and all is stored in the end.

    With this seed both stand still for a moment besides, and both are asked to stop.
    """
    crowd: tuple[type[Client], ...] = (Ours, ThroughLink, Direct, Raw)
    lines: list[str] = []

    def heard(line: str) -> None:
        told(line)
        lines.append(line)

    kills.run(
        random.Random(231),
        heard,
        10,
        crowd,
        lambda chance: chance.randrange(1, 6 * MIB),
        (0.3, 1.0),
    )
    for name in ("SIGKILL", "SIGSTOP", "SIGTERM"):
        for victim in ("receiver", "sender"):
            assert any(f"{name} to the {victim} " in line for line in lines)


def test_a_minute_of_everything() -> None:
    """What two daemons take does not grow with what they have done."""
    crowd: tuple[type[Client], ...] = (
        *(Ours, ThroughLink, Direct, Raw, Trashed, Versions, Small, Small),
        *(Leaves, Takes, Refuses),
    )
    long.run(
        random.Random(1),
        told,
        1.0,
        clients=crowd,
        # Many and small: it is their number that shows what is lost with each.
        size=lambda chance: chance.randrange(1, 20_000),
        rest=0.0,
        restarts=(0.1, 0.2),
        # Memory of many threads is spread over fewer places, and what is left is what is held.
        environment={"MALLOC_ARENA_MAX": "1"},
    )
