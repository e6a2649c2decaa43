"""How slow a client may be before it is let go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IReactorTime

from backupd.unsent import unsent
from backupd.web.body import Body

__all__ = ["PATIENT", "BodyRate", "Patience", "TakeRate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """``head``: seconds for a whole head, from its first byte. ``min_rate``: bytes that a body
    brings, and a restore takes, in a second on the average of ``over`` seconds; 0 is no such rule.
    """

    head: float = 20.0
    min_rate: int = 1024
    over: float = 60.0

    @property
    def least(self) -> float:
        """Bytes within ``over`` seconds."""
        return self.min_rate * self.over


PATIENT = Patience()


class BodyRate:
    """Looks now and then whether a body comes in fast enough.

    Only the time counts in which we take what comes: a client that is made to wait, because the
    disk is slow or its bandwidth is limited, is not slow itself.
    """

    def __init__(
        self,
        body: Body,
        patience: Patience,
        clock: IReactorTime,
        too_slow: Callable[[], None],
    ) -> None:
        self._body = body
        self._patience = patience
        self._clock = clock
        self._too_slow = too_slow
        self._before = body.received
        self._stood = 0.0
        self._since: float | None = None
        self._look = clock.callLater(patience.over, self._check)

    def stand_still(self) -> None:
        """Its time stands still."""
        self._since = self._clock.seconds()

    def go_on(self) -> None:
        """Its time runs on."""
        if self._since is not None:
            self._stood += self._clock.seconds() - self._since
            self._since = None

    def end(self) -> None:
        """Nothing is looked at any more."""
        if self._look.active():
            self._look.cancel()

    def _check(self) -> None:
        if self._since is not None:
            self.go_on()
            self.stand_still()
        stood, self._stood = self._stood, 0.0
        if stood:
            self._look = self._clock.callLater(max(1.0, stood), self._check)
            return
        came = self._body.received - self._before
        if came < self._patience.least:
            self._too_slow()
            return
        self._before += came
        self._look = self._clock.callLater(self._patience.over, self._check)


class TakeRate:
    """Looks whether a client takes at least ``least`` bytes of an answer in ``over`` seconds.

    What it takes is what leaves the transport's buffer and the kernel's: a block that was written
    at once may be longer than what it has to take in that time.
    """

    def __init__(
        self,
        transport: Any,
        clock: IReactorTime,
        *,
        over: float,
        least: float,
        too_slow: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._over = over
        self._least = least
        self._too_slow = too_slow
        self._passed = 0
        self._before = unsent(transport)
        self._clock = clock
        self._look = clock.callLater(over, self._check)

    def passed(self, count: int) -> None:
        """So many bytes went past the transport's buffer, straight to the kernel."""
        self._passed += count
        if self._passed >= self._least:
            self._begin_anew()
            self._look.reset(self._over)

    def end(self) -> None:
        """Nothing is looked at any more."""
        if self._look.active():
            self._look.cancel()

    def _begin_anew(self) -> None:
        self._passed, self._before = 0, unsent(self._transport)

    def _check(self) -> None:
        if self._before + self._passed - unsent(self._transport) < self._least:
            self._too_slow()
        else:
            self._begin_anew()
            self._look = self._clock.callLater(self._over, self._check)
