"""JSON from outside: strict, bounded, and every refusal names the member and what is wrong."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backupd.errors import Invalid
from backupd.web import messages
from backupd.web.messages import (
    CanAccept,
    Complete,
    Notice,
    Send,
    Start,
    decode,
    encode,
    timestamp,
)

LINK = "linkForServerAtoNoticeServerBWhenServerAIsReady"
ASK: dict[str, Any] = {
    "videoId": 2,
    "diskEmptySpaceRequire": "50MB",
    LINK: "http://localhost:3002/api/v1/backup/serverAisReadyForBackup",
}


def refused(body: bytes | dict[str, Any], kind: type[Any] = CanAccept) -> Invalid:
    """The refusal of ``body``; it can be answered, whatever it quotes."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Invalid) as caught:
        decode(raw, kind)
    encode({"message": str(caught.value), "member": caught.value.member})
    assert len(str(caught.value)) < 400
    return caught.value


# -- what is taken --------------------------------------------------------------------------------


def test_the_originals_message() -> None:
    """The original's ask, as it stands."""
    message = decode(json.dumps(ASK).encode(), CanAccept)
    assert message.video_id == 2
    assert message.disk_empty_space_require == "50MB"
    assert message.link == ASK[LINK]
    assert (message.file_name, message.content_type, message.sha256) == (None, None, None)


def test_every_member() -> None:
    """The optional members, and every message's names as they are spelled on the wire."""
    more = {"fileName": "é.mp4", "contentType": "video/mp4; codecs=avc1", "sha256": "aB" * 32}
    message = decode(json.dumps(ASK | more).encode(), CanAccept)
    assert (message.file_name, message.content_type) == ("é.mp4", more["contentType"])
    assert message.sha256 == "aB" * 32
    offer = {
        "videoId": "2",
        "linkForServerBtoSendBackupToSeverA": "http://a/u",
        "linkForServerBtoCompleteBackupToSeverA": "http://a/c",
    }
    notice = decode(json.dumps(offer).encode(), Notice)
    assert (notice.video_id, notice.upload_link) == ("2", "http://a/u")
    assert notice.complete_link == "http://a/c"
    assert json.loads(encode(notice)) == offer
    complete = decode(b'{"videoId": 2, "success": true, "size": 0}', Complete)
    assert (complete.success, complete.size, complete.sha256) == (True, 0, None)


@pytest.mark.parametrize("name", ["more", "", "videoid", "VideoId", "video_id", "é", "__proto__"])
def test_unknown_members_are_ignored(name: str) -> None:
    """Whatever else is said harms nothing."""
    values: list[Any] = [None, 1e308, -1, "x", [[[]]], {"a": {"a": 1}}, 10**400]
    for value in values:
        assert decode(json.dumps(ASK | {name: value}).encode(), CanAccept).video_id == 2


@pytest.mark.parametrize(
    "video", [0, 2, 2**53 - 1, "2", "x", "x" * 128, "é" * 128, "\u202e", " ", "../..", "🎬"]
)
def test_video_ids(video: int | str) -> None:
    """An integer of 0 to 2^53 - 1, or a text of 1 to 128 characters."""
    message = decode(json.dumps({"videoId": video}).encode(), Start)
    assert message.video_id == video
    assert type(message.video_id) is type(video)


def test_characters_beyond_the_first_plane() -> None:
    """An escaped pair of surrogates is one character."""
    assert decode(rb'{"videoId": "\ud83c\udfac"}', Start).video_id == "🎬"


def nested(levels: int) -> bytes:
    """A message of so many levels, itself being the first."""
    return b'{"videoId": 2, "x": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def test_sixteen_levels() -> None:
    """16 levels are fine; the 17th is refused, in arrays and in objects, and so is the 10,000th."""
    assert decode(nested(16), Start).video_id == 2
    objects = b'{"videoId": 2, "x": ' + b'{"x": ' * 15 + b"1" + b"}" * 16
    assert decode(objects, Start).video_id == 2
    for body in (nested(17), nested(1000), nested(10_000), b"[" * 60_000):
        assert refused(body, Start).member == "body"
    assert "16 levels" in str(refused(nested(17), Start))
    assert "16 levels" in str(
        refused(b'{"videoId": 2, "x": ' + b'{"x": ' * 16 + b"1" + b"}" * 17, Start)
    )


# -- what is no JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b"{'videoId': 2}",
        b'{"videoId": 2,}',
        b'{"videoId": 02}',
        b'{"videoId": +2}',
        b'{"videoId": 2.}',
        b'{"videoId": 0x2}',
        b'{"videoId": 2} x',
        b'{"videoId": 2 /* two */}',
        b'{"videoId": "a\nb"}',
        b'{"videoId": "\\x41"}',
        b'{"videoId": NaN}',
        b'{"videoId": 2, "x": NaN}',
        b'{"videoId": 2, "x": Infinity}',
        b'{"videoId": 2, "x": -Infinity}',
        b'{"videoId": 2, "x": 1e999}',
        b'{"videoId": 2, "x": -1e999}',
        b'{"videoId": 2, "x": [1e999]}',
        b'{"videoId": 2, "x": ' + b"9" * 5000 + b"}",
        b'\xef\xbb\xbf{"videoId": 2}',
        b'{"videoId": "\xff"}',
        b'{"videoId": "\xc3"}',
        b'{"videoId": "\xed\xa0\x80"}',
        b'{"videoId": "\xc0\xaf"}',
        '{"videoId": 2}'.encode("utf-16"),
        '{"videoId": 2}'.encode("utf-32-le"),
        rb'{"videoId": "\ud800"}',
        rb'{"videoId": 2, "x": "\udfff"}',
        rb'{"videoId": 2, "x": ["\ud800\ud800"]}',
        rb'{"videoId": 2, "\ud800": 1}',
        b'"videoId"',
        b"2",
        b"null",
        b"true",
        b"[]",
        b'[{"videoId": 2}]',
    ],
)
def test_no_json_object(body: bytes) -> None:
    """What is not one JSON object of Unicode characters and finite numbers is refused whole."""
    assert refused(body, Start).member == "body"


@pytest.mark.parametrize(
    ("body", "member"),
    [
        (b'{"videoId": 2, "videoId": 2}', "videoId"),
        (b'{"videoId": 2, "videoId": 3}', "videoId"),
        (rb'{"videoId": 2, "video\u0049d": 3}', "videoId"),
        (b'{"videoId": 2, "x": 1, "x": 1}', "x"),
        (b'{"videoId": 2, "x": {"y": 1, "y": 2}}', "y"),
        (b'{"videoId": 2, "x": [{"": 1, "": 2}]}', ""),
        ('{"videoId": 2, "é": 1, "é": 2}'.encode(), "é"),
        (rb'{"videoId": 2, "\ud800": 1, "\ud800": 2}', "\\ud800"),
        (b'{"videoId": 2, "' + b"x" * 999 + b'": 1, "' + b"x" * 999 + b'": 2}', "x" * 64),
    ],
)
def test_duplicate_members(body: bytes, member: str) -> None:
    """A member that is there twice is refused wherever it stands; nobody guesses which counts."""
    error = refused(body, Start)
    assert error.member == member
    assert "twice" in str(error)


def test_a_duplicate_among_many_members_is_found_at_once() -> None:
    """The largest body there may be costs no more than reading it."""
    names = [f'"{number:04x}":0' for number in range(6500)]
    body = ("{" + ",".join([*names, names[-1]]) + "}").encode()
    assert len(body) <= messages.MAX_JSON
    began = time.process_time()
    assert refused(body).member == f"{6499:04x}"
    assert time.process_time() - began < 0.2


# -- wrong members --------------------------------------------------------------------------------


@pytest.mark.parametrize("member", ["videoId", "diskEmptySpaceRequire", LINK])
def test_missing_members(member: str) -> None:
    """What is missing is named; null is no value."""
    error = refused({name: value for name, value in ASK.items() if name != member})
    assert (error.member, str(error)) == (member, f"{member}: is missing")
    assert refused(ASK | {member: None}).member == member


WRONG: list[tuple[str, Any]] = [
    ("videoId", -1),
    ("videoId", 2**53),
    ("videoId", 10**400),
    ("videoId", -(10**400)),
    ("videoId", 2.5),
    ("videoId", True),
    ("videoId", ""),
    ("videoId", "x" * 129),
    ("videoId", "a\nb"),
    ("videoId", "2\n"),
    ("videoId", "\n"),
    ("videoId", "a\0"),
    ("videoId", "\x7f"),
    ("videoId", "\x85"),
    ("videoId", [2]),
    ("videoId", {"id": 2}),
    ("diskEmptySpaceRequire", 1.5),
    ("diskEmptySpaceRequire", True),
    ("diskEmptySpaceRequire", ["50MB"]),
    (LINK, 5),
    (LINK, "http://localhost/" + "x" * 2048),
    ("fileName", 5),
    ("fileName", "x" * 4097),
    ("contentType", "video/mp4\r\nX: y"),
    ("contentType", "video/mp4\n"),
    ("contentType", "vidéo/mp4"),
    ("contentType", "x" * 256),
    ("sha256", "ab"),
    ("sha256", "ab" * 32 + "\n"),
    ("sha256", "gh" * 32),
    ("sha256", "٣" * 64),
    ("sha256", "ab" * 33),
]


@pytest.mark.parametrize(("member", "value"), WRONG)
def test_wrong_members(member: str, value: Any) -> None:
    """A member of the wrong type, length or characters is named, with what it must be."""
    error = refused(ASK | {member: value})
    assert error.member == member
    assert str(error).startswith(f"{member}: ")


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("success", None),
        ("success", 1),
        ("success", "true"),
        ("size", -1),
        ("size", 2**60 + 1),
        ("size", 1.5),
        ("size", "50"),
        ("size", True),
        ("sha256", "x"),
    ],
)
def test_wrong_completions(member: str, value: Any) -> None:
    """The words of ``complete-backup`` are as strict."""
    assert refused({"videoId": 2, "success": True, member: value}, Complete).member == member


# -- whatever comes -------------------------------------------------------------------------------

KINDS = st.sampled_from([CanAccept, Notice, Start, Complete, Send])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
)
names = st.sampled_from(
    [
        *ASK,
        *("fileName", "contentType", "sha256", "success", "size", "to", "path"),
        *("linkForServerBtoSendBackupToSeverA", "linkForServerBtoCompleteBackupToSeverA"),
    ]
)


@given(st.binary(max_size=200), KINDS)
@example(b"\x00", Start)
def test_any_bytes(body: bytes, kind: type[Any]) -> None:
    """Whatever bytes come, the answer is a message or `Invalid`, and can be written."""
    with suppress(Invalid):
        decode(body, kind)
        return
    refused(body, kind)


@given(st.dictionaries(names | st.text(max_size=5), values, max_size=8), KINDS)
def test_any_json(members: dict[str, Any], kind: type[Any]) -> None:
    """Whatever JSON comes, the answer is a message or `Invalid`, and can be written."""
    body = json.dumps(members).encode("utf-8", "surrogatepass")
    with suppress(Invalid):
        encode(decode(body, kind))
        return
    refused(body, kind)


@given(st.integers(0, 2**53 - 1) | st.text(min_size=1, max_size=128))
def test_video_ids_come_back(video: int | str) -> None:
    """A video id that is taken goes back exactly as it came."""
    body = json.dumps({"videoId": video}).encode()
    if isinstance(video, str) and any(ord(c) < 32 or 127 <= ord(c) < 160 for c in video):
        assert refused(body, Start).member == "videoId"
    else:
        assert json.loads(encode(decode(body, Start))) == {"videoId": video}


# -- what goes out --------------------------------------------------------------------------------


def test_answers_leave_out_what_is_not_there() -> None:
    """A yes has no reason, a no has no request."""
    answer = messages.CanAcceptAnswer(
        success=False,
        message="no",
        available_space="1 B",
        required_space="2 B",
        reason="too-large",
    )
    assert json.loads(encode(answer)) == {
        "success": False,
        "message": "no",
        "availableSpace": "1 B",
        "requiredSpace": "2 B",
        "reason": "too-large",
    }


def test_timestamps() -> None:
    """RFC 3339, UTC, to the millisecond."""
    assert timestamp(None) is None
    assert timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1795485600.1234) == "2026-11-24T02:00:00.123Z"
