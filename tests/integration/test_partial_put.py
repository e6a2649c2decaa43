"""`Content-Range` (RFC 9110, 14.5): a PUT goes on where another was cut, as `curl -C` sends it."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integration.contract import BYTES, PATCH, RECEIVE, digest, form, head, is_problem
from tests.integration.cutter import Cutter
from tests.integration.daemons import (
    Answer,
    Daemon,
    call,
    clean_environment,
    exchange,
    run,
    wait_until,
)
from tests.integration.places import SIZE
from tests.integration.plain import PlainSender, octets
from tests.integration.proxies import needs

ALL = len(BYTES)
HALF = ALL // 2


@dataclass
class Link:
    """The links of one video's turn, and what is sent to them."""

    daemon: Daemon
    send: str
    complete: str
    video: int

    def put(self, span: str, body: bytes, method: str = "PUT", **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return call(method, self.send, body, octets | {"Content-Range": span} | named)

    def part(self, start: int, stop: int, total: int = ALL, **headers: str) -> Answer:
        return self.put(f"bytes {start}-{stop - 1}/{total}", BYTES[start:stop], **headers)

    @property
    def offset(self) -> int:
        return int(call("HEAD", self.send).headers["Upload-Offset"])

    def cut(self, stop: int, start: int = 0, *lines: str) -> None:
        """A PUT of what begins at ``start``, of which only the bytes before ``stop`` come."""
        length = f"Content-Length: {ALL - start}"
        with socket.create_connection(("127.0.0.1", self.daemon.port), 10) as connection:
            begin = head(self.daemon, "PUT", self.send, length, *lines)
            connection.sendall(begin + BYTES[start:stop])
        wait_until(lambda: self.offset == stop, "they are durable")

    def stored(self) -> bytes:
        """The bytes that are kept once it is complete."""
        done = call("POST", self.complete, {"videoId": self.video, "success": True})
        assert done.status == 200, done.body
        backup = f"{self.daemon.url}/api/v1/backups/{done.json['backupId']}/content"
        return call("GET", backup).body


@pytest.fixture
def link(receiver: Daemon, sender: PlainSender, video: int) -> Link:
    return Link(receiver, *sender.turn(receiver.url, video, ALL), video)


# -- curl ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["told", "not told"])
def test_curl_goes_on_after_every_cut(
    behind: Daemon, cutter: Cutter, sender: PlainSender, video_file: Path, where: str
) -> None:
    """`-C OFFSET` goes on there. `-C -` asks no server: it sends the whole, as a range."""
    needs("curl")
    send, complete = sender.turn(behind.url, 7, SIZE)
    cutter.abruptly = False
    cutter.cut_at(SIZE // 3, SIZE)

    for again in range(3):
        stands = call("HEAD", send).headers["Upload-Offset"]
        go_on = ["-C", stands if where == "told" else "-"] if again else []
        done = run(["curl", "-sS", "-T", video_file, send, *go_on], clean_environment())
        assert (done.code != 0) == (cutter.cuts == again + 1), done.err
        if done.code == 0:
            break
    assert json.loads(done.out)["size"] == SIZE
    assert cutter.cuts == 2
    assert (cutter.sent < 2 * SIZE) == (where == "told")
    kept = call("POST", complete, {"videoId": 7, "success": True}).json
    content = call("GET", f"{behind.url}/api/v1/backups/{kept['backupId']}/content")
    assert content.body == video_file.read_bytes()


# -- what goes on ----------------------------------------------------------------------------------


def test_the_rest_goes_on_and_is_answered_as_the_whole(link: Link) -> None:
    link.cut(HALF)
    answer = link.part(HALF, ALL)
    assert (answer.status, answer.json["size"]) == (200, ALL)
    assert link.stored() == BYTES


def test_a_range_that_is_the_whole_starts_at_0(link: Link) -> None:
    """Whatever came before: it is what a PUT without a range is."""
    link.cut(HALF)
    answer = link.part(0, ALL)
    assert (answer.status, answer.json["size"]) == (200, ALL)
    assert link.part(0, ALL).status == 200
    assert link.stored() == BYTES


def test_pieces_follow_one_another(link: Link) -> None:
    """Until the last one each is told the offset that is durable now; the first says how long."""
    bounds = [0, 1000, 1001, HALF, ALL]
    answers = [link.part(start, stop) for start, stop in pairwise(bounds)]
    assert [one.status for one in answers] == [204, 204, 204, 200]
    assert [one.headers["Upload-Offset"] for one in answers[:-1]] == ["1000", "1001", str(HALF)]
    assert link.stored() == BYTES


def test_the_bare_path_goes_on_too(link: Link) -> None:
    link.cut(HALF)
    link.send = f"{link.daemon.url}{RECEIVE}?videoId={link.video}"
    assert link.part(HALF, ALL).json["size"] == ALL


def test_an_offset_that_is_not_the_durable_one_is_409(link: Link) -> None:
    """It tells the right one, and nothing has changed; when all is here, too."""
    link.cut(HALF)
    for start in (HALF - 1, HALF + 1):
        refused = link.part(start, ALL)
        assert is_problem(refused, 409)["receivedBytes"] == HALF
        assert refused.headers["Upload-Offset"] == str(HALF)
    assert link.part(HALF, ALL).status == 200
    assert is_problem(link.part(HALF, ALL), 409)["receivedBytes"] == ALL
    assert link.stored() == BYTES


def test_digests_are_of_the_piece_and_of_the_whole(link: Link) -> None:
    """A piece whose Content-Digest does not agree does not count; Repr-Digest is the whole's."""
    link.cut(HALF)
    whole = digest(BYTES)
    assert is_problem(link.part(HALF, HALF + 9, Content_Digest=whole), 422)
    assert link.offset == HALF
    assert is_problem(link.part(HALF, ALL, Repr_Digest=digest(BYTES[HALF:])), 422)
    link.cut(HALF)
    piece = digest(BYTES[HALF:])
    assert link.part(HALF, ALL, Content_Digest=piece, Repr_Digest=whole).status == 200


def test_what_the_last_piece_says_of_the_video_is_kept(link: Link) -> None:
    link.cut(HALF)
    named = 'attachment; filename="a b.mp4"'
    last = link.part(HALF, ALL, Content_Type="video/mp4", Content_Disposition=named)
    assert last.status == 200
    assert link.stored() == BYTES
    listed = call("GET", f"{link.daemon.url}/api/v1/backups?videoId={link.video}")
    [backup] = listed.json["backups"]
    assert (backup["contentType"], backup["fileName"]) == ("video/mp4", "a b.mp4")


def test_a_piece_that_is_cut_keeps_what_arrived(link: Link) -> None:
    link.cut(HALF)
    link.cut(HALF + 100, HALF, f"Content-Range: bytes {HALF}-{ALL - 1}/{ALL}")
    assert link.part(HALF + 100, ALL).status == 200
    assert link.stored() == BYTES


# -- what is refused -------------------------------------------------------------------------------

REST = BYTES[HALF:]


@pytest.mark.parametrize(
    "span",
    [
        "",
        "bytes",
        f"bytes {HALF}-{ALL - 1}",
        f"bytes={HALF}-{ALL - 1}/{ALL}",
        f"bytes {HALF}-{ALL - 1}/*",
        f"bytes */{ALL}",
        f"bytes {ALL - 1}-{HALF}/{ALL}",
        f"bytes {HALF}-{ALL - 1}/{ALL - 1}",
        f"bytes -{HALF}-{ALL - 1}/{ALL}",
        f"bytes {HALF}-{ALL - 1}/{ALL}, bytes 0-1/2",
        f"pages {HALF}-{ALL - 1}/{ALL}",
        f"bytes {HALF}-{ALL - 1}/{'9' * 30}",
        "bytes \u0663-\u0669/10240".encode().decode("latin-1"),
        # These make sense, but the body has another length.
        f"bytes {HALF}-{ALL - 2}/{ALL}",
        f"bytes {HALF - 1}-{ALL - 1}/{ALL}",
        f"bytes 0-{ALL - 1}/{ALL}",
        # And this is of another video than the one that was begun.
        f"bytes {HALF}-{ALL - 1}/{ALL + 1}",
    ],
)
def test_a_range_that_makes_no_sense_is_400(link: Link, span: str) -> None:
    """Nothing of its body is taken for anything."""
    link.cut(HALF)
    is_problem(link.put(span, REST), 400, "Content-Range")
    assert link.offset == HALF


def test_a_range_that_ends_beyond_the_length_is_400(link: Link) -> None:
    """The length is that of the whole, not the number of its last byte."""
    link.cut(HALF)
    is_problem(link.put(f"bytes {HALF}-{ALL}/{ALL}", REST + b"x"), 400, "Content-Range")
    assert link.offset == HALF


def test_a_range_that_is_there_twice_is_400(link: Link) -> None:
    link.cut(HALF)
    span = f"Content-Range: bytes {HALF}-{ALL - 1}/{ALL}"
    lines = [f"Content-Length: {len(REST)}", span, span, "Connection: close"]
    begin = head(link.daemon, "PUT", link.send, *lines)
    is_problem(exchange(link.daemon.port, begin + REST), 400, "Content-Range")
    assert link.offset == HALF


def test_a_range_without_a_length_is_400(link: Link) -> None:
    """The end of chunks does not tell whether all came that was meant to."""
    link.cut(HALF)
    span = f"Content-Range: bytes {HALF}-{ALL - 1}/{ALL}"
    begin = head(link.daemon, "PUT", link.send, "Transfer-Encoding: chunked", span)
    chunk = b"%x\r\n" % len(REST) + REST + b"\r\n0\r\n\r\n"
    is_problem(exchange(link.daemon.port, begin + chunk), 400, "Content-Range")
    assert link.offset == HALF


def test_more_than_was_reserved_is_413(link: Link) -> None:
    assert is_problem(link.part(0, HALF, ALL + 1), 413)["limit"] == ALL
    assert link.offset == 0


@pytest.mark.parametrize("kind", ["raw", "form", "json", "tus"])
def test_with_post_a_range_is_400(link: Link, kind: str) -> None:
    """Whatever the body is: only PUT has a meaning for it."""
    link.cut(HALF)
    body, headers = REST, dict(octets)
    if kind == "form":
        body, headers = form(("video", "a.mp4", REST))
    elif kind == "json":
        body, headers = b'{"videoId": %d}' % link.video, {"Content-Type": "application/json"}
    elif kind == "tus":
        headers = PATCH | {"Upload-Length": str(ALL)}
    span = f"bytes {HALF}-{ALL - 1}/{ALL}"
    is_problem(link.put(span, body, "POST", **headers), 400, "Content-Range")
    assert link.offset == HALF
