"""Room that is needed twice for a moment, of what nobody was promised."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from backupd.interfaces import ILedger, IStorage, OffThread
from backupd.waiting import KeyedLocks

__all__ = ["Twice"]


class Twice:
    """Lends what is free and of no promise; the floor, too, is nobody's promise.

    ``taken`` is the number of bytes that are lent: admission promises them to nobody meanwhile.
    """

    def __init__(self, *, ledger: ILedger, storage: IStorage, off: OffThread) -> None:
        self._ledger = ledger
        self._storage = storage
        self._off = off
        self._locks = KeyedLocks()
        self.taken = 0

    @asynccontextmanager
    async def lend(self, most: int, least: int) -> AsyncIterator[int]:
        """How many bytes may be there twice while this is held: ``most``, or as many times
        ``least`` as there are.

        ``least`` bytes always, but to one at a time: so many fit into what is reserved beside a
        video. Raises what the volume does.
        """
        lent = most
        self.taken += lent  # before the look: from here on it is promised to nobody
        try:
            # What arrives between the two makes it less, not more.
            promised = (await self._ledger.totals()).promised
            spare = await self._off(self._storage.free) - promised - (self.taken - lent)
            if spare >= least:
                self.taken -= lent
                lent = min(most, spare - spare % least)
                self.taken += lent
                yield lent
                return
        finally:
            self.taken -= lent
        async with self._locks.hold("least"):
            yield least
