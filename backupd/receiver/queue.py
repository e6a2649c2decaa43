"""Whose turn it is: offers, leases, and fairness among peers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from backupd.errors import BackupdError, NotYourTurn, PeerFailed, ShuttingDown
from backupd.interfaces import ILedger, Line
from backupd.links import Links
from backupd.requests import (
    Ask,
    BackupRequest,
    Cancelled,
    Live,
    Offered,
    Pending,
    Receiving,
    ended,
    live,
    offer_failed,
    taken,
)
from backupd.settings import Settings
from backupd.waiting import go_on

__all__ = ["Offer", "OfferAnswer", "Queue", "choose"]

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds after which a line that fails is owed a probe even when others would take all turns."""


class OfferAnswer(Protocol):
    """What the sender said to an offer."""

    @property
    def status(self) -> int: ...
    @property
    def retry_after(self) -> float | None: ...


class Offer(Protocol):
    """Send an offer to where ``ask`` says; raises `PeerFailed` when there is no answer."""

    async def __call__(self, ask: Ask, body: bytes) -> OfferAnswer: ...


@dataclass(frozen=True, slots=True)
class _Busy:
    """A turn that is taken, or that an offer on its way may take; parts may share one."""

    peer: str
    origin: str
    turn: str
    offering: bool
    shared: bool

    @classmethod
    def of(cls, ask: Ask, *, offering: bool = False) -> _Busy:
        return cls(ask.peer, ask.origin, ask.turn, offering, ask.part)


def _turns(busy: Mapping[str, _Busy]) -> dict[str, str]:
    """The turns that are taken, and whose each is."""
    return {one.turn: one.peer for one in busy.values()}


def choose(
    lines: Sequence[Line],
    *,
    busy: Mapping[str, _Busy],
    turns: int,
    per_peer: int,
    now: float,
    probed_at: float = float("-inf"),
) -> list[Pending]:
    """Who is called next, of those who are due: round-robin among peers, in order within each.

    A line whose last offer failed gets one probe at a time, after the others and never the last
    free turn. So that it does not wait for ever while they are many, once in `PATIENCE` (the last
    probe was at ``probed_at``) one that has waited that long goes first; a probe is short. With
    one turn in all, a probe may have it while nobody else is due.
    """
    taken = _turns(busy)
    free = turns - len(taken)
    held = Counter(taken.values())
    probing = {one.origin for one in busy.values() if one.offering}
    chosen: list[Pending] = []
    new: set[str] = set()

    def take(heads: Iterable[Pending], room: int) -> bool:
        """Choose the first of ``heads`` that can be, if there is room."""
        for head in heads:
            peer, turn = head.ask.peer, head.ask.turn
            shares = turn in taken or turn in new
            if head.ask.request_id in busy or not (
                shares or (len(new) < room and held[peer] < per_peer)
            ):
                continue
            chosen.append(head)
            if not shares:
                new.add(turn)
                held[peer] += 1
            return True
        return False

    def probe(line: Line, room: int) -> bool:
        if line.origin in probing or not take(line.heads, room):
            return False
        probing.add(line.origin)
        return True

    failing = [line for line in lines if line.failures]
    if now - probed_at >= PATIENCE:
        for line in failing:
            if line.ready_at <= now - PATIENCE and probe(line, free):
                break
    heads: dict[str, list[Pending]] = {}
    for line in lines:
        if not line.failures:
            heads.setdefault(line.peer, []).extend(line.heads)
    waiting = [iter(sorted(theirs, key=lambda head: head.due_at)) for theirs in heads.values()]
    while waiting:
        waiting = [theirs for theirs in waiting if take(theirs, free)]
    for line in failing:
        probe(line, free if turns == 1 else free - 1)
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
        self._offering: dict[str, tuple[_Busy | None, Deferred[None]]] = {}
        self._again: set[str] = set()
        self._probed_at = float("-inf")
        self._claims: dict[str, _Busy] = {}
        self._coming: dict[str, list[Deferred[None]]] = {}
        self._stopped = False
        self._wake: IDelayedCall | None = None

    # -- what is known ----------------------------------------------------------------------------

    def observe(self, request: BackupRequest) -> None:
        """Learn of a committed change; also of every live request at the start."""
        ask = request.ask
        if not isinstance(request, Pending):
            for waiter in self._coming.pop(ask.request_id, []):
                waiter.callback(None)
        if isinstance(request, Offered | Receiving):
            self._active[ask.request_id] = _Busy.of(ask)
        elif self._active.pop(ask.request_id, None) is not None:
            self._nudge()

    def busy(self) -> dict[str, _Busy]:
        """Every turn that is taken or may be about to be, by request."""
        offering = {key: one for key, (one, _) in self._offering.items() if one is not None}
        return offering | self._claims | self._active

    # -- turns ------------------------------------------------------------------------------------

    async def tick(self) -> None:
        """Call those whose turn it is; returns when the offers are on their way."""
        if self._stopped:
            return
        busy = self.busy()
        full = len(_turns(busy)) >= self._settings.max_concurrent_transfers
        if full and not any(one.shared for one in busy.values()):
            return
        if not (await self._ledger.totals()).pending:
            return  # this costs no look into the database
        now = self._clock.seconds()
        most = self._settings.max_concurrent_transfers + 1
        lines = await self._ledger.lines(now=now, limit=2 * most, heads=most)
        chosen = choose(
            lines,
            # What was busy before is left out: its lines were read before it changed.
            busy=busy | self.busy(),
            turns=self._settings.max_concurrent_transfers,
            per_peer=self._settings.max_per_peer,
            now=now,
            probed_at=self._probed_at,
        )
        failures = {(line.peer, line.origin): line.failures for line in lines}
        for request in chosen:
            failed = failures[request.ask.peer, request.ask.origin]
            if failed:
                self._probed_at = now
            self._start(request, failed)

    def _start(self, request: Live, failures: int = 0) -> None:
        ask = request.ask
        if self._stopped:
            return
        if ask.request_id in self._offering:
            self._again.add(ask.request_id)
            return
        # Telling a sender again what it was offered takes no turn that it does not have already.
        busy = _Busy.of(ask, offering=True) if isinstance(request, Pending) else None
        work = go_on(self._call(request, failures))
        if not work.called:
            self._offering[ask.request_id] = (busy, work)
        work.addBoth(self._called, ask.request_id)

    def _called(self, result: object, request_id: str) -> None:
        self._offering.pop(request_id, None)
        if isinstance(result, Failure) and not result.check(CancelledError):
            self._log.failure("request {request_id}: offer", result, request_id=request_id)
        if request_id in self._again:
            self._again.discard(request_id)
            go_on(self._repeat(request_id))

    async def _repeat(self, request_id: str) -> None:
        """It was asked for again while an offer was on its way, perhaps to another link."""
        try:
            self.offer_again(live(await self._ledger.request(request_id), "offered"))
        except BackupdError as error:
            self._log.info(
                "request {request_id} is not offered again: {why}",
                request_id=request_id,
                why=str(error),
            )

    def offer_again(self, request: Live) -> None:
        """The sender has restarted and forgot its links: tell it again, at once."""
        if isinstance(request, Pending):
            self._nudge()
        else:
            self._start(request)

    def shares(self, ask: Ask) -> bool:
        """Whether it has a turn by others, as a part has: it need not stand in line for one."""
        return ask.part and ask.turn in _turns(self.busy())

    async def take_turn(self, request: Live) -> None:
        """Reserve a turn for a request whose capability is being used.

        It holds until `observe` sees the request beyond PENDING, or `give_back`. Raises
        `NotYourTurn` when no turn is free, unless an offer to this request is on its way.
        """
        ask = request.ask
        taken = _turns(self.busy())
        if ask.turn not in taken and (
            len(taken) >= self._settings.max_concurrent_transfers
            or Counter(taken.values())[ask.peer] >= self._settings.max_per_peer
        ):
            raise NotYourTurn(
                "All turns are taken; wait for the offer, or try again shortly.",
                retry_after=self._settings.loop_interval,
            )
        self._claims[ask.request_id] = _Busy.of(ask)

    def turn_of(self, request_id: str, seconds: float) -> Deferred[None]:
        """Fires once a request is PENDING no more; `NotYourTurn` when that takes so long.

        Cancelling it, which makes it fire, forgets who waits.
        """

        def leave() -> None:
            waiting = self._coming.get(request_id, [])
            if comes in waiting:
                waiting.remove(comes)
            if not waiting:
                self._coming.pop(request_id, None)

        def forgotten(_: object) -> None:
            leave()
            comes.callback(None)

        def too_late() -> None:
            leave()
            comes.errback(
                NotYourTurn("All turns are taken; go on shortly.", self._settings.loop_interval)
            )

        comes: Deferred[None] = Deferred(forgotten)
        late = self._clock.callLater(seconds, too_late)

        def came(result: T) -> T:
            if late.active():
                late.cancel()
            return result

        self._coming.setdefault(request_id, []).append(comes)
        return comes.addBoth(came)

    def give_back(self, request_id: str) -> None:
        """End a reservation of `take_turn`."""
        if self._claims.pop(request_id, None) is not None:
            self._nudge()

    # -- one offer --------------------------------------------------------------------------------

    async def _call(self, request: Live, failures: int) -> None:
        ask = request.ask
        body = {
            "videoId": ask.video,
            "linkForServerBtoSendBackupToSeverA": self._links.upload(ask.capability),
            "linkForServerBtoCompleteBackupToSeverA": self._links.complete(ask.capability),
        }
        status, retry_after, why = 0, None, ""
        try:
            if ask.direct:
                # Nobody is to be called: whoever sends it is here, or will be.
                status, why = 200, "its turn has come."
            else:
                answer = await self._offer(ask, json.dumps(body).encode())
                status, retry_after = answer.status, answer.retry_after
                why = f"The sender answered {status}."
        except PeerFailed as error:
            retry_after, why = error.retry_after, str(error)
        try:
            await self._answered(request, failures, status, retry_after, why)
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
        self, request: Live, failures: int, status: int, retry_after: float | None, why: str
    ) -> None:
        ask, now, settings = request.ask, self._clock.seconds(), self._settings
        self._log.info(
            "request {request_id} offered to {origin}: {why}",
            request_id=ask.request_id,
            origin=ask.origin or "its client",
            why=why,
            status=status,
        )
        if status == 410:
            reason = "The sender does not want it."
            step = self._if_asked(ask, lambda r: ended(r, Cancelled, reason=reason, now=now))
            await self._end(ask.request_id, step)
        elif not isinstance(request, Pending):
            return
        elif 200 <= status < 300:
            lease_until, expires_at = now + settings.offer_lease, now + settings.upload_expiry
            step = self._if_asked(
                ask, lambda r: taken(r, lease_until=lease_until, expires_at=expires_at)
            )
            await self._ledger.change(ask.request_id, step)
        else:
            tries = max(request.attempts, failures) + 1
            wait = max(self._backoff(tries), min(retry_after or 0.0, 3600.0))
            due_at, expires_at = now + wait, now + settings.offer_deadline
            step = self._if_asked(
                ask, lambda r: offer_failed(r, due_at=due_at, expires_at=expires_at, why=why)
            )
            await self._ledger.change(ask.request_id, step)
            self._wake_in(wait)

    def _if_asked(
        self, ask: Ask, step: Callable[[BackupRequest], BackupRequest]
    ) -> Callable[[BackupRequest], BackupRequest]:
        """``step``, unless the sender has asked again with another link: it did not answer that."""
        return lambda r: step(r) if r.ask.callback == ask.callback else r

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
        coming, self._coming = self._coming, {}
        for waiter in [one for several in coming.values() for one in several]:
            waiter.errback(ShuttingDown("This server is stopping; go on when it is back.", 5.0))
        if self._wake is not None and self._wake.active():
            self._wake.cancel()
        for _, work in list(self._offering.values()):
            work.cancel()
