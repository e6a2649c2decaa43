"""Admission: is there room, and may it be promised?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import Forbidden
from backupd.interfaces import NO_LIMITS, Allowance, ILedger, IStorage, Room
from backupd.requests import Ask, BackupRequest, Cancelled, Live, VideoId, ended
from backupd.settings import Settings
from backupd.sizes import format_size

__all__ = ["Admission", "Decision"]

End = Callable[[str, Callable[[BackupRequest], BackupRequest]], Deferred[Any]]

NO_LEDGER_ROOM = "ledger-full"
PEER_TOO_LARGE = "peer-too-large"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Yes (``request`` is there) or no (``reason`` and ``message`` say why).

    ``available`` is what a newcomer could still be promised, in bytes; ``retry_after`` is in
    seconds, None when asking again would not help.
    """

    request: Live | None
    available: int
    message: str
    reason: str | None = None
    retry_after: int | None = None


class Admission:
    """Takes reservations, in the same transaction that records the request.

    ``ledger_room`` tells the bytes free on the volume of the ledger, which needs the floor too;
    ``lent`` those that are taken for a moment beside what is promised (`Twice`);
    ``allowance`` what a peer may have. ``is_out`` tells whether a peer was revoked; what was
    admitted for it while that happened ends by ``end``.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        storage: IStorage,
        settings: Settings,
        clock: IReactorTime,
        new_id: Callable[[], str],
        new_capability: Callable[[], str],
        ledger_room: Callable[[], int],
        lent: Callable[[], int] = lambda: 0,
        allowance: Callable[[str], Allowance] = lambda peer: NO_LIMITS,
        is_out: Callable[[str], bool] = lambda peer: False,
        end: End = lambda request_id, step: succeed(None),
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._new_id = new_id
        self._new_capability = new_capability
        self._ledger_room = ledger_room
        self._lent = lent
        self._allowance = allowance
        self._is_out = is_out
        self._end = end
        self.draining = False

    def _obstacle(self, size: int, growth: int, spare: int) -> str | None:
        """Why ``growth`` more bytes, ``size`` in all, cannot be promised out of ``spare``."""
        floor = self._settings.reserved_space
        if growth <= 0:
            return None
        # What a newcomer occupies beside its video is part of its growth.
        if max(size, growth) > self._storage.capacity() - floor:
            return "too-large"
        if self._ledger_room() < floor:
            return NO_LEDGER_ROOM
        return "insufficient-space" if growth > spare else None

    async def ask(
        self,
        *,
        peer: str,
        origin: str,
        video: VideoId,
        size: int,
        callback: str,
        file_name: str | None = None,
        content_type: str | None = None,
        sha256: str | None = None,
        fresh: bool = False,
    ) -> Decision:
        """Decide on one ask. "Yes" is durable when this returns.

        A live request for the same video is changed by this ask, or, when a ``fresh`` one is
        wanted, left and returned as it is. Raises `Forbidden` when the peer is out meanwhile.
        """
        ask = Ask(
            request_id=self._new_id(),
            peer=peer,
            origin=origin,
            video=video,
            callback=callback,
            size=size,
            capability=self._new_capability(),
            created_at=self._clock.seconds(),
            file_name=file_name,
            content_type=content_type,
            sha256=sha256,
        )
        return await self._admit(ask, fresh=fresh)

    async def ask_direct(self, ask: Ask) -> Decision:
        """Decide on what `direct_ask` made: its client is there, and nobody is called back."""
        return await self._admit(ask, self._clock.seconds() + self._settings.upload_expiry)

    def direct_ask(
        self,
        *,
        peer: str,
        video: VideoId | None,
        size: int,
        file_name: str | None = None,
        content_type: str | None = None,
        sha256: str | None = None,
        metadata: str | None = None,
        concat: str | None = None,
    ) -> Ask:
        """What a direct upload asks for; without a ``video`` it is a part of one."""
        request_id = self._new_id()
        return Ask(
            request_id=request_id,
            peer=peer,
            origin="",
            video=f"part {request_id}" if video is None else video,
            callback="",
            size=size,
            capability=self._new_capability(),
            created_at=self._clock.seconds(),
            file_name=file_name,
            content_type=content_type,
            sha256=sha256,
            part=video is None,
            metadata=metadata,
            concat=concat,
        )

    async def _admit(
        self, ask: Ask, expires_at: float | None = None, *, fresh: bool = False
    ) -> Decision:
        size, allowance = ask.size, self._allowance(ask.peer)
        draining = self.draining
        too_large = allowance.max_size is not None and size > allowance.max_size
        left = 0

        def room(promised: int, growth: int) -> Room:
            """Look at the volume; runs in the ledger's thread, under its lock."""
            nonlocal left
            promised += self._lent()
            spare = self._storage.free() - self._settings.reserved_space - promised
            left = max(0, spare - growth)
            if too_large and growth > 0:
                return Room(available=max(0, spare), reason=PEER_TOO_LARGE)
            reason = "draining" if draining else self._obstacle(size, growth, spare)
            return Room(available=max(0, spare), reason=reason)

        request, found = await self._ledger.admit(
            ask,
            room,
            now=ask.created_at,
            max_pending=self._settings.max_pending,
            expires_at=expires_at,
            fresh=fresh,
            allowance=allowance,
        )
        if request is not None and self._is_out(ask.peer):
            # It was on its way into the ledger while its peer was put out: whoever did that has
            # ended only what was there already.
            reason = f"Peer {ask.peer} was revoked."
            now = self._clock.seconds()
            step = functools.partial(ended, kind=Cancelled, reason=reason, now=now)
            await self._end(request.ask.request_id, step)
            raise Forbidden(reason)
        decision = self._decide(ask, request, found, left)
        self._log.info(
            "request {request_id} {verdict}: video {video} of {peer}, {size} bytes, "
            "{available} bytes left",
            request_id=request.ask.request_id if request else "-",
            verdict="admitted" if request else f"refused ({decision.reason})",
            video=ask.video,
            peer=ask.peer,
            size=size,
            available=decision.available,
        )
        return decision

    def _decide(self, ask: Ask, request: Live | None, found: Room, left: int) -> Decision:
        if request is not None:
            return Decision(request=request, available=left, message="Server A can accept backup")
        needs, has = format_size(ask.size), format_size(found.available)
        match found.reason:
            case "too-large":
                message = f"The video needs {needs}; this volume could never hold that."
                return self._no(found, "too-large", message, None)
            case reason if reason == PEER_TOO_LARGE:
                most = format_size(self._allowance(ask.peer).max_size or 0)
                message = f"The video needs {needs}; {ask.peer} may keep at most {most} in one."
                return self._no(found, "too-large", message, None)
            case "quota-exceeded":
                message = f"The video needs {needs}; {ask.peer} may have {has} more here."
                return self._no(found, "quota-exceeded", message, None)
            case "queue-full":
                message = "Too many requests are waiting; ask again later."
                return self._no(found, "queue-full", message, 60)
            case "draining":
                message = "This server takes no new requests at the moment."
                return self._no(found, "draining", message, 60)
            case reason if reason == NO_LEDGER_ROOM:
                message = "The volume of the ledger is nearly full, so nothing can be promised."
                return self._no(found, "insufficient-space", message, 300)
        message = f"The video needs {needs}, and {has} can still be promised."
        return self._no(found, "insufficient-space", message, 300)

    def _no(self, found: Room, reason: str, message: str, retry: int | None) -> Decision:
        return Decision(
            request=None,
            available=found.available,
            message=message,
            reason=reason,
            retry_after=retry,
        )
