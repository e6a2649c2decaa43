"""What time ends: leases that ran out, requests that nobody came for, steps left half-way."""

from __future__ import annotations

import functools

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import BackupdError
from backupd.interfaces import ILedger
from backupd.receiver.intake import Intake
from backupd.receiver.keeping import Keeper
from backupd.requests import Live, Offered, Received, Receiving, Storing, expired
from backupd.settings import Settings
from backupd.waiting import go_on, shielded

__all__ = ["Expiry"]

LOOK = 100
AT_ONCE = 8
"""Requests that are being ended at the same time: those whose disk is slow hold up no others."""

PURGE_EVERY = 3600.0
"""Seconds between two looks for what need not be remembered, or ``history`` if that is shorter."""


class Expiry:
    """Looks, at every tick, for what is overdue, and ends it."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        intake: Intake,
        keeper: Keeper,
        clock: IReactorTime,
        settings: Settings,
    ) -> None:
        self._ledger = ledger
        self._intake = intake
        self._keeper = keeper
        self._clock = clock
        self._settings = settings
        self._purged_at = float("-inf")
        self._line: dict[str, Live] = {}
        self._ending: dict[str, Deferred[None]] = {}
        self._failed: set[str] = set()
        self._stopped = False

    async def sweep(self) -> None:
        """Start to end what is overdue, a few at once; returns without waiting for it.

        One that fails, or takes long, does not keep the others.
        """
        now = self._clock.seconds()
        shielded(self._intake.discard_left())
        if (await self._ledger.totals()).live:  # this costs no look into the database
            await self._look(now)
        every = min(PURGE_EVERY, self._settings.history)
        if now - self._purged_at >= every and not self._stopped:
            gone = await self._ledger.purge(before=now - self._settings.history, limit=10_000)
            if gone < 10_000:
                self._purged_at = now

    async def _look(self, now: float) -> None:
        known = {*self._line, *self._ending}
        # As many more as may be passed over, or those could hide the others for ever.
        limit = LOOK + len(known) + len(self._failed) + len(self._intake.locks)
        overdue: list[Live] = await self._ledger.overdue(now=now, limit=limit)
        overdue += await self._ledger.given_up(now=now, limit=limit)
        overdue += await self._ledger.unkept(limit=limit)
        self._failed &= {request.ask.request_id for request in overdue}
        # Those that could not be ended before come last.
        for request in sorted(overdue, key=lambda one: one.ask.request_id in self._failed):
            request_id = request.ask.request_id
            if request_id not in known and not self._stopped:
                self._line.setdefault(request_id, request)
        self._go_on()

    def _go_on(self) -> None:
        while self._line and len(self._ending) < AT_ONCE:
            request_id, request = next(iter(self._line.items()))
            del self._line[request_id]
            if isinstance(request, Storing | Received) and request_id in self._intake.locks:
                continue  # whoever stores it right now brings it to its end
            work = go_on(self._careful(request))
            if not work.called:
                self._ending[request_id] = work
                work.addBoth(self._ended, request_id)

    def _ended(self, _: object, request_id: str) -> None:
        del self._ending[request_id]
        self._go_on()

    async def _careful(self, request: Live) -> None:
        request_id = request.ask.request_id
        try:
            await self._end(request, self._clock.seconds())
            self._failed.discard(request_id)
            return
        except BackupdError as error:
            self._log.error(
                "request {request_id} is overdue and could not be ended: {why}",
                request_id=request_id,
                why=str(error),
            )
        except Exception:
            self._log.failure(
                "request {request_id} is overdue and could not be ended: a defect",
                request_id=request_id,
            )
        self._failed.add(request_id)

    async def _end(self, request: Live, now: float) -> None:
        request_id, until = request.ask.request_id, request.expires_at
        if isinstance(request, Storing):
            await self._keeper.roll_forward(request_id)
        elif until is not None and until <= now:
            if isinstance(request, Offered | Receiving) and self._intake.transfers.of(request_id):
                # Bytes that have come and are not durable yet give it new time.
                await self._intake.lapse(request_id)
            lease, expiry = self._settings.offer_lease, self._settings.upload_expiry
            step = functools.partial(expired, now=now, line_until=until, lease=lease, expiry=expiry)
            await self._intake.end(request_id, step)
        elif isinstance(request, Received):
            await self._keeper.keep_direct(request_id)
        elif isinstance(request, Offered | Receiving):
            await self._intake.lapse(request_id)

    async def stop(self) -> None:
        """Begin nothing more, and return once what has begun has ended."""
        self._stopped = True
        self._line.clear()
        for work in list(self._ending.values()):
            waiter: Deferred[None] = Deferred()
            work.addBoth(_tell, waiter)
            await waiter


def _tell(result: object, waiter: Deferred[None]) -> object:
    waiter.callback(None)
    return result
