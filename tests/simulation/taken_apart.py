"""What dead processes leave behind, and why nothing is said of it.

A killed process is gone in one moment, with all that it was waiting for. Here its coroutines stay
suspended, and when they are taken apart, Python throws `GeneratorExit` into each. Ours close what
they have open then, and wait for it, as they do when they are cancelled or something fails; there
is nobody to wait for any more. In a daemon that cannot happen: whatever is waited for there comes,
or the process is over.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.simulation.timeline import Crash

__all__ = ["unheard"]

Hook = Callable[["sys.UnraisableHookArgs"], object]


def unheard(heard: Hook) -> Hook:
    """A `sys.unraisablehook` that tells ``heard`` of all but that."""

    def hook(what: sys.UnraisableHookArgs) -> None:
        error = what.exc_value
        waits = isinstance(error, RuntimeError) and "ignored GeneratorExit" in str(error)
        if not waits and not isinstance(error, Crash):
            heard(what)

    return hook
