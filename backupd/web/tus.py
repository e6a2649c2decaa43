"""Resumable uploads, tus 1.0.0: on every offer's link, and as direct uploads. PROTOCOL.md, 5."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from backupd.errors import (
    AlreadyStored,
    DigestMismatch,
    Forbidden,
    Invalid,
    NoSuchUpload,
    Over,
    UnsupportedMedia,
)
from backupd.interfaces import Upload
from backupd.receiver.admission import Decision
from backupd.receiver.digests import Check
from backupd.receiver.resources import Described
from backupd.receiver.transfer import Outcome
from backupd.requests import Ask, BackupRequest, Cancelled, Live, Received, Stored, Storing
from backupd.service import BackupService
from backupd.sizes import MAX_SIZE, format_size
from backupd.trust.caller import STRANGER, Caller
from backupd.waiting import shielded
from backupd.web.cors import preflight
from backupd.web.digests import digests
from backupd.web.endpoint import Answer, Api, Who, media_type, refusal, refuse_coding, write
from backupd.web.finder import Finder, uploadable
from backupd.web.site import StreamingRequest
from backupd.web.tus_headers import (
    ALGORITHMS,
    EXTENSIONS,
    VERSION,
    Creation,
    as_created,
    check_of,
    expires,
    offset_of,
    read_creation,
    standing,
    total_of,
)

__all__ = ["OFFSET", "TUS", "body_check", "create_on_link", "routes"]

TUS = {"Tus-Resumable": VERSION, "Cache-Control": "no-store"}
OFFSET = "application/offset+octet-stream"
LINK = "/api/v1/backup/receive-backup/<capability>"
DIRECT = "/api/v1/uploads"
LOCAL = "local"
"""Whose a direct upload is when no peer sends it: anybody's in open mode, the operator's."""

Serve = Callable[..., Awaitable[bytes]]


def speaks_tus(serve: Serve, *, strict: bool = True) -> Serve:
    """A handler whose every answer, a refusal too, says that this is tus 1.0.0.

    ``strict`` refuses clients that do not say the same.
    """

    async def careful(request: StreamingRequest, **parts: Any) -> bytes:
        request.setHeader("Tus-Resumable", VERSION)
        said = request.getHeader("tus-resumable")
        if said != VERSION and (strict or said is not None):
            detail = f"This is tus {VERSION}; say so with the header Tus-Resumable."
            return write(request, refusal(412, "WrongVersion", detail, Tus_Version=VERSION))
        return await serve(request, **parts)

    return careful


def routes(api: Api) -> None:
    """Register the endpoints but the creation on a link, which shares its path with raw bytes."""
    service = api.service
    find = Finder(service)

    async def on_link(
        caller: Caller, capability: str, upload_id: str, *, again: bool = False
    ) -> tuple[Live, Upload]:
        request = uploadable(await find.by_capability(capability, caller, again=again))
        return request, await service.resources.find(request.ask.request_id, upload_id)

    async def direct(
        caller: Caller, token: str, *, again: bool = False
    ) -> tuple[BackupRequest, Upload | None]:
        part = await find.by_part(token, caller, again=again)
        if part is not None:
            return part
        request = await find.by_capability(token, caller, again=again)
        if not request.ask.direct:
            raise NoSuchUpload("This link belongs to no upload.")
        if not isinstance(request, Live):
            return request, None
        return request, await service.resources.direct(request.ask.request_id)

    _resource(api, f"{LINK}/<upload_id>", on_link)
    _resource(api, f"{DIRECT}/<token>", direct)

    async def create(request: StreamingRequest) -> bytes:
        return await _create_direct(service, direct, request)

    api.route(
        "POST",
        DIRECT,
        speaks_tus(create),
        who=Who.SENDER,
        says="Begin a direct upload: admission, offer and creation in one step (tus 1.0.0).",
        takes=OFFSET,
        unbreakable=True,
    )

    async def link_options(request: StreamingRequest, capability: str, **rest: str) -> bytes:
        target = await find.by_capability(capability, request.caller)
        return _options(service, request, target.ask.size)

    async def direct_options(request: StreamingRequest, **rest: str) -> bytes:
        # A browser asks this without a token; how large the volume is, is for who shows one.
        room = MAX_SIZE
        if request.caller is not STRANGER:
            room = await service.off(service.storage.capacity)
        return _options(service, request, min(MAX_SIZE, room))

    for url, serve in (
        (LINK, link_options),
        (f"{LINK}/<upload_id>", link_options),
        (DIRECT, direct_options),
        (f"{DIRECT}/<token>", direct_options),
    ):
        api.route("OPTIONS", url, serve, who=Who.EVERYBODY, says="What of tus is spoken here.")


def _options(service: BackupService, request: StreamingRequest, most: int) -> bytes:
    headers = TUS | {
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(most),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
    }
    return write(request, Answer(None, 200, headers | preflight(request)))


# -- creation --------------------------------------------------------------------------------------


async def create_on_link(
    service: BackupService, request: StreamingRequest, target: BackupRequest
) -> bytes:
    """POST on an offer's link: a new upload, a part, or what joins parts."""
    alive, creation = uploadable(target), _creation(request)
    request_id, capability = alive.ask.request_id, alive.ask.capability
    described = _described(creation)
    if creation.parts:
        parts = [_last(url, f"receive-backup/{capability}/") for url in creation.parts]
        final = await shielded(service.resources.create_final(request_id, parts, described))
        location = service.links.resource(capability, final.upload_id)
        return await _joined(service, request, alive, final, location)
    upload = await shielded(service.resources.create(request_id, described))
    location = service.links.resource(capability, upload.upload_id)
    return await _created(service, request, alive, upload, location)


Find = Callable[[Caller, str], Awaitable[tuple[BackupRequest, Upload | None]]]


async def _create_direct(service: BackupService, find: Find, request: StreamingRequest) -> bytes:
    creation = _creation(request)
    if creation.parts:
        return await _join_direct(service, find, request, creation)
    if creation.length is None:
        raise Invalid("Upload-Defer-Length", "cannot be used here: room is asked for at once")
    video = None if creation.partial else _video(creation)
    ask = _ask(service, request, creation, video, creation.length)
    decision = await shielded(service.admission.ask_direct(ask))
    if decision.request is None:
        return write(request, _refused(decision, creation.length))
    service.queue.offer_again(decision.request)
    ask, described = decision.request.ask, _described(creation)
    if creation.partial:
        upload = await shielded(
            service.resources.create(ask.request_id, described, token=ask.capability)
        )
    else:
        upload = await shielded(service.resources.create_direct(ask.request_id, described))
    location = service.links.direct(ask.capability)
    return await _created(service, request, decision.request, upload, location)


async def _join_direct(
    service: BackupService, find: Find, request: StreamingRequest, creation: Creation
) -> bytes:
    """What joins parts that were reserved one by one."""
    video = _video(creation)
    found = [await find(request.caller, _last(url, "uploads/")) for url in creation.parts]
    parts = []
    for owner, part in found:
        if owner.ask.peer != _peer(request):
            raise NoSuchUpload("A part that Upload-Concat names is not one of this link.")
        if part is None:
            return await _joined_before(service, request, owner)
        parts.append(part)
    first = found[0][0]
    if isinstance(first, Live) and not first.ask.part:
        # The answer was lost: the same parts have become one before.
        alive = first
        final = await service.resources.create_final(
            alive.ask.request_id, [part.upload_id for part in parts], _described(creation)
        )
    else:
        ask = _ask(service, request, creation, video, sum(part.length or 0 for part in parts))
        alive, final = await shielded(
            service.resources.join_direct(ask, parts, _described(creation))
        )
        service.queue.offer_again(alive)
    return await _joined(service, request, alive, final, service.links.direct(alive.ask.capability))


def _ask(
    service: BackupService,
    request: StreamingRequest,
    creation: Creation,
    video: str | None,
    size: int,
) -> Ask:
    return service.admission.direct_ask(
        peer=_peer(request),
        video=video,
        size=size,
        file_name=_said(creation, "filename"),
        content_type=_type(creation),
        sha256=_sha256(creation),
        metadata=creation.metadata,
        concat=creation.concat,
    )


def _peer(request: StreamingRequest) -> str:
    peer = request.caller.peer
    return LOCAL if peer is None else peer.name


def _creation(request: StreamingRequest) -> Creation:
    """What is to be created. Raises `UnsupportedMedia` for a body that is no upload's."""
    refuse_coding(request)
    if request.body.length != 0 and media_type(request) != OFFSET:
        raise UnsupportedMedia(f"A creation has no body, or one of {OFFSET}.")
    creation = read_creation(request)
    if creation.parts and request.body.length != 0:
        raise Forbidden("What joins parts takes no bytes of its own.")
    return creation


def _described(creation: Creation) -> Described:
    return Described(
        length=creation.length,
        partial=creation.partial,
        metadata=creation.metadata,
        concat=creation.concat,
        file_name=_said(creation, "filename"),
        content_type=_type(creation),
    )


def _said(creation: Creation, *names: str) -> str | None:
    for name in names:
        if value := creation.said.get(name):
            return value[:4096]
    return None


def _type(creation: Creation) -> str | None:
    kind = _said(creation, "filetype", "type")
    return kind if kind is not None and re.fullmatch(r"[\x20-\x7e]{1,255}", kind) else None


def _sha256(creation: Creation) -> str | None:
    said = _said(creation, "sha256")
    if said is None:
        return None
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", said):
        raise Invalid("Upload-Metadata", "has a sha256 that is not 64 hexadecimal digits")
    return said.lower()


def _video(creation: Creation) -> str:
    video = creation.said.get("videoId", "")
    if not 0 < len(video) <= 128 or any(
        ord(c) < 32 or 127 <= ord(c) < 160 or c == "\ufffd" for c in video
    ):
        raise Invalid("Upload-Metadata", "must have a videoId of 1 to 128 characters, in base64")
    return video


def _last(url: str, before: str) -> str:
    """The id or token that ends a part's URL. Raises `NoSuchUpload`."""
    path = unquote(urlsplit(url).path)
    head, slash, last = path.rpartition("/")
    if not f"{head}{slash}".endswith(f"/{before}") or not last:
        raise NoSuchUpload("A part that Upload-Concat names is not one of this link.")
    return last


def _refused(decision: Decision, size: int) -> Answer:
    """No room: 507 for the disk, 413 for what could never be, 429 for what time will mend."""
    status = {"insufficient-space": 507, "too-large": 413}.get(decision.reason or "", 429)
    answer = refusal(status, "NotAdmitted", decision.message)
    more: dict[str, Any] = {
        "reason": decision.reason,
        "availableSpace": format_size(decision.available),
        "requiredSpace": format_size(size),
    }
    headers = dict(answer.headers)
    if decision.retry_after:
        more["retryAfter"] = decision.retry_after
        headers["Retry-After"] = str(decision.retry_after)
    return Answer(answer.body | more, answer.status, headers)


async def _created(
    service: BackupService,
    request: StreamingRequest,
    alive: Live,
    upload: Upload,
    location: str,
) -> bytes:
    headers = TUS | {"Location": location} | expires(alive)
    if media_type(request) == OFFSET and request.body.length != 0:
        # The client must learn where its upload is, also when its body was cut.
        request.setHeader("Location", location)
        offset = await _receive(service, request, upload, 0, body_check(request))
        headers["Upload-Offset"] = str(offset)
    return write(request, Answer(None, 201, headers))


async def _joined(
    service: BackupService,
    request: StreamingRequest,
    alive: Live,
    final: Upload,
    location: str,
) -> bytes:
    """201 once it is whole; parts that are still being sent do not keep it waiting."""
    await shielded(_join(service, final))
    return write(request, Answer(None, 201, TUS | {"Location": location} | expires(alive)))


async def _join(service: BackupService, final: Upload) -> None:
    if await service.resources.join(final) is not None:
        await service.keeper.keep_direct(final.request_id)


async def _joined_before(
    service: BackupService, request: StreamingRequest, owner: BackupRequest
) -> bytes:
    """The answer to a join was lost, and its client asks again."""
    into = owner.into if isinstance(owner, Cancelled) else None
    if into is None:
        raise NoSuchUpload("A part that Upload-Concat names was ended.")
    whole = await service.ledger.request(into)
    location = service.links.direct(whole.ask.capability)
    if isinstance(whole, Live):
        final = await service.resources.direct(into)
        return await _joined(service, request, whole, final, location)
    _over(whole)
    return write(request, Answer(None, 201, TUS | {"Location": location}))


# -- one upload ------------------------------------------------------------------------------------


def _resource(api: Api, url: str, find: Callable[..., Awaitable[tuple[Any, Any]]]) -> None:
    """HEAD, PATCH and DELETE of the upload that ``find`` finds for a caller by what is in the URL.

    It counts as a request of its peer unless it is to look ``again``.
    """
    service = api.service

    async def head(request: StreamingRequest, **parts: str) -> bytes:
        alive, upload = await find(request.caller, **parts)
        if upload is not None:
            await shielded(service.intake.transfers.make_way_if_silent(upload.upload_id))
            if isinstance(alive, Received | Storing):
                # It was whole, and then the disk failed, or we were stopped. Whoever hears that
                # every byte is here asks no more, so that is said once it is stored.
                await shielded(service.keeper.keep_direct(alive.ask.request_id))
            alive, upload = await find(request.caller, **parts, again=True)
        stands = _over(alive) if upload is None else standing(alive, upload)
        return write(request, Answer(None, 200, TUS | stands))

    async def patch(request: StreamingRequest, **parts: str) -> bytes:
        if media_type(request) != OFFSET:
            raise UnsupportedMedia(f"PATCH takes {OFFSET}.")
        refuse_coding(request)
        offset, check = offset_of(request), body_check(request)
        alive, upload = await find(request.caller, **parts)
        if upload is None:
            _gone(alive)
        if upload.parts:
            raise Forbidden("This upload joins its parts; it takes no bytes of its own.")
        now = await _receive(service, request, upload, offset, check)
        alive = await service.ledger.request(upload.request_id)
        more = expires(alive) if isinstance(alive, Live) else {}
        return write(request, Answer(None, 204, TUS | {"Upload-Offset": str(now)} | more))

    async def delete(request: StreamingRequest, **parts: str) -> bytes:
        alive, upload = await find(request.caller, **parts)
        if upload is None:
            _gone(alive)
        await shielded(service.resources.terminate(upload))
        return write(request, Answer(None, 204, TUS))

    for method, serve, says in (
        ("HEAD", head, "Where an upload stands (tus 1.0.0)."),
        ("PATCH", patch, "Go on with an upload (tus 1.0.0)."),
        ("DELETE", delete, "End an upload and free its room (tus 1.0.0, Termination)."),
    ):
        takes = OFFSET if method == "PATCH" else None
        api.route(
            method,
            url,
            speaks_tus(serve),
            who=Who.HOLDER,
            says=says,
            takes=takes,
            unbreakable=method != "HEAD",
        )


async def _receive(
    service: BackupService,
    request: StreamingRequest,
    upload: Upload,
    offset: int,
    check: Check | None,
) -> int:
    """Take the body as what follows ``offset``; the durable offset afterwards."""
    total = total_of(request)
    if request.body.length == 0 and total is None and offset == upload.offset:
        return offset
    return await shielded(_take(service, request, upload, offset, total, check))


async def _take(
    service: BackupService,
    request: StreamingRequest,
    upload: Upload,
    offset: int,
    total: int | None,
    check: Check | None,
) -> int:
    outcome = await service.intake.receive(
        upload.request_id,
        request.body,
        length=request.body.length,
        upload_id=upload.upload_id,
        offset=offset,
        total=total,
        digests=digests(request, "repr-digest"),
        check=check,
    )
    if isinstance(outcome, Outcome):
        await service.keeper.keep_direct(upload.request_id)
        return outcome.size
    if outcome.whole:
        request_id = outcome.request_id
        if await service.resources.join_with(request_id, outcome.upload_id) is not None:
            await service.keeper.keep_direct(request_id)
    return outcome.offset


def body_check(request: StreamingRequest) -> Check | None:
    """What the body must have: its Upload-Checksum, and its Content-Digest (RFC 9530, 2).

    Raises `Invalid`.
    """
    checksum = check_of(request)
    said = digests(request, "content-digest")
    if "sha-256" not in said:
        return checksum
    check = Check(["sha256"], lambda: ("sha256", said["sha-256"]), DigestMismatch)
    check.beside = checksum
    return check


def _over(request: BackupRequest) -> dict[str, str]:
    """What is told of a direct upload that is over. Raises `Over` unless it was stored."""
    if not isinstance(request, Stored):
        _gone(request)
    size = str(request.size)
    return {"Upload-Offset": size, "Upload-Length": size} | as_created(
        request.ask.metadata, request.ask.concat
    )


def _gone(request: BackupRequest) -> NoReturn:
    if isinstance(request, Stored | Storing):
        raise AlreadyStored("The upload is stored already; nothing can be added to it.")
    raise Over(f"The upload has ended: {getattr(request, 'reason', 'it is over')}")
