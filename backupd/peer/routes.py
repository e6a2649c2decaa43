"""How each place is reached, by what is known of the peers; and the offers that go to them."""

from __future__ import annotations

from backupd.errors import CallForbidden
from backupd.own_time import SaysTime
from backupd.peer.addresses import LOOPBACK, Reach
from backupd.peer.answers import Answer
from backupd.peer.client import PeerClient
from backupd.peer.connector import OPEN_ROUTE, Route
from backupd.peer.origins import Place, origin_of
from backupd.requests import Ask
from backupd.trust.audit import Note, unheard
from backupd.trust.peers import Peer
from backupd.trust.registry import Peers
from backupd.trust.signing import signed

__all__ = ["CallbackRoutes", "Offers", "OwnRoutes", "route_to"]

AHEAD = 60
"""Seconds by which timestamps may run ahead of the clock, so that none is said twice."""


def route_to(peer: Peer, place: Place) -> Route:
    """How this peer is reached at one of its origins.

    Token and key are those of the place where it was paired; another origin, which the operator
    has named besides, is called back without.
    """
    reach = Reach.naming(peer.networks)
    if peer.url is None or origin_of(peer.url) != place.origin:
        return Route(reach=reach)
    return Route(token=peer.token, pin=peer.pin, reach=reach)


def _check_in(peers: Peers, place: Place) -> None:
    """Raises `CallForbidden` where a peer was that is out."""
    peer = peers.out_at(place.origin)
    if peer is not None:
        raise CallForbidden(
            f"Peer {peer.name} was revoked, and nothing is said to {place.origin} any more; pair "
            "with it again if it is to be."
        )


class OwnRoutes:
    """For what the operator sends: to a peer as is known of it, to anybody else without a token."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def __call__(self, place: Place) -> Route:
        peer = self._peers.by_origin(place.origin)
        if peer is not None:
            return route_to(peer, place)
        _check_in(self._peers, place)
        return OPEN_ROUTE


class CallbackRoutes:
    """For calls that others name: to peers, and without one to this machine only."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    def __call__(self, place: Place) -> Route:
        peer = self._peers.by_origin(place.origin)
        if peer is not None:
            return route_to(peer, place)
        _check_in(self._peers, place)
        return Route(reach=LOOPBACK)


class Offers:
    """Sends offers, each signed with what is shared with the peer that it goes to."""

    def __init__(
        self, client: PeerClient, peers: Peers, clock: SaysTime, note: Note = unheard
    ) -> None:
        self._note = note
        self._client = client
        self._peers = peers
        self._clock = clock
        self._lately: dict[str, int] = {}

    def _timestamp(self, request_id: str) -> int:
        """Now in seconds, and never twice the same for one request: that would be a replay."""
        now = int(self._clock.seconds())
        # What is further ahead was said by a clock that has been set back since.
        self._lately = {one: at for one, at in self._lately.items() if now <= at <= now + AHEAD}
        self._lately[request_id] = max(now, self._lately.get(request_id, 0) + 1)
        return self._lately[request_id]

    async def __call__(self, ask: Ask, body: bytes) -> Answer:
        """Raises `PeerFailed`, also when the peer is out, or has no such origin any more."""
        try:
            return await self._offer(ask, body)
        except CallForbidden as error:
            self._note("call-refused", peer=ask.peer, what=ask.origin, why=str(error))
            raise

    async def _offer(self, ask: Ask, body: bytes) -> Answer:
        peer = self._peers.find(ask.peer)
        headers: dict[str, str] = {}
        if peer is not None:
            if peer.state != "active" or origin_of(ask.callback) not in peer.origins:
                raise CallForbidden(f"{ask.origin} is no origin of peer {peer.name} any more.")
            message_id = f"msg_{ask.request_id}"
            headers = signed(peer.signs, message_id, self._timestamp(ask.request_id), body)
        return await self._client.offer(ask.callback, body, headers)
