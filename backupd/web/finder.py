"""Which request a link or a video stands for."""

from __future__ import annotations

import hmac

from backupd.errors import AlreadyStored, Ambiguous, NoSuchRequest
from backupd.requests import (
    BackupRequest,
    Cancelled,
    Expired,
    Failed,
    Live,
    Stored,
    Storing,
    VideoId,
    live,
)
from backupd.service import BackupService
from backupd.trust.caller import STRANGER, Caller

__all__ = ["Finder", "uploadable"]

NO_REQUEST = "This link belongs to no backup request."

LINK_MEMORY = 7 * 86400.0
"""Seconds for which the links of an ended request go on answering."""


class Finder:
    """Finds the request that a link or a video stands for, among those that the caller sees."""

    def __init__(self, service: BackupService) -> None:
        self._service = service

    async def by_capability(self, capability: str, caller: Caller = STRANGER) -> BackupRequest:
        """Raises `NoSuchRequest`, also when it ended too long ago, and `TooManyRequests`.

        A capability is enough; but a peer that shows its token besides does not use another's.
        """
        request = await self._service.ledger.by_capability(capability)
        if not hmac.compare_digest(request.ask.capability.encode(), capability.encode()) or (
            caller.peer is not None and not caller.sees(request.ask.peer)
        ):
            raise NoSuchRequest(NO_REQUEST)
        self.still_in(request)
        # With a token the guard has counted it.
        owner = self._service.peers.find(request.ask.peer)
        if owner is not None and caller.peer is None and not caller.operates:
            self._service.rates.take(owner)
        return self._remembered(request)

    def still_in(self, request: BackupRequest) -> BackupRequest:
        """Raises `NoSuchRequest` when its peer was revoked."""
        peer = self._service.peers.find(request.ask.peer)
        if peer is not None and peer.state == "revoked":
            raise NoSuchRequest(NO_REQUEST)
        return request

    async def by_video(self, video: VideoId, caller: Caller) -> BackupRequest:
        """The one live request for a video, else the last that ended. Raises `Ambiguous`."""
        found = await self._service.ledger.live_for(video, caller.scope, 2)
        if len(found) > 1:
            raise Ambiguous(f"Several requests for video {video} are alive; use the link of one.")
        if found:
            return found[0]
        return self._remembered(await self._service.ledger.last_ended(video, caller.scope))

    def _remembered(self, request: BackupRequest) -> BackupRequest:
        if isinstance(request, Stored | Expired | Cancelled | Failed):
            age = self._service.reactor.seconds() - request.ended_at
            if age > LINK_MEMORY:
                raise NoSuchRequest("This link belongs to a request that ended long ago.")
        return request


def uploadable(request: BackupRequest) -> Live:
    """Raises `AlreadyStored` (409) or `Over` (410) when nothing can be uploaded any more."""
    if isinstance(request, Storing):
        raise AlreadyStored("The backup is being stored; nothing can be added to it.")
    return live(request, "received")
