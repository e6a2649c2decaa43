"""One history: machines, network and clock from a plan, run to its end and watched meanwhile."""

from __future__ import annotations

import gc
import hashlib
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from backupd.errors import BackupdError
from backupd.ledger.sql import SqlLedger
from backupd.peer.exchange import Reply
from backupd.requests import Cancelled, ended
from tests.ledger.offs import at_once
from tests.simulation.disk import Fault
from tests.simulation.invariants import Violation, Watch
from tests.simulation.knobs import turned
from tests.simulation.machine import Machine
from tests.simulation.network import Network, Weather
from tests.simulation.plan import Action, Plan
from tests.simulation.process import Process
from tests.simulation.strange import visit
from tests.simulation.stranger import Stranger
from tests.simulation.timeline import START, Owner, Timeline

__all__ = ["History", "Outcome", "run"]

MOST_STEPS = 300_000
MOST_LIVES = 200
IDLE = 900.0
"""Seconds that a history goes on after everything has come to its end."""


class Outcome:
    """What became of a history."""

    def __init__(self) -> None:
        self.violation: str | None = None
        self.trace: list[str] = []
        self.digest = ""
        self.seconds = 0.0
        self.steps = 0
        self.faults: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.moves: Counter[str] = Counter()
        self.entry_moves: Counter[str] = Counter()


class History:
    """The world of one plan."""

    def __init__(self, plan: Plan, scratch: Path | None) -> None:
        self.plan = plan
        self.world = Owner("world")
        self.timeline = Timeline(self.world)
        self.outcome = Outcome()
        self._events: list[tuple[float, str, LogEvent | str]] = []
        self.violations: list[str] = []
        self.network = Network(self.timeline, random.Random(f"{plan.seed}:network"), self.note)
        self.network.weather = self._weather()
        self.machines: dict[str, Machine] = {}
        for number, (name, settings) in enumerate(plan.machines.items()):
            self.machines[name] = self._machine(name, 3001 + number, settings, scratch)
        for video in plan.videos:
            owner = self.machines[video.machine]
            owner.disk.put(video.path, video.content(), 10**18)
        self.visiting = 0
        """Strangers that are not done yet."""
        self.stranger = Stranger(3009, self.timeline, self.network, str(plan.seed))
        self.watch = Watch(self)
        self.down_for: dict[str, float] = {}
        self._ceased = False

    def _weather(self) -> Weather:
        kind = self.plan.weather
        return Weather(
            delay=tuple(kind["delay"]), bandwidth=kind["bandwidth"], pieces=kind["pieces"]
        )

    def _machine(
        self, name: str, port: int, settings: dict[str, Any], scratch: Path | None
    ) -> Machine:
        file = None
        if scratch is not None:
            file = str(scratch / f"{name}.sqlite3")
            shutil.copy(scratch.parent / "empty.sqlite3", file)
        machine = Machine(
            name,
            port,
            timeline=self.timeline,
            network=self.network,
            seed=str(self.plan.seed),
            capacity=self.plan.capacity[name],
            settings=settings,
            ledger_file=file,
            note=self.note,
        )
        machine.on_crash = self._start_again
        if self.plan.lazy_reads:
            machine.read_pace.most = 0.002
        return machine

    # -- the trace --------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A line of the trace."""
        self._events.append((self.timeline.now, self.timeline.current.name, text))

    def observe(self, event: LogEvent) -> None:
        """What a daemon logs; a defect of one that lives is a violation."""
        owner = self.timeline.current
        if not owner.alive:
            return
        self._events.append((self.timeline.now, owner.name, event))
        if "log_failure" in event or event["log_level"] is LogLevel.critical:
            failure = event.get("log_failure")
            if failure is not None and failure.check(BackupdError):
                return  # it could not start, says why, and ends
            trace = failure.getTraceback() if failure is not None else ""
            self.violations.append(f"{owner.name} logs a defect: {formatEvent(event)}\n{trace}")

    def trace(self) -> list[str]:
        """Every line so far."""
        lines = []
        for time, name, event in self._events:
            text = event if isinstance(event, str) else formatEvent(event)
            lines.append(f"{time - START:12.4f} {name:6} {text}")
        return lines

    # -- running ----------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """From the start to the end of everything."""
        outcome, timeline = self.outcome, self.timeline
        try:
            self._run()
        except Violation as violation:
            outcome.violation = str(violation)
            self.note(f"VIOLATION: {violation}")
        outcome.seconds = timeline.now - START
        outcome.steps = timeline.steps
        outcome.faults["connections cut"] += self.network.cuts_made
        for machine in self.machines.values():
            outcome.faults["failed calls"] += machine.disk.injected
        return outcome

    def _run(self) -> None:
        timeline, plan = self.timeline, self.plan
        for machine in self.machines.values():
            machine.start()
        for action in plan.actions:
            timeline.at(START + action.at, self.world, self._act, action)
        timeline.at(START + plan.calm_at, self.world, self._cease)
        end = START + plan.calm_at + plan.patience
        while timeline.step(end):
            self.look()
            if self._ceased and self._settled():
                break
        self._wind_up()

    def look(self) -> None:
        """Whether all that must be true is; raises `Violation`."""
        if self.violations:
            raise Violation(self.violations[0])
        for machine in self.machines.values():
            if machine.lives > MOST_LIVES:
                raise Violation(f"{machine.name} starts again and again.")
            if machine.dirty:
                machine.dirty = False
                self.watch.look(machine)
        if self.timeline.steps > MOST_STEPS:
            raise Violation(f"It goes round in circles: {MOST_STEPS} steps and no end.")

    def _settled(self) -> bool:
        """Whether nothing is left to be done."""
        return not self.visiting and all(
            machine.quiet
            and not machine.books.alive
            and (not machine.books.going or self.plan.cramped)
            for machine in self.machines.values()
        )

    def _wind_up(self) -> None:
        """Nothing happens for a while, and again after the power of everybody has failed."""
        for time in range(2):
            end = self.timeline.now + IDLE
            while self.timeline.step(end):
                self.look()
            end += 60.0
            while not self._settled() and self.timeline.step(end):
                self.look()
            self.watch.at_the_end()
            self._get_back()
            if time == 0:
                for machine in self.machines.values():
                    machine.crash(power=True)
                for machine in self.machines.values():
                    machine.start()

    def _get_back(self) -> None:
        """Every video that its sender was told is stored comes back, byte for byte."""
        for machine in self.machines.values():
            for _, entry in list(machine.books.entries.values()):
                if entry.state != "VERIFIED" or entry.content_url is None:
                    continue
                got: list[Reply | None] = []
                asking = self.stranger.start(self.stranger.request("GET", entry.content_url))
                asking.addCallback(got.append)
                end = self.timeline.now + 200.0
                while not got and self.timeline.step(end):
                    self.look()
                body = got[0].body if got and got[0] is not None else b""
                if hashlib.sha256(body).hexdigest() != entry.sha256:
                    raise Violation(f"Video {entry.video} does not come back from {entry.to}")

    # -- what happens -----------------------------------------------------------------------------

    def _act(self, action: Action) -> None:
        what = action.what
        self.note(f"-- {action}")
        self.outcome.faults[action.kind] += 1
        machine = self.machines.get(what.get("machine", ""))
        getattr(self, f"_do_{action.kind}")(what, machine)

    def _later(self, seconds: float, f: Any, *args: Any) -> None:
        self.timeline.after(seconds, self.world, f, *args)

    def _start_again(self, machine: Machine) -> None:
        seconds = self.down_for.pop(machine.name, 1.0)
        if self._ceased:
            seconds = 1.0
        self._later(seconds, machine.start)

    def _cease(self) -> None:
        """The faults are over: what is broken is mended, who is down comes back."""
        self.note("-- faults cease")
        self._ceased = True
        self.network.heal_all()
        self.network.weather = self._weather()
        for machine in self.machines.values():
            disk = machine.disk
            disk.faults.clear()
            disk.crash_at, disk.foreign, disk.short_writes = None, 0, False
            machine.ledger_fails, machine.crash_at_commit = 0, None
            for pace in (machine.disk_pace, machine.write_pace):
                pace.slow_until = 0.0
            machine.start()

    def _do_send(self, what: dict[str, Any], _: object) -> None:
        video = self.plan.videos[what["video"]]
        self._enqueue(self.machines[video.machine], video.path, self.machines[what["to"]])

    def _enqueue(self, machine: Machine, path: str, to: Machine) -> None:
        """The operator queues a file, again until it is queued."""
        service, process = machine.service, machine.process
        if service is None or process is None or not service.ready:
            self._later(2.0, self._enqueue, machine, path, to)
            return
        life = process

        def queue() -> None:
            queued = Deferred.fromCoroutine(service.outbox.enqueue(to=to.url, path=path))
            queued.addErrback(failed)

        def failed(failure: Any) -> None:
            failure.trap(BackupdError)
            self._later(2.0, self._enqueue, machine, path, to)

        def gone() -> None:
            if not life.alive and not any(
                entry.path == path for _, entry in machine.books.entries.values()
            ):
                self._enqueue(machine, path, to)

        self._later(5.0, gone)
        self.timeline.within(process, queue)

    def _do_kill(self, what: dict[str, Any], machine: Machine) -> None:
        self.down_for[machine.name] = what["lasts"]
        machine.crash(power=False)

    def _do_power(self, what: dict[str, Any], machine: Machine) -> None:
        self.down_for[machine.name] = what["lasts"]
        machine.crash(power=True)

    def _do_crash_at_call(self, what: dict[str, Any], machine: Machine) -> None:
        self.down_for[machine.name] = what["lasts"]
        machine.disk.crash_at = what["calls"]

    def _do_crash_at_commit(self, what: dict[str, Any], machine: Machine) -> None:
        self.down_for[machine.name] = what["lasts"]
        machine.crash_at_commit = (what["commits"], what["after"])

    def _do_restart(self, what: dict[str, Any], machine: Machine) -> None:
        self.down_for[machine.name] = what["lasts"]
        machine.stop()

    def _do_part(self, what: dict[str, Any], machine: Machine) -> None:
        other = self.machines[what["other"]]
        self.network.part(machine, other)
        self._later(what["lasts"], self.network.heal, machine, other)

    def _do_cut(self, what: dict[str, Any], _: object) -> None:
        self.network.cut_after(what["bytes"], silent=what["silent"])

    def _do_slow_disk(self, what: dict[str, Any], machine: Machine) -> None:
        for pace in (machine.disk_pace, machine.write_pace):
            pace.slow, pace.slow_until = what["seconds"], self.timeline.now + what["lasts"]

    def _do_disk_fault(self, what: dict[str, Any], machine: Machine) -> None:
        fault = Fault(what["function"], what["errno"], what["skip"], what["count"])
        machine.disk.faults.append(fault)

        def over() -> None:
            if fault in machine.disk.faults:
                machine.disk.faults.remove(fault)

        self._later(what["lasts"], over)

    def _do_ledger_fault(self, what: dict[str, Any], machine: Machine) -> None:
        machine.ledger_fails += what["count"]

    def _do_fill(self, what: dict[str, Any], machine: Machine) -> None:
        machine.disk.foreign = int(machine.disk.free() * what["part"])

        def over() -> None:
            machine.disk.foreign = 0

        self._later(what["lasts"], over)

    def _do_storm(self, what: dict[str, Any], _: object) -> None:
        weather = self.network.weather = self._weather()
        weather.lost, weather.pieces = what["lost"], 12
        weather.delay = (0.1, 2.0)
        for machine in self.machines.values():
            machine.disk.short_writes = what["short"]

        def over() -> None:
            self.network.weather = self._weather()

        self._later(what["lasts"], over)

    def _do_refuse_connections(self, what: dict[str, Any], machine: Machine) -> None:
        listening = self.network.ports.pop(machine.port, None)
        if listening is None:
            return

        def over() -> None:
            if listening.process.alive and machine.port not in self.network.ports:
                self.network.ports[machine.port] = listening

        self._later(what["lasts"], over)

    def _do_stranger(self, what: dict[str, Any], _: object) -> None:
        visit(self, self.stranger, self.machines[what["to"]], what)

    def _do_touch(self, what: dict[str, Any], _: object) -> None:
        """A video changes: it is written over, or another takes its place."""
        video = self.plan.videos[what["video"]]
        owner = self.machines[video.machine]
        content = video.content(version=1)
        self.watch.allow(owner.url, video.name, content)
        owner.disk.put(video.path, content, 2 * 10**18, over=not what["moved"])

    def _do_verify(self, what: dict[str, Any], machine: Machine) -> None:
        service, process = machine.service, machine.process
        kept = list(machine.books.backups)
        if service is None or process is None or not service.ready or not kept:
            return
        work = service.keeper.verify(kept[what["pick"] % len(kept)])
        self._as(process, work)

    def _as(self, process: Process, work: Any) -> None:
        """Have a daemon do something; what is foreseen may go wrong."""

        def begin() -> None:
            Deferred.fromCoroutine(work).addErrback(lambda failure: failure.trap(BackupdError))

        self.timeline.within(process, begin)

    def _do_cancel(self, what: dict[str, Any], machine: Machine) -> None:
        service, process = machine.service, machine.process
        if service is None or process is None or not service.ready:
            return
        if what["side"] == "entry":
            going = list(machine.books.going)
            if going:
                entry_id = going[what["pick"] % len(going)]
                self.watch.cancelled(machine, entry_id)
                work: Any = service.outbox.cancel(entry_id)
        else:
            live = list(machine.books.alive)
            going = live
            if live:
                request_id, now = live[what["pick"] % len(live)], self.timeline.now
                work = service.intake.end(
                    request_id, lambda r: ended(r, Cancelled, reason="Taken back.", now=now)
                )
        if going:
            self._as(process, work)


def _make_empty_ledger(path: Path) -> None:
    """A ledger with its tables, to be copied: making them takes longer than a history."""
    if not path.exists():
        ledger = SqlLedger(f"sqlite:///{path}", write_off=at_once, read_off=at_once)
        ledger.open()
        ledger.close()


def run(plan: Plan, *, traced: bool = False, scratch: Path | None = None) -> Outcome:
    """Let a plan happen. ``scratch`` is a folder for ledgers on SQLite."""
    folder = None
    if plan.sqlite and scratch is not None:
        _make_empty_ledger(scratch / "empty.sqlite3")
        folder = scratch / f"history-{plan.seed}"
        folder.mkdir(parents=True)
    history = History(plan, folder)
    observer = cast(Any, history.observe)
    globalLogPublisher.addObserver(observer)
    collecting = gc.isenabled()
    # What a history leaves behind is taken apart between histories, never in the middle of one.
    gc.disable()
    try:
        with turned(plan.knobs):
            outcome = history.run()
        if traced or outcome.violation:
            outcome.trace = history.trace()
            outcome.digest = hashlib.sha256("\n".join(outcome.trace).encode()).hexdigest()
        return outcome
    finally:
        globalLogPublisher.removeObserver(observer)
        for machine in history.machines.values():
            machine.forget()
        if collecting:
            gc.enable()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
