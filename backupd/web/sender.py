"""The sender's endpoint: "it is your turn". PROTOCOL.md, section 2."""

from __future__ import annotations

from backupd.errors import Forbidden, Over
from backupd.interfaces import Entry
from backupd.peer.origins import origin_of
from backupd.trust.signing import Replays, verify
from backupd.waiting import shielded
from backupd.web import messages
from backupd.web.endpoint import Answer, Api, Who, read_json, write
from backupd.web.site import StreamingRequest

__all__ = ["routes"]


def routes(api: Api) -> None:
    """Register the endpoint, with its capability and bare."""
    service = api.service
    replays = Replays()

    async def notice(request: StreamingRequest, capability: str | None = None) -> bytes:
        body = await read_json(request)
        message = messages.decode(body, messages.Notice)

        def authentic(to: str) -> None:
            _check(request, body, to)

        async def take() -> Entry:
            return await service.outbox.notice(
                capability, message.video_id, message.upload_link, message.complete_link, authentic
            )

        await shielded(take())
        said = messages.Said(success=True, message="Server B is sending the backup")
        return write(request, Answer(said, 202))

    def _check(request: StreamingRequest, body: bytes, to: str) -> None:
        """Raises `Forbidden` when a peer is at ``to``, and it is not that peer that has said this,
        and `Over` when that peer is out.

        A capability is not enough then: it has been in the other server's hands, and on its disk.
        """
        peer, caller = service.peers.by_origin(origin_of(to)), request.caller.peer
        if (out := service.peers.out_at(origin_of(to))) is not None:
            raise Over(f"Peer {out.name} was revoked: nothing is sent to it any more.")
        if caller is not None and (peer is None or caller.name != peer.name):
            raise Forbidden(f"{origin_of(to)} was asked for room, and that is not {caller.name}.")
        if peer is not None and peer.verifies:
            get = request.getHeader
            headers = get("webhook-id"), get("webhook-timestamp"), get("webhook-signature")
            now = service.wall()
            verify(peer.verifies, headers, body, now=now, sender=peer.name, replays=replays)

    path = "/api/v1/backup/serverAisReadyForBackup"
    for url in (path, f"{path}/<capability>"):
        api.route(
            "POST",
            url,
            notice,
            who=Who.HOLDER,
            says="The receiver calls: it is your turn.",
            takes=messages.Notice,
            gives=messages.Said,
        )
