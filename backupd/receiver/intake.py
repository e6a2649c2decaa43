"""Intake: the bytes of a video, from a source at an offset to a durable, verified upload.

Nothing here is cancelled when a client leaves: what arrived is made durable first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import AlreadyStored, OffsetMismatch, ShuttingDown, TooLarge, UploadHeld
from backupd.interfaces import ILedger, IStorage, IUpload, OffThread, Source, Upload
from backupd.receiver.queue import Queue
from backupd.receiver.transfer import Digests, Outcome, Transfer, digest_of
from backupd.requests import (
    BackupRequest,
    Live,
    Offered,
    Pending,
    Received,
    Receiving,
    Storing,
    lapsed,
    live,
    progressed,
    receiving,
    taken,
)
from backupd.settings import Settings
from backupd.waiting import KeyedLocks

__all__ = ["Intake"]

SILENCE = 5.0
"""Seconds without a byte after which a newer upload may end an older one."""


class _Begun:
    """A source whose first piece has been read already (`interfaces.Source`)."""

    def __init__(self, first: bytes, rest: Source) -> None:
        self._first: bytes | None = first
        self._rest = rest

    def read(self) -> Deferred[bytes]:
        first, self._first = self._first, None
        return self._rest.read() if first is None else succeed(first)

    def abort(self) -> None:
        self._rest.abort()

    def silent_for(self) -> float:
        return self._rest.silent_for()


def _in_the_way(uploads: Sequence[Upload], spare: int) -> list[str]:
    """Uploads that must go so that the others take at most ``spare`` bytes.

    Unfinished ones go first, the oldest of them first.
    """
    sizes = {one.upload_id: max(one.allocated, one.offset) for one in uploads}
    occupied = sum(sizes.values())
    drop: list[str] = []
    for upload in sorted(uploads, key=lambda upload: upload.sha256 is not None):
        if occupied <= spare:
            break
        drop.append(upload.upload_id)
        occupied -= sizes[upload.upload_id]
    return drop


class Intake:
    """Receives uploads, one at a time for each request."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        storage: IStorage,
        queue: Callable[[], Queue],
        clock: IReactorTime,
        off: OffThread,
        settings: Settings,
        new_id: Callable[[], str],
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._queue = queue
        self._clock = clock
        self._off = off
        self._settings = settings
        self._new_id = new_id
        self.locks = KeyedLocks()
        self._transfers: dict[str, Transfer] = {}
        self._digests = Digests()
        self._stopping = self._given_up = False
        self._receiving = 0
        self._quiet: list[Deferred[None]] = []

    # -- what stands ------------------------------------------------------------------------------

    def under_way(self, request_id: str) -> int | None:
        """Bytes that a running transfer has taken so far, None when none runs."""
        transfer = self._transfers.get(request_id)
        return None if transfer is None else transfer.received

    async def newest(self, request_id: str) -> Upload | None:
        """The newest upload of a request, whole or not."""
        uploads = await self._ledger.uploads(request_id)
        return uploads[-1] if uploads else None

    # -- beginning --------------------------------------------------------------------------------

    async def announce(self, request_id: str) -> Live:
        """ "I am starting": OFFERED becomes RECEIVING before any byte is there."""
        async with self.locks.hold(request_id):
            request = live(await self._ledger.request(request_id), "received")
            if isinstance(request, Receiving | Received | Storing):
                return request
            async with self._turn(request):
                return await self._to_receiving(request, put=None)

    @asynccontextmanager
    async def _turn(self, request: Live) -> AsyncIterator[None]:
        """Hold a turn until the ledger says that the request has one. Raises `NotYourTurn`.

        Also for a request that has one: its lease may run out meanwhile.
        """
        await self._queue().take_turn(request)
        try:
            yield
        finally:
            self._queue().give_back(request.ask.request_id)

    async def _to_receiving(self, request: Live, *, put: Upload | None) -> Live:
        """Become RECEIVING, with a new lease, in one step with the upload; needs a turn."""
        ask, now, settings = request.ask, self._clock.seconds(), self._settings

        def step(current: BackupRequest) -> BackupRequest:
            if isinstance(current, Pending):
                current = taken(
                    current,
                    lease_until=now + settings.offer_lease,
                    expires_at=now + settings.upload_expiry,
                )
            return receiving(current, lease_until=now + settings.offer_lease)

        return live(await self._ledger.change(ask.request_id, step, put=put), "received")

    async def _make_way(self, request_id: str) -> None:
        """End a transfer that is dead or silent; raises `UploadHeld` when it is alive."""
        transfer = self._transfers.get(request_id)
        if transfer is None:
            return
        if not transfer.ending:
            if transfer.source.silent_for() < SILENCE:
                raise UploadHeld("Another upload for this request is alive.", retry_after=SILENCE)
            transfer.abort()
        await self._wait_for(transfer)

    async def _wait_for(self, transfer: Transfer) -> None:
        waiter: Deferred[None] = Deferred()
        transfer.done.addCallback(lambda _: waiter.callback(None))
        await waiter

    # -- receiving --------------------------------------------------------------------------------

    async def receive(
        self,
        request_id: str,
        source: Source,
        *,
        length: int | None,
        offset: int | None = None,
        total: int | None = None,
        digests: Mapping[str, bytes] | None = None,
        file_name: Callable[[], str | None] = lambda: None,
        content_type: str | None = None,
    ) -> Outcome | Upload:
        """Take the bytes of ``source`` as an upload of this request.

        ``length`` is what this body is announced to have, None when unknown. ``offset`` None
        starts a new upload; else the newest one goes on there, or `OffsetMismatch` tells where
        it stands; ``total`` then is what the whole is announced to have. ``digests``
        (``sha-256`` to 32 bytes) must agree with the whole. Returns the `Outcome` once every
        byte is durable and the ledger knows, or the `Upload` as it stands when a resumed upload
        is not whole yet. Raises before the first byte is read where it can.
        """
        self._receiving += 1
        try:
            transfer = await self._begin(request_id, source, length, offset, total)
            return await transfer.run(digests or {}, file_name, content_type)
        finally:
            self._receiving -= 1
            if not self._receiving:
                quiet, self._quiet = self._quiet, []
                for waiter in quiet:
                    waiter.callback(None)

    async def _begin(
        self,
        request_id: str,
        source: Source,
        length: int | None,
        offset: int | None,
        total: int | None,
    ) -> Transfer:
        async with self.locks.hold(request_id):
            if self._stopping:
                raise ShuttingDown("This server is stopping; go on when it is back.", 5.0)
            request = await self._ready(request_id)
            newest = await self.newest(request_id)
            if offset is None:
                source, upload, handle = await self._start(request, source, length)
            elif offset == 0 and newest is None:
                if length is not None and total is not None and length > total:
                    raise TooLarge(f"{length} bytes are more than the {total} announced.", total)
                source, upload, handle = await self._start(request, source, total)
            else:
                upload, handle = await self._resume(request, newest, offset, length, total)
            transfer = self._transfers[request_id] = Transfer(
                ledger=self._ledger,
                storage=self._storage,
                off=self._off,
                clock=self._clock,
                settings=self._settings,
                remembered=self._digests,
                source=source,
                upload=upload,
                handle=handle,
                limit=request.ask.size if upload.length is None else upload.length,
                fresh=offset is None,
            )
            transfer.done.addBoth(self._let_go, request_id)
            if self._given_up:
                transfer.abort()
            return transfer

    def _let_go(self, _: object, request_id: str) -> None:
        del self._transfers[request_id]

    async def _ready(self, request_id: str) -> Live:
        await self._make_way(request_id)
        request = live(await self._ledger.request(request_id), "received")
        if isinstance(request, Storing):
            raise AlreadyStored("The backup is being stored; nothing can be added to it.")
        return request

    async def _start(
        self, request: Live, source: Source, length: int | None
    ) -> tuple[Source, Upload, IUpload]:
        """A new upload, its room allocated, and the request RECEIVING."""
        ask, now = request.ask, self._clock.seconds()
        want = ask.size if length is None else length
        if want > ask.size:
            raise TooLarge(
                f"{want} bytes are more than the {ask.size} that were reserved.", ask.size
            )
        async with self._turn(request):
            uploads = await self._ledger.uploads(ask.request_id)
            drop = _in_the_way(uploads, ask.size - want)
            if any(one.sha256 is not None for one in uploads if one.upload_id in drop):
                # What was acknowledged as whole gives way to bytes, not to the mere intention.
                source = _Begun(await source.read(), source)
            if drop:
                await self._ledger.change(ask.request_id, self._without(drop), drop=drop)
                await self._discard(drop)
            upload_id = self._new_id()
            try:
                handle, occupied = await self._off(self._create, upload_id, want)
                upload = Upload(
                    upload_id=upload_id,
                    request_id=ask.request_id,
                    length=length,
                    allocated=min(want, occupied),
                    created_at=now,
                    changed_at=now,
                )
                try:
                    await self._to_receiving(request, put=upload)
                except BaseException:
                    await self._off(handle.close)
                    raise
            except BaseException:
                await self._discard([upload_id])
                raise
        return source, upload, handle

    def _without(self, drop: list[str]) -> Callable[[BackupRequest], BackupRequest]:
        """RECEIVED without its bytes is RECEIVING again; else nothing changes."""
        lease = self._clock.seconds() + self._settings.offer_lease

        def step(request: BackupRequest) -> BackupRequest:
            if isinstance(request, Received) and request.upload_id in drop:
                return receiving(request, lease_until=lease)
            return request

        return step

    def _create(self, upload_id: str, size: int) -> tuple[IUpload, int]:
        """A new upload with room for ``size`` bytes, and the bytes that it now occupies."""
        handle = self._storage.create(upload_id)
        try:
            handle.allocate(size)
            return handle, handle.occupied()
        except BaseException:
            handle.close()
            raise

    async def _resume(
        self,
        request: Live,
        upload: Upload | None,
        offset: int,
        length: int | None,
        total: int | None,
    ) -> tuple[Upload, IUpload]:
        if upload is None or upload.sha256 is not None or upload.offset != offset:
            raise OffsetMismatch(upload.offset if upload is not None else 0)
        limit = request.ask.size if upload.length is None else upload.length
        if upload.length is None and total is not None:
            if total > limit or total < offset:
                raise TooLarge(f"{total} bytes are not what can follow {offset}.", limit)
            upload, limit = replace(upload, length=total), total
        if length is not None and offset + length > limit:
            raise TooLarge(f"{offset + length} bytes are more than the {limit} announced.", limit)
        async with self._turn(request):
            await self._to_receiving(request, put=upload)
        return upload, await self._off(self._storage.reopen, upload.upload_id)

    async def conclude(self, upload: Upload) -> Upload:
        """An upload of unknown length is whole as it stands: its sender says so.

        The caller holds the request's lock. Raises `StorageFailed` when its bytes are gone.
        """
        handle = await self._off(self._storage.reopen, upload.upload_id)
        try:
            hasher = await digest_of(upload, handle, self._digests, self._off)
        finally:
            await self._off(handle.close)
        return replace(
            upload,
            length=upload.offset,
            sha256=hasher.hexdigest(),
            changed_at=self._clock.seconds(),
        )

    async def _discard(self, upload_ids: list[str]) -> None:
        for upload_id in upload_ids:
            await self._off(self._storage.discard, upload_id)

    # -- ending -----------------------------------------------------------------------------------

    async def end(
        self, request_id: str, step: Callable[[BackupRequest], BackupRequest]
    ) -> BackupRequest:
        """Apply a step that may end the request: its transfer stops, its bytes go after it."""
        async with self.locks.hold(request_id):
            before = step(await self._ledger.request(request_id))
            if isinstance(before, Pending | Offered | Receiving | Received | Storing):
                return await self._ledger.change(request_id, step)
            transfer = self._transfers.get(request_id)
            if transfer is not None:
                transfer.abort()
                await self._wait_for(transfer)
            uploads = [upload.upload_id for upload in await self._ledger.uploads(request_id)]
            changed = await self._ledger.change(request_id, step)
            if isinstance(changed, Pending | Offered | Receiving | Received | Storing):
                # What arrived last has given it new time; its bytes are needed.
                return changed
            self._log.info(
                "request {request_id} is {state}",
                request_id=request_id,
                state=type(changed).__name__.upper(),
                reason=getattr(changed, "reason", None),
            )
            await self._discard(uploads)
            return changed

    async def lapse(self, request_id: str) -> None:
        """Give the turn of a request whose lease ran out to another, keeping what arrived.

        An upload whose sender was not silent for that long keeps it: nothing may have become
        durable yet, as while a kept prefix is read again.
        """
        async with self.locks.hold(request_id):
            now, settings = self._clock.seconds(), self._settings
            transfer = self._transfers.get(request_id)
            silent = 0.0
            if transfer is not None:
                silent = 0.0 if transfer.ending else transfer.source.silent_for()
                if silent >= settings.offer_lease:
                    transfer.abort()
                    await self._wait_for(transfer)

            def step(request: BackupRequest) -> BackupRequest:
                if transfer is None:
                    return lapsed(request, now=now)
                if silent >= settings.offer_lease:
                    # Making its last bytes durable has given it a new lease: not for long.
                    if isinstance(request, Receiving):
                        request = replace(request, lease_until=now)
                    return lapsed(request, now=now)
                return progressed(
                    request,
                    lease_until=now - silent + settings.offer_lease,
                    expires_at=now - silent + settings.upload_expiry,
                )

            changed = await self._ledger.change(request_id, step)
            if isinstance(changed, Pending):
                self._log.info(
                    "request {request_id}: its turn ran out, back in line", request_id=request_id
                )

    async def stop(self, grace: float) -> None:
        """Let uploads finish for ``grace`` seconds, then checkpoint and end those that go on."""
        self._stopping = True

        def give_up() -> None:
            self._given_up = True
            for transfer in list(self._transfers.values()):
                transfer.abort()

        if self._receiving:
            deadline = self._clock.callLater(grace, give_up)
            waiter: Deferred[None] = Deferred()
            self._quiet.append(waiter)
            await waiter
            if deadline.active():
                deadline.cancel()
