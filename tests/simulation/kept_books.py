"""What the in-memory ledger has written of kept backups: the same rules as
`backupd.ledger.backup_table` and `backupd.ledger.repair_table`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from backupd.errors import NoSuchBackup
from backupd.interfaces import Condition, Repair
from backupd.requests import Ask, Backup, VideoId, same_video

__all__ = ["KeptBooks"]


@dataclass(slots=True)
class _Repair:
    """What is done about a damaged backup."""

    request_id: str | None
    tries: int
    due_at: float | None


class KeptBooks:
    """Kept backups, when they were read, and what is done about damage."""

    def __init__(self, number: Callable[[], int]) -> None:
        self._next_number = number
        self.backups: dict[str, tuple[int, Backup]] = {}
        self._read_at: dict[str, float] = {}
        self._ways_back: dict[str, tuple[str, str]] = {}
        self._repairs: dict[str, _Repair] = {}

    def backup(self, backup_id: str) -> Backup:
        if backup_id not in self.backups:
            raise NoSuchBackup(f"There is no backup {backup_id}.")
        return self.backups[backup_id][1]

    def backup_page(
        self, peer: str | None, video: VideoId | None, after: int, limit: int
    ) -> list[tuple[int, Backup]]:
        found = [
            (number, one)
            for number, one in self.backups.values()
            if number > after
            and peer in (None, one.peer)
            and (video is None or same_video(one.video, video))
        ]
        return sorted(found, key=lambda numbered: numbered[0])[:limit]

    def list_backup(self, backup: Backup) -> bool:
        return backup.backup_id not in self.backups and self.put_backup(backup)

    def put_backup(self, backup: Backup, number: int = 0) -> bool:
        number, known = self.backups.get(backup.backup_id, (number, None))
        self.backups[backup.backup_id] = number or self._next_number(), backup
        if known is None:
            self._read_at[backup.backup_id] = backup.verified_at or 0.0
        return known is None

    def drop_backup(self, backup_id: str) -> Backup:
        backup = self.backup(backup_id)
        del self.backups[backup_id], self._read_at[backup_id]
        self._ways_back.pop(backup_id, None)
        self._repairs.pop(backup_id, None)
        return backup

    def came_from(self, backup: Backup, ask: Ask) -> None:
        if ask.callback:
            self._ways_back[backup.backup_id] = ask.origin, ask.callback
        for backup_id, repair in self._repairs.items():
            if same_video(self.backup(backup_id).video, backup.video):
                repair.due_at = backup.stored_at

    def copy_of(self, backup: Backup) -> Backup | None:
        def essence(one: Backup) -> object:
            return str(one.video), one.peer, one.size, one.sha256

        found = [
            one
            for _, one in sorted(self.backups.values(), key=lambda numbered: numbered[0])
            if essence(one) == essence(backup)
            and one.problem is None
            and one.backup_id != backup.backup_id
        ]
        return found[-1] if found else None

    # -- whether it is still right ----------------------------------------------------------------

    def longest_unread(self, before: float) -> Backup | None:
        unread = [one for one, read_at in self._read_at.items() if read_at < before]
        first = min(unread, key=lambda one: self._read_at[one], default=None)
        return None if first is None else self.backup(first)

    def begin_reading(self, backup_id: str, now: float) -> None:
        if backup_id in self._read_at:
            self._read_at[backup_id] = now

    def verified(self, backup_id: str, problem: str | None, now: float) -> Backup:
        old = self.backup(backup_id)
        verified_at = now if problem is None else old.verified_at
        new = replace(old, problem=problem, verified_at=verified_at)
        self.put_backup(new)
        self._read_at[backup_id] = now
        if problem is None:
            self._repairs.pop(backup_id, None)
        elif backup_id in self._ways_back:
            self._repairs.setdefault(backup_id, _Repair(None, 0, now))
        return new

    def kept(self) -> tuple[int, int]:
        return len(self.backups), sum(one.size for _, one in self.backups.values())

    def condition(self) -> Condition:
        well = [one for _, one in self.backups.values() if one.problem is None]
        oldest = min(
            well, key=lambda one: (one.verified_at is not None, one.verified_at), default=None
        )
        since = None if oldest is None else oldest.verified_at or oldest.stored_at
        return Condition(damaged=len(self.backups) - len(well), verified_at=since)

    def repairs(self, now: float, limit: int) -> list[Repair]:
        due = [
            (one.due_at, backup_id, one)
            for backup_id, one in self._repairs.items()
            if one.due_at is not None and one.due_at <= now
        ]
        return [
            Repair(
                backup=self.backup(backup_id),
                origin=self._ways_back[backup_id][0],
                callback=self._ways_back[backup_id][1],
                request_id=one.request_id,
                tries=one.tries,
            )
            for _, backup_id, one in sorted(due, key=lambda found: found[0])[:limit]
        ]

    def put_repair(
        self, backup_id: str, request_id: str | None, tries: int, due_at: float | None
    ) -> None:
        if backup_id in self._repairs:
            self._repairs[backup_id] = _Repair(request_id, tries, due_at)
