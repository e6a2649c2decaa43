"""What a page of somebody else's can do with a browser on this machine: nothing."""

from __future__ import annotations

import json

import pytest

from tests.integration.contract import is_problem
from tests.integration.daemons import Daemon, call, wait_until
from tests.integration.plain import LINK, PlainSender, octets

ASK = "/api/v1/backup/can-accept-backup"
BODY = json.dumps({"videoId": 1, "diskEmptySpaceRequire": 5, LINK: "http://localhost:9/x"}).encode()
EVIL = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
NEIGHBOUR = {"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-site"}
"""A page that another program on this machine serves."""


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain; application/json",
        "application/csp-report",
        "",
    ],
)
def test_json_that_needs_no_preflight_is_not_taken(receiver: Daemon, kind: str) -> None:
    """A browser sends these anywhere without asking, old ones even without an Origin."""
    is_problem(receiver.call("POST", ASK, BODY, {"Content-Type": kind}), 415)


@pytest.mark.parametrize("page", [EVIL, NEIGHBOUR, {"Origin": "null"}])
def test_a_page_gets_no_leave_and_no_answer_to_read(receiver: Daemon, page: dict[str, str]) -> None:
    """A preflight allows it nothing; no answer says that it may be read."""
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, authorization, tus-resumable",
    }
    for path in (ASK, "/api/v1/uploads", "/api/v1/backups", "/api/v1/outbox", "/healthz"):
        for answer in (
            receiver.call("OPTIONS", path, None, page | asked),
            receiver.call("GET", path, None, page),
        ):
            # Without it a browser gives none of the others any weight.
            assert answer.headers["Access-Control-Allow-Origin"] is None, path


@pytest.mark.parametrize("page", [EVIL, NEIGHBOUR])
def test_no_method_by_another_name_gets_by(
    receiver: Daemon, sender: PlainSender, video: int, page: dict[str, str]
) -> None:
    """The check sees the method that is meant, whatever a form can send."""
    send, complete = sender.turn(receiver.url, video, 5)
    for method in ("POST", "GET"):
        for meant in ("PATCH", "DELETE", "PUT", "POST", "patch"):
            override = {"X-HTTP-Method-Override": meant, "Tus-Resumable": "1.0.0"}
            answer = call(method, send, b"12345", octets | page | override)
            assert answer.status == 403, (method, meant)
    give_up = {"videoId": video, "success": False}
    is_problem(call("POST", complete, give_up, page), 403)
    assert call("POST", send, b"12345", octets).status == 200


def test_reading_changes_nothing(receiver: Daemon, sender: PlainSender, video: int) -> None:
    """GET and HEAD are what a picture's address can do; they leave everything as it is."""
    send, complete = sender.turn(receiver.url, video, 5)
    offered = [("OFFERED", 5, 0)]
    wait_until(lambda: standing(receiver, video) == offered, "our answer to the offer is recorded")
    for link in (send, complete):
        for method in ("GET", "HEAD"):
            call(method, link, None, EVIL)
    assert standing(receiver, video) == offered


def standing(receiver: Daemon, video: int) -> list[tuple[object, ...]]:
    """Where the requests for a video stand."""
    told = ("state", "reservedBytes", "receivedBytes")
    mine = [one for one in receiver.requests() if one["videoId"] == video]
    return [tuple(one[name] for name in told) for one in mine]
