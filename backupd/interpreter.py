"""How Python's interpreter is set up for a daemon that many wait for."""

from __future__ import annotations

import gc

__all__ = ["settle"]

THRESHOLDS = (10_000, 20, 20)
"""New objects until the collector of garbage looks at them, and how many of these looks until it
looks further back. Next to nothing here is freed by it: there are few cycles."""


def settle() -> None:
    """Never again look for garbage in what is there by now: it is there to stay.

    A look at everything takes 20 to 60 ms, in which the reactor does nothing, and Python takes one
    whenever a quarter more has come; with a million requests in memory it is seconds. What is left
    out is freed all the same when nobody refers to it any more; only cycles in it are not.
    """
    if not gc.get_freeze_count():
        gc.set_threshold(*THRESHOLDS)
        gc.collect()
    gc.freeze()
