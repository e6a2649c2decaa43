"""The daemon's loop, start and stop: nothing that is slow or fails keeps the rest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from typing import Any, cast

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from backupd.errors import LedgerFailed, LedgerTooNew, SettingsError, ShuttingDown
from backupd.ledger.sql import SqlLedger
from backupd.own_folder import OwnFolder
from backupd.receiver.trash import SEE_EVERY
from backupd.sender.outbox import Outbox
from backupd.service import LITTLE, BackupService, Chance
from backupd.settings import Settings
from backupd.storage.disk import DiskStorage
from backupd.tap import build
from backupd.threads import Threads
from backupd.trust.caller import LOCAL
from backupd.waiting import go_on
from backupd.web.endpoint import Api, Call
from backupd.web.operations import routes
from tests.receiver.fakes import Answer, ManualOff, Offers, ScriptedSource, sync
from tests.receiver.world import logged, now, set_attribute

LEASE = 600.0
GRACE = 30.0


class StandIn:
    """An outbox that counts its ticks."""

    def __init__(self) -> None:
        self.ticks = 0
        self.starting: Deferred[None] | None = None

    async def start(self) -> None:
        if self.starting is not None:
            await self.starting

    async def tick(self) -> None:
        self.ticks += 1

    async def stop(self) -> None:
        pass


class Pool:
    """Threads of which only the end is of interest."""

    stopped = False

    def start(self) -> None:
        pass

    def stop(self) -> None:
        self.stopped = True


class ServiceCase(SynchronousTestCase):
    """A daemon in memory: its own ledger and folder, on a clock that the test moves."""

    def setUp(self) -> None:
        self.root = tempfile.mkdtemp()
        self.addCleanup(rmtree, self.root)
        self.reactor = MemoryReactorClock()
        self.reactor.advance(1_800_000_000)
        self.off = ManualOff()
        self.outbox = StandIn()
        self.pool = Pool()
        self.told: list[str] = []
        self.offers = Offers(self.reactor)
        self.service = self.make()

    def make(self, ledger: SqlLedger | None = None) -> BackupService:
        numbers = iter(range(1000))
        return BackupService(
            settings=Settings(
                root=self.root, reserved_space=0, shutdown_grace=GRACE, max_concurrent_transfers=9
            ),
            reactor=self.reactor,
            own=OwnFolder(Settings(root=self.root), lambda: "t" * 43),
            ledger=ledger or SqlLedger("sqlite://", write_off=sync, read_off=sync),
            storage=DiskStorage(self.root),
            off=self.off,
            offer=self.offers,
            outbox=lambda links, nudge: cast(Outbox, self.outbox),
            chance=Chance(
                new_id=lambda: f"id-{next(numbers)}",
                new_capability=lambda: f"capability-{next(numbers)}",
                backoff=lambda n: 5.0,
            ),
            threads=[self.pool],
            tell_init=self.told.append,
        )

    def start(self) -> None:
        self.service.startService()
        self.off.release_all()
        assert self.service.ready

    def stop(self) -> Deferred[None]:
        return self.service.stopService()

    def stopped(self, stopping: Deferred[None]) -> None:
        """It has stopped, and nothing of it is left."""
        now(stopping)
        assert self.pool.stopped
        assert self.reactor.getDelayedCalls() == []
        again = OwnFolder(Settings(root=self.root), str)
        again.claim()
        again.release()

    def offered(self, video: int) -> str:
        peer = f"http://p{video}:1"
        decision = now(
            self.service.admission.ask(
                peer=peer, origin=peer, video=video, size=10, callback=f"{peer}/ready"
            )
        )
        self.reactor.advance(5)
        request = decision.request
        assert self.state(request.ask.request_id) == "Offered"
        return str(request.ask.request_id)

    def received(self, video: int) -> str:
        request_id = self.offered(video)
        source = ScriptedSource(self.reactor, [b"1234", b""])
        done = go_on(self.service.intake.receive(request_id, source, length=4))
        self.off.release_all()
        now(done)
        return request_id

    def storing(self) -> tuple[str, Deferred[Any]]:
        """A `complete` whose bytes are being given their final name."""
        request_id = self.received(1)
        completing = go_on(self.service.keeper.complete(request_id))
        while self.off.names != ["keep"]:
            self.off.release()
        return request_id, completing

    def state(self, request_id: str) -> str:
        return type(now(self.service.ledger.request(request_id))).__name__


class ViewTests(ServiceCase):
    """The two maps of the original are live views of the ledger."""

    def test_a_request_moves_from_one_to_the_other_and_leaves(self) -> None:
        """PENDING is in the first, OFFERED to STORING in the second; then none has it."""
        self.start()
        self.offers.answers[""] = None
        decision = now(
            self.service.admission.ask(
                peer="http://b:1", origin="http://b:1", video=2, size=4, callback="http://b:1/x"
            )
        )
        request_id = decision.request.ask.request_id
        waiting, moving = self.service.backup_requests, self.service.backups_in_progress
        assert list(waiting) == [request_id]
        assert len(moving) == 0
        self.reactor.advance(5)
        (offer,) = self.offers.waiting
        offer.answer.callback(Answer(200))
        assert type(moving[request_id]).__name__ == "Offered"
        assert len(waiting) == 0
        done = go_on(
            self.service.intake.receive(
                request_id, ScriptedSource(self.reactor, [b"1234", b""]), length=4
            )
        )
        self.off.release_all()
        now(done)
        assert type(moving[request_id]).__name__ == "Received"
        completing = go_on(self.service.keeper.complete(request_id))
        self.off.release_all()
        now(completing)
        assert len(waiting) == len(moving) == 0
        assert self.state(request_id) == "Stored"
        self.reactor.advance(0)
        self.stopped(self.stop())

    def test_they_cannot_be_changed(self) -> None:
        """Only the ledger changes them."""
        with pytest.raises(TypeError):
            self.service.backup_requests["x"] = None  # type: ignore[index]

    def test_a_start_fills_them(self) -> None:
        """After a restart they show what the ledger has."""
        url = f"sqlite:///{self.root}/ledger"
        self.service = self.make(SqlLedger(url, write_off=sync, read_off=sync))
        self.start()
        request_id = self.offered(1)
        self.reactor.advance(0)
        self.stopped(self.stop())
        self.service = self.make(SqlLedger(url, write_off=sync, read_off=sync))
        assert len(self.service.backups_in_progress) == 0
        self.start()
        assert list(self.service.backups_in_progress) == [request_id]
        self.reactor.advance(0)
        self.stopped(self.stop())


class SetBackTests(ServiceCase):
    """Waits that were noted by a clock that was ahead are set back when the daemon starts by one
    that is not.
    """

    AHEAD = 5 * 3600.0

    def setUp(self) -> None:
        super().setUp()
        self.warnings: list[str] = []
        self.again()

    def again(self, jump: float = 0.0) -> None:
        """It stops, if it runs; meanwhile its clock is set, and it starts again."""
        if self.service.running:
            self.reactor.advance(0)
            self.stopped(self.stop())
        self.reactor.rightNow += jump
        url = f"sqlite:///{self.root}/ledger"
        self.service = self.make(SqlLedger(url, write_off=sync, read_off=sync))
        with capturedLogs() as logs:
            self.start()
        self.warnings += [formatEvent(one) for one in logs if one["log_level"] is LogLevel.warn]

    def asked(self) -> None:
        """A request waits for its turn; who asked does not answer yet."""
        self.offers.answers[""] = None
        peer = "http://p1:1"
        asking = self.service.admission.ask(
            peer=peer, origin=peer, video=1, size=10, callback=f"{peer}/ready"
        )
        now(asking)

    def lease(self, request_id: str) -> float:
        """Seconds that are left of it."""
        until = now(self.service.ledger.request(request_id)).lease_until
        return float(until) - self.reactor.seconds()

    def test_who_waits_is_called(self) -> None:
        """Within a minute or so, and not when the clock gets to where it was."""
        self.asked()
        self.again(-self.AHEAD)
        begun = self.reactor.seconds()
        self.reactor.pump([5.0] * int(SEE_EVERY / 5 + 1))
        assert [one for one in self.offers.sent if begun <= one.at <= begun + SEE_EVERY + 5]
        (warned,) = self.warnings
        assert "5.0 hours further" in warned
        self.stopped(self.stop())

    def test_a_lease_is_no_longer(self) -> None:
        """It ends when it would have, had the clock been right."""
        request_id = self.offered(1)
        self.reactor.advance(SEE_EVERY)
        left = self.lease(request_id)
        self.offers.answers[""] = None
        self.again(-self.AHEAD)
        assert left <= self.lease(request_id) <= left + SEE_EVERY
        self.reactor.pump([5.0] * int((left + SEE_EVERY) / 5 + 2))
        assert self.state(request_id) == "Pending"
        self.stopped(self.stop())

    def test_only_once(self) -> None:
        """The next start by the same clock leaves all as it is."""
        self.again(-self.AHEAD)
        request_id = self.offered(1)
        left = self.lease(request_id)
        self.again()
        self.again()
        assert self.lease(request_id) == left
        assert len(self.warnings) == 1
        self.stopped(self.stop())

    def test_a_clock_that_is_right(self) -> None:
        """Or as good as right: nothing is written for it, and nothing told."""
        request_id = self.offered(1)
        for jump in (0.0, -LITTLE, LITTLE):
            left = self.lease(request_id)
            self.again(jump)
            assert self.lease(request_id) == left - jump
        assert self.warnings == []
        self.stopped(self.stop())


class LoopTests(ServiceCase):
    def test_slow_disk(self) -> None:
        """While one request's bytes go slowly, others are offered, and lose their turns."""
        self.start()
        slow = self.received(1)
        other = self.offered(2)
        self.reactor.advance(86400)
        assert self.off.names == ["discard"]
        assert self.state(other) != "Offered"
        self.offered(3)
        self.off.release_all()
        assert self.state(slow) == "Expired"
        self.stopped(self.stop())

    def test_jobs_do_not_wait_for_each_other(self) -> None:
        """A sweep that does not come back keeps neither queue nor outbox; nor do they it."""
        waiting: list[Deferred[Any]] = []

        def slow(**_: Any) -> Deferred[Any]:
            waiting.append(Deferred())
            return waiting[-1]

        set_attribute(self, self.service.ledger, "overdue", slow)
        self.start()
        ticks = self.outbox.ticks
        for _ in range(5):
            self.offered(len(self.offers.sent))
        assert len(waiting) == 1, "it overlaps itself"
        assert self.outbox.ticks >= ticks + 5
        waiting.pop().callback([])
        self.reactor.advance(0)
        assert len(waiting) == 1, "what was asked for meanwhile is done once"
        stopping = self.stop()
        waiting.pop().callback([])
        assert waiting == []
        self.stopped(stopping)

    def test_whatever_fails(self) -> None:
        """The loop survives every error and every defect of its jobs."""
        self.start()
        for error in (LedgerFailed("EIO"), ValueError("a defect"), KeyboardInterrupt()):
            ticks = self.outbox.ticks

            def fails(error: BaseException = error, **_: Any) -> Any:
                raise error

            set_attribute(self, self.service.ledger, "totals", fails)
            self.reactor.advance(5)
            self.reactor.advance(5)
            assert self.outbox.ticks >= ticks + 2
        assert len(logged(self)) == 8
        self.stopped(self.stop())

    def test_nudges(self) -> None:
        """Nudges before the next turn of the reactor make one look."""
        self.start()
        ticks = self.outbox.ticks
        self.service.nudge()
        self.service.nudge()
        assert self.outbox.ticks == ticks
        self.reactor.advance(0)
        assert self.outbox.ticks == ticks + 1
        self.stopped(self.stop())

    def test_the_queue_is_nothing_to_the_outbox(self) -> None:
        """What changes in the queue has its offers made at once, and asks no question for the
        outbox."""
        self.start()
        ticks = self.outbox.ticks
        decision = now(
            self.service.admission.ask(
                peer="http://p:1", origin="http://p:1", video=1, size=10, callback="http://p:1/r"
            )
        )
        self.service.queue.offer_again(decision.request)
        self.reactor.advance(0)
        assert self.state(decision.request.ask.request_id) == "Offered"
        assert self.outbox.ticks == ticks
        self.stopped(self.stop())

    def test_nudge_sweep_and_stop(self) -> None:
        """All at the same moment: it stops, and looks no more."""
        self.start()
        self.offered(1)
        self.reactor.advance(LEASE - 5)
        self.service.nudge()
        stopping = self.stop()
        ticks = self.outbox.ticks
        self.service.nudge()
        self.reactor.advance(5)
        assert self.outbox.ticks == ticks
        self.stopped(stopping)


class StopTests(ServiceCase):
    def test_complete_under_way(self) -> None:
        """A `complete` under way is stored before the ledger is closed."""
        self.start()
        _, completing = self.storing()
        stopping = self.stop()
        assert not self.pool.stopped
        self.off.release_all()
        assert now(completing).size == 4
        self.stopped(stopping)

    def test_not_for_ever(self) -> None:
        """One that takes longer than the grace is left to the next start, which goes on with it."""
        self.start()
        _, completing = self.storing()
        stopping = self.stop()
        self.reactor.advance(GRACE - 1)
        assert not stopping.called
        self.reactor.advance(1)
        self.stopped(stopping)
        self.off.release_all()
        with pytest.raises(LedgerFailed, match="closed"):
            now(completing)

    def test_what_is_overdue(self) -> None:
        """What the sweep has begun to end is ended first."""
        self.start()
        slow = self.received(1)
        self.reactor.advance(86400)
        assert self.off.names == ["discard"]
        stopping = self.stop()
        assert not stopping.called
        assert self.state(slow) == "Expired"
        self.off.release_all()
        self.stopped(stopping)

    def test_while_it_starts(self) -> None:
        """A start that takes long, or for ever, keeps nobody from stopping it."""
        self.outbox.starting = Deferred()
        self.service.startService()
        self.off.release_all()
        assert not self.service.ready
        self.stopped(self.stop())
        assert "READY=1" not in self.told

    def test_while_it_recovers(self) -> None:
        """Nor does a disk that does not answer."""
        self.service.startService()
        assert self.off.names == ["uploads"]
        self.stopped(self.stop())

    def test_threads_that_have_stopped(self) -> None:
        """Who asks threads that have stopped is told so, and does not wait for ever."""
        threads = Threads(reactor, 1, "test")
        threads.start()
        threads.stop()
        with pytest.raises(ShuttingDown):
            now(threads(lambda: 1))


class StartTests(ServiceCase):
    def test_a_ledger_that_cannot_be_read(self) -> None:
        """One line says why it does not start, and what to do; it is no defect of ours."""
        why = "The ledger is damaged: it is malformed. docs/recovery.md says what to do."
        self.outbox.starting = Deferred()
        self.service.startService()
        self.off.release_all()
        with capturedLogs() as logs:
            self.outbox.starting.errback(LedgerFailed(why))
        (event,) = [one for one in logs if one["log_level"] is LogLevel.error]
        assert formatEvent(event) == f"backupd could not start: {why}"
        assert "log_failure" not in event
        assert self.told[-1] == f"STATUS={why}"
        assert self.reactor.hasStopped
        self.stopped(self.stop())


class PrepareTests(ServiceCase):
    def fails(self, kind: type[Exception]) -> Exception:
        """The start fails so, and lets go of everything."""
        with pytest.raises(kind) as caught:
            self.service.prepare()
        folder = OwnFolder(Settings(root=self.root), str)
        folder.claim()
        folder.release()
        return caught.value

    def test_no_port(self) -> None:
        """A port that cannot be had: the cause comes first, and the ledger is not even opened."""

        def in_use(port: int, *_: Any, **__: Any) -> None:
            raise CannotListenError("127.0.0.1", port, OSError(98, "Address already in use"))

        opened: list[None] = []
        set_attribute(self, self.reactor, "listenTCP", in_use)
        set_attribute(self, self.service.ledger, "open", lambda: opened.append(None))
        self.service.site = Factory()
        error = self.fails(SettingsError)
        assert str(error).startswith("listen: Address already in use; 'tcp:3000")
        assert opened == []

    def test_no_ledger(self) -> None:
        """A ledger that cannot be opened: the ports are free again."""

        def too_new(root: str | None) -> None:
            raise LedgerTooNew("9999")

        class Port:
            def stopListening(self) -> None:
                stopped.append(None)

        stopped: list[None] = []
        listening: Any = self.service._listening
        set_attribute(self, listening, "start", lambda *_, **__: listening.ports.append(Port()))
        set_attribute(self, type(listening), "base", "http://localhost:3000")
        self.service.site = Factory()
        set_attribute(self, self.service.ledger, "open", too_new)
        self.fails(LedgerTooNew)
        assert len(stopped) == 1
        assert self.service.addresses == []


class Handlers:
    """The handlers of the endpoints, without their HTTP (`web.endpoint.Api`)."""

    def __init__(self, service: BackupService) -> None:
        self.service = service
        self.found: dict[str, Callable[..., Any]] = {}

    def endpoint(self, method: str, url: str, **_: Any) -> Callable[[Any], Any]:
        return lambda handler: self.found.setdefault(f"{method} {url}", handler)


class ReadyTests(ServiceCase):
    def test_trouble(self) -> None:
        """/readyz says no, with a sentence, from a failed commit on until one succeeds."""
        handlers = Handlers(self.service)
        routes(cast(Api, handlers))
        ready = handlers.found["GET /readyz"]
        self.start()

        def asked() -> Any:
            answer = go_on(ready(Call({}, LOCAL)))
            self.off.release_all()
            return now(answer)

        assert asked().status == 200
        ledger = cast(SqlLedger, self.service.ledger)
        why: str | None = "The ledger could not commit: database or disk is full."
        set_attribute(self, ledger, "trouble", lambda: sync(lambda: why))
        with pytest.raises(LedgerFailed, match="disk is full"):
            asked()
        why = None
        assert asked().status == 200
        self.stopped(self.stop())


def test_room_of_a_ledger_elsewhere(tmp_path: Path) -> None:
    """The daemon asks for the room where its ledger really lies."""
    elsewhere = tmp_path / "no such folder" / "ledger.sqlite3"
    settings = Settings(root=str(tmp_path), ledger=f"sqlite:///{elsewhere}")
    with pytest.raises(Exception, match="ledger's volume"):
        build(settings).own.free()
