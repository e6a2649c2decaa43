"""PROTOCOL.md, section 6, over real sockets: the list, the bytes in ranges, and the operator's."""

from __future__ import annotations

import base64
import hashlib
import re
from email.message import Message
from email.parser import BytesParser
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from tests.integration.contract import is_problem
from tests.integration.daemons import Answer, Daemon, call, exchange, wait_until
from tests.integration.plain import PlainSender

DATA = bytes(range(256)) * 4000
SIZE = len(DATA)
SHA = hashlib.sha256(DATA).hexdigest()
ETAG = f'"{SHA}"'


@pytest.fixture(scope="module")
def kept(receiver: Daemon, sender: PlainSender) -> Any:
    """A kept backup."""
    done = sender.back_up(receiver.url, "kept", DATA, fileName="kept.mp4", contentType="video/mp4")
    return receiver.call("GET", f"/api/v1/backups/{done['backupId']}").json


def get(kept: Any, method: str = "GET", **headers: str) -> Answer:
    """The content, with these headers; ``if_range`` is If-Range."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return call(method, kept["contentUrl"], headers=sent)


# -- the list --------------------------------------------------------------------------------------


def test_a_backup_is_told_with_exactly_these_members(receiver: Daemon, kept: Any) -> None:
    known = dict(kept)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", known.pop("storedAt"))
    assert known.pop("verifiedAt")
    backup_id = known.pop("backupId")
    assert known.pop("peer").startswith("http://localhost:")
    assert known == {
        "videoId": "kept",
        "fileName": "kept.mp4",
        "contentType": "video/mp4",
        "size": SIZE,
        "sha256": SHA,
        "contentUrl": f"{receiver.url}/api/v1/backups/{backup_id}/content",
        "problem": None,
    }


def test_the_list_goes_page_by_page(receiver: Daemon, sender: PlainSender, kept: Any) -> None:
    for _ in range(4):
        sender.back_up(receiver.url, "paged", b"x")
    query, ids, after = "/api/v1/backups?videoId=paged&limit=3", [], "0"
    sizes = []
    while after is not None:
        page = receiver.call("GET", f"{query}&after={after}").json
        assert set(page) == {"backups", "next"}
        sizes.append(len(page["backups"]))
        ids += [one["backupId"] for one in page["backups"]]
        after = page["next"]
    assert (sizes, len(set(ids))) == ([3, 1], 4)
    of_peer = receiver.call("GET", f"/api/v1/backups?peer={kept['peer']}&videoId=kept").json
    assert [one["backupId"] for one in of_peer["backups"]] == [kept["backupId"]]
    assert receiver.call("GET", "/api/v1/backups?peer=nobody").json["backups"] == []


@pytest.mark.parametrize(
    ("query", "member"),
    [
        ("after=x", "after"),
        ("after=-1", "after"),
        ("after=99999999999999999999", "after"),
        ("limit=1001", "limit"),
        ("limit=1&limit=2", "limit"),
        ("limit=%31%ff", "query"),
        ("after=%D9%A1", "after"),
    ],
)
@pytest.mark.parametrize("path", ["/api/v1/backups", "/api/v1/backup/requests"])
def test_a_malformed_query_is_named(receiver: Daemon, path: str, query: str, member: str) -> None:
    is_problem(receiver.call("GET", f"{path}?{query}"), 400, member)


@pytest.mark.parametrize("state", ["bogus", "", "LIVE", "going"])
def test_a_state_that_there_is_not_is_named(receiver: Daemon, state: str) -> None:
    path = f"/api/v1/backup/requests?state={state}"
    is_problem(receiver.call("GET", path), 400, "state")
    path = f"/api/v1/outbox?state={state if state != 'going' else 'live'}"
    is_problem(receiver.call("GET", path, operator=True), 400, "state")


def test_states_choose_what_is_listed(receiver: Daemon, sender: PlainSender, kept: Any) -> None:
    sender.ask(receiver.url, "listed", 5)
    for state, there in (("live", True), ("ended", False)):
        page = receiver.call("GET", f"/api/v1/backup/requests?state={state}&limit=1000").json
        assert ("listed" in [one["videoId"] for one in page["requests"]]) is there
        assert ("kept" in [one["videoId"] for one in page["requests"]]) is not there
    for state in ("going", "over"):
        path = f"/api/v1/outbox?state={state}"
        assert receiver.call("GET", path, operator=True).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/backups/nothing",
        "/api/v1/backups/nothing/content",
        "/api/v1/backups/..%2f..%2fetc%2fpasswd/content",
        "/api/v1/backup/requests/nothing",
        "/nothing",
        "/api/v1/../../etc/passwd",
    ],
)
def test_what_is_not_there_is_a_404(receiver: Daemon, path: str) -> None:
    is_problem(receiver.call("GET", path), 404)


# -- the bytes -------------------------------------------------------------------------------------


def test_the_whole(kept: Any) -> None:
    answer = get(kept)
    assert (answer.status, answer.body) == (200, DATA)
    headers = answer.headers
    assert headers["Content-Length"] == str(SIZE)
    assert headers["Content-Type"] == "video/mp4"
    assert headers["ETag"] == ETAG
    assert headers["Accept-Ranges"] == "bytes"
    digest = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
    assert headers["Repr-Digest"] == f"sha-256=:{digest}:"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "attachment" in headers["Content-Disposition"]
    assert parsedate_to_datetime(headers["Last-Modified"])
    head = get(kept, "HEAD")
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Length", "ETag", "Repr-Digest", "Accept-Ranges", "Last-Modified"):
        assert head.headers[name] == headers[name]


@pytest.mark.parametrize(
    ("said", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-99", 10, 100),
        ("bytes=1000-", 1000, SIZE),
        ("bytes=-5", SIZE - 5, SIZE),
        (f"bytes=-{SIZE * 2}", 0, SIZE),
        (f"bytes=5-{SIZE * 2}", 5, SIZE),
        (f"bytes=10-19,{SIZE}-", 10, 20),
        ("bytes=10-19,-0", 10, 20),
        ("Bytes=,10-19 ,", 10, 20),
    ],
)
def test_a_single_range(kept: Any, said: str, start: int, stop: int) -> None:
    answer = get(kept, Range=said)
    assert (answer.status, answer.body) == (206, DATA[start:stop])
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
    assert answer.headers["Content-Length"] == str(stop - start)
    assert answer.headers["ETag"] == ETAG


def test_several_ranges_come_as_parts(kept: Any) -> None:
    answer = get(kept, Range="bytes=0-9, 100-199,-7")
    assert answer.status == 206
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    kind = answer.headers["Content-Type"]
    assert kind.startswith("multipart/byteranges; boundary=")
    whole: Message = BytesParser().parsebytes(
        f"Content-Type: {kind}\r\n\r\n".encode() + answer.body
    )
    parts = whole.get_payload()
    assert isinstance(parts, list)
    found = [
        (part["Content-Type"], part["Content-Range"], part.get_payload(decode=True))
        for part in parts
        if isinstance(part, Message)
    ]
    assert [(kind, span) for kind, span, _ in found] == [
        ("video/mp4", f"bytes {start}-{stop - 1}/{SIZE}")
        for start, stop in ((0, 10), (100, 200), (SIZE - 7, SIZE))
    ]
    for data in (DATA[:10], DATA[100:200], DATA[-7:]):
        assert b"\r\n\r\n" + data + b"\r\n--" in answer.body


@pytest.mark.parametrize(
    "said", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0", f"bytes=-0, {SIZE}-"]
)
def test_a_range_of_no_byte_is_416(kept: Any, said: str) -> None:
    answer = get(kept, Range=said)
    is_problem(answer, 416)
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
    assert answer.headers["Cache-Control"] == "no-store"
    for name in ("ETag", "Repr-Digest", "Content-Disposition", "Last-Modified"):
        assert name not in answer.headers


@pytest.mark.parametrize("said", ["bytes=0-4", f"bytes={SIZE}-", "bytes=0-4,7-8"])
def test_only_get_has_ranges(kept: Any, said: str) -> None:
    answer = get(kept, "HEAD", Range=said)
    assert (answer.status, answer.headers["Content-Length"]) == (200, str(SIZE))
    assert "Content-Range" not in answer.headers


@pytest.mark.parametrize(
    "said",
    [
        "bytes=5-2",
        "bytes=x-y",
        "bytes=",
        "lines=1-2",
        "bytes",
        "bytes=--5",
        "bytes=1-2-3",
        "bytes=0-4,x",
        "bytes=" + "9" * 5000 + "-",
        ",".join(["bytes=0-1"] + [f"{n}-{n}" for n in range(2, 60, 2)]),
        f"bytes=0-{SIZE},0-{SIZE}",
    ],
)
def test_a_range_that_makes_no_sense_gets_the_whole(kept: Any, said: str) -> None:
    answer = get(kept, Range=said)
    assert (answer.status, len(answer.body)) == (200, SIZE)


def test_a_copy_that_is_still_right_is_not_sent_again(kept: Any) -> None:
    modified = get(kept, "HEAD").headers["Last-Modified"]
    for same in (ETAG, f'"x", {ETAG}', f"W/{ETAG}", "*"):
        answer = get(kept, If_None_Match=same)
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["ETag"] == ETAG
    assert get(kept, If_None_Match='"x"').status == 200
    assert get(kept, If_Modified_Since=modified).status == 304
    assert get(kept, If_Modified_Since="Sat, 01 Jan 2000 00:00:00 GMT").status == 200
    assert get(kept, If_None_Match='"x"', If_Modified_Since=modified).status == 200


def test_what_must_still_be_right_is_refused_when_it_is_not(kept: Any) -> None:
    modified = get(kept, "HEAD").headers["Last-Modified"]
    long_ago = "Sat, 01 Jan 2000 00:00:00 GMT"
    for same in (ETAG, f'"x", {ETAG}', "*"):
        assert get(kept, If_Match=same).status == 200
        assert get(kept, If_Match=same, If_Unmodified_Since=long_ago).status == 200
        assert get(kept, If_Match=same, If_None_Match=ETAG).status == 304
    assert get(kept, If_Unmodified_Since=modified).status == 200
    assert get(kept, If_Unmodified_Since="nonsense").status == 200
    for wrong in (
        {"If_Match": '"x"'},
        {"If_Match": f"W/{ETAG}"},
        {"If_Match": '"x"', "If_None_Match": ETAG},
        {"If_Match": '"x"', "Range": f"bytes={SIZE}-"},
        {"If_Unmodified_Since": long_ago},
    ):
        answer = get(kept, **wrong)
        is_problem(answer, 412)
        assert "Repr-Digest" not in answer.headers
        assert get(kept, "HEAD", **wrong).status == 412


def test_a_range_of_what_has_changed_is_the_whole(kept: Any) -> None:
    for same in (ETAG, get(kept, "HEAD").headers["Last-Modified"]):
        assert get(kept, Range="bytes=0-4", If_Range=same).status == 206
    for other in ('"x"', f"W/{ETAG}", "Sat, 01 Jan 2000 00:00:00 GMT", "nonsense"):
        assert get(kept, Range="bytes=0-4", If_Range=other).status == 200


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        'a"; filename="b.exe',
        "a\r\nSet-Cookie: x=1",
        "Käse 日本.mp4",
        "%41%0d%0a.mp4",
        ".hidden",
        "nul",
        "a/b\\c",
        "\u202egnp.exe",
        "x" * 4096,
        "\0",
    ],
)
def test_a_name_is_only_a_name(
    receiver: Daemon, sender: PlainSender, video: int, name: str
) -> None:
    done = sender.back_up(receiver.url, video, b"a video", fileName=name)
    backup = receiver.call("GET", f"/api/v1/backups/{done['backupId']}").json
    assert backup["fileName"] == name
    answer = call("GET", done["contentUrl"])
    assert (answer.status, answer.body) == (200, b"a video")
    (disposition,) = answer.headers.get_all("Content-Disposition") or []
    assert disposition.isascii()
    plain = re.fullmatch(
        r"attachment; filename=\"([^\"\\%]*)\"; filename\*=UTF-8''(\S+)", disposition
    )
    assert plain is not None, disposition
    assert "Set-Cookie" not in answer.headers
    (folder,) = receiver.root.glob(f"*/{video}/{done['backupId']}")
    files = [path.name for path in folder.iterdir()]
    assert len(files) == 2
    assert "backup.json" in files


@pytest.mark.parametrize("video", ["../x", "a/b", ".backupd", "CON", "ä" * 128, "x" * 128, " "])
def test_an_id_is_never_a_path(receiver: Daemon, sender: PlainSender, video: str) -> None:
    done = sender.back_up(receiver.url, video, b"a video")
    (sidecar,) = receiver.root.glob(f"*/*/{done['backupId']}/backup.json")
    assert sidecar.is_file()
    assert call("GET", done["contentUrl"]).body == b"a video"


# -- the operator's --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/v1/backups/x"),
        ("POST", "/api/v1/backups/x/verify"),
        ("DELETE", "/api/v1/backup/requests/x"),
        ("POST", "/api/v1/rebuild"),
        ("POST", "/api/v1/outbox"),
        ("GET", "/api/v1/outbox"),
        ("GET", "/api/v1/outbox/x"),
        ("DELETE", "/api/v1/outbox/x"),
    ],
)
def test_the_operator_needs_the_token(receiver: Daemon, method: str, path: str) -> None:
    token = receiver.token
    for wrong in (None, "Bearer", "Bearer x", f"Basic {token}", f"Bearer {token}x", token, "ä"):
        headers = {} if wrong is None else {"Authorization": wrong.encode().decode("latin-1")}
        answer = receiver.call(method, path, headers=headers)
        is_problem(answer, 401)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert receiver.call(method, path, operator=True).status != 401


def test_deleting_a_backup(receiver: Daemon, sender: PlainSender, video: int) -> None:
    done = sender.back_up(receiver.url, video, b"a video")
    path = f"/api/v1/backups/{done['backupId']}"
    assert receiver.call("DELETE", path, operator=True).status == 200
    is_problem(receiver.call("GET", path), 404)
    is_problem(receiver.call("GET", f"{path}/content"), 404)
    assert list(receiver.root.glob(f"*/{video}/*/*")) != []
    assert receiver.call("DELETE", f"{path}?now=true", operator=True).status == 200
    is_problem(receiver.call("DELETE", path, operator=True), 404)
    assert list(receiver.root.glob(f"*/{video}/*")) == []


def test_verifying_a_backup(receiver: Daemon, sender: PlainSender, video: int) -> None:
    done = sender.back_up(receiver.url, video, DATA)
    path = f"/api/v1/backups/{done['backupId']}"
    before = receiver.call("GET", path).json["verifiedAt"]
    assert receiver.call("POST", f"{path}/verify", operator=True).status == 202
    wait_until(lambda: receiver.call("GET", path).json["verifiedAt"] > before, "it is verified")
    (file,) = receiver.root.glob(f"*/{video}/*/video-*")
    file.chmod(0o600)
    file.write_bytes(DATA[:-1])
    assert receiver.call("POST", f"{path}/verify", operator=True).status == 202
    wait_until(lambda: receiver.call("GET", path).json["problem"], "the damage is told")


def test_only_videos_that_are_files_are_sent(receiver: Daemon) -> None:
    to = receiver.url
    for message, member in (
        ({"path": "/nowhere/at/all.mp4", "to": to}, "path"),
        ({"path": "relative.mp4", "to": to}, "path"),
        ({"path": "/", "to": to}, "path"),
        ({"path": "/dev/zero", "to": to}, "path"),
        ({"path": "/tmp/\0", "to": to}, "path"),  # noqa: S108
        ({"path": 5, "to": to}, "path"),
        ({"path": __file__, "to": "nonsense"}, "to"),
        ({"path": __file__, "to": "ftp://localhost"}, "to"),
        ({"path": __file__}, "to"),
        ({"to": to}, "path"),
        ({"to": to, "videoId": "unknown"}, "videoId"),
        ({"path": __file__, "to": to, "videoId": ""}, "videoId"),
    ):
        answer = receiver.call("POST", "/api/v1/outbox", message, operator=True)
        is_problem(answer, 400, member)


def test_http_1_0_gets_the_bytes_too(receiver: Daemon, kept: Any) -> None:
    path = f"/api/v1/backups/{kept['backupId']}/content"
    answer = exchange(receiver.port, f"GET {path} HTTP/1.0\r\n\r\n".encode(), "GET")
    assert (answer.status, answer.body) == (200, DATA)
