"""Whose connections wait for their turn: those of an address that has very many.

When a thousand connections of one address have something to say in the same moment, whoever else
comes would be answered after all of them. So of a crowd only a few at a time are listened to; what
the others say waits in the kernel, where it costs nothing.
"""

from __future__ import annotations

from itertools import islice
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["CROWD", "Crowds", "InLine"]

CROWD = 32
"""Connections of one address from which on they are a crowd."""

AT_A_TIME = 2
EVERY = 0.005
"""So many are listened to, and so many seconds later the next: a crowd's requests take half of
the reactor's time at most, and threads find the interpreter's lock free in between."""


class InLine(Protocol):
    """A connection, as far as it matters here."""

    def listen(self) -> None:
        """It is its turn: take what it says."""


class Crowds:
    """All that wait, first come first served."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._waiting: dict[InLine, None] = {}
        self._next: IDelayedCall | None = None

    def wait(self, guest: InLine) -> None:
        """`InLine.listen` is called when it is its turn."""
        self._waiting[guest] = None
        if self._next is None:
            self._next = self._clock.callLater(EVERY, self._turn)

    def leave(self, guest: InLine) -> None:
        """It waits no more. Again is harmless."""
        self._waiting.pop(guest, None)
        if not self._waiting and self._next is not None:
            self._next.cancel()
            self._next = None

    def _turn(self) -> None:
        self._next = None
        for guest in list(islice(self._waiting, AT_A_TIME)):
            del self._waiting[guest]
            guest.listen()
        if self._waiting:
            self._next = self._clock.callLater(EVERY, self._turn)
