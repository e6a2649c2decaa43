"""What is kept and what is going on: lists, single items, and the operator's actions."""

from __future__ import annotations

from twisted.logger import Logger

from backupd.errors import BackupdError, LedgerFailed, NoSuchRequest
from backupd.requests import BackupRequest, Cancelled, ended
from backupd.service import BackupService
from backupd.sizes import format_size
from backupd.waiting import go_on
from backupd.web import messages
from backupd.web.endpoint import (
    Answer,
    Api,
    Call,
    Who,
    check_overseer,
    next_of,
    page_arguments,
    peer_argument,
    state_argument,
)
from backupd.web.views import backup_view, entry_view, request_view, scrub_view

__all__ = ["routes"]

_log = Logger()

MAX_PLACED = 100
"""So many of a page have their position: each is a count over the line that it waits in."""


def routes(api: Api) -> None:
    """Register the endpoints."""
    _health(api)
    _requests(api)
    _health_of_backups(api)
    _outbox(api)


def _health(api: Api) -> None:
    service = api.service

    @api.endpoint(
        "GET",
        "/healthz",
        says="Whether the daemon is alive.",
        gives=messages.Health,
        who=Who.EVERYBODY,
    )
    async def healthz(call: Call) -> Answer:
        return Answer(messages.Health(status="ok"))

    @api.endpoint(
        "GET", "/readyz", says="Whether it can take work.", gives=messages.Readiness, who=Who.ANYONE
    )
    async def readyz(call: Call) -> Answer:
        if (why := await service.ledger.trouble()) is not None:
            raise LedgerFailed(why)
        totals = await service.ledger.totals()
        free = await service.off(service.storage.free)
        floor = service.settings.reserved_space
        available = max(0, free - floor - totals.promised)
        draining = service.admission.draining
        body = messages.Readiness(
            status="draining" if draining else "ok",
            available_space=format_size(available),
            available_bytes=available,
            pending=totals.pending,
            in_progress=totals.live - totals.pending,
        )
        if draining:
            return Answer(body, 503, {"Retry-After": "5"})
        return Answer(body)


def _requests(api: Api) -> None:
    service = api.service

    async def asked(call: Call, request_id: str) -> BackupRequest:
        """The request, if the caller sees it. Raises `NoSuchRequest`."""
        request = await service.ledger.request(request_id)
        if not call.caller.sees(request.ask.peer):
            raise NoSuchRequest(f"There is no backup request {request_id}.")
        return request

    @api.endpoint(
        "GET",
        "/api/v1/backup/requests",
        says="The queue, and what became of it; `position` only for the first 100 of a page.",
        gives=messages.RequestList,
        who=Who.ANYONE,
    )
    async def requests(call: Call) -> Answer:
        after, limit = page_arguments(call)
        live = state_argument(call, {"live": True, "ended": False})
        page = await service.ledger.requests(
            live=live, peer=peer_argument(call), after=after, limit=limit
        )
        views = [
            await request_view(service, request, placed=number < MAX_PLACED)
            for number, (_, request) in enumerate(page)
        ]
        return Answer(messages.RequestList(requests=views, next=next_of(page, limit)))

    @api.endpoint(
        "GET",
        "/api/v1/backup/requests/<request_id>",
        says="One request.",
        gives=messages.RequestView,
        who=Who.ANYONE,
    )
    async def request(call: Call, request_id: str) -> Answer:
        return Answer(await request_view(service, await asked(call, request_id)))

    @api.endpoint(
        "DELETE",
        "/api/v1/backup/requests/<request_id>",
        says="Cancel a request.",
        gives=messages.RequestView,
        who=Who.OPERATOR,
        unbreakable=True,
    )
    async def cancel(call: Call, request_id: str) -> Answer:
        now = service.reactor.seconds()
        reason = "The operator cancelled it."
        changed = await service.intake.end(
            request_id, lambda r: ended(r, Cancelled, reason=reason, now=now)
        )
        return Answer(await request_view(service, changed))


def _health_of_backups(api: Api) -> None:
    service = api.service

    @api.endpoint(
        "POST",
        "/api/v1/backups/<backup_id>/verify",
        says="Read its bytes again; see the backup for how far that is.",
        gives=messages.BackupView,
        who=Who.OPERATOR,
    )
    async def verify(call: Call, backup_id: str) -> Answer:
        backup = await service.ledger.backup(backup_id)
        go_on(_verify(service, backup_id))
        return Answer(backup_view(service, backup), 202)

    @api.endpoint(
        "GET",
        "/api/v1/scrub",
        says="Whether all that is kept is well, and how the reading of it goes.",
        gives=messages.ScrubView,
        who=Who.ANYONE,
    )
    async def scrub(call: Call) -> Answer:
        check_overseer(call.caller)
        return Answer(await scrub_view(service))

    @api.endpoint(
        "POST",
        "/api/v1/rebuild",
        says="List again what lies under the root.",
        gives=messages.Rebuilt,
        who=Who.OPERATOR,
        unbreakable=True,
        notes="rebuilt",
    )
    async def rebuild(call: Call) -> Answer:
        found = await service.rebuild()
        damaged = [messages.DamagedView(path=one.path, why=one.why) for one in found.damaged]
        return Answer(
            messages.Rebuilt(
                added=found.added,
                known=found.known,
                damaged=damaged,
                more_damaged=found.more_damaged,
            )
        )


async def _verify(service: BackupService, backup_id: str) -> None:
    """Nobody waits for this: its result is in the list, its failure in the log."""
    try:
        await service.keeper.verify(backup_id)
    except BackupdError as error:
        _log.error(
            "backup {backup_id} could not be verified: {why}",
            backup_id=backup_id,
            why=str(error),
        )
    except Exception:
        _log.failure("backup {backup_id} could not be verified", backup_id=backup_id)


def _outbox(api: Api) -> None:
    service = api.service

    @api.endpoint(
        "POST",
        "/api/v1/outbox",
        says="Queue a file of this server for sending.",
        gives=messages.Accepted,
        who=Who.OPERATOR,
        takes=messages.Send,
        unbreakable=True,
    )
    async def send(call: Call, message: messages.Send) -> Answer:
        entry = await service.outbox.enqueue(
            to=service.peers.url_of(message.to), path=message.path, video=message.video_id
        )
        view = entry_view(service, entry)
        return Answer(
            messages.Accepted(success=True, message="The video is queued", entry=view), 201
        )

    @api.endpoint(
        "GET",
        "/api/v1/outbox",
        says="What is being sent, and what became of it.",
        gives=messages.EntryList,
        who=Who.OPERATOR,
    )
    async def entries(call: Call) -> Answer:
        after, limit = page_arguments(call)
        over = state_argument(call, {"going": False, "over": True})
        page = await service.ledger.entries(over=over, after=after, limit=limit)
        views = [entry_view(service, entry) for _, entry in page]
        return Answer(messages.EntryList(entries=views, next=next_of(page, limit)))

    @api.endpoint(
        "GET",
        "/api/v1/outbox/<entry_id>",
        says="One entry of the outbox.",
        gives=messages.EntryView,
        who=Who.OPERATOR,
    )
    async def entry(call: Call, entry_id: str) -> Answer:
        return Answer(entry_view(service, await service.ledger.entry(entry_id)))

    @api.endpoint(
        "DELETE",
        "/api/v1/outbox/<entry_id>",
        says="Stop sending.",
        gives=messages.EntryView,
        who=Who.OPERATOR,
        unbreakable=True,
    )
    async def cancel(call: Call, entry_id: str) -> Answer:
        return Answer(entry_view(service, await service.outbox.cancel(entry_id)))
