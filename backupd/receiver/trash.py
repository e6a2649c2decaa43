"""The trash, locks, and retention: when what is kept is not kept any longer.

Deleting takes a backup off the lists and leaves its files where they are; after ``trash_period``
a sweep removes them. What only adds to what is kept (a lock, coming back from the trash) is first
beside the files and then on the list; what takes away the other way round. So whatever a crash, or
a ledger that is lost, makes of it, too much is kept rather than too little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import BackupdError, Forbidden, Invalid, LedgerFailed, NoRoom, StorageFailed
from backupd.interfaces import Found, ILedger, IStorage, OffThread, Retention
from backupd.receiver.keeping import Keeper
from backupd.receiver.seen_time import SeenTime
from backupd.requests import Backup, locked, trashed, undeleted
from backupd.settings import Settings
from backupd.trust.audit import Note, unheard

__all__ = ["RETENTION", "Rules", "Trash"]

RETENTION = "retention"
"""Who deletes what falls out of retention."""

PAGE = 500
"""Backups that one look for what falls out of retention goes through."""

PASS_EVERY = 3600.0
"""Seconds from the beginning of one walk over all that is kept to the next."""

SWEEP = 100
"""Backups that are removed from the trash in one look."""

AGAIN = 3600.0
"""Seconds until one that could not be removed is tried again."""

MAX_FAILED = 10_000
"""Backups, at most, of which it is known that they could not be removed, or were prolonged."""

SEE_EVERY = 60.0
"""Seconds between two notes of what time it is. Waits that a start sets back stay too long by
what has passed since the last note, and by `service.LITTLE` when nothing is set back.
"""

ODD = 86400.0
"""A clock that is so far ahead of what has been seen to pass is told of."""

LONGEST = 36500 * 86400.0


@dataclass(frozen=True, slots=True)
class Rules:
    """The retention of every peer, as it is now."""

    everybody: Retention
    peers: Mapping[str, Retention] = field(default_factory=dict)

    def of(self, peer: str) -> Retention:
        """What holds for this peer."""
        own = self.peers.get(peer)
        return self.everybody if own is None else own.over(self.everybody)

    @property
    def end(self) -> bool:
        """Whether anything of anybody ever falls out."""
        return self.everybody.ends or any(self.of(peer).ends for peer in self.peers)


class Trash:
    """Deletes, brings back and locks. `sweep` and `look` are jobs of the loop."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        storage: IStorage,
        keeper: Keeper,
        time: SeenTime,
        clock: IReactorTime,
        off: OffThread,
        settings: Settings,
        rules: Callable[[], Rules],
        note: Note = unheard,
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._keeper = keeper
        self._time = time
        self._clock = clock
        self._off = off
        self._period = settings.trash_period
        self._rules = rules
        self._note = note
        self._failed: dict[str, float] = {}
        self._prolonged: dict[str, None] = {}
        self._after = 0
        self._pass_at = self._see_at = float("-inf")
        self._odd = self._stopped = False

    def removed_at(self, backup: Backup) -> float | None:
        """When one in the trash will be removed, at the earliest."""
        return None if backup.deleted_at is None else backup.deleted_at + self._period

    # -- what is asked for ------------------------------------------------------------------------

    async def delete(self, backup_id: str, *, by: str, operator: bool) -> Backup:
        """Into the trash. Raises `Locked`, and `Forbidden` to whoever is not the operator while
        it has to be kept.
        """
        async with self._keeper.places.hold(backup_id):
            backup = await self._keeper.heeded(await self._ledger.backup(backup_id))
            keep = self._rules().of(backup.peer).minimum_keep or 0.0
            if not operator and self._time.now() < backup.stored_at + keep:
                raise Forbidden(
                    "This backup is too young to be deleted by anybody but the operator."
                )
            at, now = self._time.stamp(), self._time.now()
            gone = await self._ledger.change_backup(
                backup_id, lambda one: trashed(one, by=by, at=at, now=now)
            )
            await self._describe(gone)
        self._log.info("backup {backup_id} is in the trash: {by}", backup_id=backup_id, by=by)
        return gone

    async def delete_now(self, backup_id: str, *, by: str) -> Backup:
        """Remove it, with its files. Raises `Locked`."""
        async with self._keeper.places.hold(backup_id):
            at, now = self._time.stamp(), self._time.now()
            await self._keeper.heeded(await self._ledger.backup(backup_id))
            try:
                # Should it not come to its end, it is not listed as if it were whole.
                await self._ledger.change_backup(
                    backup_id, lambda one: trashed(one, by=by, at=at, now=now)
                )
            except LedgerFailed as error:
                # On a full volume there is room for a note once the files are gone.
                self._log.error("{why} The files go all the same.", why=str(error))
            return await self._keeper.remove(await self._ledger.backup(backup_id))

    async def undelete(self, backup_id: str) -> Backup:
        """Out of the trash again; harmless when it is not there."""
        async with self._keeper.places.hold(backup_id):
            backup = await self._ledger.backup(backup_id)
            if backup.deleted_at is None:
                return backup
            return await self._bring_back(backup)

    async def _bring_back(self, backup: Backup) -> Backup:
        await self._off(self._storage.describe, undeleted(backup))
        back = await self._ledger.change_backup(backup.backup_id, undeleted)
        self._log.info("backup {backup_id} is out of the trash", backup_id=backup.backup_id)
        return back

    async def lock(self, backup_id: str, until: float) -> Backup:
        """Nobody deletes it until then. Raises `Locked` when that would be sooner than before."""
        now = self._time.stamp()
        if not now < until <= now + LONGEST:
            raise Invalid("until", "must be in the future, and in the next 100 years")
        async with self._keeper.places.hold(backup_id):
            wanted = locked(await self._ledger.backup(backup_id), until=until)
            await self._off(self._storage.describe, wanted)
            return await self._ledger.change_backup(backup_id, lambda one: locked(one, until=until))

    async def _describe(self, backup: Backup) -> None:
        """Say it beside the files too, if it can be: the list has it."""
        try:
            await self._off(self._storage.describe, backup)
        except (NoRoom, StorageFailed) as error:
            self._log.error(
                "backup {backup_id}: sidecar not written: {why}",
                backup_id=backup.backup_id,
                why=str(error),
            )

    # -- what time does ---------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Remove what has been in the trash for its time, some of it in one go."""
        await self._see()
        now = self._time.now()
        self._failed = {one: at for one, at in self._failed.items() if at > now}
        due = await self._ledger.trash_due(
            before=now - self._period, limit=SWEEP + len(self._failed)
        )
        for backup in due:
            if self._stopped:
                return
            if backup.backup_id in self._failed:
                continue
            try:
                await self._remove(backup.backup_id, now)
            except BackupdError as error:
                if len(self._failed) < MAX_FAILED:
                    self._failed[backup.backup_id] = now + AGAIN
                self._log.error(
                    "backup {backup_id} could not be removed from the trash: {why}",
                    backup_id=backup.backup_id,
                    why=str(error),
                )

    async def _remove(self, backup_id: str, now: float) -> None:
        async with self._keeper.places.hold(backup_id):
            backup = await self._ledger.backup(backup_id)
            if backup.deleted_at is None or backup.deleted_at > now - self._period:
                return
            if backup_id not in self._prolonged and await self._was_out(backup):
                await self._once_more(backup)
                return
            if backup.deleted_by == RETENTION and not await self._ledger.has_version(backup):
                # What made it of no use is gone or damaged since.
                await self._bring_back(backup)
                event, why = "undeleted", "It is the last good version."
            else:
                await self._keeper.remove(backup)
                event, why = "removed", "Its time in the trash was over."
            self._prolonged.pop(backup_id, None)
        self._note(event, peer=backup.peer, what=backup_id, why=why)

    async def _was_out(self, backup: Backup) -> bool:
        """Whether its description says that it came out of the trash, or into it later: the list
        may be one from before that.
        """
        told = await self._off(self._storage.inspect, backup.folder)
        said = [one.backup.deleted_at for one in told if isinstance(one, Found)]
        since = (backup.deleted_at or 0.0) + 1.0
        return any(at is None or at > since for at in said)

    async def _once_more(self, backup: Backup) -> None:
        """In the trash for a whole period from now on; then both say so. On a volume that is so
        full that the description cannot, it is removed after that all the same.
        """
        at = self._time.stamp()
        again = await self._ledger.change_backup(
            backup.backup_id, lambda one: replace(one, deleted_at=at)
        )
        if len(self._prolonged) < MAX_FAILED:
            self._prolonged[backup.backup_id] = None
        self._log.warn(
            "backup {backup_id} is in the trash by the list alone, and stays there for its whole "
            "time once more; `backupctl undelete {backup_id}` keeps it",
            backup_id=backup.backup_id,
        )
        await self._describe(again)

    async def _see(self) -> None:
        """Remember what time it is, and tell of a clock that runs away."""
        latest, behind, own = self._time.latest(), self._time.behind, self._clock.seconds()
        odd, self._odd = self._odd, behind > ODD
        if self._odd and not odd:
            self._log.warn(
                "the clock is {days:.1f} days ahead of the time that has been seen to pass; locks, "
                "trash and retention go by what has been seen, and catch up at twice its pace",
                days=behind / 86400,
            )
        if own >= self._see_at:
            try:
                await self._ledger.see(latest, own)
            except LedgerFailed as error:
                # On a full volume it is what is removed next that makes room for the note.
                self._log.error("what time it is was not noted: {why}", why=str(error))
                return
            self._see_at = own + SEE_EVERY

    async def look(self) -> None:
        """Go through some of what is kept, and put what falls out of retention into the trash."""
        rules, now = self._rules(), self._time.now()
        if not rules.end or (self._after == 0 and now < self._pass_at):
            return
        if self._after == 0:
            self._pass_at = now + PASS_EVERY
        found, after = await self._ledger.outdated(rules.of, now=now, after=self._after, limit=PAGE)
        for backup in found:
            if self._stopped:
                return
            await self._retire(backup, rules.of(backup.peer))
        self._after = after or 0

    async def _retire(self, backup: Backup, rule: Retention) -> None:
        try:
            async with self._keeper.places.hold(backup.backup_id):
                await self._keeper.heeded(await self._ledger.backup(backup.backup_id))
                gone = await self._ledger.retire(
                    backup.backup_id,
                    rule,
                    by=RETENTION,
                    at=self._time.stamp(),
                    now=self._time.now(),
                )
                if gone is None:
                    return
                await self._describe(gone)
        except BackupdError as error:
            # Deleted meanwhile, or a ledger that fails: the next walk comes by again.
            self._log.error("retention: {why}", why=str(error))
            return
        self._log.info(
            "backup {backup_id} of {peer} falls out of retention and is in the trash",
            backup_id=backup.backup_id,
            peer=backup.peer,
        )
        self._note("deleted", peer=backup.peer, what=backup.backup_id, why="retention")

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True
