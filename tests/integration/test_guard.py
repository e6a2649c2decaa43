"""PROTOCOL.md, section 7 in open mode, and bad input of every kind: never a 500."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.contract import is_problem
from tests.integration.daemons import Answer, Daemon, answer_on, call, exchange
from tests.integration.plain import LINK, PlainSender, octets

ASK = "/api/v1/backup/can-accept-backup"
ROUTES = {
    "/healthz": {"GET"},
    "/readyz": {"GET"},
    ASK: {"POST"},
    "/api/v1/backup/receive-backup": {"POST", "PUT"},
    "/api/v1/backup/receive-backup/CAPABILITY": {"POST", "PUT", "HEAD", "PATCH"},
    "/api/v1/backup/complete-backup": {"POST"},
    "/api/v1/backup/complete-backup/CAPABILITY": {"POST"},
    "/api/v1/backup/serverAisReadyForBackup": {"POST"},
    "/api/v1/backup/serverAisReadyForBackup/CAPABILITY": {"POST"},
    "/api/v1/backup/requests": {"GET"},
    "/api/v1/backup/requests/ID": {"GET", "DELETE"},
    "/api/v1/backups": {"GET"},
    "/api/v1/backups/ID": {"GET", "DELETE"},
    "/api/v1/backups/ID/content": {"GET"},
    "/api/v1/backups/ID/verify": {"POST"},
    "/api/v1/backups/ID/undelete": {"POST"},
    "/api/v1/backups/ID/lock": {"POST"},
    "/api/v1/audit": {"GET"},
    "/api/v1/rebuild": {"POST"},
    "/api/v1/inspection": {"GET", "POST"},
    "/api/v1/outbox": {"GET", "POST"},
    "/api/v1/outbox/ID": {"GET", "DELETE"},
}


def ask_of(receiver: Daemon, **headers: str) -> Answer:
    body = {"videoId": 1, "diskEmptySpaceRequire": "1000 PB", LINK: "http://localhost:9/x"}
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return receiver.call("POST", ASK, body, sent)


# -- web pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:3000", "localhost.evil.example", "", "a b", "u@localhost"],
)
def test_a_rebound_name_is_421(receiver: Daemon, host: str) -> None:
    for path in ("/readyz", "/api/v1/backups"):
        is_problem(receiver.call("GET", path, headers={"Host": host}), 421)


def test_loopback_names_are_ours(receiver: Daemon) -> None:
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.2:5", "[::1]", "[::1]:80"):
        assert receiver.call("GET", "/readyz", headers={"Host": host}).status == 200


def test_a_host_must_be_there_once(receiver: Daemon) -> None:
    for hosts in ("", "Host: localhost\r\nHost: localhost\r\n"):
        data = f"GET /readyz HTTP/1.1\r\n{hosts}\r\n".encode()
        assert exchange(receiver.port, data, "GET").status == 400


def test_a_page_of_another_origin_writes_nothing(receiver: Daemon, sender: PlainSender) -> None:
    for origin in ("http://evil.example", "null", "https://localhost", "http://localhost:1"):
        is_problem(ask_of(receiver, Origin=origin), 403)
        headers = {"Origin": origin}
        assert receiver.call("GET", "/api/v1/backups", headers=headers).status == 200
    is_problem(ask_of(receiver, Sec_Fetch_Site="cross-site"), 403)
    send, complete = sender.turn(receiver.url, "origin", 5)
    evil = {"Origin": "http://evil.example"}
    is_problem(call("POST", send, b"12345", octets | evil), 403)
    is_problem(call("POST", complete, {"videoId": "origin", "success": False}, evil), 403)
    is_problem(receiver.call("DELETE", "/api/v1/backups/x", headers=evil, operator=True), 403)
    for site in ("same-origin", "none", "same-site"):
        assert ask_of(receiver, Sec_Fetch_Site=site).status == 200
    assert ask_of(receiver, Origin=receiver.url).status == 200


def test_an_origin_of_the_settings_may_write(tmp_path_factory: pytest.TempPathFactory) -> None:
    origin = "https://studio.example"
    with Daemon(tmp_path_factory.mktemp("origin"), allowed_origins=origin) as daemon:
        assert ask_of(daemon, Origin=origin, Sec_Fetch_Site="cross-site").status == 200
        is_problem(ask_of(daemon, Origin="https://other.example"), 403)


# -- routing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(ROUTES))
def test_another_method_is_405_with_allow(receiver: Daemon, path: str) -> None:
    takes = ROUTES[path]
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - takes:
        if method == "GET" and "HEAD" in takes:
            continue
        answer = receiver.call(method, path)
        is_problem(answer, 405)
        allowed = {name.strip() for name in answer.headers["Allow"].split(",")}
        assert takes <= allowed
        assert method not in allowed


def test_nothing_tells_how_it_is_made(receiver: Daemon) -> None:
    for path in ("/", "/api", "/api/v1/backups/%2e%2e/x", "/favicon.ico", "/%00", "/" + "x" * 5000):
        answer = is_problem(receiver.call("GET", path), 404)
        assert "Traceback" not in json.dumps(answer)


# -- what is no HTTP -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n" % ASK.encode(),
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n" % ASK.encode(),
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"
        % ASK.encode(),
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n" % ASK.encode(),
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % ASK.encode(),
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        % ASK.encode(),
        b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nBad Header\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70000 + b"\r\n\r\n",
        b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400(receiver: Daemon, data: bytes) -> None:
    try:
        status = exchange(receiver.port, data).status
    except (http.client.HTTPException, ConnectionError):
        status = 0  # closed without a word
    assert status in (0, 400, 404, 411, 413, 414, 415, 431, 501, 505)
    assert receiver.call("GET", "/healthz").status == 200


def test_two_requests_on_one_connection(receiver: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        bad = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        bad = bad % ASK.encode() + b"Content-Length: 2\r\n\r\n{}"
        connection.sendall(one)
        assert answer_on(connection, "GET").status == 200
        connection.sendall(bad)
        assert answer_on(connection).status == 400
        connection.sendall(one)
        assert answer_on(connection, "GET").status == 200


# -- anything at all -------------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text()
    | st.sampled_from(["50MB", "http://localhost:9/x", "http://[::1", "\ud800", "0" * 64, ""])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
members = st.sampled_from(
    [
        "videoId",
        "diskEmptySpaceRequire",
        LINK,
        "success",
        "size",
        "sha256",
        "fileName",
        "contentType",
        "path",
        "to",
        "linkForServerBtoSendBackupToSeverA",
        "linkForServerBtoCompleteBackupToSeverA",
    ]
)
documents = st.dictionaries(members, values, max_size=6).map(lambda one: json.dumps(one).encode())
bodies = st.binary(max_size=300) | documents | values.map(lambda one: json.dumps(one).encode())
header_values = st.text(
    st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60
).map(str.strip)
headers = st.dictionaries(
    st.sampled_from(
        [
            "Content-Type",
            "Range",
            "If-Range",
            "If-None-Match",
            "If-Modified-Since",
            "Upload-Offset",
            "Upload-Length",
            "Tus-Resumable",
            "Content-Digest",
            "Repr-Digest",
            "Content-Disposition",
            "Content-Encoding",
            "Accept",
            "Cookie",
            "Origin",
            "Host",
            "Sec-Fetch-Site",
            "Authorization",
        ]
    ),
    header_values
    | st.sampled_from(
        [
            "application/json",
            "multipart/form-data; boundary=x",
            "multipart/form-data; boundary=" + "é" * 9,
            "application/offset+octet-stream",
            "bytes=0-1",
            "bytes=1-",
            "0",
            "99999999999999999999",
            "sha-256=:AAAA:",
            "attachment; filename*=UTF-8''%ff",
            'attachment; filename="../x"',
            "localhost",
        ]
    ),
    max_size=4,
)
parts = st.sampled_from(["KEPT", "SEND", "REQUEST"]) | st.text(max_size=20)
QUERY = st.sampled_from(
    ["", "?after=1", "?limit=2", "?videoId=x", "?%ff=%00", "?state=live", "?=&&"]
)


@pytest.fixture(scope="module")
def known(receiver: Daemon, sender: PlainSender) -> dict[str, str]:
    """Something real behind the paths: a kept backup, and a request that has its turn."""
    done = sender.back_up(receiver.url, "fuzzed", b"a video")
    send, _ = sender.turn(receiver.url, "fuzzing", 100)
    request_id = receiver.call("GET", "/api/v1/backup/requests?state=live&limit=1000").json
    return {
        "KEPT": done["backupId"],
        "SEND": send.rpartition("/")[2],
        "REQUEST": request_id["requests"][-1]["requestId"],
    }


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_nothing_that_a_client_sends_is_our_defect(
    receiver: Daemon, known: dict[str, str], data: st.DataObject
) -> None:
    path = data.draw(st.sampled_from(sorted(ROUTES)))
    method = data.draw(st.sampled_from(sorted(ROUTES[path])) | st.sampled_from(["GET", "HEAD"]))
    part = known.get(drawn := data.draw(parts), drawn)
    quoted = "".join(f"%{byte:02x}" for byte in part.encode("utf-8", "surrogatepass")) or "x"
    target = path.replace("CAPABILITY", quoted).replace("ID", quoted) + data.draw(QUERY)
    body = data.draw(st.none() | bodies)
    sent = {name: value.encode("latin-1") for name, value in data.draw(headers).items()}
    operator = data.draw(st.booleans()) and path != "/api/v1/rebuild"
    if body is not None and data.draw(st.booleans()):
        sent["Content-Type"] = b"application/json"
    if operator and method != "DELETE":
        sent["Authorization"] = f"Bearer {receiver.token}".encode()
    answer = send_any(receiver, method, target, body, sent)
    if answer is None:
        return
    assert answer.status < 500 or answer.status in (503, 507), (answer.status, answer.body)
    if answer.status >= 400 and method != "HEAD" and answer.status != 416:
        problem: Any = answer.json if answer.body else {"success": False}
        assert problem["success"] is False


def send_any(
    receiver: Daemon, method: str, target: str, body: bytes | None, sent: dict[str, bytes]
) -> Answer | None:
    """The answer; None when what was sent is no HTTP at all, and the connection was closed."""
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=20)
    try:
        connection.putrequest(method, target, skip_host="Host" in sent, skip_accept_encoding=True)
        for name, value in sent.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
        return None
    finally:
        connection.close()
