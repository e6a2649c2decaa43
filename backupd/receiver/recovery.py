"""Recovery: what a crash left behind, put right before anything else is done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import NoRoom, NoSuchBackup, StorageFailed
from backupd.interfaces import Damaged, ILedger, IStorage, OffThread, Upload
from backupd.receiver.gone import begin_again
from backupd.receiver.keeping import Keeper
from backupd.requests import Backup, Storing

__all__ = ["Rebuilt", "list_found", "rebuild", "recover"]

_log = Logger()


async def recover(
    *, ledger: ILedger, storage: IStorage, keeper: Keeper, off: OffThread, clock: IReactorTime
) -> None:
    """Make ledger and volume agree again.

    Uploads fall back to their durable offset; bytes that no upload owns are removed; uploads
    whose bytes are gone are forgotten; what stood in STORING goes on to its end.
    """
    on_disk = await off(storage.uploads)
    uploads = {one.upload_id: one for one in await ledger.uploads(None)}
    later: set[str] = set()
    for final in [one for one in uploads.values() if one.parts and one.offset == 0]:
        try:
            await _recover_joining(ledger, storage, off, final, uploads, on_disk)
        except (NoRoom, StorageFailed) as error:
            # Joining does the same when it goes on; until then these two are not what they seem.
            later.update((final.upload_id, final.parts[0]))
            _log.error(
                "upload {upload_id} is joined later: {why}",
                upload_id=final.upload_id,
                why=str(error),
            )
    gone: set[str] = set()
    for upload in uploads.values():
        if upload.upload_id not in gone | later:
            allocated = on_disk.get(upload.upload_id)
            gone.update(await _recover_upload(ledger, upload, allocated, clock.seconds()))
    known = {one.upload_id for one in uploads.values() if one.offset > 0} - gone
    for upload_id in [one for one in on_disk if one not in known | later]:
        _log.info("removing unfinished upload {upload_id}", upload_id=upload_id)
        try:
            await off(storage.discard, upload_id)
        except (NoRoom, StorageFailed) as error:
            # It only takes room; the next start tries again.
            _log.error(
                "unfinished upload {upload_id} could not be removed: {why}",
                upload_id=upload_id,
                why=str(error),
            )
    for request in await ledger.in_progress():
        if isinstance(request, Storing):
            _log.info("request {request_id} goes on to STORED", request_id=request.ask.request_id)
            try:
                await keeper.roll_forward(request.ask.request_id)
            except (NoRoom, StorageFailed) as error:
                # Every sweep tries again; the other requests need not wait for it.
                _log.error(
                    "request {request_id} could not be stored: {why}",
                    request_id=request.ask.request_id,
                    why=str(error),
                )


async def _recover_joining(
    ledger: ILedger,
    storage: IStorage,
    off: OffThread,
    final: Upload,
    uploads: dict[str, Upload],
    on_disk: dict[str, int],
) -> None:
    """Where the first part's file has become the whole's, and the ledger did not learn of it."""
    first = uploads.get(final.parts[0])
    if first is None or first.upload_id in on_disk or final.upload_id not in on_disk:
        return
    begun = replace(final, offset=first.offset, allocated=first.offset)
    await off(storage.rename, first.upload_id, final.upload_id)
    await ledger.change(final.request_id, lambda r: r, put=begun, drop=[first.upload_id])
    uploads[final.upload_id] = begun
    del uploads[first.upload_id]


async def _recover_upload(
    ledger: ILedger, upload: Upload, allocated: int | None, now: float
) -> list[str]:
    """The ids of the uploads that had to be forgotten."""
    request = await ledger.request(upload.request_id)
    if isinstance(request, Storing):
        return []
    if upload.offset == 0:
        # Its client may know it, and begin; nothing of it was ever durable.
        if upload.allocated:
            put = replace(upload, allocated=0)
            await ledger.change(upload.request_id, lambda r: r, put=put)
    elif allocated is None:
        return await begin_again(ledger, upload, now)
    else:
        # The rest of the last block is nobody's part of a reservation: counted here, several
        # uploads that fit it exactly would not fit any more.
        whole = request.ask.size if upload.length is None else upload.length
        allocated = min(allocated, max(whole, upload.offset))
        if allocated != upload.allocated:
            put = replace(upload, allocated=allocated)
            await ledger.change(upload.request_id, lambda r: r, put=put)
    return []


class Rebuilt:
    """What `rebuild` found: backups new to the ledger, known ones, and damaged places."""

    def __init__(self) -> None:
        self.added = 0
        self.known = 0
        self.damaged: list[Damaged] = []
        self.more_damaged = 0


async def rebuild(
    *, ledger: ILedger, storage: IStorage, off: OffThread, now: Callable[[], float]
) -> Rebuilt:
    """Put every backup that lies under the root on the ledger's list, from its sidecar.

    Nothing is deleted or changed on the disk; what is damaged is reported. A backup that is
    rebuilt counts as not verified until `Keeper.verify` has read it. One from the trash lies there
    for its whole time again: nobody may have known of it.
    """
    result = Rebuilt()
    found = await off(storage.walk)
    while (one := await off(next, found, None)) is not None:
        if isinstance(one, Damaged):
            if len(result.damaged) < 1000:
                result.damaged.append(one)
            else:
                result.more_damaged += 1
            continue
        new = await list_found(one.backup, ledger=ledger, storage=storage, off=off, now=now)
        if new is None:
            result.known += 1
        elif new:
            result.added += 1
    return result


async def list_found(
    found: Backup, *, ledger: ILedger, storage: IStorage, off: OffThread, now: Callable[[], float]
) -> bool | None:
    """List a backup that was found on the disk; None if it is listed, False if it is gone again."""
    deleted_at = None if found.deleted_at is None else now()
    if not await ledger.list_backup(replace(found, verified_at=None, deleted_at=deleted_at)):
        return None
    if await _is_there(storage, off, found):
        return True
    # Deleted since it was found: it must not come back to the list.
    with suppress(NoSuchBackup):
        await ledger.drop_backup(found.backup_id)
    return False


async def _is_there(storage: IStorage, off: OffThread, backup: Backup) -> bool:
    try:
        await off(lambda: storage.open(backup).close())
    except StorageFailed:
        return False
    return True
