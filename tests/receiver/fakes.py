"""What stands in for threads, clients and other servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, execute, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from backupd.errors import PeerFailed, UploadCut
from backupd.requests import Ask

__all__ = ["DEAD", "Answer", "ManualOff", "Offers", "ScriptedSource", "sync"]

P = ParamSpec("P")
T = TypeVar("T")

DEAD = PeerFailed("The connection was refused.")
"""What an offer to a server that is down comes to."""


def sync(f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """Runs at once: no thread at all."""
    done: Deferred[T] = execute(f, *args, **kwargs)
    return done


@dataclass(slots=True)
class _Call:
    run: Callable[[], Any]
    name: str
    done: Deferred[Any]


class ManualOff:
    """Threads that the test drives: what was handed over runs when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[_Call] = []

    def __call__(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        done: Deferred[T] = Deferred()
        name = getattr(f, "__name__", type(f).__name__)
        self.waiting.append(_Call(lambda: f(*args, **kwargs), name, done))
        return done

    @property
    def names(self) -> list[str]:
        """What waits, by the name of its function."""
        return [call.name for call in self.waiting]

    def release(self, name: str | None = None, error: Exception | None = None) -> None:
        """Run the first call that waits, or the first of this name; or let it fail."""
        found = next(call for call in self.waiting if name in (None, call.name))
        self.waiting.remove(found)
        if error is not None:
            found.done.errback(Failure(error))
            return
        try:
            result = found.run()
        except Exception:
            found.done.errback(Failure())
        else:
            found.done.callback(result)

    def release_all(self) -> None:
        """Run whatever waits, and what follows from it."""
        while self.waiting:
            self.release()


class ScriptedSource:
    """A body that the test writes: pieces, its end, a cut, or an error."""

    def __init__(self, clock: Clock, pieces: Iterable[bytes | Exception] = ()) -> None:
        self._clock = clock
        self._script: list[bytes | Exception] = list(pieces)
        self._reader: Deferred[bytes] | None = None
        self._since = clock.seconds()
        self.reads = 0
        self.aborted = False

    def read(self) -> Deferred[bytes]:
        self.reads += 1
        if self._script:
            piece = self._script[0]
            if isinstance(piece, Exception):
                return fail(piece)
            if piece:
                self._script.pop(0)
            return succeed(piece)
        self._since = self._clock.seconds()
        reader = self._reader = Deferred()
        return reader

    def give(self, *pieces: bytes | Exception) -> None:
        """More comes in: pieces, ``b""`` for the end, or an error."""
        self._script.extend(pieces)
        self._wake()

    def end(self) -> None:
        """The body is over."""
        self.give(b"")

    def cut(self) -> None:
        """The connection breaks."""
        self.give(UploadCut("The connection was lost."))

    def abort(self) -> None:
        self.aborted = True
        if b"" not in self._script:
            self._script = [UploadCut("The connection was closed.")]
            self._wake()

    def silent_for(self) -> float:
        return self._clock.seconds() - self._since if self._reader is not None else 0.0

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            self.read().chainDeferred(reader)


@dataclass
class Answer:
    """What a sender says to an offer (`backupd.receiver.queue.OfferAnswer`)."""

    status: int
    retry_after: float | None = None


@dataclass
class _Sent:
    link: str
    body: bytes
    at: float
    answer: Deferred[Answer]
    out: bool = False


class Offers:
    """The other servers: each link has an answer ready, or lets the offer wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.answers: dict[str, Answer | Exception | None] = {}
        """By the beginning of the link; None lets the offer wait. 202 unless said."""
        self.sent: list[_Sent] = []

    async def __call__(self, ask: Ask, body: bytes) -> Answer:
        link = ask.callback
        sent = _Sent(link, body, self._clock.seconds(), Deferred())
        self.sent.append(sent)
        found: Answer | Exception | None = Answer(202)
        for beginning, answer in self.answers.items():
            if link.startswith(beginning):
                found = answer
        if isinstance(found, Exception):
            raise found
        if found is not None:
            return found
        sent.out = True
        return await sent.answer

    def to(self, origin: str) -> list[_Sent]:
        """The offers that went to an origin."""
        return [sent for sent in self.sent if sent.link.startswith(origin + "/")]

    @property
    def waiting(self) -> list[_Sent]:
        """The offers whose answer is still out."""
        return [sent for sent in self.sent if sent.out and not sent.answer.called]
