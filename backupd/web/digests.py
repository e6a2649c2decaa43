"""Digests that come with bytes (RFC 9530)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from backupd.errors import Invalid
from backupd.web.site import StreamingRequest

__all__ = ["digests"]

_DIGEST = re.compile(r"(?:^|,)\s*sha-256(?![\w*.-])(?:=:([A-Za-z0-9+/=]*):)?", re.ASCII)


def digests(request: StreamingRequest, *names: str) -> Mapping[str, bytes]:
    """The SHA-256 that was sent with the bytes (RFC 9530). Raises `Invalid`."""
    found: dict[str, bytes] = {}
    for name in names:
        values = ",".join(request.requestHeaders.getRawHeaders(name) or [])
        for text in _DIGEST.findall(values):
            try:
                digest = base64.b64decode(text, validate=True)
            except binascii.Error as error:
                raise Invalid(name, "is not base64") from error
            if len(digest) != 32 or found.get("sha-256", digest) != digest:
                raise Invalid(name, "is no SHA-256, or two that differ")
            found["sha-256"] = digest
    return found
