"""One connection to a site, in memory and on a clock, with a handler that the test plays."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

from klein import Klein
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import IResource, Resource

from backupd.trust.caller import LOCAL
from backupd.web.connections import Connections
from backupd.web.patience import Patience
from backupd.web.site import BackupSite, StreamingRequest

SIZED = b"PUT /up?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"PUT /up HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
EXPECTING = b"PUT /up HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Transport(StringTransportWithDisconnection):
    """A connection; ``stuck`` is one whose client does not take what is written."""

    bufferSize = 65536  # noqa: N815
    stuck = False
    aborted = False

    def loseConnection(self) -> None:
        if self.stuck:
            self.disconnecting = True
        elif self.connected:
            super().loseConnection()

    def abortConnection(self) -> None:
        self.aborted = True
        self.stuck = False
        self.disconnecting = True
        super().loseConnection()


class AsLocal(Resource):
    """Stands where the guard stands, and lets everybody through as in open mode."""

    isLeaf = True  # noqa: N815

    def __init__(self, inner: IResource) -> None:
        super().__init__()
        self._inner = inner

    def render(self, request: StreamingRequest) -> Any:
        request.caller = LOCAL
        return self._inner.render(request)


class Handlers:
    """A Klein application whose one handler does what the test does."""

    app = Klein()

    def __init__(self) -> None:
        self.requests: list[StreamingRequest] = []
        self.answers: list[Deferred[bytes]] = []
        self.cancelled = 0

    @app.route("/up", methods=["GET", "POST", "PUT"])
    def up(self, request: StreamingRequest) -> Deferred[bytes]:
        answer: Deferred[bytes] = Deferred(self._cancel)
        self.requests.append(request)
        self.answers.append(answer)
        return answer

    @app.route("/now", methods=["POST"])
    def now(self, request: StreamingRequest) -> bytes:
        return b"at once"

    @app.route("/echo", methods=["POST"])
    async def echo(self, request: StreamingRequest) -> bytes:
        return await request.body.read_all(100)

    def _cancel(self, _: object) -> None:
        self.cancelled += 1


class SiteCase(SynchronousTestCase):
    """One connection to one site, whose patience has no end unless a test says so."""

    patience = Patience(min_rate=0)

    def setUp(self) -> None:
        self.clock = Clock()
        self.handlers = Handlers()
        self.finished: list[tuple[StreamingRequest, float]] = []
        self.site = BackupSite(
            self.handlers.app.resource(),
            reactor=self.clock,
            linger_bytes=1000,
            connections=Connections(100, 10, self.clock),
            patience=self.patience,
            on_finished=lambda request, seconds: self.finished.append((request, seconds)),
        )
        self.channel: Any = self.site.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1))
        self.transport: Any = Transport()
        self.transport.protocol = self.channel
        self.channel.makeConnection(self.transport)
        self.addCleanup(self.nothing_is_left)

    def nothing_is_left(self) -> None:
        if self.transport.connected:
            self.transport.abortConnection()
        assert self.clock.getDelayedCalls() == []

    def send(self, *segments: bytes) -> None:
        for segment in segments:
            self.channel.dataReceived(segment)

    def cut(self) -> None:
        self.transport.connected = False
        self.channel.connectionLost(Failure(ConnectionDone()))

    def begin(self, *segments: bytes) -> StreamingRequest:
        self.send(*segments)
        return self.handlers.requests[-1]

    def answer(self, body: bytes = b"ok") -> bytes:
        self.handlers.answers[-1].callback(body)
        return bytes(self.transport.value())

    def read(self, request: StreamingRequest) -> bytes:
        return self.successResultOf(request.body.read())
