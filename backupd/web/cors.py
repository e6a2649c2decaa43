"""What a browser wants to hear before its page may upload from another origin (Fetch, CORS)."""

from __future__ import annotations

from collections.abc import Collection

from backupd.web.site import StreamingRequest

__all__ = ["allow", "preflight"]

_EXPOSED = (
    "Location",
    "Upload-Offset",
    "Upload-Length",
    "Upload-Defer-Length",
    "Upload-Metadata",
    "Upload-Expires",
    "Upload-Concat",
    "Tus-Version",
    "Tus-Resumable",
    "Tus-Max-Size",
    "Tus-Extension",
    "Tus-Checksum-Algorithm",
    "Retry-After",
    "Repr-Digest",
)
_ACCEPTED = (
    "Authorization",
    "Content-Type",
    "Content-Digest",
    "Repr-Digest",
    "Tus-Resumable",
    "Upload-Checksum",
    "Upload-Concat",
    "Upload-Defer-Length",
    "Upload-Length",
    "Upload-Metadata",
    "Upload-Offset",
    "X-HTTP-Method-Override",
    "X-Requested-With",
    "X-Request-ID",
)
_METHODS = "POST, GET, HEAD, PATCH, PUT, DELETE, OPTIONS"


def allow(request: StreamingRequest, origins: Collection[str]) -> None:
    """Let pages of the listed origins see the answer to this request."""
    origin = request.getHeader("origin")
    if origin is None:
        return
    request.setHeader("Vary", "Origin")
    if origin in origins:
        request.setHeader("Access-Control-Allow-Origin", origin)
        request.setHeader("Access-Control-Expose-Headers", ", ".join(_EXPOSED))


def preflight(request: StreamingRequest) -> dict[str, str]:
    """The headers that answer a browser's question whether its page may do something."""
    if not request.requestHeaders.hasHeader("access-control-request-method"):
        return {}
    return {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": ", ".join(_ACCEPTED),
        "Access-Control-Max-Age": "86400",
    }
