"""What time ends: leases that ran out, requests that nobody came for, steps left half-way."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import BackupdError
from backupd.interfaces import ILedger
from backupd.receiver.intake import Intake
from backupd.receiver.keeping import Keeper
from backupd.requests import Live, Offered, Receiving, Storing, expired
from backupd.settings import Settings

__all__ = ["Expiry"]

AT_ONCE = 100
PURGE_EVERY = 3600.0


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

    async def sweep(self) -> None:
        """End what is overdue, some at a time; one that fails does not keep the others."""
        now = self._clock.seconds()
        for request in await self._ledger.overdue(now=now, limit=AT_ONCE):
            try:
                await self._end(request, now)
            except BackupdError as error:
                self._log.error(
                    "request {request_id} is overdue and could not be ended: {why}",
                    request_id=request.ask.request_id,
                    why=str(error),
                )
            except Exception:
                self._log.failure(
                    "request {request_id} is overdue and could not be ended: a defect",
                    request_id=request.ask.request_id,
                )
        if now - self._purged_at >= PURGE_EVERY:
            gone = await self._ledger.purge(before=now - self._settings.history, limit=10_000)
            if gone < 10_000:
                self._purged_at = now

    async def _end(self, request: Live, now: float) -> None:
        request_id = request.ask.request_id
        if isinstance(request, Storing):
            await self._keeper.roll_forward(request_id)
        elif request.expires_at is not None and request.expires_at <= now:
            await self._intake.end(request_id, lambda r: expired(r, now=now))
        elif isinstance(request, Offered | Receiving):
            await self._intake.lapse(request_id)
