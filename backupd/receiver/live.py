"""The live requests in memory: what waits, and what is in progress, as the last commit left it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from twisted.logger import Logger

from backupd.errors import BackupdError
from backupd.interfaces import ILedger
from backupd.requests import (
    BackupRequest,
    Live,
    Offered,
    Pending,
    Received,
    Receiving,
    Storing,
)

__all__ = ["AT_START", "InProgress", "LiveRequests"]

InProgress = Offered | Receiving | Received | Storing

AT_START = 10_000
"""So many live requests are read before the daemon takes work; the rest while it works. To read a
million takes the better part of a minute, and nobody's turn depends on it."""

PAGE = 500


class LiveRequests:
    """Views of the ledger, by request id; ``told`` is called with every request that is seen.

    `observe` takes what is committed, from the first moment on; what is read beside it is older
    or the same, and changes nothing that was observed meanwhile.
    """

    _log = Logger()

    def __init__(
        self,
        ledger: ILedger,
        told: Callable[[BackupRequest], None],
        *,
        at_start: int = AT_START,
        page: int = PAGE,
    ) -> None:
        self._ledger = ledger
        self._told = told
        self._at_start = at_start
        self._limit = page
        self._pending: dict[str, Pending] = {}
        self._in_progress: dict[str, InProgress] = {}
        self.pending: Mapping[str, Pending] = MappingProxyType(self._pending)
        self.in_progress: Mapping[str, InProgress] = MappingProxyType(self._in_progress)
        self._observed: set[str] | None = set()
        self._after: int | None = 0
        self._stopped = False

    def observe(self, request: BackupRequest) -> None:
        """Learn of a committed change."""
        if self._observed is not None:
            self._observed.add(request.ask.request_id)
        self._take(request)

    def _take(self, request: BackupRequest) -> None:
        request_id = request.ask.request_id
        self._pending.pop(request_id, None)
        self._in_progress.pop(request_id, None)
        if isinstance(request, Pending):
            self._pending[request_id] = request
        elif isinstance(request, InProgress):
            self._in_progress[request_id] = request
        self._told(request)

    async def begin(self) -> None:
        """Read everything in progress, and the oldest: often that is all."""
        self._take_older(await self._ledger.in_progress())
        for _ in range(self._at_start // self._limit):
            await self._page()

    async def go_on(self, settled: Callable[[], None] = lambda: None) -> None:
        """Read the rest, and call ``settled`` whenever some of it is there; while the ledger fails,
        what waits is known to it alone."""
        try:
            while self._after is not None and not self._stopped:
                await self._page()
                settled()
        except BackupdError as error:
            self._log.error("not every request that waits is listed: {why}", why=str(error))

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True

    async def _page(self) -> None:
        if self._after is None:
            return
        after, limit = self._after, self._limit
        found = await self._ledger.requests(live=True, peer=None, after=after, limit=limit)
        self._take_older([request for _, request in found])
        if len(found) == limit:
            self._after = found[-1][0]
        else:
            self._after = self._observed = None

    def _take_older(self, requests: list[BackupRequest] | list[Live]) -> None:
        for request in requests:
            if self._observed is not None and request.ask.request_id not in self._observed:
                self._take(request)
