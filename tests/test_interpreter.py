"""The interpreter of a daemon: what is there to stay is not looked through again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from backupd import interpreter


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


class _Loop:
    """Only the collector of garbage can free it."""

    def __init__(self) -> None:
        self.itself = self


def test_left_alone() -> None:
    """What is there when the daemon is ready is no more among what the collector looks at."""
    kept = _Loop()
    interpreter.settle()
    assert gc.get_freeze_count() > 1000
    assert not any(one is kept for one in gc.get_objects())


def test_garbage_goes_first() -> None:
    """What nobody refers to by then is freed before, not kept for ever."""
    gone = id(_Loop())
    interpreter.settle()
    gc.unfreeze()
    assert not any(type(one) is _Loop and id(one) == gone for one in gc.get_objects())


def test_again_costs_nothing() -> None:
    """More of what is to stay is left alone too, without a look at everything."""
    interpreter.settle()
    before = gc.get_stats()[2]["collections"]
    more = _Loop()
    interpreter.settle()
    assert gc.get_stats()[2]["collections"] == before
    assert not any(one is more for one in gc.get_objects())


def test_new_garbage_is_found() -> None:
    """What comes later is collected as ever."""
    interpreter.settle()
    _Loop()
    assert gc.collect() >= 1
