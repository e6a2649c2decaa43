"""One upload while it is being received: from a source to durable, verified bytes."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import (
    BackupdError,
    DigestMismatch,
    Invalid,
    StorageFailed,
    TooLarge,
    UploadCut,
)
from backupd.interfaces import ILedger, IStorage, IUpload, OffThread, Source, Upload
from backupd.receiver.blocks import BlockWriter, Hasher
from backupd.requests import BackupRequest, Failed, progressed, received, rejected
from backupd.settings import Settings
from backupd.sizes import format_size

__all__ = ["Digests", "Outcome", "Transfer", "digest_of"]

REREAD = 8 * 1024 * 1024
"""Bytes of a kept prefix that are read again at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A whole upload: every byte durable, digest agreed, and the ledger knows."""

    request: BackupRequest
    size: int
    sha256: str


class Digests:
    """Running digests of unfinished uploads, so that most resumptions need not read again."""

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._known: dict[str, tuple[int, Hasher]] = {}

    def remember(self, upload_id: str, offset: int, hasher: Hasher) -> None:
        self._known[upload_id] = (offset, hasher)
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]

    def take(self, upload_id: str, offset: int) -> Hasher | None:
        """The digest of the first ``offset`` bytes, if it is known; it is forgotten here."""
        known = self._known.pop(upload_id, None)
        return known[1] if known is not None and known[0] == offset else None


async def digest_of(
    upload: Upload,
    handle: IUpload,
    remembered: Digests,
    off: OffThread,
    aborted: Callable[[], bool] = lambda: False,
) -> Hasher:
    """The digest of what an upload has: remembered, or read again from the disk.

    Raises `StorageFailed` when bytes are gone, `UploadCut` once ``aborted``.
    """
    known = remembered.take(upload.upload_id, upload.offset)
    if known is not None:
        return known
    hasher, at = hashlib.sha256(), 0

    def read_on() -> int:
        data = handle.read(at, min(REREAD, upload.offset - at))
        hasher.update(data)
        return len(data)

    while at < upload.offset:
        if aborted():
            raise UploadCut("The upload was ended before it went on.")
        count = await off(read_on)
        if not count:
            raise StorageFailed(
                f"Of the {upload.offset} bytes kept of upload {upload.upload_id}, only {at} "
                "can be read."
            )
        at += count
    return hasher


class Transfer:
    """Receives one upload. ``received`` grows as bytes come; ``done`` fires when it let go."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        storage: IStorage,
        off: OffThread,
        clock: IReactorTime,
        settings: Settings,
        remembered: Digests,
        source: Source,
        upload: Upload,
        handle: IUpload,
        limit: int,
        fresh: bool,
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._off = off
        self._clock = clock
        self._settings = settings
        self._remembered = remembered
        self.source = source
        self._upload = upload
        self._handle = handle
        self._limit = limit
        self._fresh = fresh
        self._request_id = upload.request_id
        self.received = upload.offset
        self.ending = False
        self._aborted = False
        self.done: Deferred[None] = Deferred()

    def abort(self) -> None:
        """End it, keeping what arrived; `done` tells when."""
        self._aborted = True
        self.source.abort()

    async def run(
        self,
        digests: Mapping[str, bytes],
        file_name: Callable[[], str | None],
        content_type: str | None,
    ) -> Outcome | Upload:
        """Take every byte of the source; see `Intake.receive`."""
        upload = self._upload
        try:
            hasher = await digest_of(
                upload, self._handle, self._remembered, self._off, lambda: self._aborted
            )
            writer = BlockWriter(
                self._handle,
                [hasher],
                upload.offset,
                off=self._off,
                clock=self._clock,
                checkpoint=self._checkpoint,
            )
            await self._take(writer, hasher)
            size = await writer.sync()
            # Without a length only a body that came in one piece can tell its own end.
            whole = size == upload.length if upload.length is not None else self._fresh
            if not whole:
                await self._checkpoint(size)
                self._remembered.remember(upload.upload_id, size, hasher)
                return replace(upload, offset=size)
            named = replace(
                upload,
                file_name=file_name() or upload.file_name,
                content_type=content_type or upload.content_type,
            )
            return await self._finish(named, size, hasher, digests)
        finally:
            self.ending = True
            try:
                await self._off(self._handle.close)
            finally:
                self.done.callback(None)

    def _checkpoint(self, offset: int) -> Deferred[BackupRequest]:
        """Record that the bytes before ``offset`` are durable."""
        now = self._clock.seconds()
        return self._ledger.change(
            self._request_id,
            lambda r: progressed(
                r,
                lease_until=now + self._settings.offer_lease,
                expires_at=now + self._settings.upload_expiry,
            ),
            put=replace(self._upload, offset=offset, changed_at=now),
        )

    async def _take(self, writer: BlockWriter, hasher: Hasher) -> None:
        """Write what the source has; what arrived is kept when it is cut."""
        limit = self._limit
        try:
            while piece := await self.source.read():
                if writer.offset + len(piece) > limit:
                    raise TooLarge(
                        f"The upload is longer than the {format_size(limit)} ({limit} bytes) "
                        "that it may have.",
                        limit,
                    )
                await writer.put(piece)
                self.received = writer.offset
            if writer.offset == 0:
                raise Invalid("body", "is empty; a video has at least one byte")
        except UploadCut as cut:
            self.ending = True
            await self._keep(writer, hasher)
            self._log.info(
                "request {request_id}: upload cut at {offset} bytes, {durable} kept: {why}",
                request_id=self._request_id,
                offset=writer.offset,
                durable=writer.durable,
                why=str(cut),
            )
            raise
        except (Invalid, TooLarge):
            self.ending = True
            await self._settle(writer)
            if self._upload.offset:
                # What was acknowledged before this body came is not its fault.
                raise
            await self._ledger.change(self._request_id, lambda r: r, drop=[self._upload.upload_id])
            await self._off(self._storage.discard, self._upload.upload_id)
            raise
        except BaseException as error:
            self.ending = True
            await self._settle(writer)
            self._log.error(
                "request {request_id}: upload failed at {offset} bytes, {durable} kept: {why}",
                request_id=self._request_id,
                offset=writer.offset,
                durable=writer.durable,
                why=str(error),
            )
            raise
        self.ending = True

    async def _keep(self, writer: BlockWriter, hasher: Hasher) -> None:
        """Make durable what arrived before the cut, as far as that can be done."""
        try:
            offset = await writer.sync()
            if offset > writer.durable:
                await self._checkpoint(offset)
                writer.durable = offset
            self._remembered.remember(self._upload.upload_id, offset, hasher)
        except BackupdError as error:
            self._log.error(
                "request {request_id}: not all that arrived could be kept: {why}",
                request_id=self._request_id,
                why=str(error),
            )

    async def _settle(self, writer: BlockWriter) -> None:
        try:
            await writer.settle()
        except BackupdError as error:
            # The first error is the one that is reported; this one follows from it.
            self._log.debug("while settling: {why}", why=str(error))

    async def _finish(
        self, upload: Upload, size: int, hasher: Hasher, digests: Mapping[str, bytes]
    ) -> Outcome:
        """Agree on the digest, and commit RECEIVED."""
        now, sha256 = self._clock.seconds(), hasher.hexdigest()
        request = await self._ledger.request(self._request_id)
        wrong = ""
        if request.ask.sha256 is not None and request.ask.sha256 != sha256:
            wrong = f"The bytes have SHA-256 {sha256}, announced was {request.ask.sha256}."
        elif digests.get("sha-256", hasher.digest()) != hasher.digest():
            said = base64.b64encode(digests["sha-256"]).decode()
            wrong = f"The bytes have SHA-256 {sha256}; the digest sent with them is {said}."
        if wrong:
            await self._reject(upload, wrong)
        changed = await self._ledger.change(
            self._request_id,
            lambda r: received(
                r,
                upload_id=upload.upload_id,
                size=size,
                sha256=sha256,
                expires_at=now + self._settings.upload_expiry,
            ),
            put=replace(upload, length=size, offset=size, sha256=sha256, changed_at=now),
        )
        self._log.info(
            "request {request_id} received: {size} bytes, sha256 {sha256}",
            request_id=self._request_id,
            size=size,
            sha256=sha256,
        )
        return Outcome(request=changed, size=size, sha256=sha256)

    async def _reject(self, upload: Upload, wrong: str) -> NoReturn:
        """Drop the bytes; with the last try the request has failed, and all its bytes go."""
        now = self._clock.seconds()
        drop = [upload.upload_id]
        others = await self._ledger.uploads(self._request_id)
        changed = await self._ledger.change(
            self._request_id, lambda r: rejected(r, why=wrong, now=now), drop=drop
        )
        if isinstance(changed, Failed):
            drop = [one.upload_id for one in others]
        for upload_id in drop:
            await self._off(self._storage.discard, upload_id)
        raise DigestMismatch(wrong)
