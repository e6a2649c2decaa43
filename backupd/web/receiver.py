"""The receiver's endpoints: ask for room, upload, complete. PROTOCOL.md, sections 1, 3 and 4."""

from __future__ import annotations

import re
from typing import Any

from werkzeug.http import parse_options_header

from backupd.errors import (
    Forbidden,
    Invalid,
    OffsetMismatch,
    Over,
    TooLarge,
    UnsupportedMedia,
)
from backupd.peer.origins import check_link, check_loopback, origin_of
from backupd.receiver.transfer import Outcome
from backupd.requests import (
    BackupRequest,
    Live,
    Received,
    same_video,
)
from backupd.service import BackupService
from backupd.sizes import MAX_SIZE, format_size, parse_size
from backupd.trust.caller import Caller
from backupd.waiting import shielded
from backupd.web import messages
from backupd.web.content_range import part_of
from backupd.web.digests import digests
from backupd.web.endpoint import (
    Answer,
    Api,
    Call,
    Who,
    media_type,
    read_message,
    refuse_coding,
    write,
)
from backupd.web.finder import Finder, uploadable
from backupd.web.forms import FRAMING, FormSource
from backupd.web.site import StreamingRequest
from backupd.web.tus import TUS, body_check, create_on_link, speaks_tus
from backupd.web.tus_headers import is_tus, offset_of, standing, total_of

__all__ = ["routes"]

LINK = "linkForServerAtoNoticeServerBWhenServerAIsReady"


def routes(api: Api) -> None:
    """Register the endpoints."""
    _can_accept(api)
    _receive(api)
    _complete(api)


# -- can-accept-backup -----------------------------------------------------------------------------


def _can_accept(api: Api) -> None:
    service = api.service

    @api.endpoint(
        "POST",
        "/api/v1/backup/can-accept-backup",
        says="Ask for room for a video.",
        gives=messages.CanAcceptAnswer,
        who=Who.SENDER,
        takes=messages.CanAccept,
        unbreakable=True,
    )
    async def can_accept(call: Call, message: messages.CanAccept) -> Answer:
        size = _size(message.disk_empty_space_require)
        peer, origin = _called_back(call.caller, message.link)
        decision = await service.admission.ask(
            peer=peer,
            origin=origin,
            video=message.video_id,
            size=size,
            callback=message.link,
            file_name=message.file_name,
            content_type=message.content_type,
            sha256=message.sha256.lower() if message.sha256 else None,
        )
        request = decision.request
        if request is not None:
            service.queue.offer_again(request)
        return Answer(
            messages.CanAcceptAnswer(
                success=request is not None,
                message=decision.message,
                available_space=format_size(decision.available),
                required_space=format_size(size),
                reason=decision.reason,
                retry_after=decision.retry_after,
                request_id=request.ask.request_id if request else None,
                status_url=service.links.status(request.ask.request_id) if request else None,
            ),
            headers={"Retry-After": str(decision.retry_after)} if decision.retry_after else {},
        )


def _called_back(caller: Caller, link: str) -> tuple[str, str]:
    """Whose request it is, and the origin that it is called back on.

    Raises `Invalid`, `Forbidden`. Which addresses that origin has is looked at when it is called.
    """
    check_link(LINK, link)
    origin = origin_of(link)
    if caller.peer is None:
        check_loopback(LINK, link)
        return origin, origin
    if origin not in caller.peer.origins:
        raise Forbidden(
            f"{LINK} must be on an origin of peer {caller.name}; {origin} is none of them."
        )
    return caller.name, origin


def _size(said: str | int) -> int:
    member = "diskEmptySpaceRequire"
    if isinstance(said, int):
        if not 0 < said <= MAX_SIZE:
            raise Invalid(member, "must be more than 0 and at most 2^60 bytes (1024 PB)")
        return said
    return parse_size(said, member)


# -- receive-backup --------------------------------------------------------------------------------


def _receive(api: Api) -> None:
    service = api.service
    find = Finder(service)
    path = "/api/v1/backup/receive-backup"

    async def create_here(request: StreamingRequest, target: BackupRequest) -> bytes:
        return await create_on_link(service, request, target)

    create = speaks_tus(create_here)

    async def post(request: StreamingRequest, capability: str | None = None) -> bytes:
        caller = request.caller
        known = None if capability is None else await find.by_capability(capability, caller)
        part = part_of(request)
        if known is not None and request.method == b"POST" and is_tus(request):
            return await create(request, target=known)
        kind = media_type(request)
        if kind == "application/json" and request.method == b"POST":
            return await _start(service, find, request, known)
        if known is not None:
            uploadable(known)
        refuse_coding(request)
        if kind == "multipart/form-data" and request.method == b"POST":
            return await _form(service, find, request, known)
        target = known or await find.by_video(_named_video(request), request.caller)
        if part is not None:
            return await _part(service, request, uploadable(target), *part)
        return await _raw(service, request, target)

    async def head(request: StreamingRequest, capability: str) -> bytes:
        target = uploadable(await find.by_capability(capability, request.caller))
        newest = await service.intake.newest(target.ask.request_id)
        if newest is not None:
            await shielded(service.intake.transfers.make_way_if_silent(newest.upload_id))
            target = uploadable(await find.by_capability(capability, request.caller, again=True))
        return write(request, Answer(None, 200, await _standing(service, target)))

    async def patch(request: StreamingRequest, capability: str) -> bytes:
        target = uploadable(await find.by_capability(capability, request.caller))
        if media_type(request) != "application/offset+octet-stream":
            raise UnsupportedMedia("PATCH takes application/offset+octet-stream.")
        refuse_coding(request)
        return await _go_on(service, request, target)

    for method, says in (
        ("POST", "The bytes of the video, raw or as a form; as JSON: I am starting."),
        ("PUT", "The bytes of the video; with Content-Range, what follows the newest upload's."),
    ):
        for url in (path, f"{path}/<capability>"):
            api.route(
                method,
                url,
                post,
                who=Who.HOLDER,
                says=says,
                takes="*/*",
                gives=messages.Received,
                unbreakable=True,
            )
    api.route(
        "HEAD",
        f"{path}/<capability>",
        speaks_tus(head, strict=False),
        who=Who.HOLDER,
        says="Where the newest upload stands (tus 1.0.0).",
    )
    api.route(
        "PATCH",
        f"{path}/<capability>",
        speaks_tus(patch),
        who=Who.HOLDER,
        says="Go on where the newest upload stands (tus 1.0.0).",
        takes="application/offset+octet-stream",
        unbreakable=True,
    )


async def _start(
    service: BackupService, find: Finder, request: StreamingRequest, known: BackupRequest | None
) -> bytes:
    """ "I am starting"."""
    message: messages.Start = await read_message(request, messages.Start)
    if known is not None and not same_video(known.ask.video, message.video_id):
        raise Invalid("videoId", "is not the video that this link is for")
    target = uploadable(known or await find.by_video(message.video_id, request.caller))
    await shielded(service.intake.announce(target.ask.request_id))
    return write(
        request,
        Answer(
            messages.Started(
                success=True,
                message="Server A is ready for the bytes",
                request_id=target.ask.request_id,
                upload_url=service.links.upload(target.ask.capability),
                reserved_bytes=target.ask.size,
            )
        ),
    )


async def _raw(service: BackupService, request: StreamingRequest, target: BackupRequest) -> bytes:
    """The body is the video."""
    uploadable(target)
    length = request.body.length
    if length == 0:
        raise Invalid("body", "is empty; a video has at least one byte")
    name = _disposition_name(request)
    outcome = await shielded(
        service.intake.receive(
            target.ask.request_id,
            request.body,
            length=length,
            digests=digests(request, "content-digest", "repr-digest"),
            file_name=lambda: name,
            content_type=_content_type(request),
        )
    )
    return _received(request, target, outcome)


async def _part(
    service: BackupService, request: StreamingRequest, target: Live, first: int, total: int
) -> bytes:
    """The body goes on where the newest upload stands, as with PATCH; what ends it is answered
    as the whole is.
    """
    if isinstance(target, Received):
        raise OffsetMismatch(target.size)
    newest = await service.intake.newest(target.ask.request_id)
    if newest is not None and newest.length not in (None, total):
        raise Invalid(
            "Content-Range", f"is of {total} bytes, the upload of {newest.length}; PUT the whole"
        )
    name = _disposition_name(request)
    outcome = await shielded(
        service.intake.receive(
            target.ask.request_id,
            request.body,
            length=request.body.length,
            offset=first,
            total=total,
            digests=digests(request, "repr-digest"),
            file_name=lambda: name,
            content_type=_content_type(request),
            check=body_check(request),
        )
    )
    if isinstance(outcome, Outcome):
        return _received(request, target, outcome)
    return write(request, Answer(None, 204, {"Upload-Offset": str(outcome.offset)}))


async def _form(
    service: BackupService, find: Finder, request: StreamingRequest, known: BackupRequest | None
) -> bytes:
    """The body is a form with the video in it."""
    if request.getHeader("content-digest") is not None:
        raise Invalid("Content-Digest", "of a form is not checked; send Repr-Digest of the video")
    length = request.body.length
    named = None if known is None else known.ask.video
    form = FormSource(request.body, request.getHeader("content-type") or "", named)
    if known is None and b"videoId" not in (request.args or {}):
        # The bare path: who it is for must be known before the first byte of the video.
        field = await form.find_video()
        if field is None:
            raise Invalid("videoId", "must come before the file, or in the query")
        known = await find.by_video(field, request.caller)
    target = uploadable(known or await find.by_video(_named_video(request), request.caller))
    form.expect(target.ask.video)
    if length is not None and length > target.ask.size + FRAMING:
        raise TooLarge(
            f"The form has {length} bytes; {target.ask.size} were reserved.", target.ask.size
        )
    outcome = await shielded(
        service.intake.receive(
            target.ask.request_id,
            form,
            length=None,
            digests=digests(request, "repr-digest"),
            file_name=lambda: form.file_name,
            content_type=None,
        )
    )
    return _received(request, target, outcome)


async def _go_on(service: BackupService, request: StreamingRequest, target: BackupRequest) -> bytes:
    """The body goes on where the newest upload of this link stands (tus 1.0.0, PATCH)."""
    offset = offset_of(request)
    if isinstance(target, Received):
        if offset != target.size:
            raise OffsetMismatch(target.size)
        if request.body.length != 0:
            raise TooLarge("Every byte is here already; nothing can follow.", target.size)
        return write(request, Answer(None, 204, TUS | {"Upload-Offset": str(target.size)}))
    outcome = await shielded(
        service.intake.receive(
            target.ask.request_id,
            request.body,
            length=request.body.length,
            offset=offset,
            total=total_of(request),
            digests=digests(request, "repr-digest"),
            check=body_check(request),
        )
    )
    now = outcome.size if isinstance(outcome, Outcome) else outcome.offset
    return write(request, Answer(None, 204, TUS | {"Upload-Offset": str(now)}))


async def _standing(service: BackupService, target: Live) -> dict[str, str]:
    """Where the newest upload of a link stands, as tus 1.0.0 tells it."""
    if isinstance(target, Received):
        return TUS | {"Upload-Offset": str(target.size), "Upload-Length": str(target.size)}
    newest = await service.intake.newest(target.ask.request_id)
    if newest is None:
        return TUS | {"Upload-Offset": "0"}
    return TUS | standing(target, newest)


def _received(request: StreamingRequest, target: BackupRequest, outcome: Any) -> bytes:
    if not isinstance(outcome, Outcome):
        raise Over("The upload ended before its bytes did.")
    return write(
        request,
        Answer(
            messages.Received(
                success=True,
                message="Server A has received the backup",
                request_id=target.ask.request_id,
                size=outcome.size,
                sha256=outcome.sha256,
            )
        ),
    )


def _named_video(request: StreamingRequest) -> str:
    values = (request.args or {}).get(b"videoId", [])
    if len(values) != 1:
        raise Invalid("videoId", "must be named once, as ?videoId= beside raw bytes")
    try:
        return str(values[0], "utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("videoId", "is not UTF-8") from error


def _content_type(request: StreamingRequest) -> str | None:
    """The media type of raw bytes, unless it only says what the tool's default is."""
    kind = media_type(request)
    plain = ("", "application/octet-stream", "application/x-www-form-urlencoded")
    return None if kind in plain or not re.fullmatch(r"[\x21-\x7e]{1,255}", kind) else kind


def _disposition_name(request: StreamingRequest) -> str | None:
    """The file name in Content-Disposition (RFC 6266)."""
    said = request.getHeader("content-disposition")
    if not said or len(said) > 8192:
        return None
    name = parse_options_header(said)[1].get("filename")
    return name[:4096] if name else None


# -- complete-backup -------------------------------------------------------------------------------


def _complete(api: Api) -> None:
    service = api.service
    find = Finder(service)
    path = "/api/v1/backup/complete-backup"

    async def complete(
        call: Call, message: messages.Complete, capability: str | None = None
    ) -> Answer:
        if capability is not None:
            target = await find.by_capability(capability, call.caller)
            if not same_video(target.ask.video, message.video_id):
                raise Invalid("videoId", "is not the video that this link is for")
        else:
            target = await find.by_video(message.video_id, call.caller)
        request_id = target.ask.request_id
        if not message.success:
            await service.keeper.give_up(request_id)
            return Answer(messages.Said(success=True, message="The backup was given up"))
        backup = await service.keeper.complete(request_id, size=message.size, sha256=message.sha256)
        return Answer(
            messages.Completed(
                success=True,
                message="Server A has stored the backup",
                video_id=target.ask.video,
                backup_id=backup.backup_id,
                size=backup.size,
                sha256=backup.sha256,
                content_url=service.links.content(backup.backup_id),
            )
        )

    for url in (path, f"{path}/<capability>"):
        api.endpoint(
            "POST",
            url,
            says="The upload was whole; or the sender gave up.",
            gives=messages.Completed,
            who=Who.HOLDER,
            takes=messages.Complete,
            unbreakable=True,
        )(complete)
