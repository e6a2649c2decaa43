"""What is answered where no handler is: to what is no HTTP, came too slowly, or finds no place."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus

import msgspec

__all__ = ["refused"]

_BECAUSE = {
    400: ("malformed-request", "This is no HTTP/1.1 request that could be read in one way only."),
    408: ("too-slow", "This came in too slowly."),
    414: ("path-too-long", "The path is longer than any here."),
    431: ("head-too-large", "A line of the head is longer than any that is taken."),
    503: ("too-many-connections", "There are as many connections as may be; come back shortly."),
}


@lru_cache
def refused(status: int) -> bytes:
    """The whole answer, a problem document as everywhere else; the connection ends with it."""
    kind, detail = _BECAUSE[status]
    title = {408: "Request Timeout", 414: "URI Too Long"}.get(status, HTTPStatus(status).phrase)
    body = msgspec.json.encode(
        {
            "type": f"urn:backupd:problem:{kind}",
            "title": title,
            "status": status,
            "detail": detail,
            "success": False,
            "message": detail,
        }
    )
    lines = [
        f"HTTP/1.1 {status} {title}",
        *(["Retry-After: 10"] if status == 503 else []),
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
