"""One decorator for every JSON endpoint, and one table from errors to statuses.

A handler gets a decoded message and returns an `Answer`; it never sees the request. Errors
become problem documents (RFC 9457), with the original's ``success`` and ``message`` beside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Any

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from backupd import errors
from backupd.errors import (
    BackupdError,
    Forbidden,
    Invalid,
    Unauthorized,
    UnsupportedMedia,
    UploadCut,
)
from backupd.links import redacted
from backupd.service import BackupService
from backupd.trust.caller import Caller, Kind
from backupd.trust.peers import Right
from backupd.waiting import shielded
from backupd.web import messages
from backupd.web.site import StreamingRequest

__all__ = [
    "Answer",
    "Api",
    "Call",
    "Operation",
    "Serve",
    "Who",
    "authorise",
    "check_overseer",
    "error_handlers",
    "flag_argument",
    "next_of",
    "note_refusal",
    "page_arguments",
    "peer_argument",
    "problem",
    "refusal",
    "state_argument",
]

_log = Logger()

STATUS: dict[type[BackupdError], int] = {
    BackupdError: 500,
    errors.Invalid: 400,
    errors.UploadCut: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.TooSlow: 408,
    errors.NoSuchRequest: 404,
    errors.NoSuchBackup: 404,
    errors.NoSuchUpload: 404,
    errors.NoSuchEntry: 404,
    errors.NoSuchPeer: 404,
    errors.Ambiguous: 409,
    errors.WrongState: 409,
    errors.AlreadyStored: 409,
    errors.Locked: 423,
    errors.UploadHeld: 409,
    errors.Incomplete: 409,
    errors.OffsetMismatch: 409,
    errors.Over: 410,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.Misdirected: 421,
    errors.DigestMismatch: 422,
    errors.ChecksumMismatch: 460,
    errors.StorageFailed: 500,
    errors.TooManyRequests: 429,
    errors.PeerFailed: 502,
    errors.Busy: 503,
    errors.LedgerFailed: 503,
    errors.NotYourTurn: 503,
    errors.NoRoom: 507,
}


class Who(Enum):
    """Who may call an endpoint; in open mode everyone local may but what the operator does.

    A path with a capability in it is open to whoever holds that.
    """

    EVERYBODY = "everybody, without a token"
    ANYONE = "any peer"
    SENDER = "a peer that may send"
    RESTORER = "a peer that may restore"
    DELETER = "a peer that may delete"
    HOLDER = "the holder of the capability in the path; without one, a peer that may send"
    OPERATOR = "the operator, by the control token"


_CAPABILITIES = frozenset({"capability", "token"})
"""What parts of a path are called that only who was given them can know."""

_RIGHTS = {
    Who.SENDER: Right.SEND,
    Who.RESTORER: Right.RESTORE,
    Who.DELETER: Right.DELETE,
    Who.HOLDER: Right.SEND,
    Who.OPERATOR: Right.ADMIN,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: a message or plain values as JSON; None is an empty body."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Call:
    """What a handler gets beside its message: the query, each name once, and who is calling.

    What it leaves in ``event`` and ``noted`` is how the audit log calls what was done, and more
    of it.
    """

    query: Mapping[str, str]
    caller: Caller
    event: str | None = None
    noted: str | None = None


Handler = Callable[..., Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path, as the OpenAPI document tells it."""

    method: str
    url: str
    who: Who
    says: str
    takes: type[Any] | str | None
    gives: type[Any] | str | None


Serve = Callable[..., Deferred[bytes]]


class Api:
    """Every route, each registered with Klein and noted for the OpenAPI document.

    ``fixed`` has those whose path holds no variable, by method and path; see `web.routes`.
    """

    def __init__(self, service: BackupService) -> None:
        self.service = service
        self.app = Klein()
        self.app.url_map.strict_slashes = False
        self.app.url_map.merge_slashes = False
        self.operations: list[Operation] = []
        self.fixed: dict[tuple[bytes, bytes], Serve] = {}

    def endpoint(
        self,
        method: str,
        url: str,
        *,
        who: Who,
        says: str,
        takes: type[Any] | None = None,
        gives: type[Any] | None = None,
        unbreakable: bool = False,
        notes: str | None = None,
    ) -> Callable[[Handler], Handler]:
        """Serve ``method url`` by an async handler ``(call, [message], **parts of the url)``.

        ``unbreakable`` handlers go on to their end when the client leaves. ``says`` is the
        operation in a sentence, ``takes`` and ``gives`` are its messages. What is done is in the
        audit log as an event called ``notes``.
        """

        def decorate(handler: Handler) -> Handler:
            async def serve(request: StreamingRequest, **parts: Any) -> bytes:
                arguments: list[Any] = [Call(_query(request), request.caller)]
                if takes is not None:
                    arguments.append(await read_message(request, takes))
                answer = handler(*arguments, **parts)
                if notes is not None:
                    answer = self._noted(notes, request, parts, arguments, answer)
                return write(request, await (shielded(_run(answer)) if unbreakable else answer))

            self.route(method, url, serve, who=who, says=says, takes=takes, gives=gives)
            return handler

        return decorate

    async def _noted(
        self,
        event: str,
        request: StreamingRequest,
        parts: Mapping[str, Any],
        arguments: list[Any],
        answer: Awaitable[Answer],
    ) -> Answer:
        """``answer``, and a line in the audit log once it is there."""
        answered = await answer
        about = next(iter(parts.values()), None) or getattr(arguments[-1], "name", None)
        self.service.audit.note(
            arguments[0].event or event,
            peer=request.caller.name,
            address=request.way.address if request.way else None,
            what=about,
            why=arguments[0].noted,
        )
        return answered

    def route(
        self,
        method: str,
        url: str,
        serve: Callable[..., Awaitable[bytes]],
        *,
        who: Who,
        says: str,
        takes: type[Any] | str | None = None,
        gives: type[Any] | str | None = None,
        unbreakable: bool = False,
    ) -> None:
        """Serve ``method url`` by a handler that sees the request; its errors become problems.

        ``takes`` and ``gives`` are messages, or media types. ``unbreakable`` handlers go on to
        their end when the client leaves: what came of a body is worth keeping.
        """

        def handle(request: StreamingRequest, **parts: Any) -> Deferred[bytes]:
            work = _guarded(self.service, who, serve, request, parts)
            return shielded(work) if unbreakable else Deferred.fromCoroutine(work)

        handle.__name__ = f"{method} {url}"
        self.app.route(url, methods=[method])(handle)
        if "<" not in url:
            self.fixed[method.encode(), url.encode()] = handle
        self.operations.append(
            Operation(method=method, url=url, who=who, says=says, takes=takes, gives=gives)
        )


async def _run(answer: Awaitable[Answer]) -> Answer:
    return await answer


async def _guarded(
    service: BackupService,
    who: Who,
    serve: Callable[..., Awaitable[bytes]],
    request: StreamingRequest,
    parts: dict[str, Any],
) -> bytes:
    try:
        authorise(request.caller, who, holder=not _CAPABILITIES.isdisjoint(parts))
        return await serve(request, **parts)
    except CancelledError:
        raise
    except BackupdError as error:
        if isinstance(error, Unauthorized | Forbidden):
            note_refusal(service, request, error)
        if request.startedWriting:
            return _cut(request, error, service.new_id())
        return write(request, problem(error, service.new_id()))
    except Exception:
        defect = _defect(service.new_id())
        if request.startedWriting:
            request.abort()
            return b""
        return write(request, defect)


def note_refusal(service: BackupService, request: StreamingRequest, error: BackupdError) -> None:
    """In the audit log: who was not let in, or not to this."""
    method = request.method.decode("ascii", "replace")
    service.audit.often(
        "refused",
        peer=request.caller.name,
        address=request.way.address if request.way else None,
        what=f"{method} {redacted(request.path.decode('ascii', 'replace'))}",
        why=str(error),
    )


def _cut(request: StreamingRequest, error: BackupdError, incident: str) -> bytes:
    """For an error in the middle of an answer: only a cut tells the client that it is not whole."""
    if not isinstance(error, UploadCut):
        _log.error(
            "incident {incident}: an answer was cut: {why}", incident=incident, why=str(error)
        )
    request.abort()
    return b""


def authorise(caller: Caller, who: Who, *, holder: bool = False) -> None:
    """Raises `Unauthorized` or `Forbidden` unless the caller may do this.

    ``holder`` is whether there is a capability in the path; whether it is the right one shows when
    it is looked up.
    """
    if who is Who.EVERYBODY or (who is Who.HOLDER and holder):
        return
    right = _RIGHTS.get(who)
    if caller.kind is not Kind.STRANGER and (right is None or caller.may(right)):
        return
    if caller.kind is Kind.PEER:
        raise Forbidden(f"Peer {caller.name} has not the right to do this here: {who.value} may.")
    if who is Who.OPERATOR or caller.kind is Kind.LOCAL:
        raise Unauthorized(
            "This needs the control token, as 'Authorization: Bearer …'; it lies in "
            ".backupd/control-token under the root."
        )
    raise Unauthorized("This needs the token of a peer, as 'Authorization: Bearer …'.")


def check_overseer(caller: Caller) -> None:
    """Raises `Forbidden` for who sees only its own: what is told here is of everybody's."""
    if caller.scope is not None:
        raise Forbidden("This is about all peers; the operator may see it.")


async def read_message(request: StreamingRequest, kind: type[Any]) -> Any:
    """The JSON message in the body. Raises `UnsupportedMedia`, `Invalid`, `TooLarge`."""
    return messages.decode(await read_json(request), kind)


async def read_json(request: StreamingRequest) -> bytes:
    """The body as it stands, if it is said to be JSON. Raises `UnsupportedMedia`, `TooLarge`."""
    if media_type(request) != "application/json":
        raise UnsupportedMedia("This takes Content-Type: application/json and nothing else.")
    refuse_coding(request)
    return await request.body.read_all(messages.MAX_JSON)


def media_type(request: StreamingRequest) -> str:
    """The media type of the body, lower case, without parameters; empty when not told."""
    return (request.getHeader("content-type") or "").partition(";")[0].strip().lower()


def refuse_coding(request: StreamingRequest) -> None:
    """Raises `UnsupportedMedia` for a body that is compressed."""
    coding = (request.getHeader("content-encoding") or "identity").strip().lower()
    if coding != "identity":
        raise UnsupportedMedia(f"Content-Encoding {coding[:32]!r} is not taken; send it plain.")


def _query(request: StreamingRequest) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, values in (request.args or {}).items():
        try:
            key, value = name.decode("utf-8"), values[0].decode("utf-8")
        except UnicodeDecodeError as error:
            raise Invalid("query", "is not UTF-8") from error
        if len(values) > 1:
            raise Invalid(key[:64], "is there twice")
        query[key] = value
    return query


def page_arguments(call: Call) -> tuple[int, int]:
    """``after`` and ``limit`` of a list. Raises `Invalid`."""
    numbers = []
    for name, default, most in (("after", 0, 2**63 - 1), ("limit", 100, 1000)):
        text = call.query.get(name, str(default))
        if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or not int(text) <= most:
            raise Invalid(name, f"must be a whole number from 0 to {most}")
        numbers.append(int(text))
    return numbers[0], max(1, numbers[1])


def next_of(page: Sequence[tuple[int, object]], limit: int) -> str | None:
    """What ``after`` is for the following page; None when there is none."""
    return str(page[-1][0]) if len(page) == limit else None


def peer_argument(call: Call) -> str | None:
    """The only peer whose things are listed; None for everybody's, which not every caller sees."""
    asked, scope = call.query.get("peer"), call.caller.scope
    if scope is None or asked == scope:
        return asked
    return scope if asked is None else ""


def state_argument(call: Call, states: Mapping[str, bool], name: str = "state") -> bool | None:
    """What ``state`` stands for, None when it is not there. Raises `Invalid`."""
    state = call.query.get(name)
    if state is None:
        return None
    if state not in states:
        raise Invalid(name, f"must be {' or '.join(states)}")
    return states[state]


def flag_argument(call: Call, name: str) -> bool:
    """Whether ``name`` is ``true``; not being there is no. Raises `Invalid`."""
    return bool(state_argument(call, {"true": True, "false": False}, name))


# -- answers ---------------------------------------------------------------------------------------


_REPRESENTATION = (
    "Accept-Ranges",
    "Content-Digest",
    "Content-Disposition",
    "Content-Range",
    "Content-Security-Policy",
    "ETag",
    "Last-Modified",
    "Repr-Digest",
)
"""What may have been said of the bytes that were asked for, and is not true of a problem."""


_UNREGISTERED = {460: b"Checksum Mismatch"}
"""Statuses that no registry has; this one is of tus 1.0.0."""


def write(request: StreamingRequest, answer: Answer) -> bytes:
    """Set the status and headers of ``answer``; the body to be written.

    Whoever asks where an upload stands while we cannot say is told that it is locked: clients then
    ask again. At any other status tus-js-client would send the whole upload anew.
    """
    status = answer.status
    if status >= 500 and request.method == b"HEAD" and request.getHeader("tus-resumable"):
        status = 423
    request.setResponseCode(status, _UNREGISTERED.get(status))
    if status >= 400:
        for name in _REPRESENTATION:
            request.responseHeaders.removeHeader(name)
    body = b"" if answer.body is None else messages.encode(answer.body)
    if answer.body is not None:
        request.setHeader("Content-Type", "application/json")
    for name, value in answer.headers.items():
        request.setHeader(name, value)
    request.setHeader("Cache-Control", "no-store")
    request.setHeader("X-Content-Type-Options", "nosniff")
    if answer.status != 204:
        request.setHeader("Content-Length", str(len(body)))
    return body


def problem(error: BackupdError, incident: str = "-") -> Answer:
    """A problem document for a foreseen error; ``incident`` names it in the log if it is ours."""
    kind = next(kind for kind in type(error).__mro__ if kind in STATUS)
    status = STATUS[kind]
    if status == 500:
        _log.error("incident {incident}: {why}", incident=incident, why=str(error))
        return _problem(status, type(error).__name__, str(error), {"incident": incident}, {})
    more: dict[str, Any] = {}
    headers: dict[str, str] = {}
    match error:
        case errors.Invalid():
            more["member"] = error.member
        case errors.Incomplete():
            more["receivedBytes"] = error.received
        case errors.OffsetMismatch():
            more["receivedBytes"] = error.offset
            headers["Upload-Offset"] = str(error.offset)
        case errors.TooLarge():
            more["limit"] = error.limit
        case errors.Unauthorized():
            headers["WWW-Authenticate"] = 'Bearer realm="backupd"'
        case errors.Busy() | errors.NotYourTurn() | errors.UploadHeld():
            headers["Retry-After"] = str(math.ceil(error.retry_after))
        case errors.LedgerFailed():
            headers["Retry-After"] = "5"
    return _problem(status, type(error).__name__, str(error), more, headers)


def refusal(status: int, name: str, detail: str, **headers: str) -> Answer:
    """A problem document for what is no error of the domain; ``Content_Range`` is a header."""
    named = {header.replace("_", "-"): value for header, value in headers.items()}
    return _problem(status, name, detail, {}, named)


def _problem(
    status: int, name: str, detail: str, more: dict[str, Any], headers: dict[str, str]
) -> Answer:
    kebab = re.sub(r"(?<!^)([A-Z])", r"-\1", name).lower()
    body = {
        "type": f"urn:backupd:problem:{kebab}",
        "title": _UNREGISTERED[status].decode()
        if status in _UNREGISTERED
        else HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "success": False,
        "message": detail,
    }
    return Answer(body | more, status, {"Content-Type": "application/problem+json"} | headers)


def _defect(incident: str) -> Answer:
    """For what was not foreseen: the log has the traceback, the client its id."""
    _log.failure("incident {incident}: a request failed by a defect", incident=incident)
    detail = f"Something went wrong here that should not; the log has it as incident {incident}."
    return _problem(500, "Defect", detail, {"incident": incident}, {})


def error_handlers(service: BackupService, app: Klein) -> None:
    """What routing itself refuses: 404, and 405 with ``Allow``; a stranger gets 401."""

    def refused(request: Any, failure: Any) -> bytes:
        error = failure.value
        try:
            authorise(request.caller, Who.ANYONE)
        except Unauthorized as stranger:
            note_refusal(service, request, stranger)
            return write(request, problem(stranger))
        headers: dict[str, str] = {}
        if isinstance(error, MethodNotAllowed):
            headers["Allow"] = ", ".join(sorted(error.valid_methods or []))
            detail = f"This takes {headers['Allow']}."
            return write(request, _problem(405, "MethodNotAllowed", detail, {}, headers))
        return write(request, _problem(404, "NotFound", "There is nothing here.", {}, {}))

    app.handle_errors(HTTPException)(refused)
