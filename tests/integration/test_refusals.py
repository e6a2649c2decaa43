"""PROTOCOL.md, sections 3 and 4, over real sockets: what is refused, and how it ends."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.integration.contract import (
    BYTES,
    RECEIVE,
    SHA,
    form,
    head,
    is_problem,
)
from tests.integration.daemons import (
    Answer,
    Daemon,
    answer_on,
    call,
    clean_environment,
    exchange,
    run,
)
from tests.integration.plain import PlainSender, octets

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
