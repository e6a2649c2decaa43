"""One history: machines, network and clock from a plan, run to its end and watched meanwhile."""

from __future__ import annotations

import gc
import hashlib
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, cast

from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from backupd.ledger.sql import SqlLedger
from backupd.peer.exchange import Reply
from tests.ledger.offs import at_once
from tests.simulation.acquaintance import acquaint
from tests.simulation.acts import Acts
from tests.simulation.answers import Answers
from tests.simulation.invariants import Violation, Watch
from tests.simulation.knobs import turned
from tests.simulation.machine import CONTROL, Machine
from tests.simulation.network import SLOW, Network, Weather
from tests.simulation.plan import WEEK, Plan
from tests.simulation.stranger import Stranger
from tests.simulation.timeline import START, Owner, Timeline

__all__ = ["History", "Outcome", "run"]

MOST_STEPS = 300_000
STEPS_A_SECOND = 10
"""So many steps at most, and so many more for each simulated second."""

MOST_LIVES = 200
OPERATOR = {"Authorization": f"Bearer {CONTROL}"}
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
        """Faults that have happened, by kind; more may have been planned."""
        self.failed_calls: Counter[str] = Counter()
        """Calls of disks that were made to fail, by function and error."""
        self.done: Counter[str] = Counter()
        """What was done that is no fault: videos sent, strangers that came, and the like."""
        self.states: Counter[str] = Counter()
        self.moves: Counter[str] = Counter()
        self.entry_moves: Counter[str] = Counter()


class History(Acts):
    """The world of one plan."""

    def __init__(self, plan: Plan, scratch: Path | None) -> None:
        self.plan = plan
        self.world = Owner("world")
        self.timeline = Timeline(self.world)
        self.outcome = Outcome()
        self._events: list[tuple[float, str, LogEvent | str]] = []
        self.violations: list[str] = []
        self.network = Network(self.timeline, random.Random(f"{plan.seed}:network"), self.note)
        self.network.weather = self.calm_weather()
        self.machines: dict[str, Machine] = {}
        for number, (name, settings) in enumerate(plan.machines.items()):
            self.machines[name] = self._machine(name, 3001 + number, settings, scratch)
        self.visiting = 0
        """Strangers that are not done yet."""
        self.stranger = Stranger(3009, self.timeline, self.network, str(plan.seed))
        if plan.peers:
            rng = random.Random(f"{plan.seed}:peers")
            acquaint(self.machines.values(), self.stranger, rng)
        for video in plan.videos:
            owner = self.machines[video.machine]
            owner.disk.put(video.path, video.content(), 10**18)
        self.watch = Watch(self)
        self.network.heard = Answers(self).heard
        self.down_for: dict[str, float] = {}
        self.ceased = False
        self.takes = []
        self.cancels = []
        self.recuts = []

    def calm_weather(self) -> Weather:
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
        machine.on_crash = self.start_again
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
        if str(event.get("why")).startswith("The connection ended"):
            self.watch.senders.left(str(event.get("request_id")))
        if event.get("state") == "READY" and event.get("why") != "well":
            self.watch.senders.gone(str(event.get("request_id")))
        if "log_failure" in event or event["log_level"] is LogLevel.critical:
            failure = event.get("log_failure")
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
            outcome.faults += machine.faults + machine.disk.faults_met
            outcome.failed_calls += machine.disk.failed_calls
        return outcome

    def _run(self) -> None:
        timeline, plan = self.timeline, self.plan
        for machine in self.machines.values():
            machine.start()
        for action in plan.actions:
            timeline.at(START + action.at, self.world, self.act, action)
        timeline.at(START + plan.calm_at, self.world, self.cease)
        end = START + plan.calm_at + plan.patience
        while timeline.step(end):
            self.look()
            if self.ceased and self._settled():
                break
        longer = plan.abandons
        if any(one.started_ahead and one.has_failed_to_commit for one in self.machines.values()):
            # That the clock was ahead may be what could not be noted: waits are as long as it was.
            jumps = [one.what["seconds"] for one in plan.actions if one.kind == "jump"]
            longer += max((one for one in jumps if 0 < one <= WEEK), default=0.0)
        elif longer and not self._settled():
            for machine in self.machines.values():
                self.watch.brought(machine)
        if longer:
            end += longer
            while not self._settled() and timeline.step(end):
                self.look()
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
                self.take_what_is_there(machine)
                if self.cancels:
                    self.cancel_what_is_there(machine)
                if self.recuts:
                    self.recut_what_is_sent(machine)
                self.watch.kept.rot.look(machine)
        most = MOST_STEPS + STEPS_A_SECOND * (self.timeline.now - START)
        if self.timeline.steps > most:
            raise Violation(f"It goes round in circles: {most:.0f} steps and no end.")

    def _settled(self) -> bool:
        """Whether nothing is left to be done."""
        return not (self.visiting or self.watch.kept.rot.pending()) and all(
            machine.quiet
            and not machine.books.alive
            and (self.plan.cramped or self._nothing_goes(machine))
            for machine in self.machines.values()
        )

    def _nothing_goes(self, machine: Machine) -> bool:
        entries = (machine.books.entry(entry_id) for entry_id in machine.books.going)
        return all(self.watch.is_out(machine, entry) for entry in entries)

    def _wind_up(self) -> None:
        """Nothing happens for a while, and again after the power of everybody has failed."""
        weather = self.network.weather
        weather.bandwidth = max(weather.bandwidth, SLOW)
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
                backup_id = entry.backup_id or ""
                if self.watch.kept.may_be_gone(backup_id) or backup_id in self.watch.kept.rot:
                    continue
                got: list[Reply | None] = []
                asking = self.stranger.start(
                    self.stranger.request("GET", entry.content_url, headers=OPERATOR)
                )
                asking.addCallback(got.append)
                end = self.timeline.now + 200.0
                while not got and self.timeline.step(end):
                    self.look()
                body = got[0].body if got and got[0] is not None else b""
                if hashlib.sha256(body).hexdigest() != entry.sha256:
                    raise Violation(f"Video {entry.video} does not come back from {entry.to}")


def _make_empty_ledger(path: Path) -> None:
    """A ledger with its tables, to be copied: making them takes longer than a history."""
    if not path.exists():
        ledger = SqlLedger(f"sqlite:///{path}", write_off=at_once, read_off=at_once)
        ledger.open()
        ledger.close()


def _digest(history: History, outcome: Outcome) -> str:
    """Of all that a history was and left: what was told, every step, every ledger and disk."""
    told = hashlib.sha256("\n".join([*outcome.trace, str(outcome.steps)]).encode())
    for machine in history.machines.values():
        books = machine.books
        requests = [(one, row.request) for one, row in books.rows.items()]
        told.update(repr((requests, books.uploads, books.entries, books.backups)).encode())
        for path, content in machine.disk.everything():
            told.update(f"{path} {len(content)}\n".encode() + content)
    return told.hexdigest()


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
            outcome.digest = _digest(history, outcome)
        return outcome
    finally:
        globalLogPublisher.removeObserver(observer)
        for machine in history.machines.values():
            machine.forget()
        if collecting:
            gc.enable()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
