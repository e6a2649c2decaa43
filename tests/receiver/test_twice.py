"""Room that is needed twice for a moment is of what nobody was promised."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, succeed

from backupd.errors import StorageFailed
from backupd.interfaces import ILedger, IStorage, Totals
from backupd.receiver.twice import Twice
from tests.receiver.world import ManualOff, now, sync

MOST, LEAST = 100, 10


class Volume:
    """A ledger and a storage: what is promised, and what is free."""

    def __init__(self, *, free: int, promised: int = 0) -> None:
        self.room, self.promised = free, promised
        self.twice = Twice(ledger=cast(ILedger, self), storage=cast(IStorage, self), off=sync)

    def totals(self) -> Deferred[Totals]:
        return succeed(Totals(promised=self.promised, pending=0, active=0, live=0))

    def free(self) -> int:
        return self.room


def lent(volume: Volume, stack: AsyncExitStack) -> Any:
    """How much is lent now, until the stack is closed; or a Deferred that waits for it."""
    return Deferred.fromCoroutine(stack.enter_async_context(volume.twice.lend(MOST, LEAST)))


@pytest.mark.parametrize(
    ("spare", "expected"), [(1000, 100), (100, 100), (99, 90), (10, 10), (9, 10), (-50, 10)]
)
def test_as_much_as_is_free_and_of_no_promise(spare: int, expected: int) -> None:
    volume, stack = Volume(free=500 + spare, promised=500), AsyncExitStack()
    assert now(lent(volume, stack)) == expected
    now(stack.aclose())
    assert volume.twice.taken == 0


def test_nothing_is_lent_to_two() -> None:
    """What one has the others do not have, and admission promises it to nobody."""
    volume = Volume(free=150)
    one, other, third = AsyncExitStack(), AsyncExitStack(), AsyncExitStack()
    assert now(lent(volume, one)) == 100
    assert now(lent(volume, other)) == 50
    assert volume.twice.taken == 150
    now(one.aclose())
    assert volume.twice.taken == 50
    assert now(lent(volume, third)) == 100


def test_it_is_promised_to_nobody_while_the_volume_is_asked() -> None:
    """What was free as it was looked at must not be promised before it is lent."""
    volume, stack, off = Volume(free=50), AsyncExitStack(), ManualOff()
    volume.twice = Twice(ledger=cast(ILedger, volume), storage=cast(IStorage, volume), off=off)
    waiting = lent(volume, stack)
    assert volume.twice.taken == MOST
    off.release()
    assert now(waiting) == volume.twice.taken == 50


def test_the_least_is_lent_to_one_at_a_time() -> None:
    """What is reserved beside one video is enough for one."""
    volume = Volume(free=0)
    one, other = AsyncExitStack(), AsyncExitStack()
    assert now(lent(volume, one)) == LEAST
    waiting = lent(volume, other)
    assert not waiting.called
    now(one.aclose())
    assert now(waiting) == LEAST
    assert volume.twice.taken == 0, "it is of a promise"


def test_a_volume_that_cannot_say_lends_nothing() -> None:
    volume, stack = Volume(free=1000), AsyncExitStack()

    def fails() -> int:
        raise StorageFailed("The volume does not answer.")

    volume.free = fails  # type: ignore[method-assign]
    with pytest.raises(StorageFailed):
        now(lent(volume, stack))
    assert volume.twice.taken == 0
