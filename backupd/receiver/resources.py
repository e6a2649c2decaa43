"""Upload resources (tus 1.0.0): made before a byte comes, joined, ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import (
    AlreadyStored,
    BackupdError,
    Busy,
    Forbidden,
    Invalid,
    NoSuchUpload,
    TooLarge,
    UploadHeld,
)
from backupd.interfaces import ILedger, Upload
from backupd.receiver.intake import Intake
from backupd.receiver.transfer import Outcome
from backupd.receiver.transfers import SILENCE
from backupd.requests import Ask, Cancelled, Live, Received, Storing, ended, live
from backupd.settings import Settings

__all__ = ["MAX_UPLOADS", "Described", "Resources"]

MAX_UPLOADS = 128
"""Upload resources that one request may have at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a client said of an upload when it made it."""

    length: int | None
    partial: bool = False
    metadata: str | None = None
    concat: str | None = None
    file_name: str | None = None
    content_type: str | None = None


class Resources:
    """Makes, joins and ends the uploads of requests."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        intake: Intake,
        clock: IReactorTime,
        settings: Settings,
        new_id: Callable[[], str],
    ) -> None:
        self._ledger = ledger
        self._intake = intake
        self._clock = clock
        self._settings = settings
        self._new_id = new_id

    # -- what there is ----------------------------------------------------------------------------

    async def find(self, request_id: str, upload_id: str) -> Upload:
        """One upload of a request. Raises `NoSuchUpload`."""
        for upload in await self._ledger.uploads(request_id):
            if upload.upload_id == upload_id:
                return upload
        raise NoSuchUpload("This link belongs to no upload, or to one that was ended.")

    async def direct(self, request_id: str) -> Upload:
        """The upload that a direct request is for. Raises `NoSuchUpload`."""
        own = [one for one in await self._ledger.uploads(request_id) if not one.partial]
        if not own:
            raise NoSuchUpload("Nothing is there of this upload; begin it anew.")
        return own[-1]

    # -- making -----------------------------------------------------------------------------------

    async def create(
        self, request_id: str, described: Described, *, token: str | None = None
    ) -> Upload:
        """A new upload, of which nothing is there yet.

        ``token`` is the capability in the URL of a direct upload's part. Raises `TooLarge` when
        more is announced than was reserved, `Busy` when there are too many.
        """
        async with self._intake.locks.hold(request_id):
            request, uploads = await self._open(request_id)
            return await self._put(request, uploads, described, token=token)

    async def create_direct(self, request_id: str, described: Described) -> Upload:
        """The upload of a direct request, in the place of an unfinished one.

        Raises `UploadHeld` while that is alive, or whole and to be stored.
        """
        async with self._intake.locks.hold(request_id):
            request, uploads = await self._open(request_id)
            if isinstance(request, Received):
                raise UploadHeld("An upload of this video is whole; it is being stored.", SILENCE)
            for upload in uploads:
                await self._intake.transfers.make_way_for(upload.upload_id)
            old = [upload.upload_id for upload in uploads]
            if old:
                await self._ledger.change(request_id, lambda r: r, drop=old)
                await self._intake.discard(old)
            return await self._put(request, [], described)

    async def create_final(
        self, request_id: str, parts: Sequence[str], described: Described
    ) -> Upload:
        """An upload that joins others of the same request; the same as before for the same parts.

        Raises `NoSuchUpload` for a part that is not there, `Forbidden` for one that is none.
        """
        async with self._intake.locks.hold(request_id):
            request, uploads = await self._open(request_id)
            for upload in uploads:
                if upload.parts == tuple(parts):
                    return upload
            found = _joined({one.upload_id: one for one in uploads}, parts, described)
            return await self._put(request, uploads, found, parts=tuple(parts))

    async def join_direct(
        self, ask: Ask, parts: Sequence[Upload], described: Described
    ) -> tuple[Live, Upload]:
        """A direct request that joins the parts of others, with the room that they had."""
        now = self._clock.seconds()
        ids = [part.upload_id for part in parts]
        found = _joined({part.upload_id: part for part in parts}, ids, described)
        final = self._upload(ask.request_id, found, parts=tuple(ids))
        request = await self._ledger.join(
            ask, final, now=now, expires_at=now + self._settings.upload_expiry
        )
        return request, replace(final, request_id=request.ask.request_id)

    async def _open(self, request_id: str) -> tuple[Live, list[Upload]]:
        request = live(await self._ledger.request(request_id), "received")
        if isinstance(request, Storing):
            raise AlreadyStored("The backup is being stored; nothing can be added to it.")
        return request, await self._ledger.uploads(request_id)

    async def _put(
        self,
        request: Live,
        uploads: Sequence[Upload],
        described: Described,
        *,
        parts: tuple[str, ...] = (),
        token: str | None = None,
    ) -> Upload:
        size = request.ask.size
        if described.length is not None and described.length > size:
            raise TooLarge(
                f"{described.length} bytes are more than the {size} that were reserved.", size
            )
        if len(uploads) >= MAX_UPLOADS:
            raise Busy(f"{MAX_UPLOADS} uploads are here already; end one first.", 5.0)
        upload = self._upload(request.ask.request_id, described, parts=parts, token=token)
        await self._ledger.change(request.ask.request_id, lambda r: r, put=upload)
        return upload

    def _upload(
        self,
        request_id: str,
        described: Described,
        *,
        parts: tuple[str, ...] = (),
        token: str | None = None,
    ) -> Upload:
        now = self._clock.seconds()
        return Upload(
            upload_id=self._new_id(),
            request_id=request_id,
            length=described.length,
            created_at=now,
            changed_at=now,
            file_name=described.file_name,
            content_type=described.content_type,
            partial=described.partial,
            parts=parts,
            metadata=described.metadata,
            concat=described.concat,
            token=token,
        )

    # -- joining ----------------------------------------------------------------------------------

    async def join(self, final: Upload) -> Outcome | None:
        """Join the parts of this upload, if all are whole. Raises what `Intake.join` does."""
        return await self._intake.join(final.request_id, final.upload_id)

    async def join_with(self, request_id: str, part_id: str) -> Outcome | None:
        """Join what waits for this part, wherever all its parts are whole now.

        None when none is, and when it is being joined right now, as with another that ended at the
        same time. Raises what `Intake.join` does.
        """
        outcome = None
        for upload in await self._ledger.uploads(request_id):
            if part_id not in upload.parts or upload.whole:
                continue
            if upload.upload_id in self._intake.transfers:
                return outcome
            # One whose other parts never come is in nobody's way.
            outcome = await self.join(upload) or outcome
        return outcome

    async def go_on(self) -> None:
        """After a start: join what a crash left half-way."""
        for final in await self._ledger.uploads(None):
            if not final.parts or final.whole:
                continue
            try:
                await self.join(final)
            except BackupdError as error:
                # Its client asks again, or its time runs out.
                self._log.error(
                    "request {request_id}: its parts are not joined: {why}",
                    request_id=final.request_id,
                    why=str(error),
                )

    # -- ending -----------------------------------------------------------------------------------

    async def terminate(self, upload: Upload) -> None:
        """End an upload, free its bytes; and with a part what would have joined it.

        With a direct upload its request ends. Raises `AlreadyStored`, `Over`, `WrongState`.
        """
        request = await self._ledger.request(upload.request_id)
        if request.ask.direct:
            now = self._clock.seconds()
            await self._intake.end(
                upload.request_id,
                lambda r: ended(r, Cancelled, reason="Its client ended it.", now=now),
            )
            return
        await self._intake.drop(upload.request_id, upload.upload_id)


def _joined(known: dict[str, Upload], parts: Sequence[str], described: Described) -> Described:
    """With the length of all the parts, if that is known."""
    if len(set(parts)) != len(parts):
        raise Invalid("Upload-Concat", "names a part twice; its bytes are there once")
    lengths: list[int | None] = []
    for part in parts:
        if part not in known:
            raise NoSuchUpload("A part that Upload-Concat names is not there.")
        if not known[part].partial:
            raise Forbidden("Upload-Concat names an upload that is no part.")
        lengths.append(known[part].length)
    total = None if None in lengths else sum(length or 0 for length in lengths)
    return replace(described, length=total)
