"""The daemon: owns the state, the loop, and the order of start and stop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IProtocolFactory
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from backupd.bandwidth import Bandwidth
from backupd.errors import BackupdError
from backupd.interfaces import Allowance, ILedger, IStorage, OffThread, Retention
from backupd.links import Links
from backupd.own_folder import OwnFolder
from backupd.own_time import WallClock
from backupd.peer.origins import origin_of
from backupd.peer.pairing import Pairing
from backupd.receiver.admission import Admission
from backupd.receiver.expiry import Expiry
from backupd.receiver.inspection import Inspection
from backupd.receiver.intake import Intake
from backupd.receiver.keeping import Keeper
from backupd.receiver.live import InProgress, LiveRequests
from backupd.receiver.queue import Offer, Queue
from backupd.receiver.recovery import Rebuilt, rebuild, recover
from backupd.receiver.repair import Repairs
from backupd.receiver.resources import Resources
from backupd.receiver.scrub import Scrub
from backupd.receiver.seen_time import SeenTime
from backupd.receiver.trash import Rules, Trash
from backupd.requests import (
    Cancelled,
    Pending,
    ended,
)
from backupd.sender.outbox import Outbox
from backupd.serving import Listening, base_of
from backupd.settings import Settings
from backupd.trust.audit import Audit
from backupd.trust.peers import Limits, Peer
from backupd.trust.rates import RequestRates
from backupd.trust.registry import InMemory, Peers
from backupd.turns import Turns
from backupd.waiting import Round, go_on, shielded

__all__ = ["BackupService", "Chance", "Running"]

PAGE = 500

AUDIT_GRACE = 5.0
"""Seconds that a stop waits for the audit log."""

LITTLE = 60.0
"""By so many seconds a clock may be behind what was noted, and all waits stay as they are."""

Stage = Coroutine[Deferred[Any], Any, None]


class StartFailed(SystemExit, Exception):
    """Ends the process with one line.

    Also an `Exception`, since only of these `twistd` tells the process that waits for a start in
    the background; it would wait for ever.
    """


class Running(Protocol):
    """Something with a start and a stop that blocks only briefly, such as a pool of threads."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Chance:
    """Everything that is random: ids, capabilities, and the jitter of a wait."""

    new_id: Callable[[], str]
    new_capability: Callable[[], str]
    backoff: Callable[[int], float]


class BackupService(Service):
    """Both roles of one daemon.

    ``backup_requests`` and ``backups_in_progress`` are live views of the ledger, by request id:
    what waits for its turn, and what has been offered, is being received or stored. A request
    that ends leaves them in the same turn of the reactor in which its end is committed.
    """

    name = "backupd"
    pairing: Pairing
    """Set by whoever joins the daemon, with the network to pair over."""

    _log = Logger()

    def __init__(
        self,
        *,
        settings: Settings,
        reactor: Any,
        own: OwnFolder,
        ledger: ILedger,
        storage: IStorage,
        off: OffThread,
        offer: Offer,
        outbox: Callable[[Links, Callable[[], None]], Outbox],
        chance: Chance,
        peers: Peers | None = None,
        threads: Sequence[Running] = (),
        on_hangup: Callable[[Callable[[], None]], None] = lambda act: None,
        tell_init: Callable[[str], None] = lambda state: None,
        exit: Callable[[int], object] = lambda status: None,  # noqa: A002
        log_observer: ILogObserver | None = None,
        steady: Callable[[], float] | None = None,
        wall: Callable[[], float] | None = None,
        begin_time: Callable[[float | None], None] = lambda latest: None,
        audit: Audit | None = None,
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        """``settled`` is called when what is in memory is there to stay."""
        self.settings = settings
        self.reactor = reactor
        self.own = own
        self.ledger = ledger
        self.storage = storage
        self.off = off
        self.peers = peers or Peers(InMemory(), off)
        self.links = Links(base_of(settings, None))
        self.new_id = chance.new_id
        self.wall: Callable[[], float] = wall or reactor.seconds
        self.audit = audit or Audit(None, off, reactor)
        self._threads = threads
        self._begin_time = begin_time
        self._on_hangup = on_hangup
        self._tell_init = tell_init
        self._exit = exit
        self._log_observer = log_observer
        self._settled = settled
        self._live = LiveRequests(ledger, lambda request: self.queue.observe(request))
        self.backup_requests: Mapping[str, Pending] = self._live.pending
        self.backups_in_progress: Mapping[str, InProgress] = self._live.in_progress

        self.admission = Admission(
            ledger=ledger,
            storage=storage,
            settings=settings,
            clock=reactor,
            new_id=chance.new_id,
            new_capability=chance.new_capability,
            ledger_room=own.free,
            lent=lambda: self.intake.twice.taken,
            allowance=self._allowance,
            is_out=self._is_out,
            end=lambda request_id, step: go_on(self.intake.end(request_id, step)),
        )
        self.rates = RequestRates(reactor)
        self.bandwidth_in = Bandwidth(
            settings.bandwidth_in, reactor, lambda name: self._limits(name).bandwidth_in, self.wall
        )
        self.bandwidth_out = Bandwidth(
            settings.bandwidth_out,
            reactor,
            lambda name: self._limits(name).bandwidth_out,
            self.wall,
        )
        self.intake = Intake(
            ledger=ledger,
            storage=storage,
            queue=lambda: self.queue,
            clock=reactor,
            off=off,
            settings=settings,
            new_id=chance.new_id,
            pace=self.bandwidth_in.of,
            most_at_once=lambda name: self._limits(name).max_uploads,
        )
        self.queue = Queue(
            ledger=ledger,
            offer=offer,
            links=self.links,
            clock=reactor,
            settings=settings,
            backoff=chance.backoff,
            end=lambda request_id, step: go_on(self.intake.end(request_id, step)),
            nudge=lambda: self._nudge(self._looks[:1]),
        )
        self.time = SeenTime(WallClock(self.wall), steady or reactor.seconds)
        self.keeper = Keeper(
            ledger=ledger,
            storage=storage,
            intake=self.intake,
            clock=reactor,
            off=off,
            settings=settings,
            new_id=chance.new_id,
            time=self.time,
            note=self.audit.note,
        )
        self.trash = Trash(
            ledger=ledger,
            storage=storage,
            keeper=self.keeper,
            time=self.time,
            clock=reactor,
            off=off,
            settings=settings,
            rules=self._rules,
            note=self.audit.note,
        )
        self.resources = Resources(
            ledger=ledger,
            intake=self.intake,
            clock=reactor,
            settings=settings,
            new_id=chance.new_id,
        )
        self.expiry = Expiry(
            ledger=ledger,
            intake=self.intake,
            keeper=self.keeper,
            clock=reactor,
            settings=settings,
        )
        self.scrub = Scrub(ledger=ledger, keeper=self.keeper, clock=reactor, settings=settings)
        self.repairs = Repairs(
            ledger=ledger,
            admission=self.admission,
            keeper=self.keeper,
            clock=reactor,
            nudge=self.nudge,
        )
        self.inspection = Inspection(
            ledger=ledger,
            storage=storage,
            keeper=self.keeper,
            intake=self.intake,
            clock=reactor,
            off=off,
            now=self.time.stamp,
        )
        self.outbox = outbox(self.links, self.nudge)
        self.turns = Turns()
        self.site: IProtocolFactory | None = None
        self.ready = False
        self._listening = Listening(settings, reactor)
        self._prepared = False
        self._starting: Deferred[None] = succeed(None)
        self._looks = [Round(job, reactor) for job in (self.queue.tick, self.outbox.tick)]
        self._sweep = Round(self.expiry.sweep, reactor)
        self._reading = Round(self.scrub.run, reactor)
        self._repairing = Round(self.repairs.tick, reactor)
        self._emptying = Round(self.trash.sweep, reactor)
        self._retiring = Round(self.trash.look, reactor)
        self._loop = LoopingCall(self._tick)
        self._loop.clock = reactor
        self._nudged: IDelayedCall | None = None
        self._to_look: set[Round] = set()

    def _limits(self, name: str) -> Limits:
        """What a peer may have here; nobody else has limits of its own."""
        peer = self.peers.find(name)
        return Limits() if peer is None else peer.limits

    def _is_out(self, name: str) -> bool:
        """Whether a peer of this name was put out."""
        peer = self.peers.find(name)
        return peer is not None and peer.state != "active"

    def _allowance(self, name: str) -> Allowance:
        """The part of it that counts when room is asked for."""
        if self._is_out(name):
            # It asked before it was put out, and is decided on only now.
            return Allowance(quota=0, max_pending=0)
        limits = self._limits(name)
        return Allowance(
            quota=limits.quota, max_pending=limits.max_pending, max_size=limits.max_size
        )

    def _rules(self) -> Rules:
        """How long what each peer keeps here is kept."""
        said = self.settings
        everybody = Retention(
            keep_last=said.keep_last, keep_for=said.keep_for, minimum_keep=said.minimum_keep
        )
        return Rules(everybody, {peer.name: peer.retention for peer in self.peers})

    # -- the loop ---------------------------------------------------------------------------------

    def nudge(self) -> None:
        """Look at queue and outbox at once, instead of at the next tick."""
        self._nudge(self._looks)

    def _nudge(self, looks: Sequence[Round]) -> None:
        """What changes in the queue is nothing to the outbox, which would ask the ledger."""
        if self.ready and self.running:
            self._to_look.update(looks)
            if self._nudged is None:
                self._nudged = self.reactor.callLater(0, self._look)

    def _tick(self) -> None:
        """Look, and begin to end what is overdue; never raises, waits for nothing."""
        self._to_look.update(self._looks)
        self._look()
        self.audit.tick()
        for beside in (
            self._sweep,
            self._reading,
            self._repairing,
            self._emptying,
            self._retiring,
        ):
            beside.run()

    def _look(self) -> None:
        self._nudged = None
        to_look, self._to_look = self._to_look, set()
        for look in self._looks:
            if look in to_look:
                look.run()

    # -- starting ---------------------------------------------------------------------------------

    def setServiceParent(self, parent: Any) -> None:  # noqa: N802
        """Join an application; with ``log_format = "json"`` it logs as JSON from then on."""
        if self._log_observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._log_observer)
        Service.setServiceParent(self, parent)

    def prepare(self) -> None:
        """Claim the root, listen, open the ledger. Blocks; before the reactor runs.

        Raises `SettingsError` or another `BackupdError`, and has then let go of everything.
        """
        self.own.claim(self.ledger.remembered())
        try:
            self.storage.prepare()
            self.peers.load()
            if self.site is not None:
                self._listening.start(self.site, anywhere=self.peers.closed)
                self.links.base = self._listening.base
            # The last step: closing it takes threads, which do not run yet.
            self.ledger.open(self.own.mark)
        except BaseException:
            self._listening.give_up()
            self.own.release()
            raise
        self._prepared = True

    @property
    def url(self) -> str:
        """Where peers reach us."""
        return self.links.base

    @property
    def beyond(self) -> bool:
        """Whether we listen for other machines."""
        return self._listening.beyond

    @property
    def pin(self) -> str | None:
        """The public key that peers know us by; None when an authority vouches for it."""
        return self._listening.pin

    def reload(self) -> None:
        """Read keys and certificates again; a wrong one changes nothing."""
        go_on(self._listening.reload(self.off))

    @property
    def addresses(self) -> list[Any]:
        """Where it listens."""
        return [port.getHost() for port in self._listening.ports]

    def privilegedStartService(self) -> None:  # noqa: N802
        """Everything that can be wrong with the settings shows here, in one line."""
        try:
            self.prepare()
        except BackupdError as error:
            raise StartFailed(f"backupd: {error}") from error
        Service.privilegedStartService(self)

    def startService(self) -> None:  # noqa: N802
        """Recover, then take work."""
        if not self._prepared:
            self.prepare()
        Service.startService(self)
        self._on_hangup(self.reload)
        for threads in self._threads:
            threads.start()
        self._starting = go_on(self._start())
        self._starting.addErrback(self._start_failed)

    async def _start(self) -> None:
        self.ledger.watch(self._live.observe)
        latest = await self.ledger.latest_seen()
        self._begin_time(latest)
        self.time.begin(latest)
        await self._set_waits_back()
        await recover(
            ledger=self.ledger,
            storage=self.storage,
            keeper=self.keeper,
            off=self.off,
            clock=self.reactor,
        )
        await self._live.begin()
        await self.outbox.start()
        if not self.running:
            return
        self._settled()
        self.ready = True
        self._loop.start(self.settings.loop_interval, now=True)
        self._tell_init("READY=1")
        self._note_start()
        shielded(self.resources.go_on())
        shielded(self._live.go_on(self._settled))
        shielded(self._finish_revoking())
        totals = await self.ledger.totals()
        self._log.info(
            "backupd is ready at {base}: {pending} waiting, {in_progress} in progress",
            base=self.links.base,
            pending=totals.pending,
            in_progress=totals.live - totals.pending,
        )

    async def _set_waits_back(self) -> None:
        """What was noted by a clock that was ahead would wait until this one has got there."""
        noted, own = await self.ledger.own_time(), self.reactor.seconds()
        if noted is None or noted - own <= LITTLE:
            return
        await self.ledger.set_back(noted - own, own=own)
        self._log.warn(
            "the clock was {hours:.1f} hours further when backupd ran last; leases, retries and "
            "deadlines are set back by as much, so that nobody waits for it to get there again",
            hours=(noted - own) / 3600,
        )

    def _note_start(self) -> None:
        """With which settings of safety it runs."""
        said = self.settings
        guarded = {
            "listen": said.listen,
            "closed": self.peers.closed,
            "peers": [peer.name for peer in self.peers if peer.state == "active"],
            "trusted_proxies": said.trusted_proxies,
            "allowed_origins": said.allowed_origins,
            "trash_period": said.trash_period,
            "keep_last": said.keep_last,
            "keep_for": said.keep_for,
            "minimum_keep": said.minimum_keep,
        }
        self.audit.note("started", why=f"{guarded}")

    def _start_failed(self, failure: Failure) -> None:
        if not self.running and failure.check(CancelledError):
            return
        if failure.check(BackupdError):
            self._log.error("backupd could not start: {why}", why=failure.getErrorMessage())
        else:
            self._log.failure("backupd could not start", failure)
        if not self.running:
            return
        self._tell_init(f"STATUS={failure.getErrorMessage()}")
        self.reactor.addSystemEventTrigger("after", "shutdown", self._exit, 1)
        self.reactor.stop()

    # -- stopping ---------------------------------------------------------------------------------

    def stopService(self) -> Deferred[None]:  # noqa: N802
        """Stop listening and the loop, let uploads finish or checkpoint them, close the ledger."""
        Service.stopService(self)
        return go_on(self._stop())

    async def _stop(self) -> None:
        grace = self.settings.shutdown_grace
        self._tell_init("STOPPING=1")
        self._log.info("backupd is stopping; uploads may take {grace} s more", grace=grace)
        deadline = self.reactor.seconds() + grace
        self.admission.draining = True
        try:
            # What recovery has begun, the next start goes on with, as after a crash.
            self._starting.cancel()
            await self._starting
            await self._listening.stop()
            self._live.stop()
            if self._loop.running:
                self._loop.stop()
            if self._nudged is not None:
                self._nudged.cancel()
                self._nudged = None
            await self.queue.stop()
            await self.outbox.stop()
            self.scrub.stop()
            self.trash.stop()
            for one in (
                *(*self._looks, self._sweep, self._repairing),
                *(self._emptying, self._retiring),
            ):
                await one.stop()
            await self.intake.transfers.stop(grace)
            for name, work in {
                "what is being inspected": self.inspection.stop(),
                "what is overdue": go_on(self.expiry.stop()),
                "what is being read again": self._reading.stop(),
                "what is being stored": self.intake.locks.when_idle(),
            }.items():
                if not await self._wait(work, deadline - self.reactor.seconds()):
                    self._log.warn("{name} is left to the next start", name=name)
        except Exception:
            self._log.failure("backupd stops, in spite of a defect")
        self.ready = False
        try:
            await self._wait(go_on(self.audit.close()), AUDIT_GRACE)
            await self.ledger.close()
        finally:
            for threads in self._threads:
                threads.stop()
            self.own.release()
        self._log.info("backupd has stopped")

    async def _wait(self, work: Deferred[None], seconds: float) -> bool:
        """Wait for ``work``, which goes on, for at most so long; whether it has ended."""
        waiter: Deferred[None] = Deferred()
        late = self.reactor.callLater(max(0.0, seconds), waiter.callback, None)

        def ended(result: object) -> object:
            if late.active():
                late.cancel()
                waiter.callback(None)
            return result

        work.addBoth(ended)
        await waiter
        return bool(work.called)

    # -- what the operator asks for ---------------------------------------------------------------

    async def revoke(self, name: str) -> Peer:
        """A peer is out at once, and so is what it has under way here, and what goes to it.

        Raises `NoSuchPeer`.
        """
        peer = await self.pairing.revoke(name)
        await self._end_requests_of(name)
        await self._end_entries_to_the_revoked()
        return peer

    async def _finish_revoking(self) -> None:
        """After a start: what a crash left of those who were being revoked."""
        names = [peer.name for peer in self.peers if peer.state == "revoked"]
        try:
            for name in names:
                await self._end_requests_of(name)
            if names:
                await self._end_entries_to_the_revoked()
        except BackupdError as error:
            self._log.error(
                "what revoked peers had under way is not all ended; revoke them again: {why}",
                why=str(error),
            )

    async def _end_requests_of(self, name: str) -> None:
        now, reason = self.reactor.seconds(), f"Peer {name} was revoked."
        after: int | None = 0
        while after is not None:
            requests = await self.ledger.requests(live=True, peer=name, after=after, limit=PAGE)
            for _, request in requests:
                step = functools.partial(ended, kind=Cancelled, reason=reason, now=now)
                await self._unless_over(self.intake.end(request.ask.request_id, step))
            after = requests[-1][0] if len(requests) == PAGE else None

    async def _end_entries_to_the_revoked(self) -> None:
        after: int | None = 0
        while after is not None:
            entries = await self.ledger.entries(over=False, after=after, limit=PAGE)
            for _, entry in entries:
                if self.peers.out_at(origin_of(entry.to)) is not None:
                    await self._unless_over(self.outbox.cancel(entry.entry_id))
            after = entries[-1][0] if len(entries) == PAGE else None

    async def _unless_over(self, work: Coroutine[Deferred[Any], Any, object]) -> None:
        """What is stored or over by now stays as it is."""
        try:
            await work
        except BackupdError as error:
            self._log.info("left as it is: {why}", why=str(error))

    async def rebuild(self) -> Rebuilt:
        """Put on the ledger's list what lies under the root."""
        return await rebuild(
            ledger=self.ledger, storage=self.storage, off=self.off, now=self.time.stamp
        )
