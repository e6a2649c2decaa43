"""What one server says to another, against resources in memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from treq.testing import RequestTraversalAgent
from twisted.internet import error as network
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.client import ResponseNeverReceived
from twisted.web.iweb import IAgent
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from backupd.errors import PeerFailed, PeerRefused, PeerSilent
from backupd.peer.answers import seconds_in, words_in
from backupd.peer.client import TIMEOUT, PeerClient, make_http
from backupd.peer.exchange import MAX_ANSWER
from backupd.peer.origins import Place
from backupd.waiting import go_on
from tests.outcomes import pending, result_of

LINK = "http://a.example:3000/api/v1/backup/receive-backup/SECRETSECRET"
Render = Callable[[Request], Any]


class Root(Resource):
    """Answers everything by one function."""

    isLeaf = True  # noqa: N815

    def __init__(self, answer: Render) -> None:
        Resource.__init__(self)
        self.answer = answer
        self.requests: list[tuple[bytes, bytes, dict[bytes, bytes], bytes]] = []

    def render(self, request: Request) -> Any:
        body = request.content.read() if request.content else b""
        self.requests.append((request.method, request.uri, request.getAllHeaders(), body))
        return self.answer(request)


def nowhere(place: Place) -> IStreamClientEndpoint:
    raise AssertionError("no upload here")


class Case:
    """A client whose other server is ``answer``."""

    def __init__(self, answer: Render) -> None:
        self.root = Root(answer)
        self.clock = Clock()
        self.agent = RequestTraversalAgent(self.root)
        self.client = PeerClient(make_http(self.agent), self.clock, nowhere)


def says(status: int, body: object, **headers: str) -> Render:
    def answer(request: Request) -> bytes:
        request.setResponseCode(status)
        for name, value in headers.items():
            request.setHeader(name.replace("_", "-"), value)
        return body if isinstance(body, bytes) else json.dumps(body).encode()

    return answer


def test_ask_posts_the_question_and_returns_yes_and_no() -> None:
    for success in (True, False):
        case = Case(says(200, {"success": success, "message": "m"}))
        answer = result_of(go_on(case.client.ask("http://a.example:3000/", {"videoId": 2})))
        assert answer == {"success": success, "message": "m"}
        ((method, uri, headers, body),) = case.root.requests
        assert (method, uri) == (b"POST", b"/api/v1/backup/can-accept-backup")
        assert headers[b"content-type"] == b"application/json"
        assert headers[b"host"] == b"a.example:3000"
        assert json.loads(body) == {"videoId": 2}
        assert case.clock.getDelayedCalls() == []


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", {}, {"success": "yes"}, b"[" * 50_000])
def test_an_answer_that_is_neither_yes_nor_no_fails(body: object) -> None:
    case = Case(says(200, body))
    with pytest.raises(PeerFailed, match=r"http://a\.example answered neither yes nor no"):
        result_of(go_on(case.client.ask("http://a.example", {})))


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 403, 421, 500, 503])
def test_what_is_not_a_success_is_a_refusal_and_no_redirect_is_followed(status: int) -> None:
    case = Case(says(status, {"message": "No,\n\tnot\x1b[31m you"}, location="http://evil/"))
    with pytest.raises(PeerRefused) as caught:
        result_of(go_on(case.client.ask("http://a.example", {})))
    assert caught.value.status == status
    assert str(caught.value) == f"http://a.example answered {status}: No, not [31m you"
    assert len(case.root.requests) == 1


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        (formatdate(1_000_060, usegmt=True), 60.0),
        (formatdate(999_000, usegmt=True), 0.0),
        ("soon", None),
        ("-3", None),
        ("9" * 30, None),
        ("Mon, 99 Foo 2026", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(said: str, seconds: float | None) -> None:
    case = Case(says(503, {}, retry_after=said))
    case.clock.advance(1_000_000)
    answer = result_of(go_on(case.client.offer(LINK, b"{}", {})))
    assert (answer.status, answer.retry_after) == (503, seconds)
    with pytest.raises(PeerRefused) as caught:
        result_of(go_on(case.client.complete(LINK, {})))
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (5, 5.0),
        (0.5, 0.5),
        (True, None),
        ("5", None),
        (-1, None),
        (float("nan"), None),
        (1e300, None),
    ],
)
def test_retry_after_in_json_is_a_number_within_reason(
    value: object, seconds: float | None
) -> None:
    assert seconds_in({"retryAfter": value}) == seconds


def test_words_of_another_server_fit_one_line() -> None:
    assert words_in({"message": "a\r\n\x00b" + "c" * 999}) == "a b" + "c" * 297
    assert words_in({"message": None, "detail": 7}) == "7"
    assert words_in({}) == ""


def test_an_offer_goes_out_as_it_is_and_any_status_is_an_answer() -> None:
    case = Case(says(202, {"success": True}))
    answer = result_of(go_on(case.client.offer(LINK, b'{"videoId": 2}', {"webhook-id": "1"})))
    assert (answer.status, answer.retry_after, answer.body) == (202, None, {"success": True})
    ((_, _, headers, body),) = case.root.requests
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"webhook-id"] == b"1"
    assert body == b'{"videoId": 2}'


@pytest.mark.parametrize("status", [200, 204])
def test_standing_tells_the_offset(status: int) -> None:
    case = Case(says(status, b"", upload_offset="123"))
    assert result_of(go_on(case.client.standing(LINK))) == 123
    ((method, _, headers, _),) = case.root.requests
    assert (method, headers[b"tus-resumable"]) == (b"HEAD", b"1.0.0")


@pytest.mark.parametrize(
    "answer",
    [
        says(200, b""),
        says(200, b"", upload_offset="-1"),
        says(200, b"", upload_offset="1e3"),
        says(404, b"", upload_offset="5"),
        says(405, b""),
        says(501, b""),
        says(400, b""),
    ],
)
def test_a_receiver_that_does_not_tell_is_sent_everything(answer: Render) -> None:
    assert result_of(go_on(Case(answer).client.standing(LINK))) is None


@pytest.mark.parametrize("status", [409, 410])
def test_standing_tells_that_it_is_over(status: int) -> None:
    with pytest.raises(PeerRefused) as caught:
        result_of(go_on(Case(says(status, b"")).client.standing(LINK)))
    assert caught.value.status == status


def test_an_offset_is_told_beside_what_the_answer_says() -> None:
    case = Case(says(409, {"message": "no"}, upload_offset="5"))
    with pytest.raises(PeerRefused) as caught:
        result_of(go_on(case.client.complete(LINK, {})))
    assert caught.value.answer == {"message": "no", "receivedBytes": 5}


def test_silence_ends_after_15_seconds() -> None:
    case = Case(lambda request: NOT_DONE_YET)
    answer = go_on(case.client.status(LINK))
    case.clock.advance(TIMEOUT - 0.1)
    assert pending(answer)
    case.clock.advance(0.1)
    with pytest.raises(PeerSilent, match=r"^http://a.example:3000 did not answer within 15 s\.$"):
        result_of(answer)
    assert case.clock.getDelayedCalls() == []


def test_a_trickle_ends_after_15_seconds_too() -> None:
    """Headers do not stop the clock."""
    held: list[Request] = []

    def trickle(request: Request) -> Any:
        request.write(b"{")
        held.append(request)
        return NOT_DONE_YET

    case = Case(trickle)
    answer = go_on(case.client.status(LINK))
    for _ in range(14):
        case.clock.advance(1)
        held[0].write(b" ")
        case.agent.flush()
    assert pending(answer)
    case.clock.advance(1)
    with pytest.raises(PeerFailed, match="within 15 s"):
        result_of(answer)


def test_an_answer_longer_than_64_kib_is_cut_off() -> None:
    case = Case(says(200, b"x" * (MAX_ANSWER + 1)))
    with pytest.raises(PeerFailed, match="longer than 64 KiB"):
        result_of(go_on(case.client.status(LINK)))


def test_no_content_coding_is_asked_for_or_undone() -> None:
    """64 KiB of gzip can be 64 MiB."""
    bomb = gzip.compress(json.dumps({"state": "PENDING"}).encode())
    case = Case(says(200, bomb, content_encoding="gzip"))
    assert result_of(go_on(case.client.status(LINK))) == {}
    assert b"accept-encoding" not in case.root.requests[0][2]


def test_cookies_are_not_kept() -> None:
    case = Case(says(200, {}, set_cookie="a=b"))
    for _ in range(2):
        result_of(go_on(case.client.status(LINK)))
    assert b"cookie" not in case.root.requests[1][2]


def test_cancelling_ends_the_exchange() -> None:
    case = Case(lambda request: NOT_DONE_YET)
    answer = go_on(case.client.status(LINK))
    answer.cancel()
    with pytest.raises(CancelledError):
        result_of(answer)
    assert case.clock.getDelayedCalls() == []


@implementer(IAgent)
class Broken:
    """A network that fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def request(self, *_: object, **__: object) -> Deferred[Any]:
        return fail(self.error)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (network.ConnectionRefusedError(), "http://a.example:3000 refused the connection."),
        (network.DNSLookupError("x"), "The name a.example was not found."),
        (network.TimeoutError(), "http://a.example:3000 did not answer within 15 s."),
        (
            ResponseNeverReceived([Failure(network.ConnectionLost())]),
            "http://a.example:3000 closed the connection without an answer.",
        ),
        (network.NoRouteError(), "http://a.example:3000 could not be reached (NoRouteError)."),
        (
            ValueError("Invalid URI SECRETSECRET"),
            "The exchange with http://a.example:3000 failed (ValueError).",
        ),
    ],
)
def test_what_the_network_does_becomes_a_sentence_without_a_capability(
    error: Exception, sentence: str
) -> None:
    client = PeerClient(make_http(Broken(error)), Clock(), nowhere)
    with pytest.raises(PeerFailed) as caught:
        result_of(go_on(client.status(LINK)))
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("error", "silent"),
    [
        (network.TimeoutError(), True),
        (network.TCPTimedOutError(), True),
        (network.NoRouteError(), True),
        (network.DNSLookupError("x"), True),
        (network.ConnectionRefusedError(), False),
        (ResponseNeverReceived([Failure(network.ConnectionLost())]), False),
    ],
)
def test_who_says_anything_is_not_silent(error: Exception, silent: bool) -> None:
    """That a connection is refused or ended is told at once; the rest is waited for in vain."""
    client = PeerClient(make_http(Broken(error)), Clock(), nowhere)
    with pytest.raises(PeerFailed) as caught:
        result_of(go_on(client.status(LINK)))
    assert isinstance(caught.value, PeerSilent) is silent


def test_a_link_that_is_none_is_not_called() -> None:
    case = Case(says(200, {}))
    with pytest.raises(PeerFailed, match="no URL that can be called"):
        result_of(go_on(case.client.status("http://a@b/SECRETSECRET")))
    assert case.root.requests == []
