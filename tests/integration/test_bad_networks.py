"""A bad network between two daemons, in network namespaces and through proxies.

What must hold is in `tests.torture.network`, which tries more of it.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.torture.network import check_half_open, check_proxies, check_weather


def test_a_connection_that_is_dead_on_one_side_holds_no_turn(tmp_path: Path) -> None:
    check_half_open(tmp_path, random.Random(4), print)


def test_loss_a_cut_wire_and_another_address(tmp_path: Path) -> None:
    """Every video arrives, whole, once; restored, it is what was sent."""
    check_weather(tmp_path, random.Random(4), print, ["loss", "cut", "address"], videos=2)


def test_a_door_that_cuts_before_a_long_link(tmp_path: Path) -> None:
    check_proxies(tmp_path, random.Random(4), print, cuts=3)
