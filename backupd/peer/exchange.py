"""One request with a long body, and its answer, over a connection of its own.

Twisted's client does this for short messages, but not here: it loses an answer that comes in two
segments while the body is still being sent, goes on sending after one that it did not lose, and
cannot tell a slow network from a dead one.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IConsumer,
    IDelayedCall,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from backupd.errors import PeerFailed, PeerSilent
from backupd.unsent import unsent

__all__ = ["MAX_ANSWER", "NO_ANSWER", "SILENCE", "Exchange", "Reply"]

MAX_ANSWER = 64 * 1024
"""Bytes that an answer may have, headers included."""

LOOK = 15.0
"""Seconds after which it is looked whether bytes have left meanwhile."""

SILENCE = 60.0
"""Seconds for which the network may take no byte."""

AT_ONCE = 2 * 1024 * 1024
"""Bytes that the kernel is offered at a time."""

NO_ANSWER = 120.0
"""Seconds from the last byte that left to the answer: the receiver is syncing."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came."""

    status: int
    headers: Message
    body: bytes


class _Bytes:
    """As much of a socket as `HTTPResponse` wants."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


_INTERIM = re.compile(rb"HTTP/1\.[01] 1[0-9][0-9][ \r\n]")


def parse(data: bytes, *, closed: bool) -> Reply | None:
    """The answer in ``data``, None while it is not whole.

    Once the connection is ``closed``, what there is of a refusal's body will do. Raises
    `http.client.HTTPException` or `ValueError` for what is no HTTP.
    """
    while _INTERIM.match(data) and b"\r\n\r\n" in data:
        data = data.partition(b"\r\n\r\n")[2]
    if b"\r\n\r\n" not in data:
        if data and not b"HTTP/1.".startswith(data[:7]):
            raise ValueError("no HTTP")
        return None
    response = HTTPResponse(cast(Any, _Bytes(data)), method="POST")
    response.begin()
    until_closed = response.length is None and not response.chunked
    try:
        body = response.read()
    except IncompleteRead as error:
        if not closed or response.status < 300:
            return None
        body = error.partial
    if until_closed and not closed:
        return None
    return Reply(response.status, response.headers, body)


@implementer(IConsumer, IPushProducer)
class Exchange(Protocol):
    """Sends ``head`` and ``body``; ``replied`` fires with the `Reply` or fails with `PeerFailed`.

    The first whole answer wins, also over the rest of the body and over a connection that breaks
    afterwards. Cancelling ``replied`` ends the connection.
    """

    def __init__(self, head: bytes, body: IBodyProducer, clock: IReactorTime, origin: str) -> None:
        self.replied: Deferred[Reply] = Deferred(lambda _: self._end())
        self._head = head
        self._body = body
        self._clock = clock
        self._origin = origin
        self._data = b""
        self._sending = False
        self._over = False
        self._limit: IDelayedCall | None = None
        self._patience = self._since = 0.0
        self._left = 0

    # -- sending ----------------------------------------------------------------------------------

    def connectionMade(self) -> None:  # noqa: N802
        if self._over:
            self._end()
            return
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
            # Twisted gives the kernel 128 KiB a turn; it takes more, and a turn costs.
            cast(Any, self.transport).SEND_LIMIT = AT_ONCE
        self._wait(SILENCE)
        self._sending = True
        transport: Any = self.transport
        transport.registerProducer(self, True)
        transport.write(self._head)
        self._body.startProducing(self).addCallbacks(self._sent, self._body_failed)

    def write(self, data: bytes) -> None:
        """Bytes of the body."""
        if self._sending:
            cast(Any, self.transport).write(data)
            self._wait(SILENCE)

    def registerProducer(self, producer: object, streaming: bool) -> None:  # noqa: N802
        """The body is registered already."""

    def unregisterProducer(self) -> None:  # noqa: N802
        """See `_sent`."""

    def pauseProducing(self) -> None:  # noqa: N802
        self._body.pauseProducing()

    def resumeProducing(self) -> None:  # noqa: N802
        """The network has taken everything that was written so far."""
        if self._sending:
            self._wait(SILENCE)
            self._body.resumeProducing()

    def stopProducing(self) -> None:  # noqa: N802
        """The connection is lost; `connectionLost` follows."""

    def _sent(self, _: None) -> None:
        if self._sending:
            self._sending = False
            cast(Any, self.transport).unregisterProducer()
            self._wait(NO_ANSWER)

    def _body_failed(self, failure: Failure) -> None:
        """The file is the trouble, not the other server."""
        self._sending = False
        self._finish(failure)

    # -- limits -----------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        """From now on, so long in which no byte leaves."""
        if self._over:
            return
        self._patience, self._since = seconds, self._clock.seconds()
        self._left = unsent(self.transport)
        self._look_after(min(LOOK, seconds))

    def _look_after(self, seconds: float) -> None:
        if self._limit is not None and self._limit.active():
            self._limit.reset(seconds)
        else:
            self._limit = self._clock.callLater(seconds, self._waited)

    def _waited(self) -> None:
        """A link that was fast may have been given more than it takes within the time now."""
        before, self._left = self._left, unsent(self.transport)
        if self._left < before:
            self._since = self._clock.seconds()
        due = self._since + self._patience - self._clock.seconds()
        if due > 0:
            self._look_after(min(LOOK, due))
            return
        if self._sending:
            why = f"{self._origin} took no byte for {SILENCE:.0f} s."
        else:
            why = f"{self._origin} did not answer within {NO_ANSWER:.0f} s after the last byte."
        self._finish(Failure(PeerSilent(why)))

    # -- the answer -------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        if self._over:
            return
        self._data += data
        if len(self._data) > MAX_ANSWER:
            why = f"{self._origin} answered more than {MAX_ANSWER // 1024} KiB."
            self._finish(Failure(PeerFailed(why)))
            return
        self._look(closed=False)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        if self._over:
            return
        self._look(closed=True)
        if not self._over:
            when = "while the video was being sent" if self._sending else "without an answer"
            self._finish(Failure(PeerFailed(f"{self._origin} closed the connection {when}.")))

    def _look(self, *, closed: bool) -> None:
        try:
            reply = parse(self._data, closed=closed)
        except (HTTPException, ValueError):
            self._finish(Failure(PeerFailed(f"{self._origin} answered what is no HTTP.")))
            return
        if reply is None:
            return
        if self._sending and reply.status < 300:
            why = f"{self._origin} answered {reply.status} before it had every byte."
            self._finish(Failure(PeerFailed(why)))
        else:
            self._finish(reply)

    def _finish(self, outcome: Reply | Failure) -> None:
        if self._over:
            return
        self._end(orderly=not self._sending and isinstance(outcome, Reply))
        if isinstance(outcome, Failure):
            self.replied.errback(outcome)
        else:
            self.replied.callback(outcome)

    def _end(self, *, orderly: bool = False) -> None:
        """No more bytes, no more calls; the connection goes, at once unless ``orderly``."""
        self._over = True
        if self._limit is not None and self._limit.active():
            self._limit.cancel()
        self._body.stopProducing()
        if self._sending:
            self._sending = False
            if self.connected:
                cast(Any, self.transport).unregisterProducer()
        if not self.connected:
            return
        transport: Any = self.transport
        if orderly:
            transport.loseConnection()
        else:
            transport.abortConnection()
