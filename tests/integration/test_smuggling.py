"""No request is read as two, or two as one: raw, and through nginx and HAProxy."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
from collections.abc import Iterator

import pytest

from tests.integration.daemons import Daemon, wait_until
from tests.integration.proxies import PROXIES, Proxy
from tests.integration.smuggled import AMBIGUOUS, hidden

ASK = "/api/v1/backup/can-accept-backup"
_marks = (f"hidden-{number}" for number in itertools.count())


def statuses(connection: socket.socket, data: bytes) -> list[int]:
    """The statuses of every answer until the connection is closed, or silent for a while."""
    said = b""
    connection.settimeout(1.0)
    with contextlib.suppress(OSError):
        connection.sendall(data)
    with contextlib.suppress(OSError):
        while piece := connection.recv(65536):
            said += piece
    return [int(one) for one in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", said)]


# -- raw -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", sorted(AMBIGUOUS))
def test_what_is_ambiguous_ends_the_connection(receiver: Daemon, case: str) -> None:
    """It is refused, once, and nothing behind it is looked at."""
    mark = next(_marks)
    request = hidden(AMBIGUOUS[case], ASK, f"localhost:{receiver.port}", mark)
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        assert statuses(connection, request) in ([400], [])
    assert mark not in receiver.text()


def test_http_1_0_has_no_chunks(receiver: Daemon) -> None:
    """What an old proxy does not know, it passes by; and reads the body otherwise."""
    mark = next(_marks)
    lines = "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    request = hidden(lines, ASK, "localhost", mark, "HTTP/1.0")
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        assert statuses(connection, request) == [400]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        ("GET /healthz HTTP/1.1\r\n" + "X-A: b\r\n" * 101, 400),
        ("GET /healthz HTTP/1.1\r\n" + f"X-A: {'b' * 1000}\r\n" * 17, 400),
        (f"GET /healthz HTTP/1.1\r\nX-A: {'b' * 20000}\r\n", 431),
        (f"GET /{'b' * 20000} HTTP/1.1\r\n", 414),
        ("GET  /healthz HTTP/1.1\r\n", 400),
        ("GET /healthz\r\n", 400),
        ("GET /healthz HTTP/1.2\r\n", 400),
        ("GET /healthz HTTP/2.0\r\n", 400),
        ("GET /healthz http/1.1\r\n", 400),
        ("GET /heal\0thz HTTP/1.1\r\n", 400),
        ("GET /heal\tthz HTTP/1.1\r\n", 400),
        ("GE(T /healthz HTTP/1.1\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n", 400),
        ("\r\n\r\nGET /healthz HTTP/1.1\r\n", 400),
    ],
)
def test_a_head_has_its_bounds(receiver: Daemon, data: str, status: int) -> None:
    """So many lines, so many bytes, one form."""
    whole = f"{data}Host: localhost\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        assert statuses(connection, whole) == [status]


# -- through proxies -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=sorted(PROXIES))
def front(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    with PROXIES[request.param](tmp_path_factory.mktemp(request.param)) as proxy:
        yield proxy


def test_no_proxy_and_we_disagree(front: Proxy) -> None:
    """However the proxy reads it: what it took for a body is no request to us.

    A proxy may itself take what follows for a second request, and pass it on as one; then it also
    answers twice. What must not be is that we see more requests than it has answered.
    """
    seen: dict[str, list[int]] = {}
    for case, lines in sorted(AMBIGUOUS.items()):
        mark = next(_marks)
        request = hidden(lines, ASK, f"localhost:{front.port}", mark)
        with contextlib.suppress(OSError), front.connect(10.0) as connection:
            seen[f"{case} {mark}"] = statuses(connection, request)
    fence = f"fence-{next(_marks)}"
    for _ in range(8):  # on every connection that the proxy keeps to us
        assert front.call("GET", f"/api/v1/backups/{fence}").status == 404
    wait_until(lambda: fence in front.daemon.text(), "the daemon has logged it")
    log = front.daemon.text()
    for case, answers in seen.items():
        mark = case.rpartition(" ")[2]
        count = len(re.findall(rf"/{mark} ", log))
        assert count <= max(0, len(answers) - 1), (case, answers)
        assert all(status < 500 for status in answers if status != 501), (case, answers)
