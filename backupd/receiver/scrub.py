"""The scrub: every kept backup is read again within a period, one at a time and unhurried.

What was read longest ago comes first; the ledger knows that, so a restart goes on where the last
process was. Between two backups it rests, so that the reading is spread over the period; while
it reads it keeps to a rate, and to half of that while others upload.
"""

from __future__ import annotations

from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from backupd.errors import NoSuchBackup, ShuttingDown
from backupd.interfaces import ILedger
from backupd.receiver.keeping import Keeper, Progress
from backupd.requests import Backup
from backupd.settings import Settings

__all__ = ["Scrub", "ScrubState"]

FRESH = 0.05
"""The part of the period in which nothing is read again; all is to be read in what is left."""

EACH = 1024 * 1024
"""Opening a file and noting what was found is worth as much as reading so many bytes."""

COUNT_EVERY = 3600.0
"""Seconds after which what is kept is counted anew, or less if the period is short."""

LOOK_EVERY = 60.0
"""Seconds between two looks while there is nothing to read, or less if the period is short."""

LOOK_UP = 1.0
"""Seconds after which somebody who waits for a backup that is being read is noticed."""

CREDIT = 0.1
"""Seconds of reading that are made up for, since timers are late and disks take their time."""

LONG = 60.0
"""A reading that takes longer than this may never come to its end between two restarts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubState:
    """What the scrub does: ``needed`` bytes a second would keep the ``period``, in seconds.

    ``rate`` is what it may read. ``reading`` is the backup that it is at, ``next_at`` when it
    looks for the next one.
    """

    period: float
    rate: int
    needed: float
    reading: str | None
    next_at: float | None

    @property
    def takes(self) -> float:
        """Seconds in which everything is read: the period, or longer where the rate is too low."""
        return self.period * max(1.0, self.needed / self.rate)


class Scrub:
    """Reads one backup after the other. `run` is a job of the loop; `stop` ends it soon."""

    _log = Logger()

    def __init__(
        self, *, ledger: ILedger, keeper: Keeper, clock: IReactorTime, settings: Settings
    ) -> None:
        self._ledger = ledger
        self._keeper = keeper
        self._clock = clock
        self._period = settings.scrub_period
        self._rate = settings.scrub_rate
        self._patience = settings.loop_interval
        self._needed = 0.0
        self._count_at = float("-inf")
        self._next_at = float("-inf")
        self._free_at = float("-inf")
        self._reading: str | None = None
        self._late = self._stopped = False
        self._sleep: tuple[Deferred[None], IDelayedCall] | None = None

    @property
    def state(self) -> ScrubState | None:
        """What it does; None when it is switched off."""
        if not self._period:
            return None
        return ScrubState(
            period=self._period,
            rate=self._rate,
            needed=self._needed,
            reading=self._reading,
            next_at=self._next_at if self._next_at > float("-inf") else None,
        )

    async def run(self) -> None:
        """Read what is due; returns when nothing is, or it is to rest."""
        if not self._period:
            return
        # A tick may come late: what could have been read since the last one is made up for.
        self._next_at = max(self._next_at, self._clock.seconds() - self._patience)
        while not self._stopped and self._next_at <= self._clock.seconds():
            await self._count()
            before = self._clock.seconds() - FRESH * self._period
            backup = await self._ledger.longest_unread(before=before)
            if backup is None:
                self._next_at = self._clock.seconds() + min(LOOK_EVERY, FRESH * self._period)
            if backup is None or self._stopped:
                return
            # Reckoned from its beginning: the time of the reading is part of the rest.
            pace = max(1.0, min(self._needed, self._rate))
            self._next_at += (backup.size + EACH) / pace
            await self._read(backup)

    async def _count(self) -> None:
        """How fast it has to be, from how much there is."""
        now = self._clock.seconds()
        if now < self._count_at:
            return
        count, size = await self._ledger.kept()
        self._count_at = now + min(COUNT_EVERY, FRESH * self._period)
        self._needed = (size + count * EACH) / (self._period * (1 - FRESH))
        late, self._late = self._late, self._needed > self._rate
        if self._late and not late:
            self._log.warn(
                "reading everything again takes {days:.1f} days at scrub_rate, longer than "
                "scrub_period",
                days=self._period * self._needed / self._rate / 86400,
            )

    async def _read(self, backup: Backup) -> None:
        backup_id = self._reading = backup.backup_id
        try:
            if backup.size > LONG * self._rate:
                # Should it not come to its end, the others come first.
                await self._ledger.begin_reading(backup_id, now=self._clock.seconds())
            await self._keeper.verify(backup_id, self._pace)
        except NoSuchBackup:
            pass  # deleted meanwhile
        except Exception:
            if self._stopped:
                return
            await self._ledger.begin_reading(backup_id, now=self._clock.seconds())
            raise
        finally:
            self._reading = None

    async def _pace(self, progress: Progress, count: int) -> None:
        """Wait as long as the rate says, unless an operator waits for this very backup."""
        if not self._stopped and not progress.hurried:
            totals = await self._ledger.totals()
            rate = self._rate / 2 if totals.active else self._rate
            self._free_at = max(self._free_at, self._clock.seconds() - CREDIT) + count / rate
        while not self._stopped and not progress.hurried:
            left = self._free_at - self._clock.seconds()
            if left <= 0:
                break
            await self._wait(min(left, LOOK_UP))
        if self._stopped:
            raise ShuttingDown("This server is stopping; the backup is read again later.")

    async def _wait(self, seconds: float) -> None:
        done: Deferred[None] = Deferred()
        self._sleep = (done, self._clock.callLater(seconds, done.callback, None))
        await done
        self._sleep = None

    def stop(self) -> None:
        """Begin nothing more, and leave off what is being read after its present piece."""
        self._stopped = True
        if self._sleep is not None:
            done, call = self._sleep
            call.cancel()
            done.callback(None)
