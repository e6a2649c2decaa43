"""What must be true after every step, and at the end when the faults have ceased."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backupd.interfaces import Entry
from backupd.requests import BackupRequest, Offered, Receiving, Stored, state_name
from backupd.storage import sidecar
from tests.simulation.disk import Folder, Inode
from tests.simulation.machine import ROOT

if TYPE_CHECKING:
    from tests.simulation.history import History
    from tests.simulation.machine import Machine

__all__ = ["Violation", "Watch"]

INCOMING = f"{ROOT}/.backupd/incoming"


class Violation(Exception):
    """Something that must never be; says what."""


def _of(there: bytes, meant: Sequence[bytes]) -> bool:
    """Whether these bytes are of what was meant; several may have gone on with one upload."""
    if any(there == one[: len(there)] for one in meant):
        return True
    return len(meant) > 1 and all(
        any(at < len(one) and one[at] == byte for one in meant) for at, byte in enumerate(there)
    )


class Watch:
    """Looks at the machines from outside: at what is on the disk and in the ledger."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._plan = history.plan
        self._contents: dict[tuple[str, str], list[bytes]] = {}
        for video in self._plan.videos:
            self.allow(history.machines[video.machine].url, video.name, video.content())
        self._offsets: dict[str, int] = {}
        self._states: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._capabilities: dict[str, str] = {}
        self._kept: dict[str, str] = {}
        self._entries: dict[str, str] = {}
        self._cancelled: dict[str, None] = {}

    def allow(self, peer: str, video: str, content: bytes) -> None:
        """These bytes may be what a peer sends as a video."""
        self._contents.setdefault((peer, video), []).append(content)

    def cancelled(self, machine: Machine, entry_id: str) -> None:
        """The operator does not want this entry any more."""
        self._cancelled[entry_id] = None

    # -- after every step -------------------------------------------------------------------------

    def look(self, machine: Machine) -> None:
        """Everything that has to hold at any moment."""
        self._requests(machine)
        self._uploads(machine)
        self._backups(machine)
        self._sending(machine)
        if machine.quiet:
            self._room(machine)
        if machine.disk.full and not any(action.kind == "fill" for action in self._plan.actions):
            self._fail(machine, "had no room for what it had promised")

    def _fail(self, machine: Machine, what: str) -> None:
        raise Violation(f"{machine.name} {what}")

    def _requests(self, machine: Machine) -> None:
        turns: dict[str, int] = {}
        for request_id, row in machine.books.rows.items():
            request = row.request
            self._followed(machine, request_id, request)
            if isinstance(request, Offered | Receiving):
                turns[request.ask.peer] = turns.get(request.ask.peer, 0) + 1
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
            if before in ("STORED", "EXPIRED", "CANCELLED", "FAILED"):
                self._fail(machine, f"let {request_id} go from {before} to {state}")
        # Whoever asks again may ask for less than has come already.
        self._sizes[request_id] = max(request.ask.size, self._sizes.get(request_id, 0))
        owner = self._capabilities.setdefault(request.ask.capability, request_id)
        if owner != request_id:
            self._fail(machine, f"gave one capability to {owner} and {request_id}")

    def _uploads(self, machine: Machine) -> None:
        books = machine.books
        for upload_id, (_, upload) in books.uploads.items():
            request = books.rows[upload.request_id].request
            if upload.request_id not in books.alive:
                self._fail(machine, f"remembers the upload {upload_id} of what has ended")
            before = self._offsets.get(upload_id, 0)
            if upload.offset < before:
                self._fail(machine, f"went back from {before} to {upload.offset} in {upload_id}")
            self._offsets[upload_id] = upload.offset
            if upload.offset > self._sizes[upload.request_id]:
                self._fail(machine, f"took {upload.offset} bytes for {request.ask.size}")
            if not upload.offset or state_name(request) == "STORING":
                continue
            there = self._durable(machine, f"{INCOMING}/{upload_id}")
            if upload.partial:
                final = next((f for _, f in books.uploads.values() if upload_id in f.parts), None)
                if final is not None and final.offset:
                    continue  # its bytes are on their way into the whole
                if final is not None and there is None:
                    # The first part's file becomes the whole's before that is recorded.
                    there = self._durable(machine, f"{INCOMING}/{final.upload_id}")
            meant = self._contents.get((request.ask.peer, str(request.ask.video)), [])
            if there is None:
                self._fail(machine, f"recorded {upload.offset} bytes of {upload_id}: no such file")
            elif upload.partial and any(there[: upload.offset] in one for one in meant):
                pass
            elif not _of(there[: upload.offset], meant):
                self._fail(
                    machine,
                    f"recorded {upload.offset} bytes of {upload_id} that a power cut would take",
                )

    def _durable(self, machine: Machine, path: str) -> bytes | None:
        """What a power cut leaves of a file for certain."""
        found: Inode | Folder | None = machine.disk.root
        for part in path.split("/")[1:]:
            found = found.durable.get(part) if isinstance(found, Folder) else None
        return bytes(found.durable) if isinstance(found, Inode) else None

    def _backups(self, machine: Machine) -> None:
        for backup_id, (_, backup) in machine.books.backups.items():
            if backup.problem is not None:
                continue  # it may be giving way to a copy that is whole
            there = self._durable(machine, f"{ROOT}/{backup.folder}/{backup.name}")
            if there is None:
                self._fail(machine, f"lists {backup_id}, whose file a power cut would take")
            elif len(there) != backup.size or (
                backup_id not in self._kept and hashlib.sha256(there).hexdigest() != backup.sha256
            ):
                self._fail(machine, f"lists {backup_id} with bytes that are not its own")
            said = self._durable(machine, f"{ROOT}/{backup.folder}/backup.json")
            if backup_id not in self._kept and said is not None:
                try:
                    said = said if sidecar.decode(said, backup.folder) == backup else None
                except ValueError:
                    said = None
            if said is None:
                self._fail(machine, f"lists {backup_id}, whose description a power cut would take")
            self._kept[backup_id] = backup.sha256

    def _sending(self, machine: Machine) -> None:
        for entry_id, (_, entry) in machine.books.entries.items():
            before = self._entries.get(entry_id, "")
            if entry.state == before:
                continue
            self._entries[entry_id] = entry.state
            self._history.outcome.entry_moves[f"{before or 'nothing'} -> {entry.state}"] += 1
            if entry.state == "VERIFIED":
                self._told_stored(machine, entry)

    def _told_stored(self, machine: Machine, entry: Entry) -> None:
        receiver = self._receiver(entry)
        kept = receiver.books.backups.get(entry.backup_id or "")
        contents = self._contents[machine.url, str(entry.video)]
        right = [hashlib.sha256(content).hexdigest() for content in contents]
        if kept is None or kept[1].sha256 not in right:
            self._fail(machine, f"believes that video {entry.video} is stored, and it is not")

    def _receiver(self, entry: Entry) -> Machine:
        machines = self._history.machines.values()
        return next(machine for machine in machines if machine.url == entry.to)

    def _room(self, machine: Machine) -> None:
        promised, used = machine.books.totals().promised, machine.disk.used()
        limit = machine.disk.capacity - machine.settings.reserved_space
        if promised + used > limit:
            self._fail(
                machine,
                f"has promised {promised} bytes and uses {used}: {promised + used - limit} "
                "more than it may",
            )

    # -- at the end -------------------------------------------------------------------------------

    def at_the_end(self) -> None:
        """The faults have ceased, and there was time enough."""
        for machine in self._history.machines.values():
            if not machine.quiet:
                self._fail(machine, "does not come to rest")
            self._ended(machine)
            self._sent(machine)
            self.look(machine)

    def _ended(self, machine: Machine) -> None:
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

    def _sent(self, machine: Machine) -> None:
        for entry_id, (_, entry) in machine.books.entries.items():
            if entry.state in ("VERIFIED", "CANCELLED"):
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
            row = self._receiver(entry).books.rows.get(entry.request_id or "")
            if row is not None and not isinstance(row.request, Stored):
                self._fail(machine, f"and {entry.to} do not agree on {entry.request_id}")
