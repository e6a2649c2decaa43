"""Every peer, in memory for each request to be decided by, and on the disk before it counts."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from typing import Protocol

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger

from backupd.errors import NoSuchPeer
from backupd.interfaces import OffThread
from backupd.trust.peers import Peer, token_hash

__all__ = ["InMemory", "Peers", "Records"]


class Records(Protocol):
    """Where peers are kept. Both methods block."""

    def read(self) -> list[Peer]: ...
    def write(self, peer: Peer) -> None: ...


class InMemory:
    """Records that go with the process."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def read(self) -> list[Peer]:
        return list(self._peers.values())

    def write(self, peer: Peer) -> None:
        self._peers[peer.name] = peer


class Peers:
    """The peers. With ``always`` there is no open mode even while there are none."""

    _log = Logger()

    def __init__(self, records: Records, off: OffThread, *, always: bool = False) -> None:
        self._records = records
        self._off = off
        self._always = always
        self._peers: dict[str, Peer] = {}
        self._by_hash: dict[str, Peer] = {}
        self._lock = DeferredLock()
        self._watchers: list[Callable[[Peer], None]] = []

    def watch(self, observer: Callable[[Peer], None]) -> None:
        """Call ``observer`` with every peer that a change has made other than it was."""
        self._watchers.append(observer)

    def load(self) -> None:
        """Read every record; blocks. Raises `SettingsError`."""
        self._peers = {peer.name: peer for peer in self._records.read()}
        self._index()

    def _index(self) -> None:
        self._by_hash = {
            shown: peer
            for peer in self._peers.values()
            if peer.state == "active"
            for shown in peer.shows
        }

    # -- looking ----------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether all but ``/healthz`` needs a token. One peer is enough, and a revoked one too:
        taking out the last must not open the door to everybody.
        """
        return self._always or bool(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(sorted(self._peers.values(), key=lambda peer: peer.name))

    def get(self, name: str) -> Peer:
        """Raises `NoSuchPeer`."""
        if name not in self._peers:
            raise NoSuchPeer(f"There is no peer {name!r}; `backupctl peer list` shows them.")
        return self._peers[name]

    def find(self, name: str) -> Peer | None:
        """The peer of this name, if there is one."""
        return self._peers.get(name)

    def url_of(self, place: str) -> str:
        """Where a peer of this name is; ``place`` itself when there is none."""
        peer = self._peers.get(place)
        return peer.url if peer is not None and peer.url is not None else place

    def by_token(self, token: str) -> Peer | None:
        """Who shows this token.

        Only its hash is looked up, so that the time it takes tells nothing of any token.
        """
        hashed = token_hash(token)
        peer = self._by_hash.get(hashed)
        if peer is None or not any(hmac.compare_digest(hashed, one) for one in peer.shows):
            return None
        return peer

    def by_origin(self, origin: str) -> Peer | None:
        """The active peer that is at this origin; no two are."""
        for peer in self._peers.values():
            if peer.state == "active" and origin in peer.origins:
                return peer
        return None

    def out_at(self, origin: str) -> Peer | None:
        """The peer that was at this origin until it was revoked, unless another is there now."""
        if self.by_origin(origin) is not None:
            return None
        for peer in self._peers.values():
            if peer.state == "revoked" and origin in peer.origins:
                return peer
        return None

    # -- changing ---------------------------------------------------------------------------------

    async def change(self, name: str, step: Callable[[Peer | None], Peer]) -> Peer:
        """Replace a peer, None when there is none of this name, by ``step(peer)``, durably.

        One change at a time. What ``step`` raises leaves all as it was; so does `StorageFailed`.
        """
        await self._lock.acquire()
        try:
            peer = step(self._peers.get(name))
            await self._off(self._records.write, peer)
            self._peers[name] = peer
            self._index()
        finally:
            self._lock.release()
        self._log.info("peer {name} is {state}", name=peer.name, state=peer.state)
        for observer in self._watchers:
            observer(peer)
        return peer
