"""What happens in a history: each kind of action of a plan, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred

from backupd.errors import BackupdError
from backupd.interfaces import Entry
from backupd.requests import Cancelled, Received, Storing, ended
from tests.simulation.direct import visit_directly
from tests.simulation.disk import Fault
from tests.simulation.kept_watch import PEER
from tests.simulation.machine import INCOMING, Machine
from tests.simulation.plan import Action, Plan
from tests.simulation.process import Process
from tests.simulation.strange import visit

if TYPE_CHECKING:
    from tests.simulation.history import History, Outcome
    from tests.simulation.invariants import Watch
    from tests.simulation.network import Network, Weather
    from tests.simulation.stranger import Stranger
    from tests.simulation.timeline import Owner, Timeline

__all__ = ["Acts"]


class Acts:
    """The part of a `History` that acts."""

    plan: Plan
    world: Owner
    timeline: Timeline
    outcome: Outcome
    network: Network
    machines: dict[str, Machine]
    stranger: Stranger
    watch: Watch
    down_for: dict[str, float]
    ceased: bool
    takes: list[dict[str, Any]]
    """What somebody is about to take, as soon as it is there."""
    cancels: list[dict[str, Any]]
    """Where somebody is about to cancel what has arrived and is not stored, as soon as it is."""
    recuts: list[dict[str, Any]]
    """Which video is about to change once all of it has been sent, and is not confirmed."""

    def note(self, text: str) -> None:
        raise NotImplementedError

    def calm_weather(self) -> Weather:
        raise NotImplementedError

    # -- what happens -----------------------------------------------------------------------------

    def act(self, action: Action) -> None:
        what = action.what
        self.note(f"-- {action}")
        machine = self.machines.get(what.get("machine", ""))
        getattr(self, f"_do_{action.kind}")(what, machine)

    def fault(self, kind: str) -> None:
        """A fault has happened: not only was it planned."""
        self.outcome.faults[kind] += 1

    def did(self, kind: str) -> None:
        """Somebody has done something that is no fault."""
        self.outcome.done[kind] += 1

    def _later(self, seconds: float, f: Any, *args: Any) -> None:
        self.timeline.after(seconds, self.world, f, *args)

    def start_again(self, machine: Machine) -> None:
        seconds = self.down_for.pop(machine.name, 1.0)
        if self.ceased:
            seconds = 1.0
        self._later(seconds, machine.start)

    def cease(self) -> None:
        """The faults are over: what is broken is mended, who is down comes back."""
        self.note("-- faults cease")
        self.ceased = True
        self.network.heal_all()
        self.takes.clear()
        self.cancels.clear()
        self.recuts.clear()
        self.network.weather = self.calm_weather()
        for machine in self.machines.values():
            disk = machine.disk
            if self.plan.peers and machine.offset:
                # Signatures are worth nothing while two clocks do not agree.
                machine.jump(-machine.offset)
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
            content = machine.disk.content(path)
            queued = Deferred.fromCoroutine(service.outbox.enqueue(to=to.url, path=path))
            queued.addCallbacks(lambda entry: done(entry, content), failed)

        def done(entry: Entry, content: bytes | None) -> None:
            self.did("send")
            self.watch.senders.queued(entry, content)

        def failed(failure: Any) -> None:
            failure.trap(BackupdError)
            if machine.disk.content(path) is not None:
                self._later(2.0, self._enqueue, machine, path, to)

        def gone() -> None:
            if not life.alive and not any(
                entry.path == path for _, entry in machine.books.entries.values()
            ):
                self._enqueue(machine, path, to)

        self._later(5.0, gone)
        self.timeline.within(process, queue)

    def _do_kill(self, what: dict[str, Any], machine: Machine) -> None:
        self._crash(what, machine, power=False)

    def _do_power(self, what: dict[str, Any], machine: Machine) -> None:
        self._crash(what, machine, power=True)

    def _crash(self, what: dict[str, Any], machine: Machine, *, power: bool) -> None:
        self.down_for[machine.name] = what["lasts"]
        if machine.process is not None:
            self.fault("power" if power else "kill")
        machine.crash(power=power)

    def _do_crash_at_call(self, what: dict[str, Any], machine: Machine) -> None:
        self.down_for[machine.name] = what["lasts"]
        machine.disk.crash_at = what["calls"]

    def _do_crash_at_commit(self, what: dict[str, Any], machine: Machine) -> None:
        self.down_for[machine.name] = what["lasts"]
        machine.crash_at_commit = (what["commits"], what["after"])

    def _do_restart(self, what: dict[str, Any], machine: Machine) -> None:
        self.down_for[machine.name] = what["lasts"]
        if machine.stop():
            self.fault("restart")

    def _do_part(self, what: dict[str, Any], machine: Machine) -> None:
        other = self.machines[what["other"]]
        self.fault("part")
        self.network.part(machine, other)
        self._later(what["lasts"], self.network.heal, machine, other)

    def _do_cut(self, what: dict[str, Any], _: object) -> None:
        self.network.cut_after(what["bytes"], silent=what["silent"])

    def _do_slow_disk(self, what: dict[str, Any], machine: Machine) -> None:
        self.fault("slow_disk")
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
        self.fault("fill")
        machine.disk.foreign = int(machine.disk.free() * what["part"])

        def over() -> None:
            machine.disk.foreign = 0

        self._later(what["lasts"], over)

    def _do_storm(self, what: dict[str, Any], _: object) -> None:
        self.fault("storm")
        weather = self.network.weather = self.calm_weather()
        weather.lost, weather.pieces = what["lost"], 12
        weather.delay = (0.1, 2.0)
        for machine in self.machines.values():
            machine.disk.short_writes = what["short"]

        def over() -> None:
            self.network.weather = self.calm_weather()

        self._later(what["lasts"], over)

    def _do_refuse_connections(self, what: dict[str, Any], machine: Machine) -> None:
        listening = self.network.ports.pop(machine.port, None)
        if listening is None:
            return
        self.fault("refuse_connections")

        def over() -> None:
            if listening.process.alive and machine.port not in self.network.ports:
                self.network.ports[machine.port] = listening

        self._later(what["lasts"], over)

    def _do_take(self, what: dict[str, Any], machine: Machine) -> None:
        """Somebody removes the file of an unfinished upload by mistake, once there is one."""
        self.takes.append(what)

        def over() -> None:
            if what in self.takes:
                self.takes.remove(what)

        self._later(what["lasts"], over)
        self.take_what_is_there(machine)

    def take_what_is_there(self, machine: Machine) -> None:
        """What somebody waits for may have come."""
        for what in [one for one in self.takes if one["machine"] == machine.name]:
            upload_id = self._to_take(machine, whole=what["whole"])
            if upload_id is None:
                continue
            self.takes.remove(what)
            if what["late"]:
                self._later(what["late"], self._take, machine, upload_id)
            else:
                self._take(machine, upload_id)

    def _to_take(self, machine: Machine, *, whole: bool) -> str | None:
        """The newest upload of one of our own senders, ``whole`` when its request is RECEIVED."""
        ours = [one.peer for one in self.machines.values()]
        there = machine.disk.names(INCOMING)
        for upload_id, (_, upload) in reversed(machine.books.uploads.items()):
            request = machine.books.rows[upload.request_id].request
            if request.ask.direct or request.ask.peer not in ours or upload_id not in there:
                continue
            if isinstance(request, Received) if whole else not isinstance(request, Storing):
                return upload_id
        return None

    def _take(self, machine: Machine, upload_id: str) -> None:
        if self.ceased or not machine.disk.take(f"{INCOMING}/{upload_id}"):
            return
        uploads = [one for _, one in machine.books.uploads.values()]
        mine = [one.request_id for one in uploads if one.upload_id == upload_id]
        count = sum(one.request_id in mine for one in uploads)
        self.note(
            f"of upload {upload_id} of {machine.name}, one of {count}, the file is taken away"
        )
        self.fault("files taken")
        self.watch.taken(upload_id)
        machine.dirty = True

    def _do_rot(self, what: dict[str, Any], machine: Machine) -> None:
        """Bytes of what is kept change on the disk, once it is kept."""
        rot = self.watch.kept.rot
        rot.await_(what)
        self._later(what["lasts"], rot.over, what)
        rot.look(machine)

    def _do_stranger(self, what: dict[str, Any], _: object) -> None:
        history = cast("History", self)
        self.did("stranger")
        if what["directly"]:
            visit_directly(history, self.stranger, self.machines[what["to"]], what)
            return
        visit(history, self.stranger, self.machines[what["to"]], what)

    def _do_touch(self, what: dict[str, Any], _: object) -> None:
        """A video changes: it is written over, or another takes its place."""
        self.did("touch")
        video = self.plan.videos[what["video"]]
        owner = self.machines[video.machine]
        content = video.content(version=1)
        self.watch.allow(owner.peer, video.name, content)
        owner.disk.put(video.path, content, 2 * 10**18, over=not what["moved"])

    def _do_vanish(self, what: dict[str, Any], _: object) -> None:
        """A video is removed by its owner."""
        video = self.plan.videos[what["video"]]
        owner = self.machines[video.machine]
        if owner.disk.take(video.path):
            self.did("vanish")
            self.watch.vanished(owner, video.path)

    def _do_verify(self, what: dict[str, Any], machine: Machine) -> None:
        service, process = machine.service, machine.process
        kept = list(machine.books.backups)
        if service is None or process is None or not service.ready or not kept:
            return
        self.did("verify")
        work = service.keeper.verify(kept[what["pick"] % len(kept)])
        self._as(process, work)

    def _as(self, process: Process, work: Any) -> None:
        """Have a daemon do something; what is foreseen may go wrong."""

        def begin() -> None:
            Deferred.fromCoroutine(work).addErrback(lambda failure: failure.trap(BackupdError))

        self.timeline.within(process, begin)

    def _do_cancel_received(self, what: dict[str, Any], machine: Machine) -> None:
        """The operator takes back a request that waits for its sender's word only."""
        self.cancels.append(what)
        self.cancel_what_is_there(machine)

    def cancel_what_is_there(self, machine: Machine) -> None:
        """What somebody waits for may have arrived."""
        received = [
            one for one, row in machine.books.alive.items() if isinstance(row.request, Received)
        ]
        for what in [one for one in self.cancels if one["machine"] == machine.name]:
            if received:
                self.cancels.remove(what)
                pick = list(machine.books.alive).index(received[0])
                self._do_cancel({"side": "request", "pick": pick}, machine)

    def _do_recut(self, what: dict[str, Any], _: object) -> None:
        """A video changes, and is sent again, while the old one waits to be confirmed."""
        self.recuts.append(what)
        self.recut_what_is_sent(self.machines[self.plan.videos[what["video"]].machine])

    def recut_what_is_sent(self, machine: Machine) -> None:
        """What somebody waits for may have been sent."""
        going = [machine.books.entry(one) for one in machine.books.going]
        sent = {(one.path, one.to) for one in going if one.state == "SENT"}
        for what in list(self.recuts):
            video, to = self.plan.videos[what["video"]], self.machines[what["to"]]
            if video.machine == machine.name and (video.path, to.url) in sent:
                self.recuts.remove(what)
                self.did("recut")
                self._do_touch({"video": what["video"], "moved": False}, None)
                self._do_send(what, None)

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
                request_id, now = live[what["pick"] % len(live)], process.seconds()
                work = service.intake.end(
                    request_id, lambda r: ended(r, Cancelled, reason="Taken back.", now=now)
                )
        if going:
            self.did("cancel")
            self._as(process, work)

    def _do_jump(self, what: dict[str, Any], machine: Machine) -> None:
        """The wall clock is set, and perhaps put right again."""
        self.fault("jump")
        machine.jump(what["seconds"])
        if what["lasts"]:
            self._later(what["lasts"], machine.jump, -what["seconds"])

    def _do_revoke(self, what: dict[str, Any], machine: Machine) -> None:
        """A peer is put out; again until it is."""
        service, process, who = machine.service, machine.process, what["who"]
        if service is None or process is None or not service.ready:
            self._later(2.0, self._do_revoke, what, machine)
            return
        self.watch.wants_out(machine, who)
        life = process

        def revoke() -> None:
            work = Deferred.fromCoroutine(service.revoke(who))
            work.addCallbacks(revoked, again)

        def revoked(_: object) -> None:
            self.did("revoke")
            self.watch.out(machine, who)

        def again(failure: Any) -> None:
            failure.trap(BackupdError)
            self._later(2.0, self._do_revoke, what, machine)

        def gone() -> None:
            if not life.alive:
                self._do_revoke(what, machine)

        self._later(30.0, gone)
        self.timeline.within(process, revoke)

    def _do_keep(self, what: dict[str, Any], machine: Machine) -> None:
        """The operator deletes, brings back or locks something that is kept."""
        service, process = machine.service, machine.process
        kept = list(machine.books.backups)
        if service is None or process is None or not service.ready or not kept:
            return
        backup_id, trash = kept[what["pick"] % len(kept)], service.trash
        self.did(f"keep: {what['how']}")
        match what["how"]:
            case "delete":
                self.watch.kept.deletion_asked(backup_id)
                by = "operator" if what["operator"] else PEER
                work: Any = trash.delete(backup_id, by=by, operator=what["operator"])
            case "remove":
                self.watch.kept.removal_asked(backup_id)
                work = trash.delete_now(backup_id, by="operator")
            case "undelete":
                work = trash.undelete(backup_id)
            case "lock":
                self.watch.kept.lock_asked(backup_id, what["seconds"])
                work = trash.lock(backup_id, service.time.stamp() + what["seconds"])
        self._as(process, work)
