"""How many requests in a second: a peer that asks too often is told when to ask again."""

from __future__ import annotations

import math

from twisted.internet.interfaces import IReactorTime

from backupd.errors import TooManyRequests
from backupd.trust.peers import Peer

__all__ = ["RequestRates"]


class RequestRates:
    """A bucket of tokens for each peer: it holds those of one second, and one at least.

    It is kept as the moment at which it will be full again.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def take(self, peer: Peer) -> None:
        """Count one request. Raises `TooManyRequests`; that one does not count."""
        rate = peer.limits.requests_per_second
        if rate is None:
            return
        now = self._clock.seconds()
        full_at = max(now, self._full_at.get(peer.name, now)) + 1 / rate
        wait = full_at - now - max(1.0, 1 / rate)
        if wait > 1e-6:
            raise TooManyRequests(
                f"Peer {peer.name} may send {rate:g} requests a second; ask again in "
                f"{math.ceil(wait)} s.",
                wait,
            )
        self._full_at[peer.name] = full_at
