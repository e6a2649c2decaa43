"""The sender's endpoint: "it is your turn". PROTOCOL.md, section 2."""

from __future__ import annotations

from backupd.web import messages
from backupd.web.endpoint import Answer, Api, Call, Who

__all__ = ["routes"]


def routes(api: Api) -> None:
    """Register the endpoint, with its capability and bare."""
    service = api.service

    async def notice(call: Call, message: messages.Notice, capability: str | None = None) -> Answer:
        await service.outbox.notice(
            capability, message.video_id, message.upload_link, message.complete_link
        )
        return Answer(messages.Said(success=True, message="Server B is sending the backup"), 202)

    path = "/api/v1/backup/serverAisReadyForBackup"
    for url in (path, f"{path}/<capability>"):
        api.endpoint(
            "POST",
            url,
            says="The receiver calls: it is your turn.",
            gives=messages.Said,
            who=Who.HOLDER,
            takes=messages.Notice,
            unbreakable=True,
        )(notice)
