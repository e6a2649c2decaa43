"""``python -m tests.simulation.walks``: many walks of a sender, beside the model, by chance.

A seed and a number of walks are the same walks each time; they go in portions, each with a seed of
its own, and the one that fails is shrunk to a short one::

    python -m tests.simulation.walks --examples 3000            with a seed that is printed
    python -m tests.simulation.walks --seed 7 --examples 3000   those of this seed
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import secrets
import sys
import time
import traceback
from functools import partial

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.simulation.__main__ import ready
from tests.simulation.tus_walker import Senders

__all__ = ["by_chance", "main", "the_same"]

STEPS = 25
PORTION = 50
"""Walks that have a seed together: so many are made again to see one fail once more."""

FIND = (Phase.explicit, Phase.generate)
SHRINK = (*FIND, Phase.shrink)


def the_same(examples: int, phases: tuple[Phase, ...] = SHRINK) -> settings:
    """The same walks in every run, until a rule changes."""
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=True,
        phases=phases,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def by_chance(number: int, examples: int, *, shrink: bool = True) -> str | None:
    """Walks by the chances of a seed; what failed and how, None when nothing did."""
    chances = settings(
        the_same(examples, SHRINK if shrink else FIND),
        derandomize=False,
        database=None,
        print_blob=False,
    )
    try:
        run_state_machine_as_test(seed(number)(Senders), settings=chances)
    except Exception:
        return traceback.format_exc()
    return None


def _portion(shrink: bool, what: tuple[int, int]) -> tuple[int, int, str | None, float]:
    before = time.process_time()
    number, examples = what
    failed = by_chance(number, examples, shrink=shrink)
    return number, examples, failed, time.process_time() - before


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.walks")
    parser.add_argument("--seed", type=int, help="of all chances; another one each time")
    parser.add_argument("--examples", type=int, default=1000, help="how many walks, 1000")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--unshrunk", action="store_true", help="tell what failed as it is")
    options = parser.parse_args(arguments)
    if options.examples < 1 or options.jobs < 1:
        parser.error("--examples and --jobs are 1 at least")
    first = secrets.randbelow(2**31) if options.seed is None else options.seed
    print(f"seed {first}", flush=True)
    ready()
    rng = random.Random(first)
    portions, began, cpu, failed = [], time.perf_counter(), 0.0, 0
    for at in range(0, options.examples, PORTION):
        number = rng.randrange(2**31) if at else first
        portions.append((number, min(PORTION, options.examples - at)))
    with multiprocessing.get_context("fork").Pool(min(options.jobs, len(portions))) as pool:
        walk = partial(_portion, not options.unshrunk)
        for number, examples, why, took in pool.imap_unordered(walk, portions):
            cpu += took
            if why is not None:
                failed += 1
                again = f"python -m tests.simulation.walks --seed {number} --examples {examples}"
                print(f"{why}FAILED; again: {again}", flush=True)
    took = time.perf_counter() - began
    print(
        f"{options.examples} walks of {STEPS} steps in {took:.0f} s, "
        f"{cpu / options.examples:.2f} CPU-seconds each"
    )
    print(f"{failed} of {len(portions)} portions failed" if failed else "nothing failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
