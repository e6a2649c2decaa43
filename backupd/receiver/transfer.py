"""One upload while it is being received: from a source to durable, verified bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import BackupdError, Invalid, Over, TooLarge, UploadCut
from backupd.interfaces import ILedger, IUpload, OffThread, Source, Upload
from backupd.receiver.blocks import BlockWriter, Hasher, Load
from backupd.receiver.digests import Check, Digests, Discard, Judge, Known, digest_of
from backupd.requests import Ask, BackupRequest, Cancelled, progressed
from backupd.settings import Settings

__all__ = ["Outcome", "Transfer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A whole upload: every byte durable, digest agreed, and the ledger knows."""

    request: BackupRequest
    size: int
    sha256: str


class Transfer:
    """Receives one upload. ``received`` grows as bytes come; ``done`` fires when it let go.

    ``fresh`` is an upload that this body is the whole of: without a length only that can tell
    its own end, and what it turns out not to be is not kept.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        discard: Discard,
        off: OffThread,
        clock: IReactorTime,
        settings: Settings,
        remembered: Digests,
        source: Source,
        ask: Ask,
        upload: Upload,
        handle: IUpload,
        limit: int,
        fresh: bool,
        load: Load,
    ) -> None:
        self._ledger = ledger
        self._discard = discard
        self._off = off
        self._clock = clock
        self._settings = settings
        self._remembered = remembered
        self._judge = Judge(ledger=ledger, discard=discard, clock=clock, settings=settings)
        self.source = source
        self.ask = ask
        self._upload = upload
        self._handle = handle
        self._limit = limit
        self._fresh = fresh
        self._load = load
        self._writer: BlockWriter | None = None
        self.ending = False
        self._aborted = False
        self._hasher: Known | None = None
        self._base: Known | None = None
        self.done: Deferred[None] = Deferred()

    def abort(self) -> None:
        """End it, keeping what arrived; `done` tells when."""
        self._aborted = True
        self.source.abort()

    @property
    def upload_id(self) -> str:
        """Of what it receives."""
        return self._upload.upload_id

    @property
    def received(self) -> int:
        """Bytes that have come so far, durable or not."""
        return self._upload.offset if self._writer is None else self._writer.arrived()

    def silent_for(self) -> float:
        """Seconds without a byte although we read; 0 once it ends."""
        return 0.0 if self.ending else self.source.silent_for()

    async def run(
        self,
        digests: Mapping[str, bytes],
        file_name: Callable[[], str | None],
        content_type: str | None,
        check: Check | None = None,
    ) -> Outcome | Upload:
        """Take every byte of the source; see `Intake.receive`."""
        upload = self._upload
        try:
            await self._find_digest(check)
            hashers: list[Hasher] = [] if self._hasher is None else [self._hasher]
            writer = self._writer = BlockWriter(
                self._handle,
                hashers if check is None else [*hashers, *check.hashers],
                upload.offset,
                off=self._off,
                clock=self._clock,
                checkpoint=self._checkpoint if check is None else _not_yet,
                load=self._load,
            )
            await self._take(writer)
            size = await writer.sync()
            if check is not None:
                check.agree()
                self._base = None
            whole = size == upload.length if upload.length is not None else self._fresh
            if not whole or self._hasher is None:
                await self._checkpoint(size)
                self._remember(size)
                return replace(self._upload, offset=size)
            named = replace(
                upload,
                file_name=file_name() or upload.file_name,
                content_type=content_type or upload.content_type,
            )
            request = await self._judge.accept(named, size, self._hasher, digests)
            return Outcome(request=request, size=size, sha256=self._hasher.hexdigest())
        finally:
            self.ending = True
            if self._base is not None:
                # Nothing of a body whose checksum did not agree, or never came, counts.
                self._remembered.remember(upload.upload_id, upload.offset, self._base)
            try:
                await self._off(self._handle.close)
            finally:
                self.done.callback(None)

    async def _find_digest(self, check: Check | None) -> None:
        """The digest of what is there; a part needs none: it is read again when it is joined."""
        upload = self._upload
        if upload.partial:
            return
        self._hasher = await digest_of(
            upload, self._handle, self._remembered, self._off, lambda: self._aborted
        )
        if check is not None:
            self._base = self._hasher.copy()

    def _remember(self, offset: int) -> None:
        if self._hasher is not None and self._base is None:
            self._remembered.remember(self._upload.upload_id, offset, self._hasher)

    async def _checkpoint(self, offset: int) -> BackupRequest:
        """Record that the bytes before ``offset`` are durable.

        A part may belong to what joins it by now.
        """
        try:
            return await self._record(offset)
        except Over:
            request = await self._ledger.request(self.ask.request_id)
            into = request.into if isinstance(request, Cancelled) else None
            if into is None:
                raise
            self.ask = (await self._ledger.request(into)).ask
            self._upload = replace(self._upload, request_id=into)
            return await self._record(offset)

    def _record(self, offset: int) -> Deferred[BackupRequest]:
        now = self._clock.seconds()
        return self._ledger.change(
            self.ask.request_id,
            lambda r: progressed(
                r,
                lease_until=now + self._settings.offer_lease,
                expires_at=now + self._settings.upload_expiry,
            ),
            put=replace(self._upload, offset=offset, changed_at=now),
        )

    async def _take(self, writer: BlockWriter) -> None:
        """Write what the source has; what arrived is kept when it is cut."""
        limit = self._limit
        try:
            while await writer.take(self.source, limit):
                pass
            if writer.offset == 0 and self._fresh:
                raise Invalid("body", "is empty; a video has at least one byte")
        except UploadCut as cut:
            self.ending = True
            await self._keep(writer)
            self._log.info(
                "request {request_id}: upload cut at {offset} bytes, {durable} kept: {why}",
                request_id=self.ask.request_id,
                offset=writer.offset,
                durable=writer.durable,
                why=str(cut),
            )
            raise
        except (Invalid, TooLarge):
            self.ending = True
            await self._settle(writer)
            if not self._fresh:
                # What was acknowledged before this body came is not its fault.
                raise
            await self._ledger.change(
                self.ask.request_id, lambda r: r, drop=[self._upload.upload_id]
            )
            await self._discard([self._upload.upload_id])
            raise
        except BaseException as error:
            self.ending = True
            await self._settle(writer)
            self._log.error(
                "request {request_id}: upload failed at {offset} bytes, {durable} kept: {why}",
                request_id=self.ask.request_id,
                offset=writer.offset,
                durable=writer.durable,
                why=str(error),
            )
            raise
        self.ending = True

    async def _keep(self, writer: BlockWriter) -> None:
        """Make durable what arrived before the cut, as far as that can be done."""
        try:
            offset = await writer.sync()
            if self._base is not None:
                return
            if offset > writer.durable:
                await self._checkpoint(offset)
                writer.durable = offset
            self._remember(offset)
        except BackupdError as error:
            self._log.error(
                "request {request_id}: not all that arrived could be kept: {why}",
                request_id=self.ask.request_id,
                why=str(error),
            )

    async def _settle(self, writer: BlockWriter) -> None:
        try:
            await writer.settle()
        except BackupdError as error:
            # The first error is the one that is reported; this one follows from it.
            self._log.debug("while settling: {why}", why=str(error))


def _not_yet(offset: int) -> Deferred[Any]:
    """For a body with a checksum: nothing of it counts before all of it has agreed."""
    return succeed(None)
