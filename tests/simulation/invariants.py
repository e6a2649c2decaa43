"""What must be true after every step, and at the end when the faults have ceased."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from backupd.interfaces import Entry, Totals, Upload
from backupd.own_time import SLEW
from backupd.receiver.trash import SEE_EVERY
from backupd.requests import (
    MAX_TRIES,
    NEVER,
    BackupRequest,
    Offered,
    Pending,
    Receiving,
    Stored,
    Storing,
    state_name,
)
from backupd.service import LITTLE
from backupd.tap import FOOTPRINT, OFFER_BACKOFF
from tests.simulation.disk import BLOCK
from tests.simulation.fairness import Fairness
from tests.simulation.kept_watch import KeptWatch, Violation
from tests.simulation.machine import INCOMING, ROOT
from tests.simulation.senders_watch import SendersWatch

if TYPE_CHECKING:
    from tests.simulation.history import History
    from tests.simulation.machine import Machine

__all__ = ["Violation", "Watch"]

LATE = 900.0
"""Seconds by which what time ends may be late, with every fault that a plan has."""


@dataclass(frozen=True, slots=True)
class _Lease:
    """Until when a state holds by the daemon's own time, and by ours at the soonest; ``last`` is
    what held before the changes that began at ``changed_at``.
    """

    state: str
    until: float
    due: float
    last: float
    changed_at: float
    life: int


def _of(there: bytes, meant: Sequence[bytes]) -> bool:
    """Whether these bytes are of what was meant; several may have gone on with one upload."""
    if any(there == one[: len(there)] for one in meant):
        return True
    return len(meant) > 1 and all(
        any(at < len(one) and one[at] == byte for one in meant) for at, byte in enumerate(there)
    )


def _within(part: bytes, meant: Sequence[bytes]) -> bool:
    """Whether it is a part of what was meant; of a file that changed meanwhile, it is of both."""
    starts = {one.find(part[:64]) for one in meant} - {-1}
    return any(part in one for one in meant) or any(
        _of(part, [one[start:] for one in meant]) for start in starts
    )


class Watch:
    """Looks at the machines from outside: at what is on the disk and in the ledger."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._plan = history.plan
        self._contents: dict[tuple[str, str], list[bytes]] = {}
        for video in self._plan.videos:
            self.allow(history.machines[video.machine].peer, video.name, video.content())
        self._parts: dict[str, list[bytes]] = {}
        self._out: dict[tuple[str, str], float] = {}
        self._wants_out: dict[tuple[str, str], None] = {}
        self._offsets: dict[str, int] = {}
        self._before: dict[str, dict[str, Upload]] = {}
        """What uploads each machine had at the last look."""
        self._states: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._owners: dict[str, tuple[str, int]] = {}
        """Of each upload its request, and the most that was ever counted as allocated to it."""
        self._capabilities: dict[str, str] = {}
        self.kept = KeptWatch(history)
        self.senders = SendersWatch(history)
        self._fair = Fairness()
        self._leases: dict[str, _Lease] = {}
        self._free: dict[str, tuple[float, float]] = {}
        self._entries: dict[str, str] = {}
        self._cancelled: dict[str, None] = {}
        self._vanished: set[tuple[str, str]] = set()
        self._by_link: set[str] = set()
        """Requests that have had a turn by using their link."""
        self._taken: dict[str, None] = {}

    def had(self, request_id: str) -> int:
        """Bytes of a request that were durable in one upload at some time."""
        return max(
            (self._offsets[one] for one, (of, _) in self._owners.items() if of == request_id),
            default=0,
        )

    def reached(self, upload_id: str) -> int:
        """Bytes of an upload that were durable at some time."""
        return self._offsets.get(upload_id, 0)

    def allow(self, peer: str, video: str, content: bytes) -> None:
        """These bytes may be what a peer sends as a video."""
        self._contents.setdefault((peer, video), []).append(content)

    def out(self, machine: Machine, peer: str) -> None:
        """A machine has revoked a peer, and said so."""
        self._out[machine.name, peer] = self._history.timeline.now

    def is_out(self, machine: Machine, entry: Entry) -> bool:
        """Whether the one is not heard by the other any more, or does not want to be."""
        to = self._receiver(entry)
        return (to.name, machine.peer) in self._wants_out or (
            machine.name,
            to.peer,
        ) in self._wants_out

    def wants_out(self, machine: Machine, peer: str) -> None:
        """A machine is about to revoke a peer."""
        self._wants_out[machine.name, peer] = None

    def allow_part(self, peer: str, content: bytes) -> None:
        """These bytes may be what a peer sends as a part of a video that has no name yet."""
        self._parts.setdefault(peer, []).append(content)

    def cancelled(self, machine: Machine, entry_id: str) -> None:
        """The operator does not want this entry any more."""
        self._cancelled[entry_id] = None

    def vanished(self, machine: Machine, path: str) -> None:
        """Its owner has removed this video: it need not be brought."""
        self._vanished.add((machine.name, path))

    def taken(self, upload_id: str) -> None:
        """Somebody has removed the file of this upload."""
        self._taken[upload_id] = None

    # -- after every step -------------------------------------------------------------------------

    def look(self, machine: Machine) -> None:
        """Everything that has to hold at any moment."""
        self._requests(machine)
        self._fair.look(machine)
        self._uploads(machine)
        self.kept.look(machine)
        self.kept.files(machine)
        self._sending(machine)
        if (late := self.senders.late(machine)) is not None:
            self._fail(machine, late)
        if machine.ready:
            self._blocks(machine)
        if machine.quiet:
            self._room(machine)
            self._sums(machine)
            self._waits(machine)
            if machine.ready_for(LATE):
                self._late(machine)
        if machine.disk.full and not any(action.kind == "fill" for action in self._plan.actions):
            self._fail(machine, "had no room for what it had promised")

    def _fail(self, machine: Machine, what: str) -> NoReturn:
        self.kept.fail(machine, what)

    def _requests(self, machine: Machine) -> None:
        taken: dict[str, str] = {}
        for request_id, row in machine.books.rows.items():
            request = row.request
            self._followed(machine, request_id, request)
            if isinstance(request, Offered | Receiving):
                taken[request.ask.turn] = request.ask.peer
        turns = Counter(taken.values())
        most = machine.settings.max_concurrent_transfers
        if sum(turns.values()) > most:
            self._fail(machine, f"has given {sum(turns.values())} turns; {most} are allowed")
        for peer, count in turns.items():
            if count > machine.settings.max_per_peer:
                self._fail(machine, f"has given {count} turns to {peer}")

    def _followed(self, machine: Machine, request_id: str, request: BackupRequest) -> None:
        """Note what became of it; a capability stays with its request."""
        state = state_name(request)
        before = self._states.get(request_id, "")
        if state != before:
            self._states[request_id] = state
            self._history.outcome.states[state] += 1
            self._history.outcome.moves[f"{before or 'nothing'} -> {state}"] += 1
            begun = before == "PENDING" and state in ("OFFERED", "RECEIVING")
            again = state == "RECEIVING" and request_id in self._by_link
            if begun and not (request.ask.part or again):
                # Whoever uses its link has its turn, whether it answers the offer or not. What
                # arrives wrong is sent again in that turn, as long as it does not answer.
                self._fair.served(machine, request.ask.peer)
            if begun and state == "RECEIVING":
                self._by_link.add(request_id)
            if before in ("STORED", "EXPIRED", "CANCELLED", "FAILED"):
                self._fail(machine, f"let {request_id} go from {before} to {state}")
        if not isinstance(request, Stored) and getattr(request, "tries", 0) >= MAX_TRIES:
            self._fail(machine, f"gives {request_id} one try too many")
        wrong = self.senders.wrong(before, state, request)
        if wrong is not None:
            self._fail(machine, wrong)
        self._in_time(machine, request_id, before, request)
        # Whoever asks again may ask for less than has come already.
        self._sizes[request_id] = max(request.ask.size, self._sizes.get(request_id, 0))
        since = self._out.get((machine.name, request.ask.peer))
        if since is not None and before == "" and request.ask.created_at > since + 1.0:
            self._fail(machine, f"has admitted {request_id} of a peer that is out")
        owner = self._capabilities.setdefault(request.ask.capability, request_id)
        if owner != request_id:
            self._fail(machine, f"gave one capability to {owner} and {request_id}")

    def _uploads(self, machine: Machine) -> None:
        books = machine.books
        self._remembered(machine)
        for upload_id, (_, upload) in books.uploads.items():
            request = books.rows[upload.request_id].request
            if upload.request_id not in books.alive:
                self._fail(machine, f"remembers the upload {upload_id} of what has ended")
            before = self._offsets.get(upload_id, 0)
            if upload.offset < before:
                self._fail(machine, f"went back from {before} to {upload.offset} in {upload_id}")
            self._offsets[upload_id] = upload.offset
            if len(upload.parts) > 1 and not request.ask.direct and upload_id not in self._owners:
                self._history.did("joined of parts")
            most = max(upload.allocated, self._owners.get(upload_id, ("", 0))[1])
            self._owners[upload_id] = upload.request_id, most
            if upload.offset > self._sizes[upload.request_id]:
                self._fail(machine, f"took {upload.offset} bytes for {request.ask.size}")
            if not upload.offset or state_name(request) == "STORING":
                continue
            there = machine.disk.durable(f"{INCOMING}/{upload_id}")
            if there is None and upload_id in self._taken:
                continue
            if upload.partial:
                final = next((f for _, f in books.uploads.values() if upload_id in f.parts), None)
                if final is not None and final.offset:
                    continue  # its bytes are on their way into the whole
                if final is not None and there is None:
                    # The first part's file becomes the whole's before that is recorded.
                    there = machine.disk.durable(f"{INCOMING}/{final.upload_id}")
                    if there is None and final.upload_id in self._taken:
                        continue
            meant = self._contents.get((request.ask.peer, str(request.ask.video)), [])
            if request.ask.part:
                meant = self._parts.get(request.ask.peer, [])
            if there is None:
                self._fail(machine, f"recorded {upload.offset} bytes of {upload_id}: no such file")
            kept = there[: upload.offset]
            if upload.partial and _within(kept, meant) and len(kept) == upload.offset:
                continue
            if len(kept) < upload.offset or not _of(kept, meant):
                self._fail(
                    machine,
                    f"recorded {upload.offset} bytes of {upload_id} that a power cut would take",
                )

    def _remembered(self, machine: Machine) -> None:
        """A start forgets nothing that was acknowledged: nobody can have ended an upload or begun
        it anew meanwhile, so only what somebody has taken away may be gone.
        """
        books = machine.books
        before = self._before.get(machine.name, {})
        now = {upload_id: upload for upload_id, (_, upload) in books.uploads.items()}
        self._before[machine.name] = now
        if machine.ready or machine.process is None or not machine.process.alive:
            return  # it may have died behind the commit that ended one
        taken = {before[one].request_id for one in self._taken if one in before}
        for upload_id, upload in before.items():
            if (
                upload.offset
                and upload_id not in now
                and upload.request_id in books.alive
                and upload.request_id not in taken
                and not any(upload_id in one.parts and one.offset for one in now.values())
            ):
                self._fail(machine, f"starts without {upload.offset} bytes of {upload_id}")

    def _sending(self, machine: Machine) -> None:
        for entry_id, (_, entry) in machine.books.entries.items():
            wrong = self.senders.forgets(entry, self._receiver(entry))
            if wrong is not None and not self.is_out(machine, entry):
                self._fail(machine, wrong)
            before = self._entries.get(entry_id, "")
            if entry.state == before:
                continue
            self._entries[entry_id] = entry.state
            self._history.outcome.entry_moves[f"{before or 'nothing'} -> {entry.state}"] += 1
            if entry.state == "VERIFIED":
                self._told_stored(machine, entry)

    def _told_stored(self, machine: Machine, entry: Entry) -> None:
        receiver = self._receiver(entry)
        if self.kept.may_be_gone(entry.backup_id or ""):
            return  # by the operator's will, and meanwhile
        kept = receiver.books.backups.get(entry.backup_id or "")
        contents = self._contents[machine.peer, str(entry.video)]
        right = [hashlib.sha256(content).hexdigest() for content in contents]
        if kept is None or kept[1].sha256 not in right or kept[1].sha256 != entry.sha256:
            self._fail(machine, f"believes that video {entry.video} is stored, and it is not")

    def _receiver(self, entry: Entry) -> Machine:
        machines = self._history.machines.values()
        return next(machine for machine in machines if machine.url == entry.to)

    def _room(self, machine: Machine) -> None:
        promised, used = machine.books.totals().promised, machine.disk.used()
        limit = machine.disk.capacity - machine.settings.reserved_space
        over = promised + used - limit
        if over > 0 and over > (twice := self._counted_twice(machine)):
            self._fail(
                machine,
                f"has promised {promised} bytes and uses {used}: {over - twice} more than it may",
            )

    def _counted_twice(self, machine: Machine) -> int:
        """Bytes that are both promised and used, for admission is to err on this side.

        What an upload occupies beyond what is counted of it (its last block, or all where nothing
        can be allocated) and what it is stored with is a part of what its request was promised; and
        a file is removed after its upload was forgotten, while the request goes on.
        """
        books, removed = machine.books, 0
        beyond, counted = Counter[str](), Counter[str]()
        for name in machine.disk.names(INCOMING):
            occupied = machine.disk.occupied(f"{INCOMING}/{name}") or 0
            request_id, most = self._owners.get(name, ("", 0))
            if request_id not in books.alive:
                continue
            if name in books.uploads:
                allocated = books.uploads[name][1].allocated
                counted[request_id] += allocated
                # What is not counted any more is freed next.
                if occupied < most + BLOCK or self._cannot_allocate(machine):
                    beyond[request_id] += max(0, occupied - allocated)
            else:
                removed += min(occupied, most + BLOCK)
        for request_id, row in books.alive.items():
            if isinstance(row.request, Storing):
                beyond[request_id] += FOOTPRINT
        return removed + sum(
            min(more, max(0, books.rows[one].request.ask.size - counted[one]) + FOOTPRINT)
            for one, more in beyond.items()
        )

    def _cannot_allocate(self, machine: Machine) -> bool:
        """Whether its volume may say so, at some time."""
        return any(
            action.kind == "disk_fault" and action.what["function"] == "posix_fallocate"
            for action in self._plan.actions
            if action.what.get("machine") == machine.name
        )

    def _sums(self, machine: Machine) -> None:
        """The sums in memory are those of the rows."""
        service, books = machine.service, machine.books
        if service is None:
            return
        sums: list[Totals] = []
        service.ledger.totals().addCallback(sums.append)
        if sums != [books.totals()]:
            self._fail(machine, f"counts {sums}, and there is {books.totals()}")

    def _blocks(self, machine: Machine) -> None:
        """No upload counts more as allocated than its file has: allocate, then mark; unmark, then
        free.
        """
        books = machine.books
        for upload_id, (_, upload) in books.uploads.items():
            row = books.alive.get(upload.request_id)
            if upload.parts or upload.partial or row is None:
                continue  # bytes on their way from one file into another
            occupied = machine.disk.occupied(f"{INCOMING}/{upload_id}")
            if occupied is None and isinstance(row.request, Storing):
                occupied = machine.disk.occupied(
                    f"{ROOT}/{row.request.backup.folder}/{row.request.backup.name}"
                )
            if occupied is None and upload_id in self._taken:
                continue
            if upload.allocated > (occupied or 0):
                self._fail(
                    machine,
                    f"counts {upload.allocated} bytes of {upload_id} as allocated, "
                    f"which has {occupied}",
                )

    # -- time -------------------------------------------------------------------------------------

    def _moment(self, machine: Machine) -> float:
        """Seconds for a sync and two commits, one after the other, on a disk as slow as this."""
        pace, now = machine.disk_pace, self._history.timeline.now
        return 1.0 + (3 * pace.slow if now < pace.slow_until else 0.0)

    def _in_time(
        self, machine: Machine, request_id: str, before: str, request: BackupRequest
    ) -> None:
        """No lease and no patience ends before its time, whatever the wall clock does."""
        state, now = state_name(request), self._history.timeline.now
        if state not in ("PENDING", "EXPIRED"):
            until = getattr(request, "lease_until", None) or getattr(request, "expires_at", None)
            known = self._leases.get(request_id)
            if (
                until is not None
                and machine.process is not None
                and (known is None or (known.state, known.until) != (state, until))
            ):
                due = now + (until - machine.process.seconds()) / (1 + SLEW) - 1.0
                last, begun = due, now
                if known is not None and (known.state, known.life) == (state, machine.lives):
                    # The last of a body that is cut for its silence gives it a lease for no time.
                    recent = now - known.changed_at <= self._moment(machine)
                    last = known.last if recent else known.due
                    begun = known.changed_at if recent else now
                self._leases[request_id] = _Lease(state, until, due, last, begun, machine.lives)
            return
        known = self._leases.pop(request_id, None)
        if known is None or known.state != before or known.life != machine.lives:
            return  # whoever starts believes the clock
        lapsed = isinstance(request, Pending) and "whole lease" in (request.last_error or "")
        recent = now - known.changed_at <= self._moment(machine)
        due = known.last if recent else known.due
        if (lapsed or (state, before) == ("EXPIRED", "RECEIVED")) and now < due:
            what = "took the turn of" if lapsed else "let expire"
            self._fail(machine, f"{what} {request_id} {due - now} seconds too soon")

    def _late(self, machine: Machine) -> None:
        """What time ends has ended, and nobody waits beside a turn that is free."""
        assert machine.process is not None
        now, settings, books = machine.process.seconds(), machine.settings, machine.books
        rows = books.all_live()
        for request in rows:
            request_id = request.ask.request_id
            if isinstance(request, Offered | Receiving) and request.lease_until < now - LATE:
                self._fail(machine, f"leaves its turn to {request_id}, whose lease is over")
            until = request.expires_at
            if until is not None and isinstance(request, Offered | Receiving):
                until = max(until, min(request.lease_until, until + settings.offer_lease))
            if until is not None and until < now - LATE and not isinstance(request, Storing):
                self._fail(machine, f"lets {request_id} live {now - until} seconds too long")
        taken = [one.ask for one in rows if isinstance(one, Offered | Receiving)]
        for request in rows:
            if not self._could_be_called(machine, request, now) or (
                len({ask.turn for ask in taken}) >= settings.max_concurrent_transfers
                or len({ask.turn for ask in taken if ask.peer == request.ask.peer})
                >= settings.max_per_peer
            ):
                self._free.pop(request.ask.request_id, None)
            else:
                turn = request.due_at if isinstance(request, Pending) else 0.0
                known = self._free.get(request.ask.request_id)
                if known is None or known[0] != turn:
                    known = self._free[request.ask.request_id] = turn, now
                if known[1] < now - LATE:
                    self._fail(machine, f"lets {request.ask.request_id} wait beside a free turn")

    def _waits(self, machine: Machine) -> None:
        """Nobody waits longer than the settings say, whatever a clock has said before."""
        assert machine.process is not None
        if machine.started_ahead and machine.has_failed_to_commit:
            return  # that the clock was ahead may be what could not be noted
        now, settings = machine.process.seconds(), machine.settings
        unseen = LITTLE + SEE_EVERY + settings.loop_interval
        most = {
            "due_at": OFFER_BACKOFF[1],
            "lease_until": settings.offer_lease,
            "expires_at": max(settings.offer_deadline, settings.upload_expiry),
        }
        for request in machine.books.all_live():
            for name, seconds in most.items():
                at = getattr(request, name, None)
                if at is not None and now + seconds + unseen < at < NEVER:
                    self._fail(
                        machine, f"lets {request.ask.request_id} wait for {at - now} s: {name}"
                    )

    def _could_be_called(self, machine: Machine, request: BackupRequest, now: float) -> bool:
        """Whether it waits, and nothing has gone wrong with those in its line."""
        if not isinstance(request, Pending) or request.attempts or request.due_at > now:
            return False
        lane = machine.books.lanes.get((request.ask.peer, request.ask.origin))
        return lane is not None and not lane.failures

    # -- at the end -------------------------------------------------------------------------------

    def at_the_end(self) -> None:
        """The faults have ceased, and there was time enough."""
        for machine in self._history.machines.values():
            if not machine.quiet:
                self._fail(machine, "does not come to rest")
            self._ended(machine)
            self.brought(machine)
            self.look(machine)
            self.kept.at_the_end(machine)

    def _ended(self, machine: Machine) -> None:
        for name, peer in self._out:
            known = machine.service.peers.find(peer) if machine.service is not None else None
            if name == machine.name and known is not None and known.state != "revoked":
                self._fail(machine, f"has let {peer} in again")
        for request_id, row in machine.books.alive.items():
            self._fail(machine, f"still has {request_id} {state_name(row.request)}")
        if machine.books.totals().promised:
            self._fail(machine, "has promised bytes to nobody")
        left = machine.disk.names(INCOMING)
        if left:
            self._fail(machine, f"has left {', '.join(left)} behind")
        service = machine.service
        if service is not None and (service.backup_requests or service.backups_in_progress):
            self._fail(machine, "shows requests that have ended")

    def brought(self, machine: Machine) -> None:
        """Every video has arrived, and both sides say so."""
        for entry_id, (_, entry) in machine.books.entries.items():
            if entry.state in ("VERIFIED", "CANCELLED") or self.is_out(machine, entry):
                continue
            if machine.started_ahead and "its time is over" in (entry.last_error or ""):
                continue
            if entry.state == "FAILED" and (machine.name, entry.path) in self._vanished:
                continue
            if entry_id in self._cancelled or (self._plan.cramped and entry.state == "ASKING"):
                continue
            self._fail(
                machine,
                f"has not brought video {entry.video} to {entry.to}: it is {entry.state} "
                f"({entry.last_error})",
            )
        for _, entry in machine.books.entries.values():
            if entry.state != "VERIFIED":
                continue
            versions = self._contents.get((machine.peer, str(entry.video)), [])
            wrong = self.senders.outdated(entry, versions)
            if wrong is not None:
                self._fail(machine, wrong)
            row = self._receiver(entry).books.rows.get(entry.request_id or "")
            if row is not None and not isinstance(row.request, Stored):
                self._fail(machine, f"and {entry.to} do not agree on {entry.request_id}")
