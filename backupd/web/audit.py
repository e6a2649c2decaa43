"""The audit log, for the operator."""

from __future__ import annotations

from backupd.web import messages
from backupd.web.endpoint import Answer, Api, Call, Who, page_arguments

__all__ = ["routes"]


def routes(api: Api) -> None:
    """Register the endpoint."""
    service = api.service

    @api.endpoint(
        "GET",
        "/api/v1/audit",
        says="Events that matter for security: those after a number, or the last ones.",
        gives=messages.EventList,
        who=Who.OPERATOR,
    )
    async def events(call: Call) -> Answer:
        after, limit = page_arguments(call)
        found = await service.audit.read(after if "after" in call.query else None, limit)
        last = found[-1]["n"] if found else after
        return Answer(
            messages.EventList(events=found, next=str(last), trouble=service.audit.trouble)
        )
