"""What the in-memory ledger has written of kept backups: the same rules as
`backupd.ledger.backup_table` and `backupd.ledger.repair_table`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from backupd.errors import NoSuchBackup
from backupd.interfaces import Condition, Repair, Retention
from backupd.requests import Ask, Backup, VideoId, same_video, trashed

__all__ = ["KeptBooks"]


@dataclass(slots=True)
class _Repair:
    """What is done about a damaged backup."""

    request_id: str | None
    tries: int
    due_at: float | None


def _good(backup: Backup) -> bool:
    return backup.problem is None and backup.deleted_at is None


def _as_held(backup: Backup, held: Backup) -> Backup:
    """``backup``, as deleted and as locked as ``held``."""
    return replace(
        backup,
        deleted_at=held.deleted_at,
        deleted_by=held.deleted_by,
        locked_until=held.locked_until,
    )


class KeptBooks:
    """Kept backups, when they were read, and what is done about damage."""

    def __init__(self, number: Callable[[], int]) -> None:
        self._next_number = number
        self.backups: dict[str, tuple[int, Backup]] = {}
        self._read_at: dict[str, float] = {}
        self._ways_back: dict[str, tuple[str, str]] = {}
        self._repairs: dict[str, _Repair] = {}
        self.seen_at: float | None = None
        self.own_time: float | None = None

    def backup(self, backup_id: str) -> Backup:
        if backup_id not in self.backups:
            raise NoSuchBackup(f"There is no backup {backup_id}.")
        return self.backups[backup_id][1]

    def backup_page(
        self, peer: str | None, video: VideoId | None, after: int, limit: int, trash: bool = False
    ) -> list[tuple[int, Backup]]:
        found = [
            (number, one)
            for number, one in self.backups.values()
            if number > after
            and (one.deleted_at is not None) == trash
            and peer in (None, one.peer)
            and (video is None or same_video(one.video, video))
        ]
        return sorted(found, key=lambda numbered: numbered[0])[:limit]

    def list_backup(self, backup: Backup) -> bool:
        return backup.backup_id not in self.backups and self.put_backup(backup)

    def put_backup(self, backup: Backup, number: int = 0) -> bool:
        number, known = self.backups.get(backup.backup_id, (number, None))
        if known is not None:
            backup = _as_held(backup, known)
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
            if essence(one) == essence(backup) and _good(one) and one.backup_id != backup.backup_id
        ]
        return found[-1] if found else None

    # -- how long it is kept ----------------------------------------------------------------------

    def change_backup(self, backup_id: str, step: Callable[[Backup], Backup]) -> Backup:
        number, old = self.backups[self.backup(backup_id).backup_id]
        new = _as_held(old, step(old))
        self.backups[backup_id] = number, new
        if new.deleted_at is not None:
            self._repairs.pop(backup_id, None)
        elif old.deleted_at is not None and new.problem is not None:
            self._damaged(new, old.deleted_at)
        return new

    def outdated(
        self, rule: Callable[[str], Retention], now: float, after: int, limit: int
    ) -> tuple[list[Backup], int | None]:
        numbered = sorted(self.backups.values(), key=lambda one: one[0])
        page = [(number, one) for number, one in numbered if number > after][:limit]
        found = [one for _, one in page if self._falls_out(one, rule(one.peer), now)]
        return found, page[-1][0] if len(page) == limit else None

    def _falls_out(self, backup: Backup, rule: Retention, now: float) -> bool:
        locked = backup.locked_until is not None and now < backup.locked_until
        young = now < backup.stored_at + rule.age
        if not rule.ends or backup.deleted_at is not None or young or locked:
            return False

        def place(one: Backup) -> tuple[float, int]:
            return one.stored_at, self.backups[one.backup_id][0]

        newer = [one for one in self._versions(backup) if place(one) > place(backup)]
        return len(newer) >= rule.after

    def _versions(self, backup: Backup) -> list[Backup]:
        """The other good ones of the same video."""
        return [
            one
            for _, one in self.backups.values()
            if one.peer == backup.peer
            and same_video(one.video, backup.video)
            and _good(one)
            and one.backup_id != backup.backup_id
        ]

    def retire(
        self, backup_id: str, rule: Retention, by: str, at: float, now: float
    ) -> Backup | None:
        if not self._falls_out(self.backup(backup_id), rule, now):
            return None
        return self.change_backup(backup_id, lambda one: trashed(one, by=by, at=at, now=now))

    def has_version(self, backup: Backup) -> bool:
        return bool(self._versions(backup))

    def trash_due(self, before: float, limit: int) -> list[Backup]:
        due = [
            (one.deleted_at, number, one)
            for number, one in self.backups.values()
            if one.deleted_at is not None and one.deleted_at <= before
        ]
        return [one for _, _, one in sorted(due, key=lambda found: found[:2])[:limit]]

    def see(self, now: float, own: float) -> None:
        self.seen_at = now if self.seen_at is None else max(now, self.seen_at)
        self.own_time = own

    def set_repairs_back(self, by: float) -> None:
        for repair in self._repairs.values():
            if repair.due_at is not None:
                repair.due_at -= by

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
        else:
            self._damaged(new, now)
        return new

    def _damaged(self, backup: Backup, now: float) -> None:
        if backup.backup_id in self._ways_back and backup.deleted_at is None:
            self._repairs.setdefault(backup.backup_id, _Repair(None, 0, now))

    def kept(self) -> tuple[int, int]:
        return len(self.backups), sum(one.size for _, one in self.backups.values())

    def condition(self) -> Condition:
        listed = [one for _, one in self.backups.values() if one.deleted_at is None]
        well = [one for one in listed if one.problem is None]
        oldest = min(
            well, key=lambda one: (one.verified_at is not None, one.verified_at), default=None
        )
        since = None if oldest is None else oldest.verified_at or oldest.stored_at
        return Condition(damaged=len(listed) - len(well), verified_at=since)

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
