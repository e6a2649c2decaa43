"""Which request a link or a video stands for."""

from __future__ import annotations

import hmac

from backupd.errors import AlreadyStored, Ambiguous, NoSuchRequest
from backupd.interfaces import Upload
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
from backupd.trust.caller import Caller

__all__ = ["Finder", "uploadable"]

NO_REQUEST = "This link belongs to no backup request."

LINK_MEMORY = 7 * 86400.0
"""Seconds for which the links of an ended request go on answering."""


class Finder:
    """Finds the request that a link or a video stands for, among those that the caller sees."""

    def __init__(self, service: BackupService) -> None:
        self._service = service

    async def by_capability(
        self, capability: str, caller: Caller, *, again: bool = False
    ) -> BackupRequest:
        """Raises `NoSuchRequest`, also when it ended too long ago, and `TooManyRequests`.

        ``again`` is a second look on behalf of the same call, which has been counted.
        """
        request = await self._service.ledger.by_capability(capability)
        if not hmac.compare_digest(request.ask.capability.encode(), capability.encode()):
            raise NoSuchRequest(NO_REQUEST)
        self._let_in(request, caller, again)
        return self._remembered(request)

    async def by_part(
        self, token: str, caller: Caller, *, again: bool = False
    ) -> tuple[BackupRequest, Upload] | None:
        """A part of a direct upload, and whose it is by now; None when there is none.

        Raises as `by_capability` does.
        """
        try:
            part = await self._service.ledger.upload_by_token(token)
        except NoSuchRequest:
            return None
        request = await self._service.ledger.request(part.request_id)
        self._let_in(request, caller, again)
        return request, part

    def _let_in(self, request: BackupRequest, caller: Caller, again: bool) -> None:
        """Raises `NoSuchRequest` when its peer was revoked, and `TooManyRequests`.

        A capability is enough; but a peer that shows its token besides does not use another's.
        """
        owner = self._service.peers.find(request.ask.peer)
        if (caller.peer is not None and not caller.sees(request.ask.peer)) or (
            owner is not None and owner.state == "revoked"
        ):
            raise NoSuchRequest(NO_REQUEST)
        # With a token the guard has counted it.
        if owner is not None and caller.peer is None and not (caller.operates or again):
            self._service.rates.take(owner)

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
