"""A computer with a disk and a ledger on it; its daemon lives, dies and is started again."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Connection, NullPool, create_engine
from twisted.internet.defer import Deferred

from backupd.errors import LedgerFailed
from backupd.interfaces import ILedger, Remembered
from backupd.ledger import backup_table, entry_table, request_table
from backupd.ledger.sql import SqlLedger
from backupd.own_folder import OwnFolder
from backupd.service import BackupService
from backupd.settings import Settings
from backupd.tap import DISK_THREADS, FOOTPRINT, chance_from, join
from backupd.trust.registry import InMemory
from tests.simulation.books import Books
from tests.simulation.disk import Disk
from tests.simulation.memory_ledger import MemoryLedger
from tests.simulation.network import Network
from tests.simulation.process import Process, Threads
from tests.simulation.timeline import Crash, Timeline
from tests.simulation.view import View

__all__ = ["CONTROL", "INCOMING", "ROOT", "Machine", "Pace"]

T = TypeVar("T")
P = ParamSpec("P")

ROOT = "/backups"
INCOMING = f"{ROOT}/.backupd/incoming"
CONTROL = "0" * 43
"""The operator's token."""


class Pace:
    """How long jobs take: mostly little, and much while something is slow."""

    def __init__(self, rng: random.Random, least: float, most: float) -> None:
        self._rng = rng
        self.least = least
        self.most = most
        self.slow_until = 0.0
        self.slow = 0.0

    def takes(self, now: float) -> float:
        if now < self.slow_until:
            return self._rng.uniform(0.0, self.slow)
        return self._rng.uniform(self.least, self.most) if self.most else 0.0


class _Own(OwnFolder):
    """The daemon's own folder: there from the beginning, on a volume of its own."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, lambda: CONTROL)

    def claim(self, known: Remembered = Remembered()) -> None:  # noqa: B008 - frozen
        self._token = CONTROL

    def free(self) -> int:
        return 1 << 40

    def release(self) -> None:
        """Nothing is held."""


class Machine:
    """One of the computers. ``note`` writes a line of the trace."""

    def __init__(
        self,
        name: str,
        port: int,
        *,
        timeline: Timeline,
        network: Network,
        seed: str,
        capacity: int,
        settings: dict[str, Any],
        ledger_file: str | None,
        note: Callable[[str], None],
    ) -> None:
        self.name = name
        self.port = port
        self.timeline = timeline
        self.network = network
        self.settings = Settings(listen=(f"tcp:{port}:interface=127.0.0.1",), root=ROOT, **settings)
        self._note = note
        self._seed = f"{seed}:{name}"
        self.rng = random.Random(self._seed)
        self.disk = Disk(capacity, random.Random(f"{self._seed}:disk"), self.note)
        self._books = Books(FOOTPRINT)
        self._ledger_file = ledger_file
        self._sql: Connection | None = None
        self._changed = True
        self._close: Callable[[], None] = lambda: None
        if ledger_file is not None:
            engine = create_engine(f"sqlite:///{ledger_file}", poolclass=NullPool)
            self._sql = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self.ledger_fails = 0
        self.crash_at_commit: tuple[int, bool] | None = None
        self.faults: Counter[str] = Counter()
        """What has happened to it in the middle of a call or of a commit."""
        self.up = True
        self.peer = self.url
        """What others know it as."""
        self.peer_records: InMemory | None = None
        self.offset = 0.0
        """By how much its wall clock is ahead of the time that passes."""
        self.jumped = False
        self.started_ahead = False
        """A daemon of it has begun with a wall clock that was ahead, and believed it."""
        self.has_failed_to_commit = False
        """Since then: it may not have been able to note that."""
        self.lives = 0
        self.started_at = 0.0
        self.process: Process | None = None
        self.service: BackupService | None = None
        self.threads: list[Threads] = []
        self.past: list[Any] = []
        """What has died: kept, so that nothing of it is taken apart while the history runs."""
        self.disk_pace = Pace(self.rng, 0.0, 0.004)
        self.write_pace = Pace(self.rng, 0.0005, 0.004)
        self.read_pace = Pace(self.rng, 0.0, 0.0)
        self.on_crash: Callable[[Machine], None] = lambda machine: None
        self.dirty = False
        network.machines[port] = self

    def note(self, text: str) -> None:
        """A line of the trace."""
        self._note(f"{self.name}: {text}")

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def wall(self) -> float:
        """What its wall clock says."""
        return self.timeline.now + self.offset

    def jump(self, seconds: float) -> None:
        """Somebody sets its wall clock."""
        if self.process is not None:
            self.process.before_jump()
        self.offset += seconds
        self.jumped = True

    # -- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon, as `twistd` would."""
        if self.process is not None:
            return
        self.up = True
        self.lives += 1
        self.started_at = self.timeline.now
        self.started_ahead |= self.offset > 0
        life = f"{self._seed}:{self.lives}"
        process = self.process = Process(
            f"{self.name}.{self.lives}", self.timeline, self.network, self
        )
        self.note(f"starts, life {self.lives}")
        rng, ids = random.Random(f"{life}:jitter"), random.Random(f"{life}:ids")
        clock = self.timeline

        def threads(size: int, pace: Pace, *, tells: bool = True) -> Threads:
            pool = Threads(process, size, self.rng, lambda: pace.takes(clock.now), tells=tells)
            self.threads.append(pool)
            return pool

        write, read = threads(1, self.write_pace), threads(1, self.read_pace, tells=False)
        off = threads(DISK_THREADS, self.disk_pace)
        self.service = join(
            self.settings,
            reactor=process,
            own=_Own(self.settings),
            ledger=self._ledger(write, read),
            fs=View(self.disk, process),
            off=off,
            rng=rng,
            chance=chance_from(
                rng,
                lambda size: f"{ids.getrandbits(8 * size):048x}",
                lambda: f"{ids.getrandbits(64):016x}",
            ),
            threads=[],
            peer_records=self.peer_records,
            steady=lambda: clock.now,
            wall=self.wall,
            begin_time=process.begin_time,
        )
        self.timeline.within(process, self._begin)

    def _ledger(self, write: Threads, read: Threads) -> ILedger:
        def commit(f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
            def job() -> T:
                self._commit()
                outcome = f(*args, **kwargs)
                self._committed()
                return outcome

            return write(job)

        if self._ledger_file is not None:
            url = f"sqlite:///{self._ledger_file}"
            ledger = SqlLedger(url, write_off=commit, read_off=read, footprint=FOOTPRINT)
            self._close = ledger._shut
            return ledger
        return MemoryLedger(self._books, write_off=commit, read_off=read)

    @property
    def books(self) -> Books:
        """What is committed."""
        if self._sql is None:
            return self._books
        if self._changed:
            self._changed = False
            self._books = Books(FOOTPRINT)
            self._books.take(
                request_table.page(self._sql, None, None, 0, -1),
                request_table.uploads_of(self._sql, None),
                [
                    one
                    for trash in (False, True)
                    for one in backup_table.page(self._sql, None, None, 0, -1, trash)
                ],
                entry_table.page(self._sql, None, 0, -1),
            )
        return self._books

    def _begin(self) -> None:
        assert self.service is not None
        try:
            self.service.privilegedStartService()
            self.service.startService()
        except SystemExit as error:
            self.note(f"could not start: {error}")
            self.ended()

    def ended(self) -> None:
        """The process is over, by itself; it is started again by whoever watches over it."""
        process = self.process
        if process is not None:
            self._bury(power=False)
            self.on_crash(self)

    def stop(self) -> bool:
        """SIGTERM; whether there was a daemon to be told."""
        service, process = self.service, self.process
        if service is None or process is None or not service.running:
            return False
        self.note("is told to stop")

        def stopped(_: object) -> None:
            if self.process is process:
                self.note("has stopped")
                self.ended()

        def stop() -> None:
            stopping: Deferred[Any] = service.stopService()
            stopping.addBoth(stopped)

        self.timeline.within(process, stop)
        return True

    def crashed(self, process: Process) -> None:
        """A call of the process ended in `Crash`."""
        if process is self.process:
            self.crash(power=self.rng.random() < 0.5)

    def crash(self, *, power: bool) -> None:
        """SIGKILL, or the power fails."""
        if self.process is None:
            return
        self.note("loses its power" if power else "is killed")
        self._bury(power=power)
        if power:
            self.up = False
            self.disk.power_cut()
        else:
            self.disk.process_died()
        self.on_crash(self)

    def _bury(self, *, power: bool) -> None:
        process = self.process
        assert process is not None
        process.alive = False
        for port, listening in list(self.network.ports.items()):
            if listening.process is process:
                del self.network.ports[port]
        for end in process.ends:
            end.process_died(power=power)
        self._close()
        self.past += [process, self.service, self.threads]
        self.process = self.service = None
        self.threads = []
        self.dirty = True

    # -- the ledger's disk ------------------------------------------------------------------------

    def _commit(self) -> None:
        crash = self.crash_at_commit
        if crash is not None:
            left, after = crash
            self.crash_at_commit = (left - 1, after)
            if left == 0 and not after:
                self.crash_at_commit = None
                self.faults["crash_at_commit"] += 1
                raise Crash
        if self.ledger_fails > 0:
            self.ledger_fails -= 1
            self.faults["failed commits"] += 1
            self.has_failed_to_commit |= self.started_ahead
            self.note("a commit fails")
            raise LedgerFailed("The ledger could not commit: disk I/O error.")

    def _committed(self) -> None:
        self.dirty = self._changed = True
        if self.crash_at_commit is not None and self.crash_at_commit[0] < 0:
            self.crash_at_commit = None
            self.faults["crash_at_commit"] += 1
            raise Crash

    def job_done(self) -> None:
        self.dirty = True

    def forget(self) -> None:
        """The history is over."""
        if self.process is not None:
            self.process.alive = False
        self._close()
        if self._sql is not None:
            self._sql.close()

    # -- for whoever looks ------------------------------------------------------------------------

    def ready_for(self, seconds: float) -> bool:
        """Whether the daemon has been there for so long."""
        return self.process is not None and self.timeline.now - self.started_at >= seconds

    @property
    def ready(self) -> bool:
        """Whether the daemon has recovered and takes work."""
        return self.service is not None and self.service.ready

    @property
    def quiet(self) -> bool:
        """Whether the daemon takes work and no thread of it is at work."""
        service = self.service
        return service is not None and service.ready and all(one.idle for one in self.threads)
