"""The sender's endpoint: "it is your turn". PROTOCOL.md, section 2."""

from __future__ import annotations

from klein import Klein

from backupd.service import BackupService
from backupd.web import messages
from backupd.web.endpoint import Answer, Call, Who, endpoint

__all__ = ["routes"]


def routes(app: Klein, service: BackupService) -> None:
    """Register the endpoint, with its capability and bare."""

    async def notice(call: Call, message: messages.Notice, capability: str | None = None) -> Answer:
        await service.outbox.notice(
            capability, message.video_id, message.upload_link, message.complete_link
        )
        return Answer(messages.Said(success=True, message="Server B is sending the backup"), 202)

    path = "/api/v1/backup/serverAisReadyForBackup"
    for url in (path, f"{path}/<capability>"):
        endpoint(
            app,
            service,
            "POST",
            url,
            who=Who.HOLDER,
            takes=messages.Notice,
            unbreakable=True,
        )(notice)
