"""What is kept and what is going on: lists, single items, and the operator's actions."""

from __future__ import annotations

from collections.abc import Sequence

from klein import Klein
from twisted.logger import Logger

from backupd.errors import BackupdError
from backupd.requests import Cancelled, ended
from backupd.service import BackupService
from backupd.sizes import format_size
from backupd.waiting import go_on
from backupd.web import messages
from backupd.web.endpoint import Answer, Call, Who, endpoint, page_arguments
from backupd.web.views import backup_view, entry_view, request_view

__all__ = ["routes"]

_log = Logger()


def routes(app: Klein, service: BackupService) -> None:
    """Register the endpoints."""
    _health(app, service)
    _requests(app, service)
    _backups(app, service)
    _outbox(app, service)


def _health(app: Klein, service: BackupService) -> None:
    @endpoint(app, service, "GET", "/healthz", who=Who.ANYONE)
    async def healthz(call: Call) -> Answer:
        return Answer({"status": "ok"})

    @endpoint(app, service, "GET", "/readyz", who=Who.ANYONE)
    async def readyz(call: Call) -> Answer:
        totals = await service.ledger.totals()
        free = await service.off(service.storage.free)
        floor = service.settings.reserved_space
        available = max(0, free - floor - totals.promised)
        draining = service.admission.draining
        body = {
            "status": "draining" if draining else "ok",
            "availableSpace": format_size(available),
            "availableBytes": available,
            "pending": totals.pending,
            "inProgress": totals.live - totals.pending,
        }
        return Answer(body, 503 if draining else 200)


def _requests(app: Klein, service: BackupService) -> None:
    @endpoint(app, service, "GET", "/api/v1/backup/requests", who=Who.ANYONE)
    async def requests(call: Call) -> Answer:
        after, limit = page_arguments(call)
        live = {"live": True, "ended": False}.get(call.query.get("state", ""))
        page = await service.ledger.requests(
            live=live, peer=call.query.get("peer"), after=after, limit=limit
        )
        views = [await request_view(service, request) for _, request in page]
        return Answer(messages.RequestList(requests=views, next=_next(page, limit)))

    @endpoint(app, service, "GET", "/api/v1/backup/requests/<request_id>", who=Who.ANYONE)
    async def request(call: Call, request_id: str) -> Answer:
        return Answer(await request_view(service, await service.ledger.request(request_id)))

    @endpoint(
        app,
        service,
        "DELETE",
        "/api/v1/backup/requests/<request_id>",
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


def _backups(app: Klein, service: BackupService) -> None:
    @endpoint(app, service, "GET", "/api/v1/backups", who=Who.ANYONE)
    async def backups(call: Call) -> Answer:
        after, limit = page_arguments(call)
        page = await service.ledger.backups(
            peer=call.query.get("peer"),
            video=call.query.get("videoId"),
            after=after,
            limit=limit,
        )
        views = [backup_view(service, backup) for _, backup in page]
        return Answer(messages.BackupList(backups=views, next=_next(page, limit)))

    @endpoint(app, service, "GET", "/api/v1/backups/<backup_id>", who=Who.ANYONE)
    async def backup(call: Call, backup_id: str) -> Answer:
        return Answer(backup_view(service, await service.ledger.backup(backup_id)))

    @endpoint(
        app,
        service,
        "DELETE",
        "/api/v1/backups/<backup_id>",
        who=Who.OPERATOR,
        unbreakable=True,
    )
    async def delete(call: Call, backup_id: str) -> Answer:
        return Answer(backup_view(service, await service.keeper.delete(backup_id)))

    @endpoint(app, service, "POST", "/api/v1/backups/<backup_id>/verify", who=Who.OPERATOR)
    async def verify(call: Call, backup_id: str) -> Answer:
        backup = await service.ledger.backup(backup_id)
        go_on(_verify(service, backup_id))
        return Answer(backup_view(service, backup), 202)

    @endpoint(app, service, "POST", "/api/v1/rebuild", who=Who.OPERATOR, unbreakable=True)
    async def rebuild(call: Call) -> Answer:
        found = await service.rebuild()
        damaged = [{"path": one.path, "why": one.why} for one in found.damaged]
        return Answer(
            {
                "added": found.added,
                "known": found.known,
                "damaged": damaged,
                "moreDamaged": found.more_damaged,
            }
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


def _outbox(app: Klein, service: BackupService) -> None:
    @endpoint(
        app,
        service,
        "POST",
        "/api/v1/outbox",
        who=Who.OPERATOR,
        takes=messages.Send,
        unbreakable=True,
    )
    async def send(call: Call, message: messages.Send) -> Answer:
        entry = await service.outbox.enqueue(
            to=message.to, path=message.path, video=message.video_id
        )
        view = entry_view(service, entry)
        return Answer(
            messages.Accepted(success=True, message="The video is queued", entry=view), 201
        )

    @endpoint(app, service, "GET", "/api/v1/outbox", who=Who.OPERATOR)
    async def entries(call: Call) -> Answer:
        after, limit = page_arguments(call)
        over = {"going": False, "over": True}.get(call.query.get("state", ""))
        page = await service.ledger.entries(over=over, after=after, limit=limit)
        views = [entry_view(service, entry) for _, entry in page]
        return Answer(messages.EntryList(entries=views, next=_next(page, limit)))

    @endpoint(app, service, "GET", "/api/v1/outbox/<entry_id>", who=Who.OPERATOR)
    async def entry(call: Call, entry_id: str) -> Answer:
        return Answer(entry_view(service, await service.ledger.entry(entry_id)))

    @endpoint(
        app,
        service,
        "DELETE",
        "/api/v1/outbox/<entry_id>",
        who=Who.OPERATOR,
        unbreakable=True,
    )
    async def cancel(call: Call, entry_id: str) -> Answer:
        return Answer(entry_view(service, await service.outbox.cancel(entry_id)))


def _next(page: Sequence[tuple[int, object]], limit: int) -> str | None:
    return str(page[-1][0]) if len(page) == limit else None
