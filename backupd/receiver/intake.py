"""Intake: the bytes of a video, from a source at an offset to a durable, verified upload.

Nothing here is cancelled when a client leaves: what arrived is made durable first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import (
    AlreadyStored,
    Busy,
    NoSuchUpload,
    OffsetMismatch,
    ShuttingDown,
    TooLarge,
    UploadHeld,
)
from backupd.interfaces import ILedger, IStorage, IUpload, OffThread, Source, Upload
from backupd.receiver.digests import Check, Digests, digest_of
from backupd.receiver.joining import Joining
from backupd.receiver.queue import Queue
from backupd.receiver.room import Begun, in_the_way, occupied
from backupd.receiver.transfer import Outcome, Transfer
from backupd.requests import (
    BackupRequest,
    Live,
    Pending,
    Received,
    Receiving,
    Stored,
    Storing,
    lapsed,
    live,
    progressed,
    receiving,
    taken,
    wanted,
)
from backupd.settings import Settings
from backupd.waiting import KeyedLocks

__all__ = ["Intake"]

X = TypeVar("X", Transfer, Joining)

SILENCE = 5.0
"""Seconds without a byte after which a newer upload may end an older one."""

PATIENCE = 30.0
"""Seconds that a direct upload waits for its turn before it is told to come back."""

AT_ONCE = 16
"""Uploads that may be under way for one turn at the same time."""


class Intake:
    """Receives uploads; each has one sender at a time."""

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
        self._transfers: dict[str, Transfer | Joining] = {}
        self._digests = Digests()
        self._stopping = self._given_up = False
        self._receiving = 0
        self._quiet: list[Deferred[None]] = []
        self.released = 0

    # -- what stands ------------------------------------------------------------------------------

    def _running(self, request_id: str) -> list[Transfer | Joining]:
        return [one for one in self._transfers.values() if one.ask.request_id == request_id]

    def under_way(self, request_id: str) -> int | None:
        """Bytes that the running transfers have taken so far, None when none runs."""
        running = self._running(request_id)
        return sum(one.received for one in running) if running else None

    async def newest(self, request_id: str) -> Upload | None:
        """The newest upload of a request that can be stored by itself, whole or not."""
        uploads = await self._ledger.uploads(request_id)
        own = [upload for upload in uploads if not upload.partial and not upload.parts]
        return own[-1] if own else None

    async def arrived(self, request_id: str) -> int:
        """Bytes that have come for a request, as far as they are known."""
        uploads = await self._ledger.uploads(request_id)
        count = {
            one.upload_id: transfer.received
            if (transfer := self._transfers.get(one.upload_id))
            else one.offset
            for one in uploads
        }
        wholes = [count[one.upload_id] for one in uploads if not one.partial and not one.parts]
        # What is joined was a part before.
        parts = sum(count[one.upload_id] for one in uploads if one.partial or one.parts)
        return max(parts, wholes[-1] if wholes else 0)

    # -- beginning --------------------------------------------------------------------------------

    async def announce(self, request_id: str) -> Live:
        """ "I am starting": OFFERED becomes RECEIVING before any byte is there."""
        async with self.locks.hold(request_id):
            request = live(await self._ledger.request(request_id), "received")
            if isinstance(request, Receiving | Received | Storing):
                return request
            async with self._turn(request):
                return await self._to_receiving(request, put=None)

    async def _come(self, request_id: str) -> None:
        """Wait for the turn of a direct upload, whose client is here and need not be called."""
        request = await self._ledger.request(request_id)
        if isinstance(request, Pending) and request.ask.direct:
            now = self._clock.seconds()
            comes = self._queue().turn_of(request_id, PATIENCE)
            await self._ledger.change(request_id, lambda r: wanted(r, now=now))
            self._queue().offer_again(request)
            await comes

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

    async def make_way(self, transfers: Sequence[Transfer | Joining]) -> None:
        """End transfers that are dead or silent; raises `UploadHeld` when one is alive."""
        for transfer in transfers:
            if not transfer.ending:
                if transfer.silent_for() < SILENCE:
                    raise UploadHeld(
                        "Another upload for this request is alive.", retry_after=SILENCE
                    )
                transfer.abort()
            await self.end_of(transfer)

    async def make_way_for(self, upload_id: str) -> None:
        """End whatever sends this upload, if it is dead; raises `UploadHeld` if it is alive."""
        transfer = self._transfers.get(upload_id)
        if transfer is not None:
            await self.make_way([transfer])

    async def make_way_if_silent(self, upload_id: str) -> None:
        """Whoever asks where an upload stands may go on with it: end one that is dead."""
        transfer = self._transfers.get(upload_id)
        if transfer is not None and (transfer.ending or transfer.silent_for() >= SILENCE):
            await self.make_way([transfer])

    async def end_of(self, transfer: Transfer | Joining) -> None:
        """Wait until a transfer has let go."""
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
        upload_id: str | None = None,
        offset: int | None = None,
        total: int | None = None,
        digests: Mapping[str, bytes] | None = None,
        file_name: Callable[[], str | None] = lambda: None,
        content_type: str | None = None,
        check: Check | None = None,
    ) -> Outcome | Upload:
        """Take the bytes of ``source`` as an upload of this request.

        ``length`` is what this body is announced to have, None when unknown. ``offset`` None
        starts a new upload; else the one of ``upload_id``, or the newest, goes on there, or
        `OffsetMismatch` tells where it stands; ``total`` then is what the whole is announced to
        have. ``digests`` (``sha-256`` to 32 bytes) must agree with the whole, ``check`` with this
        body. Returns the `Outcome` once every byte is durable and the ledger knows, or the
        `Upload` as it stands when a resumed upload is not whole yet, or a part. Raises before the
        first byte is read where it can.
        """
        with self._counted():
            await self._come(request_id)
            transfer = await self._begin(request_id, source, length, upload_id, offset, total)
            return await transfer.run(digests or {}, file_name, content_type, check)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._receiving += 1
        try:
            yield
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
        upload_id: str | None,
        offset: int | None,
        total: int | None,
    ) -> Transfer:
        async with self.locks.hold(request_id):
            self._check_stopping()
            uploads = await self._ledger.uploads(request_id)
            upload = None
            if upload_id is not None:
                upload = next((one for one in uploads if one.upload_id == upload_id), None)
                if upload is None:
                    raise NoSuchUpload("This upload was ended.")
            elif offset is not None:
                upload = await self.newest(request_id)
            held = self._running(request_id)
            if upload is not None:
                held = [one for one in held if one is self._transfers.get(upload.upload_id)]
            await self.make_way(held)
            request = live(await self._ledger.request(request_id), "received")
            if isinstance(request, Storing):
                raise AlreadyStored("The backup is being stored; nothing can be added to it.")
            self._check_number(request)
            uploads = await self._ledger.uploads(request_id)
            upload, room = self._placed(request, uploads, upload, length, offset, total)
            async with self._turn(request):
                if upload.offset == 0:
                    source, upload, handle = await self._start(request, source, upload, room)
                else:
                    await self._to_receiving(request, put=upload)
                    handle = await self._off(self._storage.reopen, upload.upload_id)
            return self._register(
                Transfer(
                    ledger=self._ledger,
                    storage=self._storage,
                    off=self._off,
                    clock=self._clock,
                    settings=self._settings,
                    remembered=self._digests,
                    source=source,
                    ask=request.ask,
                    upload=upload,
                    handle=handle,
                    limit=room,
                    fresh=offset is None,
                ),
                upload.upload_id,
            )

    def _check_stopping(self) -> None:
        if self._stopping:
            raise ShuttingDown("This server is stopping; go on when it is back.", 5.0)

    def _check_number(self, request: Live) -> None:
        turn = request.ask.turn
        if sum(one.ask.turn == turn for one in self._transfers.values()) >= AT_ONCE:
            raise Busy(f"{AT_ONCE} uploads are under way already; end one first.", 5.0)

    def _register(self, transfer: X, upload_id: str) -> X:
        self._transfers[upload_id] = transfer

        def let_go(_: object) -> None:
            del self._transfers[upload_id]

        transfer.done.addBoth(let_go)
        if self._given_up:
            transfer.abort()
        return transfer

    def _placed(
        self,
        request: Live,
        uploads: Sequence[Upload],
        upload: Upload | None,
        length: int | None,
        offset: int | None,
        total: int | None,
    ) -> tuple[Upload, int]:
        """The upload that a body belongs to, a new one if need be, and how long it may become.

        Raises `OffsetMismatch` and `TooLarge`.
        """
        size, now = request.ask.size, self._clock.seconds()
        if offset is not None:
            if upload is not None:
                # What was on its way when it was looked up has arrived meanwhile.
                known = {one.upload_id: one for one in uploads}
                if upload.upload_id not in known:
                    raise NoSuchUpload("This upload was ended.")
                upload = known[upload.upload_id]
            stands = 0 if upload is None else upload.offset
            if stands != offset:
                raise OffsetMismatch(stands)
            if upload is not None and upload.whole:
                raise TooLarge("Every byte is here already; nothing can follow.", stands)
        if upload is None or offset is None:
            announced = length if offset is None else total
            upload = Upload(
                upload_id=self._new_id(),
                request_id=request.ask.request_id,
                length=announced,
                created_at=now,
                changed_at=now,
            )
        elif upload.length is None and total is not None:
            if total < upload.offset:
                raise TooLarge(f"{total} bytes are not what can follow {upload.offset}.", size)
            upload = replace(upload, length=total)
        most = size if upload.length is None else upload.length
        if most > size:
            raise TooLarge(f"{most} bytes are more than the {size} that were reserved.", size)
        if length is not None and upload.offset + length > most:
            raise TooLarge(
                f"{upload.offset + length} bytes are more than the {most} announced.", most
            )
        return upload, most

    async def _start(
        self, request: Live, source: Source, upload: Upload, want: int
    ) -> tuple[Source, Upload, IUpload]:
        """The file of an upload, its room allocated, and the request RECEIVING."""
        ask, upload_id = request.ask, upload.upload_id
        uploads = [
            one for one in await self._ledger.uploads(ask.request_id) if one.upload_id != upload_id
        ]
        if upload.length is None:
            # Beside others that are being sent, it may have what they leave.
            busy = [one for one in uploads if one.upload_id in self._transfers]
            want = min(want, ask.size - occupied(busy))
        drop = in_the_way(uploads, ask.size - want, self._transfers) if want > 0 else None
        if drop is None:
            raise UploadHeld("Other uploads on this link take the room; end one first.", SILENCE)
        if any(one.sha256 is not None for one in uploads if one.upload_id in drop):
            # What was acknowledged as whole gives way to bytes, not to the mere intention.
            source = Begun(await source.read(), source)
        if drop:
            await self._ledger.change(ask.request_id, self._without(drop), drop=drop)
            await self.discard(drop)
        try:
            handle, occupies = await self._off(self._create, upload_id, want)
            upload = replace(upload, allocated=min(want, occupies))
            try:
                await self._to_receiving(request, put=upload)
            except BaseException:
                await self._off(handle.close)
                raise
        except BaseException:
            await self.discard([upload_id])
            raise
        return source, upload, handle

    def _without(self, drop: Sequence[str]) -> Callable[[BackupRequest], BackupRequest]:
        """RECEIVED without its bytes is RECEIVING again; else nothing changes."""
        lease = self._clock.seconds() + self._settings.offer_lease

        def step(request: BackupRequest) -> BackupRequest:
            if isinstance(request, Received) and request.upload_id in drop:
                return receiving(request, lease_until=lease)
            return request

        return step

    def _create(self, upload_id: str, size: int) -> tuple[IUpload, int]:
        """A new upload with room for ``size`` bytes, and the bytes that it now occupies."""
        # What an earlier start left of it, of which nothing was durable.
        self._storage.discard(upload_id)
        handle = self._storage.create(upload_id)
        try:
            handle.allocate(size)
            return handle, handle.occupied()
        except BaseException:
            handle.close()
            raise

    # -- parts and what becomes of them -----------------------------------------------------------

    async def join(self, request_id: str, final_id: str) -> Outcome | None:
        """Make one upload of its parts, if all are whole; None when some are not.

        Raises what `Joining.run` does, `UploadHeld` while it is being done.
        """
        with self._counted():
            async with self.locks.hold(request_id):
                self._check_stopping()
                request = live(await self._ledger.request(request_id), "joined")
                uploads = {one.upload_id: one for one in await self._ledger.uploads(request_id)}
                final = uploads.get(final_id)
                if final is None:
                    raise NoSuchUpload("This upload was ended.")
                parts = [uploads[part] for part in final.parts if part in uploads]
                if final.whole or not all(part.whole for part in parts):
                    return None
                if final.offset == 0 and len(parts) < len(final.parts):
                    return None
                if final.length is None:
                    final = replace(final, length=sum(part.offset for part in parts))
                if final_id in self._transfers:
                    raise UploadHeld("Its parts are being joined right now.", SILENCE)
                await self.make_way([t for p in parts if (t := self._transfers.get(p.upload_id))])
                self._check_number(request)
                async with self._turn(request):
                    await self._to_receiving(request, put=None)
                joining = self._register(
                    Joining(
                        ledger=self._ledger,
                        storage=self._storage,
                        off=self._off,
                        clock=self._clock,
                        settings=self._settings,
                        remembered=self._digests,
                        ask=request.ask,
                        final=final,
                        parts=parts,
                    ),
                    final_id,
                )
            return await joining.run()

    async def drop(self, request_id: str, upload_ids: Sequence[str]) -> None:
        """End uploads of a request and free their bytes; it goes on without them."""
        async with self.locks.hold(request_id):
            for upload_id in upload_ids:
                transfer = self._transfers.get(upload_id)
                if transfer is not None:
                    transfer.abort()
                    await self.end_of(transfer)
            await self._ledger.change(request_id, self._without(upload_ids), drop=upload_ids)
            await self.discard(upload_ids)

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

    async def discard(self, upload_ids: Sequence[str]) -> None:
        """Free the bytes of uploads that the ledger has forgotten."""
        for upload_id in upload_ids:
            await self._off(self._storage.discard, upload_id)

    # -- ending -----------------------------------------------------------------------------------

    async def end(
        self, request_id: str, step: Callable[[BackupRequest], BackupRequest]
    ) -> BackupRequest:
        """Apply a step that may end the request: its transfers stop, their bytes go after it."""
        async with self.locks.hold(request_id):
            before = step(await self._ledger.request(request_id))
            if isinstance(before, Live):
                return await self._ledger.change(request_id, step)
            for transfer in self._running(request_id):
                transfer.abort()
                await self.end_of(transfer)
            uploads = await self._ledger.uploads(request_id)
            changed = await self._ledger.change(request_id, step)
            if isinstance(changed, Live | Stored):
                # What arrived last has given it new time; its bytes are needed.
                return changed
            released = occupied(uploads)
            self.released += released
            self._log.info(
                "request {request_id} is {state}: {size} bytes are free again, {released} of them "
                "had been taken by uploads",
                request_id=request_id,
                state=type(changed).__name__.upper(),
                reason=changed.reason,
                size=changed.ask.size,
                released=released,
            )
            await self.discard([upload.upload_id for upload in uploads])
            return changed

    async def lapse(self, request_id: str) -> None:
        """Give the turn of a request whose lease ran out to another, keeping what arrived.

        An upload whose sender was not silent for that long keeps it: nothing may have become
        durable yet, as while a kept prefix is read again.
        """
        async with self.locks.hold(request_id):
            now, settings = self._clock.seconds(), self._settings
            running = self._running(request_id)
            silent = min((one.silent_for() for one in running), default=0.0)
            if silent >= settings.offer_lease:
                for transfer in running:
                    transfer.abort()
                    await self.end_of(transfer)

            def step(request: BackupRequest) -> BackupRequest:
                if not running:
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
