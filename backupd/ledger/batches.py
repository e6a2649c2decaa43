"""Writers queue up and commit together: one sync for many.

While one batch is being committed off the reactor thread, the next gathers. What one step raises
undoes that one alone. A step may run twice, the first time for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from backupd.errors import BackupdError, Busy, LedgerFailed
from backupd.interfaces import OffThread
from backupd.ledger import prepared

__all__ = ["FROM_DATABASE", "PUT_ASIDE", "Batches", "cause_of", "is_broken", "ledger_failed"]

T = TypeVar("T")
Step = Callable[[Connection], T]
Within = Callable[[Connection, Step[Any]], Any]

MAX_BATCH = 256
MAX_WAITING = 8192

FROM_DATABASE = (SQLAlchemyError, UnicodeDecodeError)
"""What the database raises: what it complains of may be named by bytes that are no text."""

PUT_ASIDE = "docs/recovery.md says how to put it aside, and to list again what is kept."


@dataclass(slots=True)
class _Waiting(Generic[T]):
    step: Step[T]
    done: Deferred[T]


def is_broken(error: Exception) -> bool:
    """Whether the content of the file is wrong, so that trying again is no use."""
    told = str(getattr(error, "orig", None) or error)
    broken = ("malformed", "not a database", "Could not decode")
    return isinstance(error, UnicodeError) or any(words in told for words in broken)


def cause_of(error: Exception) -> str:
    """What went wrong, without the statement, its values, or a text that could not be decoded:
    they may hold secrets.
    """
    told = str(getattr(error, "orig", None) or type(error).__name__)
    return told.partition(" with text ")[0]


def ledger_failed(error: Exception) -> LedgerFailed:
    """What to raise for an error of the database; without a secret."""
    cause = cause_of(error)
    if is_broken(error):
        return LedgerFailed(f"The ledger is damaged: {cause}. {PUT_ASIDE}")
    advice = " Free some space on its volume." if "full" in cause else ""
    return LedgerFailed(f"The ledger could not commit: {cause}.{advice}")


class Batches:
    """Runs steps in order, many to a transaction.

    ``begin`` starts a write transaction; ``undo`` is told when a transaction came to nothing,
    ``settled`` is called on the reactor thread after each batch, before its results go out.
    ``failing`` says why the last commit failed; None once something has been written again.
    ``damaged`` says what is wrong with the file, once somebody has met it.
    """

    _log = Logger()

    def __init__(
        self,
        connection: Callable[[], Connection],
        begin: str,
        off: OffThread,
        *,
        undo: Callable[[], None],
        settled: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._begin = begin
        self._off = off
        self._undo = undo
        self._settled = settled
        self._waiting: list[_Waiting[Any]] = []
        self._running = False
        self.failing: str | None = None
        self.damaged: str | None = None
        self._closed = False
        self._idle: list[Deferred[None]] = []

    def submit(self, step: Step[T]) -> Deferred[T]:
        """Run ``step`` in one of the next transactions; fires once that is committed."""
        done: Deferred[T] = Deferred()
        if self._closed:
            done.errback(LedgerFailed("The ledger is closed."))
            return done
        if len(self._waiting) >= MAX_WAITING:
            done.errback(Busy("Too many steps are waiting for the ledger; try again shortly."))
            return done
        self._waiting.append(_Waiting(step, done))
        self._pump()
        return done

    def close(self) -> Deferred[None]:
        """Take nothing more; fires once everything submitted so far has been settled."""
        self._closed = True
        done: Deferred[None] = Deferred()
        if self._running or self._waiting:
            self._idle.append(done)
        else:
            done.callback(None)
        return done

    def _pump(self) -> None:
        if self._running or not self._waiting:
            return
        self._running = True
        batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
        outcome = self._off(self._commit, [waiting.step for waiting in batch])
        outcome.addErrback(lambda failure: self._failed(failure, len(batch)))
        outcome.addCallback(self._finish, batch)

    def _failed(self, failure: Failure, count: int) -> tuple[list[Any], bool]:
        if self.failing is None:
            self._log.error("nothing can be recorded: {why}", why=failure.getErrorMessage())
        self.failing = failure.getErrorMessage()
        return [failure] * count, False

    def _finish(self, outcome: tuple[list[Any], bool], batch: list[_Waiting[Any]]) -> None:
        results, written = outcome
        # A transaction that wrote nothing says nothing: it succeeds on a full disk too.
        if written and self.failing is not None:
            self.failing = None
            self._log.info("the ledger commits again")
        self._running = False
        self._settled()
        self._pump()
        for waiting, result in zip(batch, results, strict=True):
            # A caller that was cancelled has stopped listening; the step stands all the same.
            if not waiting.done.called:
                waiting.done.callback(result)
        if not self._running and not self._waiting:
            idle, self._idle = self._idle, []
            for done in idle:
                done.callback(None)

    def failed(self, error: Exception) -> LedgerFailed:
        """What to raise for ``error``; in any thread."""
        failure = ledger_failed(error)
        if is_broken(error):
            self.damaged = str(failure)
        return failure

    def _commit(self, steps: list[Step[Any]]) -> tuple[list[Any], bool]:
        """In the ledger's thread: results and Failures, in order, all committed; if any wrote.

        Savepoints would take as long as the steps, and hardly ever one fails: so all run without,
        and only when one does, each runs once more within one.
        """
        try:
            connection = self._connection()
            try:
                return self._transaction(connection, steps, within=_plainly)
            except FROM_DATABASE as error:
                if not isinstance(error, IntegrityError):
                    raise
            except Exception as error:
                if len(steps) == 1:
                    return [_fault(error)], False
            return self._transaction(connection, steps, within=_by_itself)
        except FROM_DATABASE as error:
            raise self.failed(error) from error

    def _transaction(
        self, connection: Connection, steps: list[Step[Any]], within: Within
    ) -> tuple[list[Any], bool]:
        driver: Any = connection.connection.dbapi_connection
        before = driver.total_changes
        prepared.run_plain(connection, self._begin)
        try:
            results = [within(connection, step) for step in steps]
            prepared.run_plain(connection, "COMMIT")
        except BaseException:
            self._undo()
            with suppress(*FROM_DATABASE):  # a full or failing disk has rolled back already
                prepared.run_plain(connection, "ROLLBACK")
            raise
        return results, driver.total_changes != before


def _plainly(connection: Connection, step: Step[Any]) -> Any:
    return step(connection)


def _by_itself(connection: Connection, step: Step[Any]) -> Any:
    """In a savepoint, so that what the step raises undoes it alone."""
    prepared.run_plain(connection, "SAVEPOINT step")
    try:
        result = step(connection)
    except Exception as error:
        # A row that is there already is the fault of this step; all else is the database's.
        if isinstance(error, FROM_DATABASE) and not isinstance(error, IntegrityError):
            raise
        prepared.run_plain(connection, "ROLLBACK TO step")
        prepared.run_plain(connection, "RELEASE step")
        return _fault(error)
    prepared.run_plain(connection, "RELEASE step")
    return result


def _fault(error: Exception) -> Failure:
    """What is told of a step that failed; to be called where ``error`` is handled."""
    if isinstance(error, IntegrityError):
        return Failure(ledger_failed(error))
    return Failure(error) if isinstance(error, BackupdError) else Failure()
