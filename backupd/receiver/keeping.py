"""Keeping: from a whole upload to a backup under its final name, and what follows in its life."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import (
    AlreadyStored,
    BytesGone,
    DigestMismatch,
    Incomplete,
    NoRoom,
    Over,
    StorageFailed,
)
from backupd.interfaces import Found, ILedger, IStorage, IStored, OffThread, Upload
from backupd.receiver.intake import Intake
from backupd.receiver.seen_time import SeenTime
from backupd.requests import (
    Backup,
    BackupRequest,
    Cancelled,
    Expired,
    Failed,
    Offered,
    Pending,
    Received,
    Receiving,
    Stored,
    Storing,
    abandoned,
    deletable,
    ended,
    rejected,
    stored,
    storing,
)
from backupd.settings import Settings
from backupd.storage.names import file_name
from backupd.trust.audit import Note, unheard
from backupd.waiting import KeyedLocks

__all__ = ["Keeper", "Pace", "Progress"]

READ = 4 * 1024 * 1024
"""Bytes that a verification reads at a time."""


@dataclass(slots=True)
class Progress:
    """How far a verification has come, in bytes; ``hurried`` once somebody waits for it."""

    read: int
    size: int
    hurried: bool = False


class Pace(Protocol):
    """Called after every piece that was read; returns when the next may be. May raise."""

    async def __call__(self, progress: Progress, count: int) -> None: ...


class Keeper:
    """Stores what was received, verifies it later, and deletes it when asked to."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        storage: IStorage,
        intake: Intake,
        clock: IReactorTime,
        off: OffThread,
        settings: Settings,
        new_id: Callable[[], str],
        time: SeenTime,
        note: Note = unheard,
    ) -> None:
        self._note = note
        self._ledger = ledger
        self._storage = storage
        self._intake = intake
        self._clock = clock
        self._off = off
        self._settings = settings
        self._new_id = new_id
        self._time = time
        self.places = KeyedLocks()
        """Held by whoever changes what is said of a kept backup, or removes it, by its id."""
        self.verifying: dict[str, Progress] = {}
        self.bytes_verified = 0

    # -- complete-backup --------------------------------------------------------------------------

    async def give_up(self, request_id: str) -> None:
        """The sender says ``success: false``: FAILED, and the room is free. Again is harmless."""
        request = await self._ledger.request(request_id)
        if isinstance(request, Failed):
            return
        if isinstance(request, Stored):
            raise AlreadyStored("The backup is stored already; nothing was deleted.")
        if isinstance(request, Storing):
            raise AlreadyStored("The backup is being stored, as was asked; nothing was deleted.")
        now = self._clock.seconds()
        reason = "The sender gave it up."

        def step(current: BackupRequest) -> BackupRequest:
            if isinstance(current, Failed):
                return current
            return ended(current, Failed, reason=reason, now=now)

        await self._intake.end(request_id, step)

    async def complete(
        self, request_id: str, *, size: int | None = None, sha256: str | None = None
    ) -> Backup:
        """The sender says that this is it. Returns once the backup is stored for good.

        Raises `Incomplete` while bytes are missing, `DigestMismatch` when ``size`` or ``sha256``
        disagree with what arrived, `Over` when the request has ended otherwise, or its bytes have
        been taken away before they were stored.
        """
        async with self._intake.locks.hold(request_id):
            request = await self._ledger.request(request_id)
            if isinstance(request, Stored):
                return await self._ledger.backup(request.backup_id)
            if isinstance(request, Expired | Cancelled | Failed):
                raise Over(f"The backup request has ended: {request.reason}")
            if isinstance(request, Storing):
                return await self._to_the_end(request)
            # A connection that died beside the whole one does not keep its sender waiting.
            await self._intake.transfers.end_silent(self._intake.transfers.of(request_id))
            upload = await self._whole(request, size)
            await self._agree(request, upload, size, sha256)
            await self._there(request, upload)
            return await self._to_the_end(await self._name(request, upload))

    async def _whole(self, request: BackupRequest, size: int | None) -> Upload:
        """The newest whole upload; or the newest one, when its sender knows its size.

        A part is none: it is waited for by the upload that joins it.
        """
        uploads = await self._ledger.uploads(request.ask.request_id)
        whole = [upload for upload in uploads if upload.sha256 is not None]
        under_way = self._intake.transfers.under_way(request.ask.request_id)
        if whole and under_way is None:
            return whole[-1]
        own = [upload for upload in uploads if not upload.partial]
        newest = own[-1] if own else None
        unsaid = newest is not None and newest.length is None and under_way is None
        if newest is not None and unsaid and 0 < newest.offset == size:
            return await self._intake.conclude(newest)
        arrived = await self._intake.arrived(request.ask.request_id)
        raise Incomplete(arrived, newest.length if newest else None)

    async def _there(self, request: BackupRequest, upload: Upload) -> None:
        """Raises `Incomplete`, the request back in line, when the bytes are gone from the disk.

        A disk that only fails to say is another matter: they stay, and it is tried again.
        """

        def look() -> bool:
            handle = self._storage.reopen(upload.upload_id)
            try:
                return len(handle.read(upload.offset - 1, 1)) == 1
            finally:
                handle.close()

        try:
            there = await self._off(look)
        except BytesGone as error:
            self._log.error("upload {upload_id}: {why}", upload_id=upload.upload_id, why=str(error))
            there = False
        if not there:
            why = "The bytes that had arrived are gone from the disk."
            await self._reject(request, upload, why)
            raise Incomplete(0, upload.length)

    async def _agree(
        self, request: BackupRequest, upload: Upload, size: int | None, sha256: str | None
    ) -> None:
        wrong = ""
        if size is not None and size != upload.offset:
            wrong = f"{upload.offset} bytes arrived; the sender speaks of {size}."
        elif sha256 is not None and sha256.lower() != upload.sha256:
            wrong = f"The bytes have SHA-256 {upload.sha256}; the sender speaks of {sha256}."
        elif request.ask.sha256 not in (None, upload.sha256):
            wrong = f"The bytes have SHA-256 {upload.sha256}, asked was {request.ask.sha256}."
        if wrong:
            await self._reject(request, upload, wrong)
            raise DigestMismatch(wrong)

    async def _reject(self, request: BackupRequest, upload: Upload, why: str) -> None:
        """Back in line, or FAILED after too many tries; all bytes go."""
        now, request_id = self._clock.seconds(), request.ask.request_id
        back = await self._as_received(request, upload)
        drop = [one.upload_id for one in await self._ledger.uploads(request_id)]
        await self._ledger.change(
            request_id, lambda r: rejected(back(r), why=why, now=now), drop=drop
        )
        await self._intake.discard(drop)

    async def _as_received(
        self, request: BackupRequest, upload: Upload
    ) -> Callable[[BackupRequest], BackupRequest]:
        """A step that makes a request that went on after its whole upload RECEIVED by it again."""
        expires_at = self._clock.seconds() + self._settings.upload_expiry

        def step(current: BackupRequest) -> BackupRequest:
            if not isinstance(current, Pending | Offered | Receiving):
                return current
            return Received(
                ask=current.ask,
                upload_id=upload.upload_id,
                size=upload.offset,
                sha256=upload.sha256 or "",
                expires_at=expires_at,
                tries=current.tries,
            )

        return step

    async def _name(self, request: BackupRequest, upload: Upload) -> Storing:
        """Commit the final name; from here on it only goes forward."""
        ask, backup_id = request.ask, self._new_id()
        given = ask.file_name or upload.file_name
        content_type = ask.content_type or upload.content_type
        name = given or file_name(None, ask.video, content_type)
        folder, safe = self._storage.place(ask.peer, ask.video, backup_id, name)
        now = self._clock.seconds()
        stored_at = self._time.stamp()
        backup = Backup(
            backup_id=backup_id,
            request_id=ask.request_id,
            peer=ask.peer,
            video=ask.video,
            file_name=name,
            content_type=content_type,
            size=upload.offset,
            sha256=upload.sha256 or "",
            stored_at=stored_at,
            verified_at=now,
            folder=folder,
            name=safe,
        )
        back = await self._as_received(request, upload)
        changed = await self._ledger.change(
            ask.request_id,
            lambda r: storing(_by(back(r), upload), backup=backup),
            # What the upload occupies beyond its size is freed next: unmark it first.
            put=replace(upload, allocated=upload.offset, changed_at=now),
        )
        if not isinstance(changed, Storing):
            raise AlreadyStored("The backup is stored already.")
        return changed

    async def _to_the_end(self, request: Storing) -> Backup:
        """Finish it; FAILED when there is nothing left that could be stored."""
        try:
            return await self._finish(request)
        except BytesGone as error:
            reason = f"It could not be stored: {error}"
            await self._abandon(request, reason, self._clock.seconds())
            raise Over(f"The backup request has ended: {reason}") from error

    async def _finish(self, request: Storing) -> Backup:
        request_id, backup = request.ask.request_id, request.backup
        others = await self._ledger.uploads(request_id)
        await self._off(self._storage.keep, request.upload_id, backup)
        now = self._clock.seconds()
        await self._ledger.change(request_id, lambda r: stored(r, now=now))
        self._log.info(
            "request {request_id} stored as backup {backup_id}: {folder}/{name}, {size} bytes",
            request_id=request_id,
            backup_id=backup.backup_id,
            folder=backup.folder,
            name=backup.name,
            size=backup.size,
            sha256=backup.sha256,
        )
        for upload in others:
            if upload.upload_id != request.upload_id:
                await self._intake.discard([upload.upload_id])
        return backup

    async def keep_direct(self, request_id: str) -> Backup | None:
        """Store a direct upload that is RECEIVED; None when it is not, or not any more."""
        request = await self._ledger.request(request_id)
        if not request.ask.direct or not isinstance(request, Received | Storing | Stored):
            return None
        return await self.complete(request_id)

    async def roll_forward(self, request_id: str) -> None:
        """Bring a request that stands in STORING to its end, wherever it was left.

        One whose bytes cannot be kept is FAILED once its time is up, like any other, and at once
        when they are gone; but not before what is left of it can be removed.
        """
        async with self._intake.locks.hold(request_id):
            request = await self._ledger.request(request_id)
            if not isinstance(request, Storing):
                return
            try:
                await self._finish(request)
            except (NoRoom, StorageFailed) as error:
                now = self._clock.seconds()
                over = request.expires_at is not None and request.expires_at <= now
                if not over and not isinstance(error, BytesGone):
                    raise
                await self._abandon(request, f"It could not be stored: {error}", now)

    async def _abandon(self, request: Storing, reason: str, now: float) -> None:
        """FAILED, and nothing of it stays on the disk or reserved."""
        request_id = request.ask.request_id
        uploads = await self._ledger.uploads(request_id)
        # First: what had its name already, and cannot be removed yet, nobody else would look for.
        await self._off(self._storage.remove, request.backup)
        await self._ledger.change(request_id, lambda r: abandoned(r, reason=reason, now=now))
        self._log.error("request {request_id} is FAILED: {why}", request_id=request_id, why=reason)
        for upload in uploads:
            await self._intake.discard([upload.upload_id])

    # -- what is kept -----------------------------------------------------------------------------

    async def verify(self, backup_id: str, pace: Pace | None = None) -> Backup:
        """Read every byte again; the backup with its new ``verified_at`` or ``problem``.

        One that is being read already is not read twice: it is told as it stands, and what is
        left of it is read as fast as can be, unless this one has a ``pace`` too.
        """
        backup = await self._ledger.backup(backup_id)
        under_way = self.verifying.get(backup_id)
        if under_way is not None:
            under_way.hurried |= pace is None
            return backup
        progress = self.verifying[backup_id] = Progress(0, backup.size, hurried=pace is None)
        try:
            problem = await self._check(backup, progress, pace)
            if problem is not None:
                # A bit that turned over in memory on its way here is no damage on the disk.
                progress.read = 0
                problem = await self._check(backup, progress, pace)
            # Only then is it over: whoever waits for it looks on the list next.
            async with self.places.hold(backup_id):
                return await self._record(backup_id, problem)
        finally:
            del self.verifying[backup_id]

    async def _record(self, backup_id: str, problem: str | None) -> Backup:
        """Note on the list and beside the file what a verification found."""
        now = self._clock.seconds()
        await self.heeded(await self._ledger.backup(backup_id))
        checked = await self._ledger.verified(backup_id, problem=problem, now=now)
        if problem is not None:
            self._log.error(
                "backup {backup_id} is damaged: {problem}", backup_id=backup_id, problem=problem
            )
        try:
            await self._off(self._storage.describe, checked)
        except (NoRoom, StorageFailed) as error:
            # The list has it; where the whole folder is gone there is nowhere to write it down.
            self._log.error(
                "backup {backup_id}: sidecar not written: {why}",
                backup_id=backup_id,
                why=str(error),
            )
        return checked

    async def _check(self, backup: Backup, progress: Progress, pace: Pace | None) -> str | None:
        """What is wrong with the stored bytes, None when nothing is."""
        hasher = hashlib.sha256()

        def begin() -> IStored:
            opened: IStored = self._storage.open(backup)
            # What the memory still has of it says nothing about the disk.
            opened.forget(0, 0)
            return opened

        try:
            stored_bytes = await self._off(begin)
        except StorageFailed as error:
            return str(error)

        def read_on() -> int:
            data = stored_bytes.read(progress.read, READ)
            hasher.update(data)
            return len(data)

        try:
            while count := await self._off(read_on):
                progress.read += count
                self.bytes_verified += count
                if pace is not None:
                    await pace(progress, count)
        except StorageFailed as error:
            return str(error)
        finally:
            await self._off(stored_bytes.close)
        if progress.read != backup.size:
            return f"The file has {progress.read} bytes instead of {backup.size}."
        if hasher.hexdigest() != backup.sha256:
            return f"The file has SHA-256 {hasher.hexdigest()} instead of {backup.sha256}."
        return None

    async def delete(self, backup_id: str) -> Backup:
        """Remove a kept backup. Raises `Locked`."""
        async with self.places.hold(backup_id):
            return await self.remove(await self._ledger.backup(backup_id))

    async def remove(self, backup: Backup) -> Backup:
        """Remove one whose place is held: first its files, so that nothing unlisted is left
        behind. Raises `Locked`.
        """
        deletable(await self.heeded(backup), now=self._time.now())
        await self._off(self._storage.remove, backup)
        await self._ledger.drop_backup(backup.backup_id)
        self._log.info(
            "backup {backup_id} deleted: {folder}",
            backup_id=backup.backup_id,
            folder=backup.folder,
        )
        return backup

    async def heeded(self, backup: Backup) -> Backup:
        """One whose place is held, with the lock that only its description knows: the list may be
        an older one, and must not write that lock away.
        """
        told = await self._off(self._storage.inspect, backup.folder)
        until = max(
            (one.backup.locked_until or 0.0 for one in told if isinstance(one, Found)), default=0.0
        )
        if until <= (backup.locked_until or 0.0):
            return backup
        return await self._ledger.change_backup(
            backup.backup_id, lambda now: replace(now, locked_until=until)
        )

    async def superseded(self, backup_id: str) -> bool:
        """Delete a damaged backup if another copy of its bytes is whole; whether one is.

        The other copy cannot be deleted meanwhile, nor this one be found to be well again. One
        that is locked stays, damaged as it is.
        """
        damaged = await self._ledger.backup(backup_id)
        copy = await self._ledger.copy_of(damaged)
        if copy is None:
            return False
        async with self.places.hold(copy.backup_id), self.places.hold(backup_id):
            damaged = await self._ledger.backup(backup_id)
            copy = await self._ledger.backup(copy.backup_id)
            if damaged.problem is None or copy.problem is not None or copy.deleted_at is not None:
                return False
            if damaged.locked_until is not None and self._time.now() < damaged.locked_until:
                return True
            self._log.info(
                "backup {backup_id}, which is damaged, gives way to {copy_id}",
                backup_id=backup_id,
                copy_id=copy.backup_id,
            )
            await self.remove(damaged)
        self._note("removed", peer=damaged.peer, what=backup_id, why="damaged; another is whole")
        return True


def _by(request: BackupRequest, upload: Upload) -> BackupRequest:
    """RECEIVED by this upload, the newest whole one."""
    if isinstance(request, Received) and request.upload_id != upload.upload_id:
        return replace(
            request, upload_id=upload.upload_id, size=upload.offset, sha256=upload.sha256 or ""
        )
    return request
