"""Bytes of what is kept change silently on the disk: that has to be found, told, and mended."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred

from backupd.errors import BackupdError, NoSuchBackup
from backupd.requests import Backup
from tests.simulation.disk import Inode
from tests.simulation.machine import ROOT

if TYPE_CHECKING:
    from tests.simulation.history import History
    from tests.simulation.machine import Machine

__all__ = ["Rot"]

AGAIN = 5.0
"""Seconds until an operator whose verification did not come to its end begins it anew."""

LOST = 300.0
"""Seconds until he takes one for lost, with its process."""


class Rot:
    """What has rotted, what was told of it, and whether something is still to come."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._rng = random.Random(f"{history.plan.seed}:rot")
        self._awaited: list[dict[str, Any]] = []
        self._late = 0
        self._rotten: dict[str, Machine] = {}
        self._told: dict[str, None] = {}
        self._must_mend = all(one.kind in ("send", "rot") for one in history.plan.actions)

    def __contains__(self, backup_id: object) -> bool:
        return backup_id in self._rotten

    # -- what happens -----------------------------------------------------------------------------

    def await_(self, what: dict[str, Any]) -> None:
        """What is kept of this video rots, once it is there."""
        self._awaited.append(what)

    def over(self, what: dict[str, Any]) -> None:
        """It has not come in all that time."""
        if what in self._awaited:
            self._awaited.remove(what)

    def look(self, machine: Machine) -> None:
        """Something may have been stored, or read again."""
        books = machine.books
        for what in [one for one in self._awaited if one["machine"] == machine.name]:
            owner = self._history.machines[what["owner"]].peer
            for _, backup in books.backups.values():
                if (str(backup.video), backup.peer) == (what["name"], owner):
                    self._awaited.remove(what)
                    self._late += 1
                    self._later(what["late"], self._spoil, machine, backup, what)
                    break
        for backup_id, owner_of in self._rotten.items():
            if owner_of is not machine or backup_id not in books.backups:
                continue
            if books.backups[backup_id][1].problem is not None:
                self._told[backup_id] = None
            elif backup_id in self._told:
                self._history.watch.kept.fail(machine, f"says that {backup_id} is well again")

    def _later(self, seconds: float, f: Any, *args: Any) -> None:
        self._history.timeline.after(seconds, self._history.world, f, *args)

    def _spoil(self, machine: Machine, backup: Backup, what: dict[str, Any]) -> None:
        self._late -= 1
        known = machine.books.backups.get(backup.backup_id)
        folder = machine.disk.find(f"{ROOT}/{backup.folder}/{backup.name}")[2] if known else None
        if known is None or known[1].problem is not None or not isinstance(folder, Inode):
            return
        at = self._rng.randrange(backup.size)
        for data in (folder.data, folder.durable):
            data[at] ^= 1 << self._rng.randrange(8)
        self._history.note(f"byte {at} of {backup.backup_id} of {machine.name} rots")
        self._history.fault("rot")
        self._rotten[backup.backup_id] = machine
        if what["verify"] is not None:
            self._later(what["verify"], self._verify, machine, backup.backup_id)

    def _verify(self, machine: Machine, backup_id: str) -> None:
        """The operator has it read again, until he knows."""
        service, process = machine.service, machine.process
        if backup_id not in machine.books.backups:
            return
        if (
            service is None
            or process is None
            or not service.ready
            or backup_id in service.keeper.verifying
        ):
            self._later(AGAIN, self._verify, machine, backup_id)
            return
        lost = self._history.timeline.after(
            LOST, self._history.world, self._verify, machine, backup_id
        )

        def told(found: Backup) -> None:
            lost.cancel()
            if found.problem is None:
                self._history.violations.append(
                    f"{machine.name} has read {backup_id}, which is damaged, and found nothing"
                )

        def failed(failure: Any) -> None:
            lost.cancel()
            if failure.trap(BackupdError) is not NoSuchBackup:
                self._later(AGAIN, self._verify, machine, backup_id)

        def begin() -> None:
            self._history.did("verify")
            Deferred.fromCoroutine(service.keeper.verify(backup_id)).addCallbacks(told, failed)

        self._history.timeline.within(process, begin)

    # -- what has to hold -------------------------------------------------------------------------

    def whole(self, machine: Machine, backup: Backup) -> bool:
        """Whether the bytes of a backup on the disk are its own."""
        there = machine.disk.durable(f"{ROOT}/{backup.folder}/{backup.name}")
        return there is not None and hashlib.sha256(there).hexdigest() == backup.sha256

    def pending(self) -> bool:
        """Whether something is to rot still, to be told of, or to be mended where it must be."""
        return bool(self._awaited or self._late) or any(
            self._must_mend or backup_id not in self._told
            for backup_id, machine in self._rotten.items()
            if backup_id in machine.books.backups
        )

    def at_the_end(self, machine: Machine) -> None:
        """Everything has been read again since, and what nothing hindered is mended."""
        for backup_id, owner in self._rotten.items():
            if owner is not machine or backup_id not in machine.books.backups:
                continue
            if backup_id not in self._told:
                self._history.watch.kept.fail(machine, f"does not tell that {backup_id} is damaged")
            if self._must_mend:
                self._history.watch.kept.fail(machine, f"has not got {backup_id} again")
