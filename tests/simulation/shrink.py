"""From a history that fails to a short one that fails in the same way."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from tests.simulation.plan import Plan

__all__ = ["kind_of", "shrink", "without"]


def without(plan: Plan, left_out: list[int]) -> Plan:
    """The plan without some of its actions, by their number."""
    kept = [action for number, action in enumerate(plan.actions) if number not in left_out]
    return replace(plan, actions=kept)


def kind_of(violation: str | None) -> str:
    """What a violation is, without the names and numbers in it."""
    first = (violation or "").strip().splitlines()[:1]
    return re.sub(r"[0-9a-f]{16}|\b[A-C](\.\d+)?\b|\d+", "#", first[0] if first else "")


def shrink(plan: Plan, violation: Callable[[Plan], str | None]) -> list[int]:
    """Numbers of actions that can be left out, so many that no further one can.

    None of a history that does not fail.
    """
    found = violation(plan)
    if found is None:
        return []
    wanted = kind_of(found)
    left_out: list[int] = []
    again = True
    while again:
        again = False
        for number in range(len(plan.actions)):
            if number in left_out:
                continue
            if kind_of(violation(without(plan, [*left_out, number]))) == wanted:
                left_out.append(number)
                again = True
    return sorted(left_out)
