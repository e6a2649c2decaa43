"""How many files and connections this process may have open."""

from __future__ import annotations

import resource

from twisted.logger import Logger

__all__ = ["RESERVED", "raise_limit", "room_for_connections"]

RESERVED = 256
"""Descriptors that are not for connections that come in: files, calls to others, the ledger."""

_log = Logger()


def raise_limit() -> None:
    """Let the process have as many as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def room_for_connections(wanted: int) -> int:
    """As many as are wanted, or as there are descriptors for.

    Every upload and every restore has a file or two beside its connection.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return wanted
    room = max(limit - RESERVED, limit // 2)
    if room < wanted:
        _log.warn(
            "{wanted} connections are allowed (max_connections), but with RLIMIT_NOFILE={limit} "
            "there is room for {room}",
            wanted=wanted,
            limit=limit,
            room=room,
        )
    return min(room, wanted)
