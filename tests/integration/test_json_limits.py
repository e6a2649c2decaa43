"""What JSON may be, and a head: said by raw bytes, straight and through nginx and HAProxy.

Every refusal is the problem document of docs/protocol.md, comes soon, and costs no memory; where a
proxy refuses by itself, its own answer is never 5xx either.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.daemons import Answer, Daemon, answer_on
from tests.integration.proxies import PROXIES

ASK = "/api/v1/backup/can-accept-backup"
MIB = 2**20
SOON = 5.0
"""Seconds; what these take is a hundredth of it on a machine that has nothing else to do."""

GROWTH = 32 * MIB


def message(**members: str) -> bytes:
    """A good request, as JSON; ``members`` are written as they stand."""
    good = {
        "videoId": '"limits"',
        "diskEmptySpaceRequire": '"1 KB"',
        "linkForServerAtoNoticeServerBWhenServerAIsReady": '"http://localhost:9/offer"',
    }
    return ("{" + ",".join(f'"{n}":{v}' for n, v in (good | members).items()) + "}").encode()


def padded(size: int) -> bytes:
    return message(x='"' + "x" * (size - len(message(x='""'))) + '"')


def many(count: int) -> str:
    return "{" + ",".join(f'"{number}":0' for number in range(count)) + "}"


GOOD: dict[str, bytes] = {
    "64 KiB": padded(64 * 1024),
    "16 levels": message(x="[" * 15 + "]" * 15),
    "members that nobody knows": message(x="null", y="[1.5e300, -0]"),
    "a pair of surrogates": message(x=r'"\ud83c\udfac"'),
    "white space": b" \n\t\r" + message() + b"\r\n ",
    "thousands of members": message(x=many(5000)),
}

BAD: dict[str, tuple[bytes, int]] = {
    "a byte more than 64 KiB": (padded(64 * 1024 + 1), 413),
    "17 levels": (message(x="[" * 16 + "]" * 16), 400),
    "16 levels of objects": (message(x='{"a":' * 16 + "0" + "}" * 16), 400),
    "30,000 levels": (b"[" * 30_000 + b"]" * 30_000, 400),
    "60,000 levels without an end": (b"[" * 60_000, 400),
    "10,000 levels of objects": (b'{"a":' * 10_000, 400),
    "a member twice": (message()[:-1] + b',"videoId":3}', 400),
    "a member twice, once escaped": (message()[:-1] + rb',"v\u0069deoId":3}', 400),
    "a member twice, deep within": (message(x='[[{"a":1,"a":2}]]'), 400),
    "5,000 members twice": (message(x=many(2500)[:-1] + "," + many(2500)[1:]), 400),
    "a number of 60,000 digits": (message(videoId="9" * 60_000), 400),
    "a fraction of 60,000 digits": (message(videoId="0." + "9" * 60_000), 400),
    "a number beyond 2^53": (message(videoId=str(2**53)), 400),
    "a number that no float holds": (message(x="1e999999999"), 400),
    "a negative number": (message(videoId="-1"), 400),
    "1.0": (message(videoId="1.0"), 400),
    "+1": (message(videoId="+1"), 400),
    "01": (message(videoId="01"), 400),
    "0x1": (message(videoId="0x1"), 400),
    "a size of 60,000 digits": (message(diskEmptySpaceRequire="9" * 60_000), 400),
    "a size of 60,000 digits in a string": (
        message(diskEmptySpaceRequire='"' + "9" * 60_000 + ' B"'),
        400,
    ),
    "NaN": (message(x="NaN"), 400),
    "Infinity": (message(x="Infinity"), 400),
    "-Infinity": (message(x="-Infinity"), 400),
    "a byte order mark": (b"\xef\xbb\xbf" + message(), 400),
    "UTF-16": (message().decode().encode("utf-16"), 400),
    "UTF-32": (message().decode().encode("utf-32-le"), 400),
    "a byte that is no UTF-8": (message(x='"\xff"').replace("\xff".encode(), b"\xff"), 400),
    "an overlong slash": (message(videoId='"@"').replace(b"@", b"\xc0\xaf"), 400),
    "a surrogate in UTF-8": (message(videoId='"@"').replace(b"@", b"\xed\xa0\x80"), 400),
    "a lone surrogate": (message(videoId=r'"\ud800"'), 400),
    "a lone surrogate elsewhere": (message(x=r'"\udfff"'), 400),
    "a lone surrogate in a name": (message()[:-1] + rb',"\ud800":1}', 400),
    "a lone surrogate in a name, twice": (message()[:-1] + rb',"\ud800":1,"\ud800":1}', 400),
    "two surrogates the wrong way round": (message(videoId=r'"\udfac\ud83c"'), 400),
    "NUL in a string": (message(videoId=r'"a\u0000b"'), 400),
    "NUL behind it": (message() + b"\0", 400),
    "a control character in a string": (message(videoId='"a\nb"'), 400),
    "a comma too many": (message()[:-1] + b",}", 400),
    "two messages": (message() + message(), 400),
    "a comment": (b"/**/" + message(), 400),
    "nothing": (b"", 400),
    "no object": (b'["videoId"]', 400),
    "null": (b"null", 400),
    "an escape that is none": (message(videoId=r'"\x41"'), 400),
    "half an escape": (message(videoId=r'"\u00"'), 400),
}
"""What is sent, and the status that it gets."""

FLOODS: dict[str, bytes] = {
    "101 lines": b"".join(b"X-%d: y\r\n" % number for number in range(101)),
    "20,000 lines": b"".join(b"X-%d: y\r\n" % number for number in range(20_000)),
    "a line of 100,000 bytes": b"X-A: " + b"a" * 100_000 + b"\r\n",
    "a name of 100,000 bytes": b"a" * 100_000 + b": b\r\n",
    "a megabyte of cookies": b"".join(b"Cookie: a=%d%b\r\n" % (n, b"b" * 990) for n in range(1000)),
    "a line without an end": b"X-A: " + b"a" * 2_000_000,
    "one name 200 times": b"X-Forwarded-For: 192.0.2.1\r\n" * 200,
}


class Way:
    """How the daemon is reached: ``connect`` gives a connection, ``straight`` is without proxy."""

    def __init__(
        self, daemon: Daemon, port: int, connect: Callable[[], socket.socket], *, straight: bool
    ) -> None:
        self.daemon = daemon
        self.port = port
        self.connect = connect
        self.straight = straight

    def post(self, body: bytes, *, chunked: bool = False) -> Answer:
        if chunked:
            framing = "Transfer-Encoding: chunked"
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
        else:
            framing = f"Content-Length: {len(body)}"
        return self.say(f"Content-Type: application/json\r\n{framing}\r\n".encode(), body)

    def say(self, lines: bytes, body: bytes = b"", *, method: str = "POST") -> Answer:
        path = ASK if method == "POST" else "/healthz"
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost:{self.port}\r\n"
        with self.connect() as connection:
            with contextlib.suppress(OSError):  # it has heard enough: the answer is there, or a cut
                connection.sendall(head.encode() + lines + b"\r\n" + body)
            return answer_on(connection, method)


@pytest.fixture(scope="module", params=["straight", *sorted(PROXIES)])
def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "straight":
        with Daemon(folder) as daemon:
            address = ("127.0.0.1", daemon.port)
            yield Way(
                daemon, daemon.port, lambda: socket.create_connection(address, 20), straight=True
            )
    else:
        with PROXIES[request.param](folder) as proxy:
            yield Way(proxy.daemon, proxy.port, proxy.connect, straight=False)


def check_problem(answer: Answer, status: int) -> None:
    """It is the document that every refusal is."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    told = json.loads(answer.body.decode("utf-8"))
    assert told["status"] == status
    assert told["success"] is False
    assert told["message"] == told["detail"] != ""
    assert told["type"].startswith("urn:backupd:problem:")
    assert told["title"]
    assert len(answer.body) < 2048


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("case", sorted(GOOD))
def test_what_is_json_is_taken(way: Way, case: str, chunked: bool) -> None:
    answer = way.post(GOOD[case], chunked=chunked)
    assert answer.status == 200, answer.body
    assert answer.json["success"] is True


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("case", sorted(BAD))
def test_what_is_not_is_refused_in_words(way: Way, case: str, chunked: bool) -> None:
    body, status = BAD[case]
    begun = time.monotonic()
    answer = way.post(body, chunked=chunked)
    assert time.monotonic() - begun < SOON
    check_problem(answer, status)


@pytest.mark.parametrize("case", sorted(FLOODS))
def test_a_flood_of_headers_is_refused(way: Way, case: str) -> None:
    """By us, or by the proxy in its own words; a proxy may also take out what is too much."""
    begun = time.monotonic()
    answer: Answer | None = None
    with contextlib.suppress(OSError):  # the rest of the flood came after the answer: a cut
        answer = way.say(FLOODS[case], method="GET")
    assert time.monotonic() - begun < SOON
    if answer is None:
        return
    if way.straight or answer.headers["Content-Type"] == "application/problem+json":
        assert answer.status in (400, 431)
        check_problem(answer, answer.status)
    else:
        assert answer.status < 500


def test_none_of_it_costs_memory_or_leaves_a_trace(way: Way) -> None:
    """However often it is said, the daemon is as it was; and it tells of no defect at its end."""
    bodies = [body for body, _ in BAD.values()]
    for body in bodies:
        way.post(body)
    before = way.daemon.memory()
    for _ in range(4):
        for body in bodies:
            way.post(body)
    assert way.daemon.memory() - before < GROWTH
    log = way.daemon.text()
    assert "Traceback" not in log
    assert "incident" not in log
