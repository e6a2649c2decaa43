"""A few histories, and what makes them worth something: each is the same every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from tests.simulation.history import Outcome, run
from tests.simulation.plan import Plan, draw
from tests.simulation.shrink import shrink, without
from tests.simulation.taken_apart import unheard
from tests.simulation.timeline import Crash

ROOT = Path(__file__).resolve().parents[2]


def told(seed: int, hash_seed: str) -> str:
    """What a process of its own prints of a history."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation", str(seed)],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_some_histories(tmp_path: Path) -> None:
    """Whatever happens, what must be true is; `make simulate` runs many more."""
    for seed in range(60):
        outcome = run(draw(seed), scratch=tmp_path)
        again = f"again: python -m tests.simulation {seed} --shrink"
        assert outcome.violation is None, f"{outcome.violation}\n{again}"


def test_a_seed_is_a_history() -> None:
    """Bit for bit, whatever the order of sets is, and whatever ran before."""
    for seed in (1, 5, 8):
        assert told(seed, "1") == told(seed, "2")


def test_a_history_on_sqlite(tmp_path: Path) -> None:
    """The ledger of production takes the place of the one in memory."""
    plan = draw(3)
    plan.sqlite = True
    outcome = run(plan, scratch=tmp_path, traced=True)
    assert outcome.violation is None
    assert outcome.states["STORED"]


def test_shrinking() -> None:
    """Of many actions those stay without which the history does not fail."""
    plan = next(plan for plan in map(draw, range(100)) if len(plan.actions) > 5)
    needed = plan.actions[2]

    def violation(some: Plan) -> str | None:
        return "A has 7 too many" if needed in some.actions else None

    assert without(plan, shrink(plan, violation)).actions == [needed]


def test_a_calm_history_stores_everything() -> None:
    """Without faults every video is stored, and both sides say so."""
    seed = next(s for s in range(100) if all(a.kind == "send" for a in draw(s).actions))
    outcome: Outcome = run(draw(seed))
    assert outcome.violation is None
    videos = len(draw(seed).actions)
    assert outcome.states["STORED"] == outcome.entry_moves["SENT -> VERIFIED"] == videos


def test_only_what_a_killed_process_leaves_is_unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else goes wrong where nobody can be told is told all the same."""
    heard: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unheard(lambda what: heard.append(what.exc_value)))

    async def suspended(error: type[BaseException] | None) -> None:
        try:
            await Deferred()
        finally:
            if error is not None:
                raise error
            await Deferred()

    for error in (None, Crash, ZeroDivisionError):
        work = suspended(error)
        work.send(None)
        del work
    assert [type(one) for one in heard] == [ZeroDivisionError]


def test_what_does_not_fail_is_not_shrunk() -> None:
    """Else everything could be left out of it."""
    assert shrink(draw(3), lambda plan: None) == []
