"""Joining: several parts become one upload (tus 1.0.0, Concatenation), without more room.

The first part's file becomes the upload's. The bytes of the others are read once more, for the
digest, and written behind it; as soon as some of them are durable there, and the ledger knows,
their blocks in the part are given back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import BytesGone, StorageFailed, UploadCut
from backupd.interfaces import ILedger, IStorage, IUpload, OffThread, Upload
from backupd.receiver.digests import Digests, Discard, Judge, digest_of
from backupd.receiver.transfer import Outcome
from backupd.receiver.twice import Twice
from backupd.requests import Ask, progressed
from backupd.settings import Settings

__all__ = ["Joining"]

Update: TypeAlias = Callable[[bytes], object]

PIECE = 2 * 1024 * 1024
"""Bytes that are copied at a time."""

STRIDE = 16 * 1024 * 1024
"""Bytes after which what was copied is made durable: so much room is needed twice at most."""

LEAST_STRIDE = 16 * 1024
"""Bytes that there is always room for: they fit into what is reserved beside every video."""


class Joining:
    """Makes one upload of the ``parts`` of ``final``; has the face of a `Transfer`."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        storage: IStorage,
        discard: Discard,
        off: OffThread,
        clock: IReactorTime,
        settings: Settings,
        twice: Twice,
        remembered: Digests,
        ask: Ask,
        final: Upload,
        parts: Sequence[Upload],
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._discard = discard
        self._off = off
        self._clock = clock
        self._settings = settings
        self._twice = twice
        self._remembered = remembered
        self._judge = Judge(ledger=ledger, discard=discard, clock=clock, settings=settings)
        self.ask = ask
        self._final = final
        self._parts = list(parts)
        self._aborted = False
        self.received = final.offset
        self.ending = False
        self.done: Deferred[None] = Deferred()

    def abort(self) -> None:
        """End it at the next stride; what was joined stays joined."""
        self._aborted = True

    def silent_for(self) -> float:
        """It is we who work."""
        return 0.0

    async def run(self) -> Outcome:
        """Join what is left; fires once the upload is RECEIVED.

        Raises `DigestMismatch` as `Judge` does, `UploadCut` when aborted, and what the volume
        raises: then it goes on from there the next time; but for `BytesGone`, of a part or of
        what has been joined already.
        """
        try:
            if not self._final.offset:
                await self._begin()
            handle = await self._off(self._storage.reopen, self._final.upload_id)
            try:
                return await self._go_on(handle)
            finally:
                await self._off(handle.close)
        finally:
            self.ending = True
            self.done.callback(None)

    async def _begin(self) -> None:
        first = self._parts.pop(0)
        await self._off(self._storage.rename, first.upload_id, self._final.upload_id)
        self._final = await self._commit(
            replace(self._final, offset=first.offset, allocated=first.offset), first
        )

    async def _commit(self, final: Upload, *gone: Upload, part: Upload | None = None) -> Upload:
        now, settings = self._clock.seconds(), self._settings
        final = replace(final, changed_at=now)
        await self._ledger.change(
            self.ask.request_id,
            lambda r: progressed(
                r,
                lease_until=now + settings.offer_lease,
                expires_at=now + settings.upload_expiry,
            ),
            put=[final] if part is None else [final, part],
            drop=[one.upload_id for one in gone],
        )
        self.received = final.offset
        return final

    async def _go_on(self, handle: IUpload) -> Outcome:
        length = self._final.length or 0
        hasher = await digest_of(
            self._final, handle, self._remembered, self._off, lambda: self._aborted
        )
        start = length - sum(part.offset for part in self._parts)
        for part in self._parts:
            await self._append(part, start, handle, hasher.update)
            start += part.offset
        if self._final.offset != length:
            raise StorageFailed(f"The parts have {self._final.offset} of {length} bytes.")
        request = await self._judge.accept(self._final, length, hasher, {})
        return Outcome(request=request, size=length, sha256=hasher.hexdigest())

    async def _append(
        self, part: Upload, start: int, handle: IUpload, update: Callable[[bytes], object]
    ) -> None:
        """The bytes of ``part``, which belong at ``start``, as far as they are not there yet."""
        source = await self._off(self._storage.reopen, part.upload_id)
        try:
            while self._final.offset < start + part.offset:
                if self._aborted:
                    raise UploadCut("Joining was ended before its end; it goes on from here.")
                async with self._twice.lend(STRIDE, LEAST_STRIDE) as room:
                    at = self._final.offset - start
                    end = min(at + room, part.offset)
                    part = await self._stride(part, source, at, end, handle, start, update)
        finally:
            await self._off(source.close)
        await self._discard([part.upload_id])

    async def _stride(
        self,
        part: Upload,
        source: IUpload,
        at: int,
        end: int,
        to: IUpload,
        start: int,
        update: Update,
    ) -> Upload:
        """Copy ``source[at:end]`` behind ``start``, and give it back; the part as it is then."""
        await self._off(_copy, part, source, at, end, to, start, update)
        # What is written occupies its room; what is given back next is unmarked first.
        part = replace(part, allocated=min(part.allocated, part.offset - end))
        final = replace(self._final, offset=start + end, allocated=start + end)
        if end == part.offset:
            self._final = await self._commit(final, part)
        else:
            self._final = await self._commit(final, part=part)
            await self._off(source.give_back, end)
        return part


def _copy(
    part: Upload, source: IUpload, at: int, end: int, to: IUpload, start: int, update: Update
) -> None:
    """Copy ``source[at:end]``, of ``part``, behind ``start`` of ``to``, durably."""
    while at < end:
        data = source.read(at, min(PIECE, end - at))
        if not data:
            raise BytesGone(f"Of a part's bytes those from {at} on are gone.", part.upload_id)
        update(data)
        to.write([data], start + at)
        at += len(data)
    to.sync()
