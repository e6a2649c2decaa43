"""What becomes of a request when bytes that had come for it are gone."""

from __future__ import annotations

from collections.abc import Callable, Container

from twisted.logger import Logger

from backupd.interfaces import ILedger, Upload
from backupd.receiver.room import going
from backupd.requests import BackupRequest, Pending, Received, live

__all__ = ["begin_again", "without"]

_log = Logger()


async def begin_again(
    ledger: ILedger, upload: Upload, now: float, busy: Container[str] = ()
) -> list[str]:
    """Forget an upload whose bytes are gone, and what is of no use without it; its request goes
    on without them. Their ids: what is left of them on the volume has to be discarded.

    Of a direct request nothing is of use without it, and what is left would be in the way of
    whoever begins anew; it goes too, unless one of them is ``busy``.
    """
    _log.error(
        "upload {upload_id} of request {request_id} is gone from the disk; it starts again",
        upload_id=upload.upload_id,
        request_id=upload.request_id,
    )
    uploads = await ledger.uploads(upload.request_id)
    gone = going(uploads, [upload.upload_id])
    others = [one.upload_id for one in uploads if one.upload_id not in gone]
    request = await ledger.request(upload.request_id)
    if request.ask.direct and not request.ask.part and not any(one in busy for one in others):
        gone += others
    step = without(gone, now, "The bytes that had arrived are gone from the disk.")
    await ledger.change(upload.request_id, step, drop=gone)
    return gone


def without(
    upload_ids: Container[str], now: float, why: str
) -> Callable[[BackupRequest], BackupRequest]:
    """A step after which a request has none of these uploads: RECEIVED, by one of them, goes back
    in line, for it holds no turn.
    """

    def step(request: BackupRequest) -> BackupRequest:
        alive = live(request, "changed")
        if not isinstance(alive, Received) or alive.upload_id not in upload_ids:
            return alive
        return Pending(
            ask=alive.ask,
            due_at=now,
            accepted=True,
            expires_at=alive.expires_at,
            tries=alive.tries,
            last_error=why,
        )

    return step
