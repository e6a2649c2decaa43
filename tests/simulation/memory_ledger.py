"""The ledger in memory: what is committed stays when the process dies, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure
from zope.interface import implementer

from backupd.errors import LedgerFailed
from backupd.interfaces import (
    NO_LIMITS,
    Allowance,
    Condition,
    Entry,
    ILedger,
    Line,
    OffThread,
    Outgoing,
    Pick,
    Remembered,
    Repair,
    Retention,
    Room,
    Totals,
    Upload,
    Usage,
)
from backupd.requests import Ask, Backup, BackupRequest, Live, Pending, VideoId
from tests.simulation.books import Books

__all__ = ["MemoryLedger"]

T = TypeVar("T")


@implementer(ILedger)
class MemoryLedger:
    """The ledger whose disk is ``books``. ``write_off`` and ``read_off`` run one call at a time;
    when ``write_off`` fails, that is a commit that failed.
    """

    def __init__(self, books: Books, *, write_off: OffThread, read_off: OffThread) -> None:
        self._books = books
        self._write_off = write_off
        self._read_off = read_off
        self._open = False
        self._totals = Totals(promised=0, pending=0, active=0, live=0)
        self._watchers: list[Callable[[BackupRequest], None]] = []
        self._failing: str | None = None

    def remembered(self) -> Remembered:
        books = self._books
        if books.root is not None:
            return Remembered(books.root)
        return Remembered(
            None,
            tuple(one.folder for _, one in books.backups.values()),
            tuple(one.upload_id for _, one in books.uploads.values() if one.offset),
        )

    def open(self, root: str | None = None) -> None:
        self._books.root = root or self._books.root
        self._open = True
        self._totals = self._books.totals()

    def close(self) -> Deferred[None]:
        return self._write_off(self._shut)

    def _shut(self) -> None:
        self._open = False

    def watch(self, observer: Callable[[BackupRequest], None]) -> None:
        self._watchers.append(observer)

    def _write(self, step: Callable[[Books], T]) -> Deferred[T]:
        def run() -> tuple[T | BaseException, list[BackupRequest], Totals]:
            books = self._books
            if not self._open:
                raise LedgerFailed("The ledger is closed.")
            outcome: T | BaseException
            try:
                outcome = step(books)
            except Exception as error:
                outcome = error
            changed, books.changed = books.changed, []
            return outcome, changed, books.totals()

        def settled(found: tuple[T | BaseException, list[BackupRequest], Totals]) -> T:
            outcome, changed, self._totals = found
            self._failing = None
            for request in changed:
                for observer in self._watchers:
                    observer(request)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        def failed(failure: Failure) -> NoReturn:
            self._failing = failure.getErrorMessage()
            failure.raiseException()

        return self._write_off(run).addErrback(failed).addCallback(settled)

    def _read(self, query: Callable[[Books], T]) -> Deferred[T]:
        def run() -> T:
            if not self._open:
                raise LedgerFailed("The ledger is closed.")
            return query(self._books)

        return self._read_off(run)

    # -- the life of requests ---------------------------------------------------------------------

    def admit(
        self,
        ask: Ask,
        room: Callable[[int, int], Room],
        *,
        now: float,
        max_pending: int,
        expires_at: float | None = None,
        fresh: bool = False,
        allowance: Allowance = NO_LIMITS,
    ) -> Deferred[tuple[Live | None, Room]]:
        return self._write(
            lambda b: b.admit(ask, room, now, max_pending, expires_at, fresh, allowance)
        )

    def join(self, ask: Ask, final: Upload, *, now: float, expires_at: float) -> Deferred[Live]:
        return self._write(lambda b: b.join(ask, final, now, expires_at))

    def change(
        self,
        request_id: str,
        step: Callable[[BackupRequest], BackupRequest],
        *,
        put: Upload | Sequence[Upload] | None = None,
        drop: Sequence[str] = (),
    ) -> Deferred[BackupRequest]:
        return self._write(lambda b: b.change(request_id, step, put, drop))

    def request(self, request_id: str) -> Deferred[BackupRequest]:
        return self._read(lambda b: b.row(request_id).request)

    def by_capability(self, capability: str) -> Deferred[BackupRequest]:
        return self._read(lambda b: b.by_capability(capability))

    def live_for(self, video: VideoId, peer: str | None, limit: int) -> Deferred[list[Live]]:
        return self._read(lambda b: b.live_for(video, peer, limit))

    def last_ended(self, video: VideoId, peer: str | None) -> Deferred[BackupRequest]:
        return self._read(lambda b: b.last_ended(video, peer))

    def requests(
        self, *, live: bool | None, peer: str | None, after: int, limit: int
    ) -> Deferred[list[tuple[int, BackupRequest]]]:
        return self._read(lambda b: b.page(live, peer, after, limit))

    def position(self, request: Pending) -> Deferred[int]:
        return self._read(lambda b: b.position(request))

    def all_live(self) -> Deferred[list[Live]]:
        return self._read(lambda b: b.all_live())

    def in_progress(self) -> Deferred[list[Live]]:
        return self._read(lambda b: [one for one in b.all_live() if not isinstance(one, Pending)])

    def lines(self, *, now: float, limit: int, heads: int) -> Deferred[list[Line]]:
        return self._read(lambda b: b.lines(now, limit, heads))

    def overdue(self, *, now: float, limit: int) -> Deferred[list[Live]]:
        return self._read(lambda b: b.overdue(now, limit))

    def given_up(self, *, now: float, limit: int) -> Deferred[list[Pending]]:
        return self._read(lambda b: b.given_up(now, limit))

    def totals(self) -> Deferred[Totals]:
        return succeed(self._totals)

    def trouble(self) -> Deferred[str | None]:
        return succeed(self._failing)

    def uploads(self, request_id: str | None) -> Deferred[list[Upload]]:
        return self._read(lambda b: b.uploads_of(request_id))

    def upload_by_token(self, token: str) -> Deferred[Upload]:
        return self._read(lambda b: b.upload_by_token(token))

    def unkept(self, *, limit: int) -> Deferred[list[Live]]:
        return self._read(lambda b: b.unkept(limit))

    def purge(self, *, before: float, limit: int) -> Deferred[int]:
        return self._write(lambda b: b.purge(before, limit))

    # -- what is kept -----------------------------------------------------------------------------

    def backup(self, backup_id: str) -> Deferred[Backup]:
        return self._read(lambda b: b.backup(backup_id))

    def backups(
        self,
        *,
        peer: str | None,
        video: VideoId | None,
        after: int,
        limit: int,
        trash: bool = False,
    ) -> Deferred[list[tuple[int, Backup]]]:
        return self._read(lambda b: b.backup_page(peer, video, after, limit, trash))

    def list_backup(self, backup: Backup) -> Deferred[bool]:
        return self._write(lambda b: b.list_backup(backup))

    def put_backup(self, backup: Backup) -> Deferred[bool]:
        return self._write(lambda b: b.put_backup(backup))

    def usage(self, peer: str) -> Deferred[Usage]:
        return self._read(lambda b: b.usage(peer))

    def drop_backup(self, backup_id: str) -> Deferred[Backup]:
        return self._write(lambda b: b.drop_backup(backup_id))

    def copy_of(self, backup: Backup) -> Deferred[Backup | None]:
        return self._read(lambda b: b.copy_of(backup))

    # -- how long it is kept ----------------------------------------------------------------------

    def change_backup(self, backup_id: str, step: Callable[[Backup], Backup]) -> Deferred[Backup]:
        return self._write(lambda b: b.change_backup(backup_id, step))

    def outdated(
        self, rule: Callable[[str], Retention], *, now: float, after: int, limit: int
    ) -> Deferred[tuple[list[Backup], int | None]]:
        return self._read(lambda b: b.outdated(rule, now, after, limit))

    def retire(
        self, backup_id: str, rule: Retention, *, by: str, at: float, now: float
    ) -> Deferred[Backup | None]:
        return self._write(lambda b: b.retire(backup_id, rule, by, at, now))

    def has_version(self, backup: Backup) -> Deferred[bool]:
        return self._read(lambda b: b.has_version(backup))

    def trash_due(self, *, before: float, limit: int) -> Deferred[list[Backup]]:
        return self._read(lambda b: b.trash_due(before, limit))

    def latest_seen(self) -> Deferred[float | None]:
        return self._read(lambda b: b.seen_at)

    def own_time(self) -> Deferred[float | None]:
        return self._read(lambda b: b.own_time)

    def see(self, now: float, own: float) -> Deferred[None]:
        return self._write(lambda b: b.see(now, own))

    def set_back(self, by: float, *, own: float) -> Deferred[None]:
        return self._write(lambda b: b.set_back(by, own))

    # -- whether it is still right ----------------------------------------------------------------

    def longest_unread(self, *, before: float) -> Deferred[Backup | None]:
        return self._read(lambda b: b.longest_unread(before))

    def begin_reading(self, backup_id: str, *, now: float) -> Deferred[None]:
        return self._write(lambda b: b.begin_reading(backup_id, now))

    def verified(self, backup_id: str, *, problem: str | None, now: float) -> Deferred[Backup]:
        return self._write(lambda b: b.verified(backup_id, problem, now))

    def kept(self) -> Deferred[tuple[int, int]]:
        return self._read(lambda b: b.kept())

    def condition(self) -> Deferred[Condition]:
        return self._read(lambda b: b.condition())

    def repairs(self, *, now: float, limit: int) -> Deferred[list[Repair]]:
        return self._read(lambda b: b.repairs(now, limit))

    def put_repair(
        self, backup_id: str, *, request_id: str | None, tries: int, due_at: float | None
    ) -> Deferred[None]:
        return self._write(lambda b: b.put_repair(backup_id, request_id, tries, due_at))

    # -- the outbox -------------------------------------------------------------------------------

    def enqueue(self, entry: Entry) -> Deferred[Entry]:
        return self._write(lambda b: b.enqueue(entry))

    def entry(self, entry_id: str) -> Deferred[Entry]:
        return self._read(lambda b: b.entry(entry_id))

    def entry_by_capability(self, capability: str) -> Deferred[Entry]:
        return self._read(lambda b: b.entry_by_capability(capability))

    def entries_for(self, video: VideoId, limit: int) -> Deferred[list[Entry]]:
        return self._read(lambda b: b.entries_for(video, limit))

    def change_entry(self, entry_id: str, step: Callable[[Entry], Entry]) -> Deferred[Entry]:
        return self._write(lambda b: b.change_entry(entry_id, step))

    def entries(
        self, *, over: bool | None, after: int, limit: int
    ) -> Deferred[list[tuple[int, Entry]]]:
        return self._read(lambda b: b.entry_page(over, after, limit))

    def outgoing(self) -> Deferred[list[Outgoing]]:
        return self._read(lambda b: b.outgoing())

    def entries_due(
        self, picks: Sequence[Pick], *, now: float, without: Sequence[str]
    ) -> Deferred[list[Entry]]:
        return self._read(lambda b: b.entries_due(picks, now, without))
