"""What happened that matters for security: who was refused, let in, or put out, and what was
deleted, locked or given back, by whom.

Nothing waits for it to be written, and it can fail without stopping anything; then it says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from backupd.errors import StorageFailed
from backupd.interfaces import OffThread

__all__ = ["Audit", "Lines", "Note", "unheard"]

MAX_WAITING = 10_000
"""Events that are kept in memory while they cannot be written; more are counted only."""

MAX_BATCH = 1000

WINDOW = 60.0
"""Seconds in which events of the same kind and origin are counted instead of told."""

MAX_APART = 32
"""So many origins of one kind of event are told apart in that time; the others are summed."""

MAX_TEXT = 500
"""Characters of what a client said."""

_Key = tuple[str, str | None, str | None, str | None]


class Note(Protocol):
    """Notes an event. ``peer`` is whose it is, or who did it; ``what`` it was done to."""

    def __call__(
        self,
        event: str,
        *,
        peer: str | None = None,
        address: str | None = None,
        what: str | None = None,
        why: str | None = None,
    ) -> None: ...


def unheard(
    event: str,
    *,
    peer: str | None = None,
    address: str | None = None,
    what: str | None = None,
    why: str | None = None,
) -> None:
    """Note nothing."""


class Lines(Protocol):
    """Where events are kept. Both methods block, and raise `StorageFailed`."""

    def append(self, events: Sequence[Mapping[str, Any]]) -> None: ...
    def read(self, after: int | None, limit: int) -> list[dict[str, Any]]: ...


class Audit:
    """Writes events in batches. Without ``lines`` there is no log."""

    _log = Logger()

    def __init__(
        self,
        lines: Lines | None,
        off: OffThread,
        clock: IReactorTime,
        wall: Callable[[], float] | None = None,
    ) -> None:
        self._lines = lines
        self._off = off
        self._clock = clock
        self._wall: Callable[[], float] = wall or clock.seconds
        self._waiting: list[dict[str, Any]] = []
        self._writing: Deferred[None] | None = None
        self._lost = 0
        self._counts: dict[_Key, int] = {}
        self._apart: dict[str, int] = {}
        self._since = float("-inf")
        self.trouble: str | None = None
        """Why it cannot be written, while that is so."""

    def note(
        self,
        event: str,
        *,
        peer: str | None = None,
        address: str | None = None,
        what: str | None = None,
        why: str | None = None,
        **more: object,
    ) -> None:
        """Write this down soon; never raises, never waits."""
        if self._lines is None:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._lost += 1
            return
        moment = datetime.fromtimestamp(self._wall(), UTC)
        said: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": event,
            "peer": peer,
            "address": address,
            "what": what,
            "why": why,
        } | more
        self._waiting.append(
            {
                name: one[:MAX_TEXT] if isinstance(one, str) else one
                for name, one in said.items()
                if one is not None
            }
        )
        if self.trouble is None:
            self._write()

    def often(
        self,
        event: str,
        *,
        peer: str | None = None,
        address: str | None = None,
        what: str | None = None,
        why: str | None = None,
        same: str | None = None,
    ) -> None:
        """`note` of something that anybody can make happen as often as they like.

        The first from one address in a minute is told at once, the others of the same kind and
        the ``same`` thing are a number at its end.
        """
        if self._clock.seconds() - self._since >= WINDOW:
            self._close_window()
        key = (event, peer, address, same)
        if key in self._counts:
            self._counts[key] += 1
            return
        if self._apart.get(event, 0) >= MAX_APART:
            others = (event, None, "others", None)
            self._counts[others] = self._counts.get(others, 0) + 1
            return
        self._apart[event] = self._apart.get(event, 0) + 1
        self._counts[key] = 0
        self.note(event, peer=peer, address=address, what=what, why=why)

    def _close_window(self) -> None:
        counts, self._counts, self._apart = self._counts, {}, {}
        self._since = self._clock.seconds()
        for (event, peer, address, same), count in counts.items():
            if count:
                self.note(
                    event,
                    peer=peer,
                    address=address,
                    what=same,
                    why="more of these in a minute",
                    count=count,
                )

    def tick(self) -> None:
        """What was counted for a minute is told, and what could not be written is tried again."""
        if self._clock.seconds() - self._since >= WINDOW:
            self._close_window()
        self._write()

    def _write(self) -> None:
        if self._writing is not None or self._lines is None or not (self._waiting or self._lost):
            return
        batch = self._waiting[:MAX_BATCH]
        lost = self._lost
        if lost:
            batch = [*batch, {"event": "lost", "why": "They could not be written.", "count": lost}]
        self._writing = self._off(self._lines.append, batch)
        self._writing.addCallbacks(self._written, self._failed, (len(batch) - bool(lost), lost))

    def _written(self, _: None, count: int, lost: int) -> None:
        self._writing, self.trouble = None, None
        del self._waiting[:count]
        self._lost -= lost
        self._write()

    def _failed(self, failure: Failure) -> None:
        self._writing = None
        if failure.check(StorageFailed) is None:
            self._log.failure("the audit log failed by a defect", failure)
        why = failure.getErrorMessage()
        if self.trouble is None:
            self._log.error("{why} Events are kept in memory, up to a number.", why=why)
        self.trouble = why

    @property
    def waiting(self) -> int:
        """Events that are not on the disk, those that were only counted too."""
        return len(self._waiting) + self._lost

    async def read(self, after: int | None, limit: int) -> list[dict[str, Any]]:
        """The first events after that number, or the last ones. Raises `StorageFailed`."""
        return [] if self._lines is None else await self._off(self._lines.read, after, limit)

    async def close(self) -> None:
        """Write what there is; what cannot be written is lost."""
        self._close_window()
        self._write()
        while self._writing is not None:
            done: Deferred[None] = Deferred()
            self._writing.addCallback(done.callback)
            await done
