"""Whose turn it is: offers, leases, and fairness among peers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from backupd.errors import BackupdError, NotYourTurn, PeerFailed
from backupd.interfaces import ILedger, Line
from backupd.links import Links
from backupd.requests import (
    BackupRequest,
    Cancelled,
    Live,
    Offered,
    Pending,
    Receiving,
    ended,
    offer_failed,
    taken,
)
from backupd.settings import Settings
from backupd.waiting import go_on

__all__ = ["Offer", "OfferAnswer", "Queue", "choose"]

PATIENCE = 60.0
"""Seconds after which a line that fails is owed a probe even when others keep all turns busy."""


class OfferAnswer(Protocol):
    """What the sender said to an offer."""

    @property
    def status(self) -> int: ...
    @property
    def retry_after(self) -> float | None: ...


class Offer(Protocol):
    """Send an offer; raises `PeerFailed` when there is no answer."""

    async def __call__(self, link: str, body: bytes, headers: dict[str, str]) -> OfferAnswer: ...


@dataclass(frozen=True, slots=True)
class _Busy:
    """A turn that is taken, or that an offer on its way may take."""

    peer: str
    origin: str
    offering: bool


def choose(
    lines: Sequence[Line],
    *,
    busy: dict[str, _Busy],
    turns: int,
    per_peer: int,
    now: float,
) -> list[Pending]:
    """Who is called next, of those who are due: round-robin among peers, in order within each.

    A line whose last offer failed gets one probe at a time, and never the last free turn; when
    one has waited longer than `PATIENCE`, the others leave it a turn. With one turn in all, a
    probe may have it while nobody else is due, or after that time.
    """
    held = Counter(one.peer for one in busy.values())
    probed = {one.origin for one in busy.values() if one.offering}
    free = turns - len(busy)
    answering = [line for line in lines if not line.failures]
    failing = [line for line in lines if line.failures and line.origin not in probed]
    owed = any(line.ready_at <= now - PATIENCE for line in failing)
    chosen: list[Pending] = []

    def take(line: Line) -> bool:
        if held[line.peer] >= per_peer:
            return False
        for head in line.heads:
            if head.ask.request_id not in busy and head not in chosen:
                chosen.append(head)
                held[line.peer] += 1
                return True
        return False

    keep_back = 1 if owed and (turns > 1 or free == 1) else 0
    going = True
    while going and len(chosen) < free - keep_back:
        going = False
        for line in answering:
            if len(chosen) < free - keep_back and take(line):
                going = True
    last_turn = 1 if turns > 1 else 0
    for line in failing:
        if len(chosen) < free - last_turn:
            take(line)
    return chosen


class Queue:
    """Makes offers while there are turns, and knows who has one."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        offer: Offer,
        links: Links,
        clock: IReactorTime,
        settings: Settings,
        backoff: Callable[[int], float],
        end: Callable[[str, Callable[[BackupRequest], BackupRequest]], Deferred[BackupRequest]],
        nudge: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._offer = offer
        self._links = links
        self._clock = clock
        self._settings = settings
        self._backoff = backoff
        self._end = end
        self._nudge = nudge
        self._active: dict[str, _Busy] = {}
        self._offering: dict[str, tuple[_Busy, Deferred[None]]] = {}
        self._claims: dict[str, _Busy] = {}
        self._stopped = False
        self._wake: IDelayedCall | None = None

    # -- what is known ----------------------------------------------------------------------------

    def observe(self, request: BackupRequest) -> None:
        """Learn of a committed change; also of every live request at the start."""
        ask = request.ask
        if isinstance(request, Offered | Receiving):
            self._active[ask.request_id] = _Busy(ask.peer, ask.origin, offering=False)
        elif self._active.pop(ask.request_id, None) is not None:
            self._nudge()

    def busy(self) -> dict[str, _Busy]:
        """Every turn that is taken or may be about to be, by request."""
        offering = {key: one for key, (one, _) in self._offering.items()}
        return offering | self._claims | self._active

    # -- turns ------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Call those whose turn it is; returns when the offers are on their way."""
        if self._stopped:
            return
        free = self._settings.max_concurrent_transfers - len(self.busy())
        if free <= 0:
            return
        now = self._clock.seconds()
        most = self._settings.max_concurrent_transfers + 1
        lines = await self._ledger.lines(now=now, limit=2 * most, heads=most)
        chosen = choose(
            lines,
            busy=self.busy(),
            turns=self._settings.max_concurrent_transfers,
            per_peer=self._settings.max_per_peer,
            now=now,
        )
        for request in chosen:
            self._start(request)

    def _start(self, request: Live) -> None:
        ask = request.ask
        if ask.request_id in self._offering or self._stopped:
            return
        busy = _Busy(ask.peer, ask.origin, offering=True)
        work = go_on(self._call(request))
        if not work.called:
            self._offering[ask.request_id] = (busy, work)
        work.addBoth(self._called, ask.request_id)

    def _called(self, result: object, request_id: str) -> None:
        self._offering.pop(request_id, None)
        if isinstance(result, Failure) and not result.check(CancelledError):
            self._log.failure("request {request_id}: offer", result, request_id=request_id)

    def offer_again(self, request: Live) -> None:
        """The sender has restarted and forgot its links: tell it again, at once."""
        if isinstance(request, Pending):
            self._nudge()
        else:
            self._start(request)

    async def take_turn(self, request: Live) -> None:
        """Reserve a turn for a request whose capability is being used.

        It holds until `observe` sees the request beyond PENDING, or `give_back`. Raises
        `NotYourTurn` when no turn is free, unless an offer to this request is on its way.
        """
        ask = request.ask
        busy = self.busy()
        if ask.request_id in busy:
            self._claims[ask.request_id] = _Busy(ask.peer, ask.origin, offering=False)
            return
        held = Counter(one.peer for one in busy.values())
        if (
            len(busy) >= self._settings.max_concurrent_transfers
            or held[ask.peer] >= self._settings.max_per_peer
        ):
            raise NotYourTurn(
                "All turns are taken; wait for the offer, or try again shortly.",
                retry_after=self._settings.loop_interval,
            )
        self._claims[ask.request_id] = _Busy(ask.peer, ask.origin, offering=False)

    def give_back(self, request_id: str) -> None:
        """End a reservation of `take_turn`."""
        if self._claims.pop(request_id, None) is not None:
            self._nudge()

    # -- one offer --------------------------------------------------------------------------------

    async def _call(self, request: Live) -> None:
        ask = request.ask
        body = {
            "videoId": ask.video,
            "linkForServerBtoSendBackupToSeverA": self._links.upload(ask.capability),
            "linkForServerBtoCompleteBackupToSeverA": self._links.complete(ask.capability),
        }
        status, retry_after, why = 0, None, ""
        try:
            answer = await self._offer(ask.callback, json.dumps(body).encode(), {})
            status, retry_after = answer.status, answer.retry_after
            why = f"The sender answered {status}."
        except PeerFailed as error:
            retry_after, why = error.retry_after, str(error)
        try:
            await self._answered(request, status, retry_after, why)
        except BackupdError as error:
            # The request ended or the ledger failed meanwhile; the next tick looks again.
            self._log.info(
                "request {request_id}: offer's answer not recorded: {why}",
                request_id=ask.request_id,
                why=str(error),
            )
        else:
            # Not after a failure: while the ledger fails, the loop's own pace is fast enough.
            self._clock.callLater(0, self._nudge)

    async def _answered(
        self, request: Live, status: int, retry_after: float | None, why: str
    ) -> None:
        ask, now, settings = request.ask, self._clock.seconds(), self._settings
        self._log.info(
            "request {request_id} offered to {origin}: {why}",
            request_id=ask.request_id,
            origin=ask.origin,
            why=why,
            status=status,
        )
        if 200 <= status < 300:
            await self._ledger.change(
                ask.request_id,
                lambda r: taken(
                    r,
                    lease_until=now + settings.offer_lease,
                    expires_at=now + settings.upload_expiry,
                ),
            )
        elif status == 410:
            await self._end(
                ask.request_id,
                lambda r: ended(r, Cancelled, reason="The sender does not want it.", now=now),
            )
        elif isinstance(request, Pending):
            wait = max(self._backoff(request.attempts + 1), min(retry_after or 0.0, 3600.0))
            await self._ledger.change(
                ask.request_id,
                lambda r: offer_failed(
                    r, due_at=now + wait, expires_at=now + settings.offer_deadline, why=why
                ),
            )
            self._wake_in(wait)

    def _wake_in(self, seconds: float) -> None:
        """Be on time for the next try; those after it are left to the loop."""
        at = self._clock.seconds() + seconds
        if self._wake is not None and self._wake.active():
            if self._wake.getTime() <= at:
                return
            self._wake.cancel()
        if not self._stopped:
            self._wake = self._clock.callLater(seconds, self._nudge)

    async def stop(self) -> None:
        """Make no more offers, and end those on their way."""
        self._stopped = True
        if self._wake is not None and self._wake.active():
            self._wake.cancel()
        for _, work in list(self._offering.values()):
            work.cancel()
