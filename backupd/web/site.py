"""Request bodies as streams: the handler runs before the body, and reads it piece by piece.

Stock ``twisted.web`` runs a handler after the last byte of the body, having spooled it to a
temporary file. Here the request is dispatched when its headers are complete; the body then goes
through a `Body`, which makes the network wait when the handler is slow. This is the only file that
stands on twisted.web's inner hooks: what `HTTPChannel` calls on its requests, and a few of its
private attributes. None of these is typed, and their names are not ours.

The handler never runs inside the parser: what one segment from the network brings is parsed
first, then handed over. So an answer, however early, finds the channel in order.
"""

# mypy: disable-error-code="no-untyped-call"
# ruff: noqa: N802, N815

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from math import inf
from typing import Any

from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Server
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource
from twisted.web.server import Request, Site

from backupd.trust.caller import STRANGER, Caller
from backupd.unsent import unsent
from backupd.web.body import Body
from backupd.web.connections import Connections
from backupd.web.crowds import CROWD, Crowds
from backupd.web.forwarded import Way
from backupd.web.outside import refused
from backupd.web.patience import PATIENT, BodyRate, Patience

__all__ = ["BackupSite", "Body", "StreamingRequest"]

PIECE = 1024 * 1024
"""How many bytes are taken from the socket at once while a long body comes in."""

TURN = 1024 * 1024
"""How many bytes all bodies that come in straight take in one turn of the reactor while others
ask something: to copy them out of the kernel takes its thread a millisecond, and they wait."""

LEAST_SHARE = 256 * 1024
"""So many each may take, however many there are: every turn of each costs something too."""

ASKING = 1.0
"""Seconds for which a small request counts as others who ask; with nobody there, each body takes
what there is, which costs less."""


class StreamingRequest(Request):
    """A request whose handler runs before its body; it reads `body` instead of ``content``."""

    body: Body
    channel: _Channel
    caller: Caller = STRANGER
    """Who asks; the guard finds it out."""

    way: Way | None = None
    """Where it comes from; the guard finds it out."""

    def __init__(self, channel: _Channel, *args: Any, **named: Any) -> None:
        super().__init__(channel, *args, **named)
        self.started = channel.site.reactor.seconds()
        self._line: tuple[bytes, bytes, bytes] | None = None

    # -- what the channel calls -------------------------------------------------------------------

    def gotLength(self, length: int | None) -> None:
        """The headers are complete. Nothing may be answered before the channel has taken note."""
        self.content = io.BytesIO()
        if (length or 0) <= PIECE:
            self.channel.site.asked_at = self.started
        self.body = Body(self.channel, length, self.channel.site.reactor)
        if length != 0:
            # The channel forgets the request line when the body ends.
            self._line = (self.channel._command, self.channel._path, self.channel._version)
            self.channel.body_begins(self)

    def handleContentChunk(self, data: bytes) -> None:
        """Some of the body came in."""
        if not self.finished and not self._disconnected:
            self.body.arrived(data)
            self.channel.news = self

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """The last byte came in; without a body, that is the moment to dispatch."""
        if self.body.length == 0:
            super().requestReceived(command, path, version)
        else:
            self.body.end()
            self.channel.news = self

    def segment_parsed(self) -> None:
        """Dispatch when it is the first; hand over what came in."""
        line, self._line = self._line, None
        self.body.hand_over()
        if line is not None:
            super().requestReceived(*line)
        self.body.hold_if_full()
        if not (self.body.ended or self.finished or self._disconnected):
            self.channel.watch_rate(self.body)

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone, or as good as gone; may come twice."""
        self._line = None
        if not self.finished and not self._disconnected:
            # First the handler is cancelled: what it might answer now would go nowhere.
            super().connectionLost(reason)
        if hasattr(self, "body"):
            self.body.lost()

    # -- what the handler calls -------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write some of the answer; one that begins before the body's end is the last."""
        if not self.startedWriting and not self.body.ended and not self._disconnected:
            self.body.expects_continue = False
            self.channel.persistent = False
            self.setHeader(b"connection", b"close")
        super().write(data)

    @property
    def over(self) -> bool:
        """Nothing can be answered any more."""
        return bool(self.finished or self._disconnected)

    def abort(self) -> None:
        """Cut the answer: the connection is closed at once, and the client sees that it is."""
        if self.channel is not None and not self.finished:
            # Nothing that was pipelined behind this is to be begun.
            self.channel.persistent = False
            self.channel.abort()


class _Channel(HTTPChannel):
    """One connection.

    ``held`` tells that nothing is taken from the network, and that its silence does not count.
    ``news`` is the request with a body to which the segment at hand has brought something.
    """

    site: BackupSite
    transport: Any
    maxHeaders = 100
    held = False
    news: StreamingRequest | None = None

    _handing_over = False
    _lingering: IDelayedCall | None = None
    _to_discard = 0
    _usual_piece: int | None = None
    _straight: Body | None = None
    _late_head: IDelayedCall | None = None
    _rate: BodyRate | None = None
    _waiting = True
    _gone = False
    _untaken: StreamingRequest | None = None
    _unsent = 0

    # -- what the transport calls -----------------------------------------------------------------

    def connectionMade(self) -> None:
        """Somebody has connected; who sends nothing has as long as for a head."""
        super().connectionMade()
        if self.site.connections.come(self, self.transport.getPeer()):
            self._await_head()
            self._stand_in_line()
        elif self.isSecure():
            self.abort()
        else:
            self._refuse(503)

    def dataReceived(self, data: bytes) -> None:
        """Parse a segment, then let the handlers have what it brought."""
        if self.transport.disconnecting:
            return
        if self._waiting:
            self._waiting = False
            self.site.connections.busy(self)
        if self._lingering is not None:
            self._to_discard -= len(data)
            if self._to_discard < 0:
                self._close()
                return
        super().dataReceived(data)
        # An answer takes the next pipelined request out of the buffer, through this method again.
        # The outermost call serves them all, so that many of them need no deeper stack.
        if not self._handing_over:
            self._handing_over = True
            while (request := self.news) is not None:
                self.news = None
                request.segment_parsed()
            self._handing_over = False
        if self.line_mode and (self._buffer or self._receivedHeaderSize):
            self._await_head()

    def _read_straight(self) -> Any:
        """Take the place of the transport's ``doRead``: from the kernel into the reader's buffer.

        The last byte of a body takes the usual way: the parser knows what follows it.
        """
        body, decoder = self._straight, self._transferDecoder
        space = None if body is None else body.space()
        if body is None or space is None or decoder is None or decoder.contentLength < 2:
            return Server.doRead(self.transport)
        try:
            count = self.transport.socket.recv_into(
                space, min(len(space), decoder.contentLength - 1, self.site.share())
            )
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return CONNECTION_LOST
        if not count:
            return CONNECTION_DONE
        self.resetTimeout()
        decoder.contentLength -= count
        body.filled(count)
        return None

    def resumeProducing(self) -> None:
        """The answer flows again; that must not end a hold."""
        super().resumeProducing()
        if self.held:
            self._networkProducer.pauseProducing()
        untaken, self._untaken = self._untaken, None
        if untaken is not None:
            self._cancel_abort()
            self.requestDone(untaken)

    def timeoutConnection(self) -> None:
        """Silent for too long; unless it is still taking the answer that it waits for."""
        if unsent(self.transport) and self._takes():
            self.setTimeout(self.site.timeOut)
        else:
            super().timeoutConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self._gone = True
        self.site.connections.gone(self)
        self.site.crowds.leave(self)
        self._head_came()
        self._end_rate()
        self._end_lingering()
        if self._straight is not None:
            self._end_straight()
        super().connectionLost(reason)

    # -- what requests and bodies call ------------------------------------------------------------

    def body_begins(self, request: StreamingRequest) -> None:
        """The headers of a request with a body are complete."""
        self.news = request
        # Chunks keep the usual size: a segment of tiny ones would occupy the parser for too long.
        if (request.body.length or 0) > PIECE:
            self._usual_piece = getattr(self.transport, "bufferSize", None)
            if self._usual_piece is not None:
                self.transport.bufferSize = PIECE

    def read_straight(self, body: Body) -> None:
        """Fill the body's buffer without a detour, if it comes over plain TCP and has a length."""
        plain = type(self.transport) is Server and not self.transport.TLS
        if plain and self._straight is None and body.length is not None:
            self._straight = body
            self.site.streaming += 1
            self.transport.doRead = self._read_straight

    def send_continue(self) -> None:
        """Tell the client that its body is wanted."""
        super()._send100Continue()

    def hold(self) -> None:
        """Take nothing from the network until `release`; the idle timeout stands still."""
        if not self.held:
            self.held = True
            if self._rate is not None:
                self._rate.stand_still()
            self.setTimeout(None)
            self._networkProducer.pauseProducing()

    def release(self) -> None:
        """Take bytes from the network again."""
        if self.held and not self.transport.disconnecting:
            self.held = False
            if self._rate is not None:
                self._rate.go_on()
            self.setTimeout(self.site.timeOut)
            if not self._waitingForTransport:
                self._networkProducer.resumeProducing()

    def abort(self) -> None:
        """Close the connection at once; `connectionLost` follows in a later turn."""
        self.transport.abortConnection()

    def requestDone(self, request: StreamingRequest) -> None:
        """The answer is written. If its body has not ended, read on for a while.

        A client that still sends would get a reset instead of the answer if the connection were
        closed under its bytes.
        """
        if request.body.ended:
            if self._waitingForTransport and self.persistent:
                # Its answers would pile up: the next one is begun when this one has been taken.
                self._untaken = request
                self._watch_taking()
                return
            if self.persistent:
                self._unsent = unsent(self.transport)  # see `timeoutConnection`
            elif self._abortingCall is None:
                # A client that does not take the rest of it must not keep the connection for ever.
                self._watch_taking()
            super().requestDone(request)
            if self.line_mode and not self._receivedHeaderSize and not self._buffer:
                self._waiting = True
                self.site.connections.idle(self)
                self._stand_in_line()
            return
        request.body.discard()
        self._end_rate()
        self.held = False
        self.setTimeout(None)
        self._to_discard = self.site.linger_bytes
        self._lingering = self.callLater(self.site.linger_seconds, self._close)
        if not self.transport.disconnecting:
            self._networkProducer.resumeProducing()

    def watch_rate(self, body: Body) -> None:
        """Cut a body that goes on coming in more slowly than `Patience.min_rate`."""
        if self._rate is None and self._lingering is None and self.site.patience.min_rate:
            self._rate = BodyRate(body, self.site.patience, self.site.reactor, self._too_slow)
            if self.held:
                self._rate.stand_still()

    def listen(self) -> None:
        """Of the crowd that it belongs to, it is this one's turn."""
        self.release()

    def let_go(self) -> None:
        """Close it, while it is idle: somebody else needs the place."""
        self._close()
        if self._abortingCall is not None:
            self._abortingCall.reset(1.0)

    # -- what the parser calls --------------------------------------------------------------------

    def lineReceived(self, line: bytes) -> None:
        """A line of the head. One that goes on with the line before it is no HTTP any more
        (RFC 9112, section 5.2), and proxies have read it otherwise than servers."""
        if line[:1] in (b" ", b"\t"):
            self._respondToBadRequestAndDisconnect()
        else:
            super().lineReceived(line)

    def lineLengthExceeded(self, line: bytes) -> None:
        """More than any head may have."""
        self._refuse(431 if self._receivedHeaderSize else 414)

    def allHeadersReceived(self) -> None:
        """The head is complete."""
        self._head_came()
        super().allHeadersReceived()

    def _maybeChooseTransferDecoder(self, header: bytes, data: bytes) -> bool:
        """Whether the header is right.

        Stock raises on a length of thousands of digits, and passes by a coding of ``identity``,
        and one that HTTP/1.0 does not have: a proxy may not have passed by it.
        """
        if header == b"Content-Length" and len(data) > 19:
            return self._failChooseTransferDecoder()
        if header == b"Transfer-Encoding" and (
            data.lower() != b"chunked" or self._version != b"HTTP/1.1"
        ):
            return self._failChooseTransferDecoder()
        return super()._maybeChooseTransferDecoder(header, data)  # type: ignore[no-any-return]

    def allContentReceived(self) -> None:
        """The request is complete."""
        if self._lingering is not None:
            self._close()
            return
        self._end_rate()
        self.release()
        if self._straight is not None:
            self._end_straight()
            del self.transport.doRead
        if self._usual_piece is not None:
            self.transport.bufferSize, self._usual_piece = self._usual_piece, None
        self.requests[-1].body.trailers = _trailers(self._transferDecoder)
        super().allContentReceived()

    def _send100Continue(self) -> None:
        """Not now, but when somebody wants to read; a refusal should come before the body."""
        body = self.requests[-1].body
        body.expects_continue = not body.ended

    def _respondToBadRequestAndDisconnect(self) -> None:
        """What came is not HTTP: the request at hand ends here, whoever may be working on it."""
        if self.requests and self.requests[0].startedWriting:
            self._close()
        else:
            self._refuse(400)
        for request in self.requests:
            request.connectionLost(Failure(ConnectionAborted("malformed request")))

    # -- within -----------------------------------------------------------------------------------

    def _stand_in_line(self) -> None:
        """Before a request, when its address has very many connections."""
        if not self._gone and self.site.connections.of_address(self) > CROWD:
            self.hold()
            self.site.crowds.wait(self)

    def _await_head(self) -> None:
        """From its first byte on a head has so long, however slowly it trickles in."""
        if self._late_head is None and not (self._gone or self.transport.disconnecting):
            self._late_head = self.callLater(self.site.patience.head, self._late)

    def _head_came(self) -> None:
        call, self._late_head = self._late_head, None
        if call is not None and call.active():
            call.cancel()

    def _late(self) -> None:
        self._late_head = None
        self._refuse(408)

    def _too_slow(self) -> None:
        """A body comes in too slowly; what came of it is kept by whoever keeps it."""
        self._log.info("A body came in too slowly; the connection is closed.")
        if self.requests[0].startedWriting:
            self._close()
        else:
            self._refuse(408)
        for request in self.requests:
            request.connectionLost(Failure(ConnectionAborted("too slow")))

    def _refuse(self, status: int) -> None:
        """Say so outside of any handler, and close."""
        self.transport.write(refused(status))
        self._close()

    def _end_rate(self) -> None:
        rate, self._rate = self._rate, None
        if rate is not None:
            rate.end()

    def _watch_taking(self) -> None:
        """Abort, unless the rest of an answer is taken as fast as its beginning had to be."""
        self._unsent = unsent(self.transport)
        self._abortingCall = self.callLater(self.site.to_take[0], self._check_taking)

    def _check_taking(self) -> None:
        if self._takes():
            self._watch_taking()
        else:
            self.forceAbortClient()

    def _takes(self) -> bool:
        before, self._unsent = self._unsent, unsent(self.transport)
        return before - self._unsent >= self.site.to_take[1]

    def _cancel_abort(self) -> None:
        call, self._abortingCall = self._abortingCall, None
        if call is not None and call.active():
            call.cancel()

    def _close(self) -> None:
        """Close when the answer has been sent; by force if the client does not take it."""
        self._end_lingering()
        self.setTimeout(None)
        if self._abortingCall is None:
            self._abortingCall = self.callLater(self.abortTimeout, self.forceAbortClient)
        self.loseConnection()

    def _end_straight(self) -> None:
        self._straight = None
        self.site.streaming -= 1

    def _end_lingering(self) -> None:
        call, self._lingering = self._lingering, None
        if call is not None and call.active():
            call.cancel()


def _trailers(decoder: Any) -> list[tuple[str, str]]:
    """What the decoder of a chunked body has seen behind the last chunk."""
    found = []
    for line in getattr(decoder, "_trailerHeaders", ()):
        name, _, value = bytes(line).decode("latin-1").partition(":")
        found.append((name.strip().lower(), value.strip()))
    return found


class BackupSite(Site):
    """The factory of connections: HTTP/1.1 with streaming request bodies.

    ``timeout`` is how long, in seconds, a connection may be silent while it is the client's turn.
    After an answer that came before the end of the body, up to ``linger_bytes`` of the rest are
    thrown away for up to ``linger_seconds``; then the connection is closed. ``on_finished`` is
    called with each answered request and the seconds it took; nothing else is logged of requests,
    for their paths are secrets. ``connections`` says who may connect, ``patience`` how slow a
    client may be.
    """

    # Without the stock wrapper around it, that switches to HTTP/2.
    protocol = _Channel  # type: ignore[assignment]
    requestFactory = StreamingRequest
    displayTracebacks = False
    noisy = False

    def __init__(
        self,
        resource: IResource,
        *,
        reactor: IReactorTime,
        timeout: float = 60.0,
        linger_seconds: float = 30.0,
        linger_bytes: int = 64 * 1024 * 1024,
        on_finished: Callable[[StreamingRequest, float], None] | None = None,
        connections: Connections | None = None,
        patience: Patience = PATIENT,
    ) -> None:
        super().__init__(resource, parsePOSTFormSubmission=False, timeout=timeout, reactor=reactor)
        if connections is None:
            connections = Connections(sys.maxsize, sys.maxsize, reactor)
        self.connections = connections
        self.crowds = Crowds(reactor)
        self.patience = patience
        self.linger_seconds = linger_seconds
        self.linger_bytes = linger_bytes
        self.streaming = 0
        self.asked_at = -inf
        self._on_finished = on_finished

    def startFactory(self) -> None:
        """Open no log, and start no clock for its lines."""

    def stopFactory(self) -> None:
        """Nothing was opened."""

    def log(self, request: StreamingRequest) -> None:  # type: ignore[override]
        """Called by ``Request.finish``."""
        if self._on_finished is not None:
            self._on_finished(request, self.reactor.seconds() - request.started)

    def share(self) -> int:
        """How many bytes one of the ``streaming`` bodies may take from the kernel in a turn."""
        if self.reactor.seconds() - self.asked_at > ASKING:
            return sys.maxsize
        return max(LEAST_SHARE, TURN // max(1, self.streaming))

    @property
    def to_take(self) -> tuple[float, float]:
        """In so many seconds a client must take so many bytes of an answer, or be cut."""
        seconds = self.timeOut or 60.0
        return seconds, max(1.0, self.patience.min_rate * seconds)

    def acceptableProtocols(self) -> list[bytes]:
        """HTTP/1.1 and nothing else."""
        return [b"http/1.1"]
