"""What must be true of what is kept: it is there, whole, and goes only when it may."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NoReturn

from backupd.receiver.seen_time import CATCH_UP
from backupd.receiver.trash import AGAIN, RETENTION
from backupd.requests import Backup, Storing, same_video
from backupd.storage import sidecar
from tests.simulation.machine import ROOT
from tests.simulation.rot import Rot

if TYPE_CHECKING:
    from tests.simulation.history import History
    from tests.simulation.machine import Machine

__all__ = ["PEER", "KeptWatch", "Violation"]


PEER = "peer"
"""Who deletes and is not the operator."""


class Violation(Exception):
    """Something that must never be; says what."""


class KeptWatch:
    """Follows every backup of every machine from the list onto its way out."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._listed: dict[str, dict[str, Backup]] = {}
        self._known: dict[str, Backup] = {}
        self._since: dict[str, float] = {}
        self._trashed: dict[str, float] = {}
        self._deletions: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._locks: dict[str, tuple[float, float]] = {}
        self._now: dict[str, None] = {}
        self._digests: dict[str, None] = {}
        self._gave_way: dict[str, None] = {}
        self.rot = Rot(history)

    def fail(self, machine: Machine, what: str) -> NoReturn:
        raise Violation(f"{machine.name} {what}")

    # -- what the operator does -------------------------------------------------------------------

    def lock_asked(self, backup_id: str, seconds: float) -> None:
        """The operator asks for a lock of so many seconds."""
        self._asked[backup_id] = seconds

    def deletion_asked(self, backup_id: str) -> None:
        """The operator wants it in the trash."""
        self._deletions.setdefault(backup_id, self._history.timeline.now)

    def removal_asked(self, backup_id: str) -> None:
        """The operator wants it gone at once."""
        self._now[backup_id] = None

    def may_be_gone(self, backup_id: str) -> bool:
        """Whether it is on its way out, or was, or another copy has taken its place."""
        return any(backup_id in those for those in (self._now, self._trashed, self._gave_way))

    def was_there(self, sha256: str) -> bool:
        """Whether such bytes were ever kept."""
        return sha256 in self._digests

    # -- after every step -------------------------------------------------------------------------

    def look(self, machine: Machine) -> None:
        """Everything about what is kept that has to hold at any moment."""
        for row in machine.books.alive.values():
            if isinstance(row.request, Storing):
                # From then on its age counts, however long a crash keeps it from the list.
                backup_id = row.request.backup.backup_id
                self._since.setdefault(backup_id, self._history.timeline.now)
        before = self._listed.get(machine.name, {})
        listed = {one: backup for one, (_, backup) in machine.books.backups.items()}
        if listed == before:
            return
        for backup_id, backup in before.items():
            if backup_id not in listed:
                self._gone(machine, backup)
        for backup_id, backup in listed.items():
            self._digests[backup.sha256] = None
            if backup != before.get(backup_id):
                self._changed(machine, backup, before.get(backup_id))
        self._listed[machine.name] = listed

    def files(self, machine: Machine) -> None:
        """What is listed is on the disk for certain, as it is listed."""
        for backup_id, (_, backup) in machine.books.backups.items():
            if backup.problem is not None or self._leaves(machine, backup) or backup_id in self.rot:
                continue  # it may be giving way to a copy that is whole, or is being removed
            there = machine.disk.durable(f"{ROOT}/{backup.folder}/{backup.name}")
            if there is None:
                self.fail(machine, f"lists {backup_id}, whose file a power cut would take")
            elif len(there) != backup.size or (
                backup_id not in self._known and hashlib.sha256(there).hexdigest() != backup.sha256
            ):
                self.fail(machine, f"lists {backup_id} with bytes that are not its own")
            if self._known.get(backup_id) == backup:
                continue
            said = machine.disk.durable(f"{ROOT}/{backup.folder}/backup.json")
            if said is None or not self._describes(said, backup):
                self.fail(machine, f"lists {backup_id}, whose description a power cut would take")
            self._known[backup_id] = backup

    def _describes(self, said: bytes, backup: Backup) -> bool:
        """Whether the description is that of the backup; later on, whether it is kept by it for as
        long as by the list: what takes away is on the list first, what adds beside the files.
        """
        try:
            told = sidecar.decode(said, backup.folder)
        except ValueError:
            return False
        if backup.backup_id not in self._known:
            return told == backup
        if backup.deleted_at is None and told.deleted_at is not None:
            return False
        return (told.locked_until or 0.0) >= (backup.locked_until or 0.0)

    def _part(self) -> float:
        """Of a time that has to pass, so much has to, whatever the clocks of machines do."""
        jumps = any(action.kind == "jump" for action in self._history.plan.actions)
        return 1 / CATCH_UP if jumps else 1.0

    def _slowest(self, machine: Machine) -> float:
        """Seconds that a commit takes at most, with some that were there before it."""
        plan = self._history.plan
        slow = [action.what for action in plan.actions if action.kind == "slow_disk"]
        return 4 * max(
            (one["seconds"] for one in slow if one["machine"] == machine.name), default=0.0
        )

    def _over(self, machine: Machine, backup: Backup) -> bool:
        """Whether its time in the trash may be over."""
        since = self._trashed.get(backup.backup_id)
        period = machine.settings.trash_period * self._part() - 1.0
        if backup.deleted_by == RETENTION:
            # It counts from when that was decided; we see when it was committed.
            period -= self._slowest(machine)
        return since is not None and self._history.timeline.now - since >= period

    def _locked(self, backup_id: str) -> bool:
        since, seconds = self._locks.get(backup_id, (0.0, 0.0))
        return self._history.timeline.now - since < seconds * self._part() - 1.0

    def _leaves(self, machine: Machine, backup: Backup) -> bool:
        """Whether its files may be gone by now."""
        if self._locked(backup.backup_id):
            return False
        if backup.backup_id in self._now:
            return True  # also while the ledger cannot note it: on a full disk they go all the same
        return backup.deleted_at is not None and self._over(machine, backup)

    def _changed(self, machine: Machine, backup: Backup, old: Backup | None) -> None:
        now, backup_id = self._history.timeline.now, backup.backup_id
        self._since.setdefault(backup_id, now)
        if backup.deleted_at is None:
            self._trashed.pop(backup_id, None)
            self._deletions.pop(backup_id, None)
        elif backup_id not in self._trashed:
            by_operator = backup.deleted_by != RETENTION
            self._trashed[backup_id] = self._deletions.get(backup_id, now) if by_operator else now
            self._history.outcome.moves["kept -> trash"] += 1
            if self._locked(backup_id):
                self.fail(machine, f"has put {backup_id} into the trash, which is locked")
            if backup.deleted_by == RETENTION:
                self._fallen(machine, backup)
            if backup.deleted_by == PEER and self._young(
                machine, backup_id, machine.settings.minimum_keep
            ):
                self.fail(machine, f"has let a peer delete {backup_id}, which is too young")
        was = None if old is None else old.locked_until
        if was is not None and (backup.locked_until is None or backup.locked_until < was):
            self.fail(machine, f"has shortened the lock of {backup_id}")
        if backup.locked_until is not None and backup.locked_until != was:
            self._locks[backup_id] = now, self._asked[backup_id]

    def _fallen(self, machine: Machine, backup: Backup) -> None:
        """Retention keeps the newest good ones, and what is too young."""
        said = machine.settings
        good = self._versions(machine, backup)
        newer = [one for one in good if one.stored_at >= backup.stored_at]
        if said.keep_last is None and said.keep_for is None:
            self.fail(machine, f"lets {backup.backup_id} fall out, though all is to be kept")
        if len(newer) < max(1, said.keep_last or 0):
            self.fail(machine, f"lets {backup.backup_id} fall out, which is one of the last")
        age = max(said.keep_for or 0.0, said.minimum_keep or 0.0)
        if self._young(machine, backup.backup_id, age):
            self.fail(machine, f"lets {backup.backup_id} fall out, which is too young")

    def _young(self, machine: Machine, backup_id: str, age: float | None) -> bool:
        """Whether it is certain that it has not been kept for so long."""
        kept = self._history.timeline.now - self._since[backup_id]
        return kept < (age or 0.0) * self._part() - 1.0 - self._slowest(machine)

    def _versions(self, machine: Machine, backup: Backup) -> list[Backup]:
        """The other good ones of the same video."""
        return [
            one
            for _, one in machine.books.backups.values()
            if one.peer == backup.peer
            and same_video(one.video, backup.video)
            and one.backup_id != backup.backup_id
            and one.problem is None
            and one.deleted_at is None
        ]

    def _gone(self, machine: Machine, backup: Backup) -> None:
        backup_id = backup.backup_id
        self._history.outcome.moves["kept -> gone"] += 1
        if self._locked(backup_id):
            self.fail(machine, f"has removed {backup_id}, which is locked")
        if backup_id in self._now:
            return
        if backup.problem is not None and any(
            one.sha256 == backup.sha256 and self.rot.whole(machine, one)
            for one in self._versions(machine, backup)
        ):
            self._gave_way[backup_id] = None
            return
        if not self._over(machine, backup):
            self.fail(machine, f"has removed {backup_id}, whose time was not over")
        if backup.deleted_by == RETENTION and not self._versions(machine, backup):
            self.fail(machine, f"has removed {backup_id}, the last good version")

    # -- at the end -------------------------------------------------------------------------------

    def at_the_end(self, machine: Machine) -> None:
        """The trash does not grow, and nothing lies where nobody knows of it."""
        self.rot.at_the_end(machine)
        service = machine.service
        if service is None:
            return
        seen, period = service.time.now(), machine.settings.trash_period
        for backup_id, (_, backup) in machine.books.backups.items():
            due = backup.deleted_at is not None and backup.deleted_at + period + AGAIN + 60 < seen
            if due and not self._locked(backup_id):
                self.fail(machine, f"keeps {backup_id} in the trash for ever")
