"""PROTOCOL.md, sections 1, 3 and 4, over real sockets: ask for room, upload, complete."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.integration.daemons import (
    Answer,
    Daemon,
    answer_on,
    call,
    clean_environment,
    exchange,
    run,
    wait_until,
)
from tests.integration.plain import LINK, PlainSender, octets

BYTES = bytes(range(256)) * 40
SHA = hashlib.sha256(BYTES).hexdigest()
ASK = "/api/v1/backup/can-accept-backup"
RECEIVE = "/api/v1/backup/receive-backup"
COMPLETE = "/api/v1/backup/complete-backup"
PATCH = {"Content-Type": "application/offset+octet-stream", "Tus-Resumable": "1.0.0"}


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def form(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, dict[str, str]]:
    """A form of (name, file name, content)."""
    body = b""
    for name, file_name, content in parts:
        file = "" if file_name is None else f'; filename="{file_name}"'
        body += f'--b0\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + b"--b0--\r\n", {"Content-Type": "multipart/form-data; boundary=b0"}


def path_of(link: str) -> str:
    return "/" + link.split("/", 3)[3]


def head(receiver: Daemon, method: str, link: str, *lines: str) -> bytes:
    """The head of a request, as bytes."""
    own = [f"Host: localhost:{receiver.port}", *lines]
    return "\r\n".join([f"{method} {path_of(link)} HTTP/1.1", *own, "", ""]).encode()


def is_problem(answer: Answer, status: int, member: str | None = None) -> Any:
    """The answer is a problem document of this status; its members."""
    assert answer.status == status, (answer.status, answer.body)
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert problem["status"] == status
    assert problem["success"] is False
    assert problem["message"] == problem["detail"] != ""
    assert problem["type"]
    assert problem["title"]
    if member is not None:
        assert problem["member"] == member
    return problem


# -- 1: can-accept-backup --------------------------------------------------------------------------


def test_yes_has_exactly_these_members(receiver: Daemon, sender: PlainSender, video: int) -> None:
    answer = sender.ask(receiver.url, video, "50MB")
    assert answer.status == 200
    said = answer.json
    assert re.fullmatch(r"\d+(\.[1-9])? [KMGTP]B", said.pop("availableSpace"))
    request_id = said.pop("requestId")
    assert said == {
        "success": True,
        "message": "Server A can accept backup",
        "requiredSpace": "50 MB",
        "statusUrl": f"{receiver.url}/api/v1/backup/requests/{request_id}",
    }
    status = call("GET", f"{receiver.url}/api/v1/backup/requests/{request_id}").json
    assert (status["videoId"], status["reservedBytes"]) == (video, 50 * 1024**2)


def test_no_is_a_200_with_a_reason(receiver: Daemon, sender: PlainSender, video: int) -> None:
    answer = sender.ask(receiver.url, video, "1000 PB")
    assert answer.status == 200
    said = answer.json
    assert said["success"] is False
    assert said["reason"] in ("too-large", "insufficient-space")
    assert said["requiredSpace"] == "1000 PB"
    assert set(said) - {"retryAfter"} == {
        "success",
        "message",
        "reason",
        "availableSpace",
        "requiredSpace",
    }


def test_asking_again_makes_no_second_reservation(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    first = sender.ask(receiver.url, video, "5 MB").json
    again = sender.ask(receiver.url, str(video), "6 MB").json
    assert again["requestId"] == first["requestId"]
    status = call("GET", again["statusUrl"]).json
    assert status["reservedBytes"] == 6 * 1024**2


@pytest.mark.parametrize(
    ("change", "member"),
    [
        ({"videoId": None}, "videoId"),
        ({"videoId": -1}, "videoId"),
        ({"videoId": 2**53}, "videoId"),
        ({"videoId": 1.5}, "videoId"),
        ({"videoId": True}, "videoId"),
        ({"videoId": ""}, "videoId"),
        ({"videoId": "x" * 129}, "videoId"),
        ({"videoId": "a\nb"}, "videoId"),
        ({"videoId": [1]}, "videoId"),
        ({"diskEmptySpaceRequire": "0 MB"}, "diskEmptySpaceRequire"),
        ({"diskEmptySpaceRequire": -5}, "diskEmptySpaceRequire"),
        ({"diskEmptySpaceRequire": "lots"}, "diskEmptySpaceRequire"),
        ({"diskEmptySpaceRequire": 2**60 + 1}, "diskEmptySpaceRequire"),
        ({"diskEmptySpaceRequire": {}}, "diskEmptySpaceRequire"),
        ({LINK: "ftp://localhost/x"}, LINK),
        ({LINK: "/relative"}, LINK),
        ({LINK: "http://u:p@localhost/x"}, LINK),
        ({LINK: "http://localhost/x#f"}, LINK),
        ({LINK: "http://localhost/" + "x" * 2048}, LINK),
        ({"sha256": "abc"}, "sha256"),
        ({"fileName": 5}, "fileName"),
    ],
)
def test_what_is_malformed_is_named(receiver: Daemon, change: dict[str, Any], member: str) -> None:
    whole = {"videoId": 1, "diskEmptySpaceRequire": "1 MB", LINK: "http://localhost:9/x"}
    problem = is_problem(receiver.call("POST", ASK, whole | change), 400, member)
    assert member in problem["message"]


def test_a_member_that_is_missing_is_named(receiver: Daemon) -> None:
    is_problem(receiver.call("POST", ASK, {"diskEmptySpaceRequire": "1 MB"}), 400, "videoId")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"videoId": NaN}',
        b'{"videoId": 1e999}',
        b'{"videoId": ' + b"9" * 5000 + b"}",
        b'{"videoId": "\\ud800"}',
        b"[" * 30000,
        b'{"a":' * 17 + b"1" + b"}" * 17,
        b'{"videoId": 1, "videoId": 2}',
    ],
)
def test_a_body_that_is_no_proper_json_is_400(receiver: Daemon, body: bytes) -> None:
    json_type = {"Content-Type": "application/json"}
    is_problem(receiver.call("POST", ASK, body, json_type), 400)


def test_json_of_more_than_64_kib_is_413(receiver: Daemon) -> None:
    is_problem(receiver.call("POST", ASK, {"x": "y" * 66000}), 413)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_json_is_due_where_json_is_due(receiver: Daemon, kind: str) -> None:
    is_problem(receiver.call("POST", ASK, b"{}", {"Content-Type": kind}), 415)


@pytest.mark.parametrize(
    "link", ["http://example.org/x", "http://10.0.0.1/x", "http://127.1/x", "http://[::2]/x"]
)
def test_in_open_mode_only_this_machine_is_called_back(receiver: Daemon, link: str) -> None:
    body = {"videoId": 1, "diskEmptySpaceRequire": "1 MB", LINK: link}
    is_problem(receiver.call("POST", ASK, body), 403)


# -- 3: receive-backup -----------------------------------------------------------------------------


def test_json_says_that_it_starts(receiver: Daemon, sender: PlainSender, video: int) -> None:
    send, _ = sender.turn(receiver.url, video, 5000)
    for link in (send, f"{receiver.url}{RECEIVE}"):
        said = call("POST", link, {"videoId": str(video)}).json
        request_id = said.pop("requestId")
        assert said.pop("message")
        assert said == {"success": True, "uploadUrl": send, "reservedBytes": 5000}
        status = receiver.call("GET", f"/api/v1/backup/requests/{request_id}").json
        assert status["state"] == "RECEIVING"


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_the_bytes_go_whole(receiver: Daemon, sender: PlainSender, video: int, method: str) -> None:
    send, complete = sender.turn(receiver.url, video, "1 MB")
    answer = call(method, send, BYTES, {"Content-Type": "video/mp4"})
    said = answer.json
    assert said.pop("message")
    assert said.pop("requestId")
    assert (answer.status, said) == (200, {"success": True, "size": len(BYTES), "sha256": SHA})

    done = call("POST", complete, {"videoId": video, "success": True})
    kept = done.json
    assert kept.pop("message")
    backup_id = kept.pop("backupId")
    content = f"{receiver.url}/api/v1/backups/{backup_id}/content"
    assert (done.status, kept) == (
        200,
        {
            "success": True,
            "videoId": video,
            "size": len(BYTES),
            "sha256": SHA,
            "contentUrl": content,
        },
    )
    assert call("GET", content).body == BYTES


def test_the_bytes_go_chunked(receiver: Daemon, sender: PlainSender, video: int) -> None:
    send, _ = sender.turn(receiver.url, video, "1 MB")
    body = b"3;ext=1\r\nabc\r\n2800\r\n" + BYTES + b"\r\n0\r\nTrailer: x\r\n\r\n"
    got = exchange(
        receiver.port,
        head(receiver, "POST", send, "Transfer-Encoding: chunked", "Connection: close") + body,
    )
    assert (got.status, got.json["size"]) == (200, len(BYTES) + 3)


@pytest.mark.parametrize("order", ["before", "after", "none"])
def test_the_bytes_go_in_a_form(
    receiver: Daemon, sender: PlainSender, video: int, order: str
) -> None:
    send, complete = sender.turn(receiver.url, video, len(BYTES))
    field, file = ("videoId", None, str(video).encode()), ("video", "Käse.mp4", BYTES)
    parts: dict[str, list[tuple[str, str | None, bytes]]] = {
        "before": [field, file],
        "after": [file, field],
        "none": [file],
    }
    body, headers = form(*parts[order])
    answer = call("POST", send, body, headers)
    assert (answer.status, answer.json["sha256"]) == (200, SHA)
    done = call("POST", complete, {"videoId": video, "success": True}).json
    assert receiver.call("GET", f"/api/v1/backups/{done['backupId']}").json["fileName"] == (
        "Käse.mp4"
    )


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_form_for_another_video_is_400(
    receiver: Daemon, sender: PlainSender, video: int, order: str
) -> None:
    send, _ = sender.turn(receiver.url, video, len(BYTES))
    field, file = ("videoId", None, b"999999"), ("video", "v", BYTES)
    first, second = (field, file) if order == "before" else (file, field)
    body, headers = form(first, second)
    is_problem(call("POST", send, body, headers), 400, "videoId")


def test_a_form_without_a_file_is_400(receiver: Daemon, sender: PlainSender, video: int) -> None:
    send, _ = sender.turn(receiver.url, video, len(BYTES))
    body, headers = form(("videoId", None, str(video).encode()))
    is_problem(call("POST", send, body, headers), 400)
    is_problem(call("POST", send, body[:-9], headers), 400)
    is_problem(call("POST", send, b"", {"Content-Type": "multipart/form-data"}), 400)


def test_the_bare_path_serves_the_one_that_matches(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    sender.turn(receiver.url, video, len(BYTES))
    bare = f"{RECEIVE}?videoId={video}"
    assert receiver.call("POST", bare, BYTES, octets).status == 200
    done = receiver.call("POST", COMPLETE, {"videoId": video, "success": True})
    assert (done.status, done.json["sha256"]) == (200, SHA)
    is_problem(receiver.call("POST", bare, BYTES, octets), 409)


def test_the_bare_path_takes_a_form(receiver: Daemon, sender: PlainSender, video: int) -> None:
    """The field must come first: a video that has begun needs a place to go."""
    long = bytes(2 * 1024**2)
    sender.turn(receiver.url, video, len(long))
    field, file = ("videoId", None, str(video).encode()), ("video", "v.mp4", long)
    is_problem(receiver.call("POST", RECEIVE, *form(file, field)), 400, "videoId")
    assert receiver.call("POST", RECEIVE, *form(field, file)).status == 200


def test_the_bare_path_is_404_for_none_and_409_for_several(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    bare = f"{RECEIVE}?videoId={video}"
    is_problem(receiver.call("POST", bare, BYTES, octets), 404)
    is_problem(receiver.call("POST", COMPLETE, {"videoId": video, "success": True}), 404)
    is_problem(receiver.call("POST", RECEIVE, BYTES, octets), 400, "videoId")
    sender.turn(receiver.url, video, len(BYTES))
    with PlainSender() as other:
        other.turn(receiver.url, video, len(BYTES))
        is_problem(receiver.call("POST", bare, BYTES, octets), 409)
        is_problem(receiver.call("POST", RECEIVE, {"videoId": video}), 409)
        is_problem(receiver.call("POST", COMPLETE, {"videoId": video, "success": True}), 409)


@pytest.mark.parametrize("name", ["Content-Digest", "Repr-Digest"])
def test_a_digest_that_is_sent_is_checked(
    receiver: Daemon, sender: PlainSender, video: int, name: str
) -> None:
    send, _ = sender.turn(receiver.url, video, len(BYTES))
    wrong, right = octets | {name: digest(b"else")}, octets | {name: digest(BYTES)}
    is_problem(call("POST", send, BYTES, wrong), 422)
    assert call("HEAD", send).headers["Upload-Offset"] == "0"
    for malformed in ("sha-256=:AAAA:", "sha-256=:*:", "sha-256=abc", "sha-256"):
        is_problem(call("POST", send, BYTES, octets | {name: malformed}), 400, name.lower())
    assert call("POST", send, BYTES, octets | {name: "md5=:AAAA:"}).status == 200
    assert call("POST", send, BYTES, right).status == 200


def test_wrong_bytes_five_times_is_the_end(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    send, _ = sender.turn(receiver.url, video, len(BYTES))
    for _ in range(5):
        is_problem(call("POST", send, BYTES, octets | {"Repr-Digest": digest(b"else")}), 422)
    is_problem(call("POST", send, BYTES, octets), 410)


def under_way(receiver: Daemon, video: object) -> int:
    """Bytes of this video that have arrived."""
    found = receiver.call("GET", "/api/v1/backup/requests?state=live&limit=1000").json["requests"]
    received: int = next(one for one in found if one["videoId"] == video)["receivedBytes"]
    return received


def test_a_cut_connection_keeps_what_arrived(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    send, complete = sender.turn(receiver.url, video, len(BYTES))
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        connection.sendall(head(receiver, "PUT", send, f"Content-Length: {len(BYTES)}"))
        connection.sendall(BYTES[:3000])
        wait_until(lambda: under_way(receiver, video) == 3000, "3000 bytes have arrived")
    wait_until(lambda: call("HEAD", send).headers["Upload-Offset"] == "3000", "they are durable")
    problem = is_problem(call("POST", complete, {"videoId": video, "success": True}), 409)
    assert problem["receivedBytes"] == 3000
    standing = call("HEAD", send).headers
    assert (standing["Upload-Offset"], standing["Upload-Length"]) == ("3000", str(len(BYTES)))
    assert standing["Tus-Resumable"] == "1.0.0"

    def patch(offset: int, data: bytes, **headers: str) -> Answer:
        return call("PATCH", send, data, PATCH | {"Upload-Offset": str(offset)} | headers)

    answer = patch(2999, BYTES[2999:])
    is_problem(answer, 409)
    assert answer.headers["Upload-Offset"] == "3000"
    is_problem(patch(3000, BYTES[3000:] + b"x"), 413)
    is_problem(call("PATCH", send, b"x", octets | {"Upload-Offset": "3000"}), 415)
    is_problem(call("PATCH", send, b"x", PATCH), 400, "Upload-Offset")
    assert patch(3000, BYTES[3000:5000]).headers["Upload-Offset"] == "5000"
    answer = patch(5000, BYTES[5000:])
    assert (answer.status, answer.headers["Upload-Offset"]) == (204, str(len(BYTES)))
    done = call("POST", complete, {"videoId": video, "success": True})
    assert done.json["sha256"] == SHA


def test_an_upload_that_is_alive_is_not_ended(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    send, _ = sender.turn(receiver.url, video, len(BYTES))
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        request = head(
            receiver, "PUT", send, f"Content-Length: {len(BYTES)}", "Expect: 100-continue"
        )
        connection.sendall(request)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"x")
        answer = call("POST", send, BYTES, octets)
        is_problem(answer, 409)
        assert answer.headers["Retry-After"] == "5"


# -- refusals --------------------------------------------------------------------------------------


def refused_while_sending(receiver: Daemon, request: bytes, body: bytes) -> Answer:
    """What a client reads that sends until it cannot any more, and reads only then."""
    with socket.create_connection(("127.0.0.1", receiver.port), 20) as connection:
        try:
            connection.sendall(request)
            for _ in range(64):
                connection.sendall(body)
        except OSError:
            pytest.fail("the connection was reset before the answer was read")
        return answer_on(connection)


def test_a_refusal_reaches_a_client_that_goes_on_sending(
    receiver: Daemon, sender: PlainSender, video: int, tmp_path: Path
) -> None:
    send, _ = sender.turn(receiver.url, video, len(BYTES))
    gone, give_up = sender.turn(receiver.url, f"gone {video}", len(BYTES))
    assert call("POST", give_up, {"videoId": f"gone {video}", "success": False}).status == 200
    kept = sender.back_up(receiver.url, f"kept {video}", BYTES)
    assert kept["success"]
    unknown = f"{receiver.url}{RECEIVE}/nobody-knows-this"
    stored = f"{receiver.url}{RECEIVE}?videoId=kept%20{video}"
    big = 64 * 512 * 1024
    for link, status, *more in (
        (send, 413),
        (unknown, 404),
        (stored, 409),
        (gone, 410),
        (send, 415, "Content-Encoding: gzip"),
    ):
        request = head(receiver, "POST", link, f"Content-Length: {big}", *map(str, more))
        got = refused_while_sending(receiver, request, bytes(512 * 1024))
        is_problem(got, status)
    limit = is_problem(call("POST", send, BYTES + b"x", octets), 413)["limit"]
    assert limit == len(BYTES)

    file = tmp_path / "big"
    with file.open("wb") as sparse:
        sparse.truncate(big)
    for expect in ("Expect: 100-continue", "Expect:"):
        done = run(
            ["curl", "-sS", "-T", file, send, "-H", expect, "-w", "\n%{http_code}"],
            clean_environment(),
        )
        assert (done.code, done.out[-4:]) == (0, "\n413"), (done.err, done.out)
    assert call("HEAD", send).headers["Upload-Offset"] == "0"


def test_no_100_continue_is_sent_to_a_body_that_is_refused(receiver: Daemon) -> None:
    request = head(
        receiver, "PUT", f"{receiver.url}{RECEIVE}/x", "Content-Length: 5", "Expect: 100-continue"
    )
    with socket.create_connection(("127.0.0.1", receiver.port), 10) as connection:
        connection.sendall(request)
        assert connection.recv(100).startswith(b"HTTP/1.1 404 ")


def test_a_chunked_body_that_turns_out_too_long_is_cut_off(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    before = receiver.incoming
    send, _ = sender.turn(receiver.url, video, len(BYTES))
    body = b"10000\r\n" + bytes(65536) + b"\r\n"
    request = head(receiver, "POST", send, "Transfer-Encoding: chunked")
    got = refused_while_sending(receiver, request, body)
    assert is_problem(got, 413)["limit"] == len(BYTES)
    assert receiver.incoming == before
    assert call("HEAD", send).headers["Upload-Offset"] == "0"


def test_an_empty_body_is_no_video(receiver: Daemon, sender: PlainSender, video: int) -> None:
    send, _ = sender.turn(receiver.url, video, len(BYTES))
    is_problem(call("POST", send, b"", octets), 400, "body")
    chunked = head(receiver, "POST", send, "Transfer-Encoding: chunked", "Connection: close")
    is_problem(exchange(receiver.port, chunked + b"0\r\n\r\n"), 400, "body")
    is_problem(call("POST", send, *form(("video", "v.mp4", b""))), 400, "body")


# -- 4: complete-backup ----------------------------------------------------------------------------


def test_complete_says_the_same_again_and_nothing_is_taken_back(
    receiver: Daemon, sender: PlainSender, video: int
) -> None:
    send, complete = sender.turn(receiver.url, video, len(BYTES))
    problem = is_problem(call("POST", complete, {"videoId": video, "success": True}), 409)
    assert problem["receivedBytes"] == 0
    assert call("POST", send, BYTES, octets).status == 200
    assert call("HEAD", send).headers["Upload-Offset"] == str(len(BYTES))
    first = call("POST", complete, {"videoId": video, "success": True})
    again = call("POST", complete, {"videoId": video, "success": True})
    assert (first.status, first.json) == (again.status, again.json)
    is_problem(call("POST", send, BYTES, octets), 409)
    is_problem(call("POST", complete, {"videoId": video, "success": False}), 409)
    assert call("GET", first.json["contentUrl"]).body == BYTES


@pytest.mark.parametrize("lie", [{"sha256": "0" * 64}, {"size": 5}])
def test_complete_with_another_digest_goes_back_in_line(
    receiver: Daemon, sender: PlainSender, video: int, lie: dict[str, Any]
) -> None:
    send, complete = sender.turn(receiver.url, video, len(BYTES))
    request_id = call("POST", send, BYTES, octets).json["requestId"]
    is_problem(call("POST", complete, {"videoId": video, "success": True} | lie), 422)
    sender.notice(video)
    status = receiver.call("GET", f"/api/v1/backup/requests/{request_id}").json
    assert status["state"] in ("PENDING", "OFFERED")
    assert status["receivedBytes"] == 0
    truth = {"videoId": video, "success": True, "sha256": SHA.upper(), "size": len(BYTES)}
    assert call("POST", send, BYTES, octets).status == 200
    assert call("POST", complete, truth).status == 200


def test_success_false_frees_the_room(receiver: Daemon, sender: PlainSender, video: int) -> None:
    gib = 1024**3
    before, incoming = receiver.ready()["availableBytes"], receiver.incoming
    send, complete = sender.turn(receiver.url, video, "2 GB")
    taken = before - receiver.ready()["availableBytes"]
    assert taken > 2 * gib - gib // 4
    assert call("POST", send, BYTES, octets).status == 200
    for _ in range(2):
        answer = call("POST", complete, {"videoId": video, "success": False})
        assert (answer.status, answer.json["success"]) == (200, True)
    assert receiver.ready()["availableBytes"] > before - gib // 4
    assert receiver.incoming == incoming
    is_problem(call("POST", send, BYTES, octets), 410)
    is_problem(call("POST", complete, {"videoId": video, "success": True}), 410)


@pytest.mark.parametrize(
    ("body", "member"),
    [
        ({"success": True}, "videoId"),
        ({"videoId": "VIDEO"}, "success"),
        ({"videoId": "VIDEO", "success": "yes"}, "success"),
        ({"videoId": "VIDEO", "success": 1}, "success"),
        ({"videoId": "VIDEO", "success": True, "size": -1}, "size"),
        ({"videoId": "VIDEO", "success": True, "sha256": "x"}, "sha256"),
        ({"videoId": "another", "success": True}, "videoId"),
    ],
)
def test_a_malformed_complete_is_named(
    receiver: Daemon, sender: PlainSender, video: int, body: dict[str, Any], member: str
) -> None:
    _, complete = sender.turn(receiver.url, video, len(BYTES))
    said = {name: video if value == "VIDEO" else value for name, value in body.items()}
    is_problem(call("POST", complete, said), 400, member)
