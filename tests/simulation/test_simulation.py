"""A few histories, and what makes them worth something: each is the same every time."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from tests.simulation.__main__ import ENOUGH, Figures
from tests.simulation.coverage import ENTRY_MOVES, MOVES, STATES
from tests.simulation.history import Outcome, run
from tests.simulation.plan import Action, Plan, draw
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


def test_a_seed_is_a_history(tmp_path: Path) -> None:
    """Bit for bit, whatever the order of sets is, and whatever ran before; on SQLite (22) and in
    a crowd (46) too.
    """
    run(draw(3), scratch=tmp_path)
    for seed in (1, 5, 8, 22, 46):
        alone = told(seed, "1")
        assert told(seed, "2") == alone
        outcome = run(draw(seed), scratch=tmp_path, traced=True)
        assert f"digest {outcome.digest}\n" in alone


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


def calm(*, least: int = 0) -> Plan:
    """A history in which videos of ``least`` bytes or more are sent, and nothing else happens."""
    return next(
        plan
        for plan in map(draw, range(100))
        if all(one.kind == "send" for one in plan.actions)
        and all(video.size >= least for video in plan.videos)
    )


def taking(plan: Plan, *, whole: bool, late: float = 0.0) -> Plan:
    """The plan, in which the file of the first upload is taken away, ``late`` after it is there."""
    what = {"machine": plan.actions[0].what["to"], "whole": whole, "late": late, "lasts": 60.0}
    plan.actions.insert(0, Action(0.0, "take", what))
    return plan


def test_a_calm_history_stores_everything() -> None:
    """Without faults every video is stored, and both sides say so."""
    plan = calm()
    outcome: Outcome = run(plan)
    assert outcome.violation is None
    videos = len(plan.actions)
    assert outcome.states["STORED"] == outcome.entry_moves["SENT -> VERIFIED"] == videos


def test_what_is_taken_away_is_sent_again() -> None:
    """A sender that believes that all of it is there is told that it is not, and begins anew."""
    plan = taking(calm(), whole=True)
    outcome = run(plan)
    assert outcome.violation is None
    assert outcome.faults["files taken"] == outcome.entry_moves["SENT -> READY"] == 1
    assert outcome.moves["RECEIVED -> PENDING"] == 1
    videos = len(plan.actions) - 1
    assert outcome.states["STORED"] == outcome.entry_moves["SENT -> VERIFIED"] == videos


def long_way(plan: Plan) -> Plan:
    """The plan, with a way that is long enough for videos to go in parts of 4096 bytes."""
    plan.weather["delay"] = (0.05, 0.6)
    plan.knobs |= {"WORTH": 8192, "LEAST": 4096, "TRIAL": 4096, "LARGER": 2, "ROUNDS": 0}
    return plan


def test_a_video_goes_in_several_parts() -> None:
    """Parts that are sent at the same time are joined in their order, and are the whole."""
    plan = long_way(calm(least=20_000))
    outcome = run(plan)
    assert outcome.violation is None
    assert outcome.done["joined of parts"] == outcome.states["STORED"] == len(plan.actions)


def test_a_part_that_is_taken_away_is_sent_again() -> None:
    """Parts one of which is gone are not tried to be joined until their request expires."""
    plan = taking(long_way(calm(least=20_000)), whole=False, late=10.0)
    for settings in plan.machines.values():
        settings["upload_expiry"] = 86400.0
    outcome = run(plan, traced=True)
    assert outcome.violation is None
    assert outcome.faults["files taken"] == 1
    assert any(re.search(r"one of [2-9], the file is taken", line) for line in outcome.trace)
    assert any("is gone from the disk" in line for line in outcome.trace)
    assert outcome.done["joined of parts"] >= outcome.states["STORED"] == len(plan.actions) - 1


@pytest.mark.parametrize("by", ["scrub", "operator"])
def test_what_rots_is_found_and_sent_again(by: str) -> None:
    """A byte that changes on the disk is found by the scrub, or by an operator who has it read;
    the sender is asked for it once more, and what it has sent takes the place of the damaged one.
    """
    plan = calm()
    send = plan.actions[0]
    to, video = send.what["to"], plan.videos[send.what["video"]]
    plan.machines[to]["scrub_period"] = 900.0 if by == "scrub" else 0.0
    what = {"machine": to, "owner": video.machine, "name": video.name, "late": 1.0, "lasts": 60.0}
    what["verify"] = None if by == "scrub" else 5.0
    plan.capacity[to] += video.size + 49_152
    plan.actions.append(Action(0.0, "rot", what))
    outcome = run(plan)
    assert outcome.violation is None
    assert outcome.faults["rot"] == outcome.entry_moves["VERIFIED -> READY"] == 1
    assert outcome.moves["kept -> gone"] == 1
    assert outcome.states["STORED"] == len(plan.actions)


def test_only_faults_that_happened_are_counted() -> None:
    """Who is down cannot be killed; and what is no fault is counted apart from those."""
    plan = calm()
    sends = len(plan.actions)
    for at in (0.1, 0.2):
        plan.actions.append(Action(at, "kill", {"machine": "A", "lasts": 5.0}))
    for kind, what in (("calls", "crash_at_call"), ("commits", "crash_at_commit")):
        never = {"machine": "A", kind: 100_000, "lasts": 1.0, "after": False}
        plan.actions.append(Action(0.3, what, never))
    outcome = run(plan)
    assert outcome.violation is None
    assert +outcome.faults == {"kill": 1}
    assert outcome.done["send"] == sends


def test_calls_that_failed_are_counted_by_function_and_error() -> None:
    """Which of them failed is told, and which never did."""
    plan = calm()
    machine = plan.actions[0].what["to"]
    fault = {"machine": machine, "errno": errno.EIO, "skip": 0, "lasts": 60.0}
    for function, count in (("fdatasync", 1), ("statvfs", 2)):
        action = Action(0.0, "disk_fault", fault | {"function": function, "count": count})
        plan.actions.insert(0, action)
    outcome = run(plan)
    assert outcome.violation is None
    assert outcome.failed_calls == {"fdatasync EIO": 1, "statvfs EIO": 2}
    figures = Figures()
    for seed in (1, 2):
        figures.add(seed, outcome)
    lines = list(figures.lines(1.0, 1.0))
    assert "failed calls: fdatasync EIO 2, statvfs EIO 4" in lines
    [never] = [one for one in lines if one.startswith("calls that never failed: ")]
    assert "fdatasync ENOSPC" in never
    assert "fdatasync EIO" not in never


def test_what_was_not_seen_is_told() -> None:
    """Many histories that have missed something are not well, though none failed."""
    seen = Figures(
        histories=ENOUGH,
        states=Counter(STATES),
        moves=Counter(MOVES),
        entry_moves=Counter(ENTRY_MOVES),
    )
    assert seen.wrong() is None
    del seen.entry_moves["SENT -> READY"]
    assert "1 states and moves were not seen" in str(seen.wrong())
    assert "moves of entries: 16 of 17; not seen: SENT -> READY" in list(seen.lines(1.0, 1.0))
    assert seen.wrong(stopped=True) is None
    seen.histories = ENOUGH - 1
    assert seen.wrong() is None
    seen.moves["STORED -> PENDING"] += 1
    assert "must not be: STORED -> PENDING" in str(seen.wrong())
    seen.failed.append((7, "A has 7 too many"))
    assert seen.wrong(stopped=True) == "1 failed"


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
