"""Every way to use a link or an upload is one request of its peer, and nobody else's."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from twisted.internet.testing import MemoryReactorClock

from backupd.trust.peers import Limits, Right
from tests.web.closed import CONTROL, START, Said, Served

RATE = 8
"""More than any way needs to be prepared."""

TUS = {"Tus-Resumable": "1.0.0"}
OFFSET = TUS | {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
OCTETS = {"Content-Type": "application/octet-stream"}
FORM = {"Content-Type": "multipart/form-data; boundary=b0"}
VIDEO = b"video"
IN_A_FORM = (
    b'--b0\r\nContent-Disposition: form-data; name="v"; filename="a.mp4"\r\n\r\n%b\r\n--b0--\r\n'
) % VIDEO
DIRECT = "/api/v1/uploads"
METADATA = f"videoId {base64.b64encode(b'1').decode()}"


@dataclass(frozen=True)
class Way:
    """A request to what ``at`` prepares, as the peer that it is prepared for."""

    method: str
    at: Callable[[Served], str]
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def go(self, here: Served, path: str, token: str | None) -> Said:
        return here.ask(self.method, path, self.body, token, self.headers)


def link(here: Served, kind: str = "receive") -> str:
    request_id = here.room("a", 1).json["requestId"]
    return f"/api/v1/backup/{kind}-backup/{here.capability(request_id)}"


def finish(here: Served) -> str:
    return link(here, "complete")


def begun(here: Served) -> str:
    """A link with an upload, so that where it stands is looked at twice."""
    path = link(here)
    assert here.ask("PUT", path, VIDEO, "a").status == 200
    return path


def created(here: Served, at: str, **more: str) -> str:
    named = {name.replace("_", "-"): value for name, value in more.items()}
    said = here.ask("POST", at, None, "a", TUS | {"Upload-Length": "5"} | named)
    assert said.status == 201, said.body
    return urlsplit(said.headers["location"]).path


def upload(here: Served) -> str:
    return created(here, link(here))


def direct(here: Served) -> str:
    return created(here, DIRECT, Upload_Metadata=METADATA)


def stored(here: Served) -> str:
    path = direct(here)
    here.reactor.advance(2)  # its turn comes
    assert here.ask("PATCH", path, VIDEO, "a", OFFSET).status == 204
    return path


def part(here: Served) -> str:
    return created(here, DIRECT, Upload_Concat="partial")


WAYS = {
    "start": Way("POST", link, {"videoId": 1}),
    "put": Way("PUT", link, VIDEO, OCTETS),
    "put the rest": Way("PUT", link, VIDEO, OCTETS | {"Content-Range": "bytes 0-4/5"}),
    "post": Way("POST", link, VIDEO, OCTETS),
    "form": Way("POST", link, IN_A_FORM, FORM),
    "create": Way("POST", link, None, TUS | {"Upload-Length": "5"}),
    "options of a link": Way("OPTIONS", link),
    "head of a link": Way("HEAD", link),
    "head of a link with bytes": Way("HEAD", begun),
    "patch of a link": Way("PATCH", link, VIDEO, OFFSET),
    "complete": Way("POST", finish, {"videoId": 1, "success": False}),
    "options of an upload": Way("OPTIONS", upload),
    "head of an upload": Way("HEAD", upload, headers=TUS),
    "patch of an upload": Way("PATCH", upload, VIDEO, OFFSET),
    "delete of an upload": Way("DELETE", upload, headers=TUS),
    "head of a direct upload": Way("HEAD", direct, headers=TUS),
    "head of what is stored": Way("HEAD", stored, headers=TUS),
    "patch of a direct upload": Way("PATCH", direct, VIDEO, OFFSET),
    "delete of a direct upload": Way("DELETE", direct, headers=TUS),
    "head of a part": Way("HEAD", part, headers=TUS),
    "patch of a part": Way("PATCH", part, VIDEO, OFFSET),
    "delete of a part": Way("DELETE", part, headers=TUS),
}


@pytest.fixture
def here() -> Iterator[Served]:
    """A daemon in memory with peers ``a`` and ``b``."""
    with ExitStack() as stack:
        reactor = MemoryReactorClock()
        reactor.advance(START)
        case: Any = SimpleNamespace(addCleanup=stack.callback)
        served = Served(case, reactor, "a", access="peers")
        for name in "ab":
            served.put(name, Right.SEND, limits=Limits(requests_per_second=RATE))
        yield served


def left(here: Served, token: str) -> int:
    """How many more requests this peer may send at the moment."""
    asked = [here.ask("GET", "/no/such/place", token=token).status for _ in range(RATE + 1)]
    return asked.count(404)


def prepared(here: Served, way: Way) -> str:
    path = way.at(here)
    here.reactor.advance(2)
    return path


@pytest.mark.parametrize(("token", "counts"), [(None, 1), ("a", 1), (CONTROL, 0)])
@pytest.mark.parametrize("name", WAYS)
def test_it_counts_once(here: Served, name: str, token: str | None, counts: int) -> None:
    """With the peer's token and without one; the operator's own do not count."""
    way = WAYS[name]
    path = prepared(here, way)
    done = way.go(here, path, token)
    assert done.status < 300, done.body
    assert left(here, "a") == RATE - counts


@pytest.mark.parametrize("name", WAYS)
def test_one_too_many_is_429(here: Served, name: str) -> None:
    """Without a token too, and nothing is done."""
    way = WAYS[name]
    path = prepared(here, way)
    assert left(here, "a") == RATE
    assert way.go(here, path, None).status == 429
    here.reactor.advance(2)
    assert way.go(here, path, None).status < 300


@pytest.mark.parametrize("name", WAYS)
def test_another_peers_token_is_404(here: Served, name: str) -> None:
    """Whatever is behind the link; nothing is done, and it is the other's request that counts."""
    way = WAYS[name]
    path = prepared(here, way)
    refused = way.go(here, path, "b")
    assert refused.status == 404
    if way.method != "HEAD":
        assert refused.json["detail"] == "This link belongs to no backup request."
    assert (left(here, "a"), left(here, "b")) == (RATE, RATE - 1)
    here.reactor.advance(2)
    assert way.go(here, path, "a").status < 300


def test_joining_parts_counts_once(here: Served) -> None:
    """However many there are; another peer's are not there."""
    parts = [part(here) for _ in range(3)]
    here.reactor.advance(2)
    for path in parts:
        assert here.ask("PATCH", path, VIDEO, "a", OFFSET).status == 204
    here.reactor.advance(2)
    named = {"Upload-Concat": f"final;{' '.join(parts)}", "Upload-Metadata": METADATA}
    assert here.ask("POST", DIRECT, None, "b", TUS | named).status == 404
    assert here.ask("POST", DIRECT, None, "a", TUS | named).status == 201
    assert (left(here, "a"), left(here, "b")) == (RATE - 1, RATE - 1)
