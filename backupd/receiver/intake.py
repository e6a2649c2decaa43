"""Intake: the bytes of a video, from a source at an offset to a durable, verified upload.

Nothing here is cancelled when a client leaves: what arrived is made durable first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.bandwidth import Pace
from backupd.errors import (
    AlreadyStored,
    BackupdError,
    BytesGone,
    Incomplete,
    LedgerFailed,
    NoRoom,
    NoSuchUpload,
    NotYourTurn,
    OffsetMismatch,
    StorageFailed,
    UploadCut,
    UploadHeld,
)
from backupd.interfaces import ILedger, IStorage, IUpload, OffThread, Source, Upload
from backupd.receiver.blocks import Load
from backupd.receiver.digests import Check, Digests, digest_of
from backupd.receiver.gone import begin_again, without
from backupd.receiver.joining import Joining
from backupd.receiver.paced import paced
from backupd.receiver.queue import Queue
from backupd.receiver.room import Begun, NotBegun, going, in_the_way, in_use, occupied, placed
from backupd.receiver.transfer import Outcome, Transfer
from backupd.receiver.transfers import SILENCE, Transfers, ended
from backupd.receiver.twice import Twice
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

PATIENCE = 30.0
"""Seconds that a direct upload waits for its turn before it is told to come back."""


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
        pace: Callable[[str], Pace | None] = lambda peer: None,
        most_at_once: Callable[[str], int | None] = lambda peer: None,
    ) -> None:
        """``pace`` and ``most_at_once`` say how fast, and how many, a peer's uploads may be."""
        self._ledger = ledger
        self._storage = storage
        self._queue = queue
        self._clock = clock
        self._off = off
        self._settings = settings
        self._new_id = new_id
        self._pace = pace
        self._most_at_once = most_at_once
        self.locks = KeyedLocks()
        self.transfers = Transfers(clock)
        self.twice = Twice(ledger=ledger, storage=storage, off=off)
        self._digests = Digests()
        self._load = Load()
        self.released = 0
        self._left: dict[str, None] = {}

    # -- what stands ------------------------------------------------------------------------------

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
            if (transfer := self.transfers.get(one.upload_id))
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
        if not (isinstance(request, Pending) and request.ask.direct):
            return
        if self._queue().shares(request.ask):
            return
        now = self._clock.seconds()
        comes = self._queue().turn_of(request_id, PATIENCE)
        try:
            # Its turn may have come, or its end, since it was read.
            stands = await self._ledger.change(request_id, lambda r: wanted(r, now=now))
            if isinstance(stands, Pending):
                self._queue().offer_again(stands)
                await comes
        finally:
            comes.cancel()
            # On a slow disk the time may have been over before anybody waited.
            comes.addErrback(lambda failure: failure.trap(NotYourTurn))

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
        with self.transfers.counted():
            await self._come(request_id)
            try:
                transfer = await self._begin(request_id, source, length, upload_id, offset, total)
            except NotBegun:
                # Nobody else waits meanwhile: neither the lock nor the turn is held.
                source = await self.transfers.begun(source)
                transfer = await self._begin(request_id, source, length, upload_id, offset, total)
            try:
                return await transfer.run(digests or {}, file_name, content_type, check)
            except BytesGone as error:
                await self._forget(request_id, error.upload_id)
                raise _begin_anew(upload_id) from error

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
            self.transfers.check_open()
            upload = await self._named(request_id, upload_id, offset)
            if upload is None:
                await self.transfers.make_way(self.transfers.of(request_id))
            else:
                await self.transfers.make_way_for(upload.upload_id)
                # What was on its way has arrived meanwhile.
                upload = await self._named(request_id, upload.upload_id, offset)
            request = live(await self._ledger.request(request_id), "received")
            if isinstance(request, Storing):
                raise AlreadyStored("The backup is being stored; nothing can be added to it.")
            now = self._clock.seconds()
            new = Upload(
                upload_id=self._new_id(),
                request_id=request_id,
                length=length if offset is None else total,
                created_at=now,
                changed_at=now,
            )
            upload, room = placed(upload or new, request.ask.size, offset or 0, length, total)
            peer = request.ask.peer
            with self.transfers.place(request.ask.turn, peer, self._most_at_once(peer)):
                async with self._turn(request):
                    if upload.offset == 0:
                        begun = isinstance(source, Begun)
                        upload, handle = await self._start(request, upload, room, begun)
                    else:
                        await self._to_receiving(request, put=upload)
                        handle = await self._reopen(upload, upload_id)
                return self.transfers.register(
                    Transfer(
                        ledger=self._ledger,
                        discard=self.discard,
                        off=self._off,
                        clock=self._clock,
                        settings=self._settings,
                        remembered=self._digests,
                        source=paced(source, self._pace(peer)),
                        ask=request.ask,
                        upload=upload,
                        handle=handle,
                        limit=room,
                        fresh=offset is None,
                        load=self._load,
                    ),
                    upload.upload_id,
                )

    async def _reopen(self, upload: Upload, asked: str | None) -> IUpload:
        """The file of an upload that goes on; it is forgotten when that is gone."""
        try:
            return await self._off(self._storage.reopen, upload.upload_id)
        except BytesGone as error:
            await self._begin_again(upload)
            raise _begin_anew(asked) from error

    async def _forget(self, request_id: str, upload_id: str) -> None:
        async with self.locks.hold(request_id):
            for upload in await self._ledger.uploads(request_id):
                if upload.upload_id == upload_id:
                    await self._begin_again(upload)

    async def _begin_again(self, upload: Upload) -> None:
        """Forget an upload whose bytes are gone; whoever calls holds the request's lock.

        Whoever has begun to send or to join it once more finds the same, before a byte is recorded.
        """
        now = self._clock.seconds()
        await self.discard(await begin_again(self._ledger, upload, now, self.transfers))

    async def _named(
        self, request_id: str, upload_id: str | None, offset: int | None
    ) -> Upload | None:
        """The upload that a body goes on with, None when it begins one. Raises `NoSuchUpload`."""
        if upload_id is None:
            return None if offset is None else await self.newest(request_id)
        for upload in await self._ledger.uploads(request_id):
            if upload.upload_id == upload_id:
                return upload
        raise NoSuchUpload("This upload was ended.")

    async def _start(
        self, request: Live, upload: Upload, want: int, begun: bool
    ) -> tuple[Upload, IUpload]:
        """The file of an upload, its room allocated, and the request RECEIVING.

        Raises `NotBegun` unless some bytes are here, where that is needed.
        """
        ask, upload_id = request.ask, upload.upload_id
        uploads = [
            one for one in await self._ledger.uploads(ask.request_id) if one.upload_id != upload_id
        ]
        busy = in_use(uploads, self.transfers)
        if upload.length is None:
            # Beside others that are being sent, it may have what they leave.
            taken = occupied(one for one in uploads if one.upload_id in busy)
            want = min(want, ask.size - taken)
        drop = in_the_way(uploads, ask.size - want, busy) if want > 0 else None
        if drop is None:
            raise UploadHeld("Other uploads on this link take the room; end one first.", SILENCE)
        if not begun and any(one.sha256 is not None for one in uploads if one.upload_id in drop):
            # What was acknowledged as whole gives way to bytes, not to the mere intention.
            raise NotBegun
        if drop:
            drop = going(uploads, drop)
            await self._ledger.change(ask.request_id, self._without(drop), drop=drop)
            await self.discard(drop)
        if upload.allocated:
            # What an earlier start left is freed next, and may not come back: unmark it first.
            upload = replace(upload, allocated=0)
            await self._ledger.change(ask.request_id, lambda r: r, put=upload)
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
        return upload, handle

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

        Raises what `Joining.run` does, `UploadHeld` while it is being done and when it was ended
        on the way, `NoSuchUpload` when bytes of it are gone: the part that they were of is not
        there any more then.
        """
        with self.transfers.counted():
            async with self.locks.hold(request_id):
                self.transfers.check_open()
                request = live(await self._ledger.request(request_id), "joined")
                uploads = {one.upload_id: one for one in await self._ledger.uploads(request_id)}
                final = uploads.get(final_id)
                if final is None:
                    raise NoSuchUpload("This upload was ended.")
                parts = [uploads[part] for part in final.parts if part in uploads]
                if final.whole or not (final.parts and all(part.whole for part in parts)):
                    return None
                if final.offset == 0 and len(parts) < len(final.parts):
                    return None
                if self._joined_elsewhere(final, uploads.values()):
                    raise UploadHeld("Its parts are being joined right now.", SILENCE)
                if final.length is None:
                    # A start may have found that the first has given it its bytes already.
                    length = final.offset + sum(part.offset for part in parts)
                    final = replace(final, length=length)
                for part in parts:
                    await self.transfers.make_way_for(part.upload_id)
                with self.transfers.place(request.ask.turn):
                    async with self._turn(request):
                        await self._to_receiving(request, put=None)
                    joining = self.transfers.register(
                        Joining(
                            ledger=self._ledger,
                            storage=self._storage,
                            discard=self.discard,
                            off=self._off,
                            clock=self._clock,
                            settings=self._settings,
                            twice=self.twice,
                            remembered=self._digests,
                            ask=request.ask,
                            final=final,
                            parts=parts,
                        ),
                        final_id,
                    )
            try:
                return await joining.run()
            except UploadCut as cut:
                # No client's fault, as at a stop: asked for again, it goes on.
                raise UploadHeld(str(cut), SILENCE) from cut
            except BytesGone as error:
                await self._forget(request_id, error.upload_id)
                raise _begin_anew(error.upload_id) from error

    def _joined_elsewhere(self, final: Upload, uploads: Iterable[Upload]) -> bool:
        """Whether its parts are being joined; or what has taken of one of them goes on first, for
        of the bytes that it took none are left there.
        """
        return any(
            one.upload_id in self.transfers or (one.offset > 0 and one is not final)
            for one in uploads
            if not (one.whole or set(one.parts).isdisjoint(final.parts))
        )

    async def drop(self, request_id: str, upload_id: str) -> None:
        """End an upload, free its bytes, and what would have joined it; the request goes on.

        Raises `AlreadyStored` when it is being stored or was, `Over` when the request has ended.
        """
        async with self.locks.hold(request_id):
            if isinstance(live(await self._ledger.request(request_id), "changed"), Storing):
                raise AlreadyStored("The backup is being stored; nothing of it can be ended.")
            for one in going(await self._ledger.uploads(request_id), [upload_id]):
                transfer = self.transfers.get(one)
                if transfer is not None:
                    transfer.abort()
                    await ended(transfer)
            drop = going(await self._ledger.uploads(request_id), [upload_id])
            step = without(drop, self._clock.seconds(), "The upload was ended by its client.")
            await self._ledger.change(request_id, step, drop=drop)
            await self.discard(drop)

    async def conclude(self, upload: Upload) -> Upload:
        """An upload of unknown length is whole as it stands: its sender says so.

        The caller holds the request's lock. Raises `Incomplete` when its bytes are gone.
        """
        try:
            handle = await self._off(self._storage.reopen, upload.upload_id)
            try:
                hasher = await digest_of(upload, handle, self._digests, self._off)
            finally:
                await self._off(handle.close)
        except BytesGone as error:
            await self._begin_again(upload)
            raise Incomplete(0, upload.length) from error
        return replace(
            upload,
            length=upload.offset,
            sha256=hasher.hexdigest(),
            changed_at=self._clock.seconds(),
        )

    async def discard(self, upload_ids: Sequence[str]) -> None:
        """Free the bytes of uploads that the ledger has forgotten; later if the disk fails now."""
        for upload_id in upload_ids:
            try:
                await self._off(self._storage.discard, upload_id)
            except (NoRoom, StorageFailed) as error:
                self._left[upload_id] = None
                self._log.error(
                    "upload {upload_id} is removed later: {why}",
                    upload_id=upload_id,
                    why=str(error),
                )

    async def discard_left(self) -> None:
        """Try again what could not be freed; every sweep does.

        Not what the ledger knows: its sender has begun it anew, or will.
        """
        left, self._left = list(self._left), {}
        if not left:
            return
        try:
            known = {one.upload_id for one in await self._ledger.uploads(None)}
        except LedgerFailed as error:
            self._left = dict.fromkeys([*left, *self._left])
            self._log.warn(
                "what is to be removed stays until the next sweep: {why}", why=str(error)
            )
            return
        # What has come to the list meanwhile may have been known a moment ago, and stays there.
        await self.discard([upload_id for upload_id in left if upload_id not in known])

    # -- ending -----------------------------------------------------------------------------------

    async def end(
        self, request_id: str, step: Callable[[BackupRequest], BackupRequest]
    ) -> BackupRequest:
        """Apply a step that may end the request: its transfers stop, their bytes go after it."""
        async with self.locks.hold(request_id):
            before = step(await self._ledger.request(request_id))
            if isinstance(before, Live):
                return await self._ledger.change(request_id, step)
            for transfer in self.transfers.of(request_id):
                transfer.abort()
                await ended(transfer)
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

        One whose time is up, and whose lease is not, only gets more of it if bytes have come.

        An upload whose sender was not silent for that long keeps it: nothing may have become
        durable yet, as while a kept prefix is read again.
        """
        async with self.locks.hold(request_id):
            settings = self._settings
            running = self.transfers.of(request_id)
            cut = [one for one in running if one.silent_for() == inf]
            alive = [one for one in running if one not in cut]
            silent = min((one.silent_for() for one in alive), default=0.0)
            late = silent >= settings.offer_lease
            # Who was cut was there until then: the lease that it leaves says how long it has.
            for transfer in [*cut, *(alive if late else [])]:
                transfer.abort()
                await ended(transfer)
            now = self._clock.seconds()

            def step(request: BackupRequest) -> BackupRequest:
                if late and not cut and isinstance(request, Receiving):
                    # Making its last bytes durable has given it a new lease: not for long.
                    request = replace(request, lease_until=now)
                if late or not alive:
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


def _begin_anew(upload_id: str | None) -> BackupdError:
    """What is said when bytes that were kept are gone: the upload of that id, or the newest."""
    if upload_id is None:
        return OffsetMismatch(0)
    return NoSuchUpload("The bytes that had arrived are gone from the disk; begin anew.")
