"""What the ledger has last told of the requests in progress, so that it need not be asked again.

While bytes come in, every message asks for its request two or three times. Each question to the
database is a hop to a thread and back, in which the interpreter's lock changes hands ten times.
"""

from __future__ import annotations

from backupd.ledger.rows import capability_hash
from backupd.requests import BackupRequest, Offered, Received, Receiving, Storing

__all__ = ["MOST", "Known", "Standing"]

MOST = 1024
"""Requests that are remembered; there are more in progress only if somebody set it up so."""

Standing = tuple[BackupRequest, int]
"""A request as a step has left it, and how many uploads it has."""


class Known:
    """Requests from OFFERED to STORING, as they are committed. Reactor thread only.

    Every step on a request goes through `RequestTable`, so nothing changes behind this. What is
    told here is what whoever made the last change has just been told, or is told in this turn.
    """

    def __init__(self) -> None:
        self._by_id: dict[str, Standing] = {}
        self._ids: dict[str, str] = {}

    def learn(self, standing: list[Standing]) -> None:
        """These were committed, in this order."""
        for request, uploads in standing:
            ask = request.ask
            self._forget(ask.request_id)
            if isinstance(request, Offered | Receiving | Received | Storing):
                self._by_id[ask.request_id] = request, uploads
                self._ids[capability_hash(ask.capability)] = ask.request_id
        while len(self._by_id) > MOST:
            self._forget(next(iter(self._by_id)))  # the one that has not changed for longest

    def _forget(self, request_id: str) -> None:
        known = self._by_id.pop(request_id, None)
        if known is not None:
            del self._ids[capability_hash(known[0].ask.capability)]

    def request(self, request_id: str) -> BackupRequest | None:
        """None if it is not known here."""
        known = self._by_id.get(request_id)
        return None if known is None else known[0]

    def by_capability(self, capability: str) -> BackupRequest | None:
        """None if it is not known here; only its hash is compared."""
        request_id = self._ids.get(capability_hash(capability))
        return None if request_id is None else self.request(request_id)

    def has_no_uploads(self, request_id: str) -> bool:
        """Whether that is known for sure."""
        known = self._by_id.get(request_id)
        return known is not None and not known[1]
