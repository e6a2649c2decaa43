"""What is kept: lists, single backups, the trash, and locks."""

from __future__ import annotations

from datetime import UTC, datetime

from backupd.errors import Invalid
from backupd.web import messages
from backupd.web.endpoint import (
    Answer,
    Api,
    Call,
    Who,
    authorise,
    flag_argument,
    next_of,
    page_arguments,
    peer_argument,
)
from backupd.web.views import backup_view, seen_backup

__all__ = ["routes"]

PATH = "/api/v1/backups"


def routes(api: Api) -> None:
    """Register the endpoints."""
    service = api.service

    @api.endpoint(
        "GET",
        PATH,
        says="What is kept; with `trash=true`, for the operator, what was deleted and is not gone.",
        gives=messages.BackupList,
        who=Who.ANYONE,
    )
    async def backups(call: Call) -> Answer:
        after, limit = page_arguments(call)
        trash = flag_argument(call, "trash")
        if trash:
            authorise(call.caller, Who.OPERATOR)
        page = await service.ledger.backups(
            peer=peer_argument(call),
            video=call.query.get("videoId"),
            after=after,
            limit=limit,
            trash=trash,
        )
        views = [backup_view(service, backup) for _, backup in page]
        return Answer(messages.BackupList(backups=views, next=next_of(page, limit)))

    @api.endpoint(
        "GET",
        f"{PATH}/<backup_id>",
        says="One kept backup.",
        gives=messages.BackupView,
        who=Who.ANYONE,
    )
    async def backup(call: Call, backup_id: str) -> Answer:
        return Answer(backup_view(service, await seen_backup(service, call.caller, backup_id)))

    @api.endpoint(
        "DELETE",
        f"{PATH}/<backup_id>",
        says="Put a kept backup into the trash; with `now=true`, for the operator, remove it.",
        gives=messages.BackupView,
        who=Who.DELETER,
        unbreakable=True,
        notes="deleted",
    )
    async def delete(call: Call, backup_id: str) -> Answer:
        caller = call.caller
        if now := flag_argument(call, "now"):
            authorise(caller, Who.OPERATOR)
        await seen_backup(service, caller, backup_id)
        if now:
            call.event = "removed"
            gone = await service.trash.delete_now(backup_id, by=caller.name)
        else:
            gone = await service.trash.delete(backup_id, by=caller.name, operator=caller.operates)
        return Answer(backup_view(service, gone))

    @api.endpoint(
        "POST",
        f"{PATH}/<backup_id>/undelete",
        says="Take a backup out of the trash.",
        gives=messages.BackupView,
        who=Who.OPERATOR,
        unbreakable=True,
        notes="undeleted",
    )
    async def undelete(call: Call, backup_id: str) -> Answer:
        return Answer(backup_view(service, await service.trash.undelete(backup_id)))

    @api.endpoint(
        "POST",
        f"{PATH}/<backup_id>/lock",
        says="Let nobody delete a backup until then, not even the operator; this only extends.",
        takes=messages.Lock,
        gives=messages.BackupView,
        who=Who.OPERATOR,
        unbreakable=True,
        notes="locked",
    )
    async def lock(call: Call, message: messages.Lock, backup_id: str) -> Answer:
        held = await service.trash.lock(backup_id, _moment(message.until))
        call.noted = f"until {messages.timestamp(held.locked_until)}"
        return Answer(backup_view(service, held))


def _moment(text: str) -> float:
    """Seconds since the epoch at a date or time, in UTC unless it says. Raises `Invalid`."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise Invalid(
            "until", "must be a date or a time, as 2030-12-31 or 2030-12-31T12:00Z"
        ) from error
