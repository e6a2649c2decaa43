"""Repair: the sender of a damaged backup is asked to send it again.

To the sender this is an ordinary offer on the link that it gave when it asked; to this server an
ordinary request with an ordinary reservation. Once a whole copy is stored, from there or from
anywhere, the damaged one is deleted; the last copy never is.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import BackupdError, NoSuchRequest
from backupd.interfaces import ILedger, Repair
from backupd.receiver.admission import Admission
from backupd.receiver.keeping import Keeper
from backupd.requests import BackupRequest, Cancelled

__all__ = ["Repairs"]

AT_ONCE = 4
"""Damaged backups that are seen to in one look."""

FIRST = 86400.0
LONGEST = 30 * 86400.0
"""Seconds until the sender is asked once more: doubled from `FIRST` on, up to this."""

MANY = 16
"""Requests beyond which they are no longer counted."""


class Repairs:
    """Looks for damaged backups whose sender is to be told. `tick` is a job of the loop."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        admission: Admission,
        keeper: Keeper,
        clock: IReactorTime,
        nudge: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._admission = admission
        self._keeper = keeper
        self._clock = clock
        self._nudge = nudge

    async def tick(self) -> None:
        """See to the damaged backups that are due."""
        if self._admission.draining:
            return
        for repair in await self._ledger.repairs(now=self._clock.seconds(), limit=AT_ONCE):
            try:
                await self._see_to(repair)
            except BackupdError as error:
                self._log.error(
                    "backup {backup_id} is damaged, and was not seen to: {why}",
                    backup_id=repair.backup.backup_id,
                    why=str(error),
                )

    async def _see_to(self, repair: Repair) -> None:
        backup, tries = repair.backup, repair.tries
        now = self._clock.seconds()
        due_at = now + min(FIRST * 2.0**tries, LONGEST)
        # First of all: whatever fails from here on, it is not tried again at the next tick.
        await self._ledger.put_repair(
            backup.backup_id, request_id=repair.request_id, tries=tries, due_at=due_at
        )
        if await self._keeper.superseded(backup.backup_id):
            return
        last = await self._last(repair)
        if isinstance(last, Cancelled):
            self._log.warn(
                "backup {backup_id} is damaged and is not sent again: {why}",
                backup_id=backup.backup_id,
                why=last.reason,
            )
            await self._ledger.put_repair(
                backup.backup_id, request_id=repair.request_id, tries=tries, due_at=None
            )
            return
        decision = await self._admission.ask(
            peer=backup.peer,
            origin=repair.origin,
            video=backup.video,
            size=backup.size,
            callback=repair.callback,
            file_name=backup.file_name,
            content_type=backup.content_type,
            sha256=backup.sha256,
            fresh=True,
        )
        request = decision.request
        self._log.info(
            "backup {backup_id} is damaged; request {request_id} is to get it again: {why}",
            backup_id=backup.backup_id,
            request_id=request.ask.request_id if request else "-",
            why=decision.message,
        )
        if request is None:
            return
        # One that the sender made itself says nothing about what became of ours.
        ours = request.ask.callback == repair.callback
        await self._ledger.put_repair(
            backup.backup_id,
            request_id=request.ask.request_id if ours else repair.request_id,
            tries=min(tries + 1, MANY),
            due_at=due_at,
        )
        self._nudge()

    async def _last(self, repair: Repair) -> BackupRequest | None:
        """What became of the request that was made last; it may be forgotten already."""
        if repair.request_id is None:
            return None
        try:
            return await self._ledger.request(repair.request_id)
        except NoSuchRequest:
            return None
