"""A stranger with a link of its own tries what is not its own: no capability works for another
request.
"""

from __future__ import annotations

import random
from base64 import b64encode
from typing import TYPE_CHECKING

from backupd.interfaces import Upload

if TYPE_CHECKING:
    from tests.simulation.machine import Machine
    from tests.simulation.stranger import Asked, Stranger

__all__ = ["trespass"]

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {"Content-Type": "application/offset+octet-stream"}
WAYS = ("HEAD", "PATCH", "DELETE", "join")
PATIENCE = 10
"""Seconds that it waits for somebody to send beside it."""


async def trespass(
    stranger: Stranger, receiver: Machine, asked: Asked, rng: random.Random
) -> str | None:
    """What was granted and should not have been, None when it was refused."""
    own_link, request_id = asked.upload or "", asked.answer["requestId"]
    others = _others(receiver, request_id)
    for _ in range(PATIENCE):
        if others:
            break
        await stranger.sleep(1.0)
        others = _others(receiver, request_id)
    if not others:
        return None
    other = rng.choice(others)
    own = [one for _, one in receiver.books.uploads.values() if one.request_id == request_id]
    link, upload, way = own_link, other, rng.choice(WAYS)
    if own and rng.random() < 0.3:
        # The other way round: the link is another's, and the upload is its own.
        ask = receiver.books.rows[other.request_id].request.ask
        link, upload = f"{own_link.rpartition('/')[0]}/{ask.capability}", own[-1]
    url = f"{link}/{upload.upload_id}"
    match way:
        case "PATCH":
            headers = TUS | BYTES | {"Upload-Offset": str(upload.offset)}
            reply = await stranger.request("PATCH", url, b"not its own", headers)
        case "join":
            said = f"filename {b64encode(b'stolen').decode()}"
            headers = TUS | {"Upload-Concat": f"final;{url}", "Upload-Metadata": said}
            reply = await stranger.request("POST", own_link, headers=headers)
        case _:
            reply = await stranger.request(way, url, headers=TUS)
    if reply is None or reply.status >= 400:
        return None
    return f"answers {reply.status} to {way} of {url}, which belongs to two requests"


def _others(receiver: Machine, request_id: str) -> list[Upload]:
    """The uploads of everybody else."""
    return [one for _, one in receiver.books.uploads.values() if one.request_id != request_id]
