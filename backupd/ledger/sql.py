"""The ledger on SQLite, one set of statements through SQLAlchemy Core.

One connection writes, in batches (`backupd.ledger.batches`), one reads; each is used by one
thread at a time. The sums over all live requests are kept beside the writing connection and
counted anew at every start: nobody else writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import make_url
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from backupd.errors import BackupdError, LedgerFailed
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
from backupd.ledger import (
    backup_table,
    entry_table,
    keeping_table,
    opening,
    repair_table,
    request_table,
    time_table,
)
from backupd.ledger.batches import FROM_DATABASE, Batches
from backupd.ledger.known import Known
from backupd.ledger.request_table import RequestTable, Sums
from backupd.ledger.upgrade import upgrade
from backupd.requests import Ask, Backup, BackupRequest, Live, Pending, VideoId

__all__ = ["SqlLedger"]

T = TypeVar("T")


@implementer(ILedger)
class SqlLedger:
    """The ledger at ``url``. ``write_off`` and ``read_off`` each run one call at a time.

    ``footprint`` bytes are promised to every request beside those of its video.
    """

    _log = Logger()

    def __init__(
        self, url: str, *, write_off: OffThread, read_off: OffThread, footprint: int = 0
    ) -> None:
        self._url = make_url(url)
        self._in_memory = opening.file_of(self._url) is None
        self._read_off = write_off if self._in_memory else read_off
        self._engine: Engine | None = None
        self._writer: Connection | None = None
        self._reader: Connection | None = None
        self._requests = RequestTable(footprint)
        self._known = Known()
        self._committed = Sums()
        self._watchers: list[Callable[[BackupRequest], None]] = []
        self._batches = Batches(
            self._writing, "BEGIN IMMEDIATE", write_off, undo=self._undo, settled=self._settled
        )

    @property
    def file(self) -> str | None:
        """The path of the ledger's file, None when it is in memory."""
        return opening.file_of(self._url)

    # -- opening and closing ----------------------------------------------------------------------

    def remembered(self) -> Remembered:
        return opening.remembered(self._url)

    def open(self, root: str | None = None) -> None:
        with opening.guarded(self._url):
            self._engine = opening.make_engine(self._url, in_memory=self._in_memory)
            with self._engine.begin() as connection:
                upgrade(connection)
                if root is not None:
                    opening.note_root(connection, root)
            plain = self._engine.execution_options(isolation_level="AUTOCOMMIT")
            self._writer = plain.connect()
            self._reader = self._writer if self._in_memory else plain.connect()
            self._requests.recount(self._writer)
            if not self._in_memory:
                # Reading has made the log, if it was not there.
                opening.set_aside(f"{self._url.database}-wal")
            self._committed = replace(self._requests.sums)

    def close(self) -> Deferred[None]:
        def shut(_: object) -> Deferred[None]:
            return self._read_off(self._shut)

        return self._batches.close().addCallback(shut)

    def _shut(self) -> None:
        for connection in {self._writer, self._reader}:
            if connection is not None:
                connection.close()
        if self._engine is not None:
            self._engine.dispose()
        self._writer = self._reader = self._engine = None

    def watch(self, observer: Callable[[BackupRequest], None]) -> None:
        self._watchers.append(observer)

    def _writing(self) -> Connection:
        if self._writer is None:
            raise LedgerFailed("The ledger is closed.")
        return self._writer

    def _undo(self) -> None:
        self._requests.sums = replace(self._committed)
        self._requests.changed = []
        self._requests.standing = []

    def _settled(self) -> None:
        self._committed = replace(self._requests.sums)
        standing, self._requests.standing = self._requests.standing, []
        self._known.learn(standing)
        changed, self._requests.changed = self._requests.changed, []
        for request in changed:
            for observer in self._watchers:
                try:
                    observer(request)
                except Exception:  # it is committed; those who wait for it must learn so
                    self._log.failure("an observer of the ledger failed by a defect")

    def _write(self, step: Callable[[Connection], T]) -> Deferred[T]:
        def careful(connection: Connection) -> T:
            sums, changes = replace(self._requests.sums), len(self._requests.changed)
            standing = len(self._requests.standing)
            try:
                return step(connection)
            except BaseException:
                self._requests.sums = sums
                del self._requests.changed[changes:]
                del self._requests.standing[standing:]
                raise

        return self._batches.submit(careful)

    def _read(self, query: Callable[[Connection], T]) -> Deferred[T]:
        def run() -> T:
            if self._reader is None:
                raise LedgerFailed("The ledger is closed.")
            try:
                return query(self._reader)
            except FROM_DATABASE as error:
                raise self._batches.failed(error) from error

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
            lambda c: self._requests.admit(
                c, ask, room, now, max_pending, expires_at, fresh, allowance
            )
        )

    def join(self, ask: Ask, final: Upload, *, now: float, expires_at: float) -> Deferred[Live]:
        return self._write(lambda c: self._requests.join(c, ask, final, now, expires_at))

    def change(
        self,
        request_id: str,
        step: Callable[[BackupRequest], BackupRequest],
        *,
        put: Upload | Sequence[Upload] | None = None,
        drop: Sequence[str] = (),
    ) -> Deferred[BackupRequest]:
        return self._write(lambda c: self._requests.change(c, request_id, step, put, drop))

    def request(self, request_id: str) -> Deferred[BackupRequest]:
        if (known := self._known.request(request_id)) is not None:
            return succeed(known)
        return self._read(lambda c: self._requests.request(c, request_id))

    def by_capability(self, capability: str) -> Deferred[BackupRequest]:
        if (known := self._known.by_capability(capability)) is not None:
            return succeed(known)
        return self._read(lambda c: request_table.by_capability(c, capability))

    def live_for(self, video: VideoId, peer: str | None, limit: int) -> Deferred[list[Live]]:
        return self._read(lambda c: request_table.live_for(c, video, peer, limit))

    def last_ended(self, video: VideoId, peer: str | None) -> Deferred[BackupRequest]:
        return self._read(lambda c: request_table.last_ended(c, video, peer))

    def requests(
        self, *, live: bool | None, peer: str | None, after: int, limit: int
    ) -> Deferred[list[tuple[int, BackupRequest]]]:
        return self._read(lambda c: request_table.page(c, live, peer, after, limit))

    def position(self, request: Pending) -> Deferred[int]:
        return self._read(lambda c: request_table.position(c, request))

    def all_live(self) -> Deferred[list[Live]]:
        return self._read(request_table.all_live)

    def in_progress(self) -> Deferred[list[Live]]:
        return self._read(request_table.in_progress)

    def lines(self, *, now: float, limit: int, heads: int) -> Deferred[list[Line]]:
        return self._read(lambda c: request_table.due_lines(c, now, limit, heads))

    def overdue(self, *, now: float, limit: int) -> Deferred[list[Live]]:
        return self._read(lambda c: request_table.overdue(c, now, limit))

    def given_up(self, *, now: float, limit: int) -> Deferred[list[Pending]]:
        return self._read(lambda c: request_table.given_up(c, now, limit))

    def totals(self) -> Deferred[Totals]:
        return succeed(self._committed.totals())

    def trouble(self) -> Deferred[str | None]:
        if self._batches.damaged is not None or self._batches.failing is None:
            return succeed(self._batches.damaged)

        def write(connection: Connection) -> None:
            connection.exec_driver_sql("UPDATE alembic_version SET version_num = version_num")

        def failed(failure: Failure) -> str:
            failure.trap(BackupdError)
            return failure.getErrorMessage()

        return self._write(write).addErrback(failed)

    def uploads(self, request_id: str | None) -> Deferred[list[Upload]]:
        if request_id is not None and self._known.has_no_uploads(request_id):
            return succeed([])
        return self._read(lambda c: request_table.uploads_of(c, request_id))

    def upload_by_token(self, token: str) -> Deferred[Upload]:
        return self._read(lambda c: request_table.upload_by_token(c, token))

    def unkept(self, *, limit: int) -> Deferred[list[Live]]:
        return self._read(lambda c: request_table.unkept(c, limit))

    def purge(self, *, before: float, limit: int) -> Deferred[int]:
        def purge(connection: Connection) -> int:
            return self._requests.purge(connection, before, limit) + entry_table.purge(
                connection, before, limit
            )

        return self._write(purge)

    # -- what is kept -----------------------------------------------------------------------------

    def backup(self, backup_id: str) -> Deferred[Backup]:
        return self._read(lambda c: backup_table.backup(c, backup_id))

    def backups(
        self,
        *,
        peer: str | None,
        video: VideoId | None,
        after: int,
        limit: int,
        trash: bool = False,
    ) -> Deferred[list[tuple[int, Backup]]]:
        return self._read(lambda c: backup_table.page(c, peer, video, after, limit, trash))

    def list_backup(self, backup: Backup) -> Deferred[bool]:
        return self._write(lambda c: backup_table.list_backup(c, backup))

    def put_backup(self, backup: Backup) -> Deferred[bool]:
        return self._write(lambda c: backup_table.put_backup(c, backup))

    def usage(self, peer: str) -> Deferred[Usage]:
        return self._read(lambda c: request_table.usage_of(c, peer))

    def drop_backup(self, backup_id: str) -> Deferred[Backup]:
        return self._write(lambda c: backup_table.drop_backup(c, backup_id))

    def copy_of(self, backup: Backup) -> Deferred[Backup | None]:
        return self._read(lambda c: backup_table.copy_of(c, backup))

    # -- how long it is kept ----------------------------------------------------------------------

    def change_backup(self, backup_id: str, step: Callable[[Backup], Backup]) -> Deferred[Backup]:
        return self._write(lambda c: keeping_table.change_backup(c, backup_id, step))

    def outdated(
        self, rule: Callable[[str], Retention], *, now: float, after: int, limit: int
    ) -> Deferred[tuple[list[Backup], int | None]]:
        return self._read(lambda c: keeping_table.outdated(c, rule, now, after, limit))

    def retire(
        self, backup_id: str, rule: Retention, *, by: str, at: float, now: float
    ) -> Deferred[Backup | None]:
        return self._write(lambda c: keeping_table.retire(c, backup_id, rule, by, at, now))

    def has_version(self, backup: Backup) -> Deferred[bool]:
        return self._read(lambda c: keeping_table.has_version(c, backup))

    def trash_due(self, *, before: float, limit: int) -> Deferred[list[Backup]]:
        return self._read(lambda c: keeping_table.trash_due(c, before, limit))

    def latest_seen(self) -> Deferred[float | None]:
        return self._read(time_table.latest_seen)

    def own_time(self) -> Deferred[float | None]:
        return self._read(time_table.own_time)

    def see(self, now: float, own: float) -> Deferred[None]:
        return self._write(lambda c: time_table.see(c, now, own))

    def set_back(self, by: float, *, own: float) -> Deferred[None]:
        def forget(_: None) -> None:
            self._known = Known()

        return self._write(lambda c: time_table.set_back(c, by, own)).addCallback(forget)

    # -- whether it is still right ----------------------------------------------------------------

    def longest_unread(self, *, before: float) -> Deferred[Backup | None]:
        return self._read(lambda c: repair_table.longest_unread(c, before))

    def begin_reading(self, backup_id: str, *, now: float) -> Deferred[None]:
        return self._write(lambda c: repair_table.begin_reading(c, backup_id, now))

    def verified(self, backup_id: str, *, problem: str | None, now: float) -> Deferred[Backup]:
        return self._write(lambda c: repair_table.verified(c, backup_id, problem, now))

    def kept(self) -> Deferred[tuple[int, int]]:
        return self._read(repair_table.kept)

    def condition(self) -> Deferred[Condition]:
        return self._read(repair_table.condition)

    def repairs(self, *, now: float, limit: int) -> Deferred[list[Repair]]:
        return self._read(lambda c: repair_table.due(c, now, limit))

    def put_repair(
        self, backup_id: str, *, request_id: str | None, tries: int, due_at: float | None
    ) -> Deferred[None]:
        values = {"request_id": request_id, "tries": tries, "due_at": due_at}
        return self._write(lambda c: repair_table.put(c, backup_id, values))

    # -- the outbox -------------------------------------------------------------------------------

    def enqueue(self, entry: Entry) -> Deferred[Entry]:
        return self._write(lambda c: entry_table.enqueue(c, entry))

    def entry(self, entry_id: str) -> Deferred[Entry]:
        return self._read(lambda c: entry_table.entry(c, entry_id))

    def entry_by_capability(self, capability: str) -> Deferred[Entry]:
        return self._read(lambda c: entry_table.entry_by_capability(c, capability))

    def entries_for(self, video: VideoId, limit: int) -> Deferred[list[Entry]]:
        return self._read(lambda c: entry_table.entries_for(c, video, limit))

    def change_entry(self, entry_id: str, step: Callable[[Entry], Entry]) -> Deferred[Entry]:
        return self._write(lambda c: entry_table.change_entry(c, entry_id, step))

    def entries(
        self, *, over: bool | None, after: int, limit: int
    ) -> Deferred[list[tuple[int, Entry]]]:
        return self._read(lambda c: entry_table.page(c, over, after, limit))

    def outgoing(self) -> Deferred[list[Outgoing]]:
        return self._read(entry_table.outgoing)

    def entries_due(
        self, picks: Sequence[Pick], *, now: float, without: Sequence[str]
    ) -> Deferred[list[Entry]]:
        return self._read(lambda c: entry_table.due(c, picks, now, without))
