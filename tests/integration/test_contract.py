"""PROTOCOL.md, sections 1, 3 and 4, over real sockets: ask for room, upload, complete."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest

from tests.integration.contract import (
    ASK,
    BYTES,
    COMPLETE,
    PATCH,
    RECEIVE,
    SHA,
    digest,
    form,
    head,
    is_problem,
)
from tests.integration.daemons import (
    Answer,
    Daemon,
    call,
    exchange,
    wait_until,
)
from tests.integration.plain import LINK, PlainSender, octets

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
    is_problem(
        call("PATCH", send, b"x", octets | {"Tus-Resumable": "1.0.0", "Upload-Offset": "3000"}), 415
    )
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
