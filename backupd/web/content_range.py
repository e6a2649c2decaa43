"""`Content-Range` in a request: the body is a part of the video (RFC 9110, 14.5)."""

from __future__ import annotations

import re

from backupd.errors import Invalid
from backupd.web.site import StreamingRequest

__all__ = ["part_of"]

_NAME = "Content-Range"
_SPAN = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})", re.ASCII | re.IGNORECASE)


def part_of(request: StreamingRequest) -> tuple[int, int] | None:
    """Where the body begins in the video, and how long that is; None for all of it.

    Raises `Invalid` for what is malformed, disagrees with the length of the body, or is no PUT's:
    ignored, it would have a part be taken for the whole.
    """
    said = request.requestHeaders.getRawHeaders("content-range")
    if said is None:
        return None
    if request.method != b"PUT":
        raise Invalid(_NAME, "can be used with PUT only; PUT what is left, or the whole without it")
    match = _SPAN.fullmatch(said[0]) if len(said) == 1 else None
    first, last, total = map(int, match.groups()) if match else (0, 0, 0)
    if not first <= last < total:
        raise Invalid(
            _NAME, "must be there once, as 'bytes FIRST-LAST/LENGTH'; leave it out for the whole"
        )
    if request.body.length != last + 1 - first:
        raise Invalid(_NAME, f"is of {last + 1 - first} bytes; Content-Length must say the same")
    return None if last + 1 - first == total else (first, total)
