"""A receiver in memory: the real ledger and a real folder, on a clock that the test moves."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from backupd.interfaces import IVolume, OffThread, Retention, Upload
from backupd.ledger.sql import SqlLedger
from backupd.links import Links
from backupd.receiver.admission import Admission
from backupd.receiver.expiry import Expiry
from backupd.receiver.intake import Intake
from backupd.receiver.keeping import Keeper
from backupd.receiver.queue import Queue
from backupd.receiver.recovery import recover
from backupd.receiver.repair import Repairs
from backupd.receiver.resources import Described, Resources
from backupd.receiver.scrub import Scrub
from backupd.receiver.seen_time import SeenTime
from backupd.receiver.transfer import Outcome
from backupd.receiver.trash import Rules, Trash
from backupd.requests import BackupRequest, Live, VideoId, state_name
from backupd.settings import Settings
from backupd.storage.disk import DiskStorage
from backupd.waiting import go_on
from tests.receiver.fakes import DEAD, Answer, ManualOff, Offers, ScriptedSource, sync

__all__ = [
    "DEAD",
    "KIB",
    "Answer",
    "ManualOff",
    "Offers",
    "Place",
    "ScriptedSource",
    "World",
    "WorldCase",
    "logged",
    "now",
    "set_attribute",
    "sha256",
    "sync",
]


KIB = 1024
START = 1_800_000_000.0


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Numbers:
    """Ids that tell what they are: ``id-1``, ``id-2`` …"""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._last = 0

    def __call__(self) -> str:
        self._last += 1
        return f"{self._prefix}-{self._last:04}"


@dataclass
class World:
    """One receiver. Its parts are joined as in `backupd.service`, but for the loop."""

    root: str
    clock: Clock
    settings: Settings
    off: OffThread = sync
    ledger_off: OffThread = sync
    fs: IVolume | None = None
    ledger_url: str = "sqlite://"
    numbers: str = ""
    steady: Callable[[], float] | None = None
    rules: Rules = Rules(Retention())  # noqa: RUF009 - frozen
    noted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    nudges: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.storage = DiskStorage(self.root, **({"fs": self.fs} if self.fs else {}))
        self.storage.prepare()
        self.ledger = SqlLedger(
            self.ledger_url, write_off=self.ledger_off, read_off=self.ledger_off
        )
        self.ledger.open()
        self.offers = Offers(self.clock)
        new_id = _Numbers(f"id{self.numbers}")
        self.admission = Admission(
            ledger=self.ledger,
            storage=self.storage,
            settings=self.settings,
            clock=self.clock,
            new_id=new_id,
            new_capability=_Numbers(f"capability{self.numbers}"),
            ledger_room=lambda: 2**60,
            lent=lambda: self.intake.twice.taken,
        )
        self.queue: Queue
        self.intake = Intake(
            ledger=self.ledger,
            storage=self.storage,
            queue=lambda: self.queue,
            clock=self.clock,
            off=self.off,
            settings=self.settings,
            new_id=new_id,
        )
        self.queue = Queue(
            ledger=self.ledger,
            offer=self.offers,
            links=Links("http://localhost:3000"),
            clock=self.clock,
            settings=self.settings,
            backoff=lambda attempt: min(300.0, 5.0 * 2.0 ** (attempt - 1)),
            end=lambda request_id, step: go_on(self.intake.end(request_id, step)),
            nudge=self.nudge,
        )
        self.time = SeenTime(self.clock, self.steady or self.clock.seconds)
        self.time.begin(None)
        self.keeper = Keeper(
            ledger=self.ledger,
            storage=self.storage,
            intake=self.intake,
            clock=self.clock,
            off=self.off,
            settings=self.settings,
            new_id=new_id,
            time=self.time,
        )
        self.trash = Trash(
            ledger=self.ledger,
            storage=self.storage,
            keeper=self.keeper,
            time=self.time,
            clock=self.clock,
            off=self.off,
            settings=self.settings,
            rules=lambda: self.rules,
            note=lambda event, **more: self.noted.append((event, more)),
        )
        self.resources = Resources(
            ledger=self.ledger,
            intake=self.intake,
            clock=self.clock,
            settings=self.settings,
            new_id=new_id,
        )
        self.expiry = Expiry(
            ledger=self.ledger,
            intake=self.intake,
            keeper=self.keeper,
            clock=self.clock,
            settings=self.settings,
        )
        self.scrub = Scrub(
            ledger=self.ledger, keeper=self.keeper, clock=self.clock, settings=self.settings
        )
        self.repairs = Repairs(
            ledger=self.ledger,
            admission=self.admission,
            keeper=self.keeper,
            clock=self.clock,
            nudge=self.nudge,
        )
        self.ledger.watch(self.queue.observe)

    def nudge(self) -> None:
        self.nudges += 1

    # -- what a test does with it -----------------------------------------------------------------

    def admit(self, video: VideoId = 2, *, peer: str = "http://b:1", **more: Any) -> Live:
        """A request that was said yes to."""
        size = more.pop("size", 1024 * KIB)
        callback = more.pop("callback", f"{peer}/ready/{video}")
        decision = now(
            self.admission.ask(
                peer=peer,
                origin=more.pop("origin", peer),
                video=video,
                size=size,
                callback=callback,
                **more,
            )
        )
        assert decision.request is not None, decision.message
        request: Live = decision.request
        return request

    def direct(self, video: VideoId | None = 2, *, size: int = 100, **more: Any) -> Live:
        """A direct upload that was said yes to; without a video a part of one."""
        ask = self.admission.direct_ask(peer="local", video=video, size=size, **more)
        decision = now(self.admission.ask_direct(ask))
        assert decision.request is not None, decision.message
        request: Live = decision.request
        return request

    def create(self, request_id: str, length: int | None, **more: Any) -> Upload:
        """An upload resource, of which nothing is there yet."""
        token = more.pop("token", None)
        described = Described(length=length, **more)
        made: Upload = now(self.resources.create(request_id, described, token=token))
        return made

    async def join_what_waits(self, request_id: str) -> Any:
        """Join what can be joined now, as its client asks for when it joins its parts."""
        outcome = None
        for upload in await self.ledger.uploads(request_id):
            if upload.parts and not upload.whole:
                outcome = await self.resources.join(upload) or outcome
        return outcome

    def tick(self) -> None:
        """What the loop does, with all that follows at once."""
        now(self.queue.tick())

    def sweep(self) -> None:
        """What the loop does about time."""
        now(self.expiry.sweep())

    def offered(self, video: VideoId = 2, **more: Any) -> str:
        """The id of a request whose turn it is."""
        request_id = self.admit(video, **more).ask.request_id
        self.tick()
        assert self.state(request_id) == "OFFERED"
        return request_id

    def request(self, request_id: str) -> BackupRequest:
        found: BackupRequest = now(self.ledger.request(request_id))
        return found

    def state(self, request_id: str) -> str:
        return state_name(self.request(request_id))

    def uploads(self, request_id: str | None = None) -> list[Upload]:
        found: list[Upload] = now(self.ledger.uploads(request_id))
        return found

    def source(self, *pieces: bytes | Exception) -> ScriptedSource:
        return ScriptedSource(self.clock, pieces)

    def receive(
        self, request_id: str, source: ScriptedSource, length: int | None = None, **more: Any
    ) -> Deferred[Outcome | Upload]:
        return go_on(self.intake.receive(request_id, source, length=length, **more))

    def send(self, request_id: str, data: bytes, **more: Any) -> Outcome | Upload:
        """Every byte, in one piece, with its length."""
        more.setdefault("length", len(data))
        result: Outcome | Upload = now(self.receive(request_id, self.source(data, b""), **more))
        return result

    def restart(self, **changed: Any) -> World:
        """The process is gone; another one on the same ledger and folder, recovered."""
        again: dict[str, Any] = {
            "root": self.root,
            "clock": self.clock,
            "settings": self.settings,
            "ledger_url": self.ledger_url,
            "numbers": f"{self.numbers}x",
        }
        world = World(**(again | changed))
        world.recover()
        return world

    def recover(self) -> None:
        now(
            recover(
                ledger=self.ledger,
                storage=self.storage,
                keeper=self.keeper,
                off=self.off,
                clock=self.clock,
            )
        )
        for request in now(self.ledger.all_live()):
            self.queue.observe(request)

    # -- what must always hold --------------------------------------------------------------------

    def on_disk(self) -> dict[str, int]:
        """Unfinished uploads, and the bytes that the volume counts as used by each."""
        return self.storage.uploads()

    def check_accounts(self) -> None:
        """Ledger and volume agree on what is promised and what is used."""
        known = {upload.upload_id: upload for upload in self.uploads()}
        begun = {name for name, upload in known.items() if upload.offset or upload.allocated}
        assert set(self.on_disk()) == begun, (self.on_disk(), known)
        for upload_id, used in self.on_disk().items():
            assert used >= known[upload_id].allocated, (upload_id, used, known[upload_id])
            assert used <= known[upload_id].allocated + 64 * KIB
        promised = 0
        for request in now(self.ledger.all_live()):
            mine = [one for one in known.values() if one.request_id == request.ask.request_id]
            promised += max(0, request.ask.size - sum(one.allocated for one in mine))
        totals = now(self.ledger.totals())
        assert totals.promised == promised, (totals, promised)


def now(work: Any) -> Any:
    """The result of work that needs nothing more to happen; raises what it raises."""
    done = work if isinstance(work, Deferred) else go_on(work)
    results: list[Any] = []
    done.addBoth(results.append)
    assert results, "it still waits for something"
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return results[0]


def set_attribute(case: SynchronousTestCase, owner: Any, name: str, value: Any) -> None:
    """Set something for the length of a test."""
    patcher = patch.object(owner, name, value)
    patcher.start()
    case.addCleanup(patcher.stop)


def logged(case: SynchronousTestCase) -> list[Any]:
    """The failures that were logged, also those that nobody handled."""
    found: list[Any] = case.flushLoggedErrors()
    return found


class Place:
    """A folder and a clock for receivers; `close` removes the folder."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(START)
        # In memory where there is such a folder: nothing here is about a real power cut.
        shared = "/dev/shm"  # noqa: S108
        self.folder = tempfile.mkdtemp(dir=shared if os.path.isdir(shared) else None)

    def close(self) -> None:
        shutil.rmtree(self.folder)

    def make(
        self, name: str = "root", settings: dict[str, Any] | None = None, **more: Any
    ) -> World:
        """A receiver whose root has this name."""
        root = os.path.join(self.folder, name)
        told: dict[str, Any] = {"root": root, "reserved_space": 0} | (settings or {})
        return World(root=root, clock=self.clock, settings=Settings(**told), **more)


class WorldCase(SynchronousTestCase):
    """A test with a receiver in a folder of its own."""

    def setUp(self) -> None:
        self.place = Place()
        self.addCleanup(self.place.close)
        self.clock, self.folder = self.place.clock, self.place.folder
        self.make = self.place.make
        self.world = self.make()

    def raises(self, kind: type[BaseException], work: Any) -> Any:
        """``work`` has failed so; the error."""
        with pytest.raises(kind) as caught:
            now(work)
        return caught.value
