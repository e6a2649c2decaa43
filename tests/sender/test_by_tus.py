"""An entry's bytes by tus: made, sent in pieces, gone on with, never sent twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from backupd.errors import PeerFailed
from backupd.interfaces import Entry
from backupd.sender.delivery import MIB, PIECES, next_piece
from tests.sender.kit import UPLOAD, A, Case, refused
from tests.sender.tus_server import Told, TusServer

DIGEST = hashlib.sha256(b"video").hexdigest()
LINK = UPLOAD.removeprefix(A)
CUT = PeerFailed(f"{A} closed the connection while the video was being sent.")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    case = Case(tmp_path)
    case.receiver.tus = TusServer(LINK)
    return case


def server_of(case: Case) -> TusServer:
    assert case.receiver.tus is not None
    return case.receiver.tus


def ready(case: Case, data: bytes = b"video") -> Entry:
    """An entry whose turn it is; nobody has looked yet."""
    entry = case.waiting(data=data)
    case.notice(entry)
    return entry


def restarted(case: Case) -> Case:
    """Another process with the same ledger, folder and receiver."""
    return Case(case.folder, ledger=case.ledger, clock=case.clock, receiver=case.receiver)


def test_an_upload_is_made_and_filled(case: Case) -> None:
    entry = ready(case)
    case.turn()
    server = server_of(case)
    assert server.seen == [
        ("OPTIONS", LINK, ""),
        ("POST", LINK, ""),
        ("PATCH", f"{LINK}/1", "0"),
    ]
    assert bytes(server.whole.data) == b"video"
    assert server.whole.metadata == {"filename": "2.mp4", "filetype": "video/mp4"}
    done = case.entry(entry)
    assert (done.state, done.sha256) == ("VERIFIED", DIGEST)
    assert case.receiver.times("send") == case.receiver.times("standing") == 0


def test_where_it_goes_is_recorded_before_the_first_byte(case: Case) -> None:
    """Else a crash here would send everything twice."""
    recorded: list[object] = []

    def look(method: str, path: str, headers: Mapping[str, str]) -> None:
        if method == "PATCH":
            recorded.append(json.loads(str(case.entry(entry).uploads))["whole"])

    server_of(case).refuse = look
    entry = ready(case)
    case.turn()
    assert recorded == [f"{UPLOAD}/1"]


@pytest.mark.parametrize("restart", [False, True])
def test_what_was_acknowledged_is_never_sent_twice(case: Case, restart: bool) -> None:
    """Cut in the middle; a restart of ours beside makes no difference."""
    data, server = os.urandom(5 * MIB), server_of(case)
    server.most_body = MIB
    entry = ready(case, data)
    cuts = iter([None, None, CUT])

    def cut(method: str, path: str, headers: Mapping[str, str]) -> None:
        if method == "PATCH":
            case.receiver.cut = next(cuts, None)

    server.refuse = cut
    case.turn()
    assert case.state(entry) == "READY"
    stood = len(server.whole.data)
    assert 0 < stood < len(data)
    if restart:
        case = restarted(case)
    case.until(entry, "VERIFIED", 10)
    assert bytes(server.whole.data) == data
    assert (server.received, server.made) == (len(data), 1)
    assert ("HEAD", f"{LINK}/1", "") in server.seen
    assert case.entry(entry).sha256 == hashlib.sha256(data).hexdigest()


def test_a_receiver_that_takes_nothing_is_left_alone_for_a_while(case: Case) -> None:
    """It says yes to every piece, and stands where it stood: as behind a proxy without bodies."""
    tries = []

    def nothing(method: str, path: str, headers: Mapping[str, str]) -> Told | None:
        if method != "PATCH":
            return None
        tries.append(path)
        assert len(tries) < 9, "a whirl"
        return Told(204, {"Upload-Offset": headers["upload-offset"]})

    server_of(case).refuse = nothing
    entry = ready(case)
    case.turn()
    assert len(tries) == 1
    assert case.state(entry) == "READY"
    assert case.entry(entry).due_at > case.clock.seconds()
    assert "took nothing" in str(case.entry(entry).last_error)


def test_an_offset_that_the_receiver_names_in_a_conflict_is_where_it_goes_on(case: Case) -> None:
    server = server_of(case)

    def ahead(method: str, path: str, headers: Mapping[str, str]) -> None:
        if method == "PATCH" and headers["upload-offset"] == "0":
            server.whole.data[:] = b"vid"

    server.refuse = ahead
    entry = ready(case)
    case.turn()
    assert server.seen[-2:] == [("PATCH", f"{LINK}/1", "0"), ("PATCH", f"{LINK}/1", "3")]
    assert (bytes(server.whole.data), case.state(entry)) == (b"video", "VERIFIED")


def test_a_receiver_that_always_names_another_offset_is_left_alone_for_a_while(case: Case) -> None:
    def never(method: str, path: str, headers: Mapping[str, str]) -> Told | None:
        return Told(409, {"Upload-Offset": "1"}) if method == "PATCH" else None

    server_of(case).refuse = never
    entry = ready(case)
    case.turn()
    assert case.state(entry) == "READY"
    assert server_of(case).methods().count("PATCH") == 4
    assert case.entry(entry).due_at > case.clock.seconds()


def test_conflicts_between_which_bytes_arrive_do_not_add_up(case: Case) -> None:
    """Every other piece is refused, by a receiver that names the offset at which it stands."""
    server = server_of(case)
    server.most_body = MIB
    refuses = False

    def other(method: str, path: str, headers: Mapping[str, str]) -> Told | None:
        nonlocal refuses
        if method != "PATCH" or int(headers["content-length"]) > MIB:
            return None
        refuses = not refuses
        return Told(409, {"Upload-Offset": headers["upload-offset"]}) if refuses else None

    server.refuse = other
    entry = ready(case, bytes(6 * MIB))
    case.turn()
    assert case.state(entry) == "VERIFIED"
    assert server.received == 6 * MIB


@pytest.mark.parametrize("offset", [6, 99])
def test_more_bytes_than_the_file_has_are_not_ours(case: Case, offset: int) -> None:
    def more(method: str, path: str, headers: Mapping[str, str]) -> Told | None:
        if method == "PATCH" and path == f"{LINK}/1":
            return Told(204, {"Upload-Offset": str(offset)})
        return None

    server_of(case).refuse = more
    entry = ready(case)
    case.turn()
    assert case.state(entry) == "READY"
    case.until(entry, "VERIFIED", 10)
    assert server_of(case).made == 2


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_upload_that_is_gone_is_made_anew(case: Case, status: int) -> None:
    case.receiver.cut = CUT
    server = server_of(case)
    entry = ready(case)
    server.most_body = MIB

    def lost(method: str, path: str, headers: Mapping[str, str]) -> Told | None:
        return Told(status) if method == "HEAD" else None

    server.refuse = lost
    case.turn()
    case.until(entry, "VERIFIED", 10)
    assert server.methods() == ["OPTIONS", "POST", "PATCH", "HEAD", "POST", "PATCH"]
    assert bytes(server.whole.data) == b"video"


def test_an_upload_that_is_gone_because_it_is_whole_is_only_confirmed(case: Case) -> None:
    case.receiver.cut = CUT
    case.receiver.now("standing", 5)
    server = server_of(case)
    entry = ready(case)
    server.refuse = lambda method, *_: Told(404) if method == "HEAD" else None
    case.turn()
    case.until(entry, "VERIFIED", 10)
    assert (server.made, server.received) == (1, 5)
    assert case.entry(entry).sha256 == DIGEST


@pytest.mark.parametrize("status", [409, 410])
def test_a_request_that_is_over_is_not_sent_again(case: Case, status: int) -> None:
    """409: stored, says the link itself; 410: asked again."""
    case.receiver.cut = CUT
    case.receiver.now("standing", refused(status))
    server = server_of(case)
    entry = ready(case)
    server.refuse = lambda method, *_: Told(404) if method == "HEAD" else None
    case.turn()
    case.until(entry, "VERIFIED" if status == 409 else "ASKING", 10)
    assert server.received == 5


@pytest.mark.parametrize("limit", [MIB, 5 * MIB, 20 * MIB])
def test_a_proxy_that_takes_only_small_bodies_gets_small_pieces(case: Case, limit: int) -> None:
    """413 to a piece is not the receiver's: it has promised room for the whole."""
    data, server = os.urandom(21 * MIB), server_of(case)
    server.most_body = limit
    entry = ready(case, data)
    case.turn()
    assert case.state(entry) == "VERIFIED"
    assert bytes(server.whole.data) == data
    assert limit // 4 <= server.whole.most_at_once <= limit


def test_a_proxy_that_takes_next_to_nothing_leads_back(case: Case) -> None:
    server_of(case).most_body = 1000
    entry = ready(case, b"0" * MIB)
    case.turn()
    assert case.state(entry) == "ASKING"


def test_pieces_take_about_a_minute() -> None:
    first, most = PIECES
    assert next_piece(first, 30) == 2 * first
    assert next_piece(first, 600) == first // 10
    assert next_piece(first, 0) == most
    assert next_piece(10, 3600) == MIB


def test_a_file_that_changed_goes_into_a_new_upload(case: Case) -> None:
    case.receiver.cut = CUT
    entry = ready(case)
    case.turn()
    case.file(data=b"other")
    os.utime(entry.path, ns=(1, 1))
    case.until(entry, "ASKING", 5)
    assert case.entry(entry).uploads is None
    case.until(entry, "WAITING", 5)
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "VERIFIED"
    assert bytes(server_of(case).uploads[f"{LINK}/2"].data) == b"other"


def test_bytes_that_arrived_wrong_go_into_a_new_upload(case: Case) -> None:
    case.receiver.now("complete", refused(422), case.receiver.stored)
    entry = ready(case)
    case.turn()
    assert case.state(entry) == "WAITING"
    case.notice(entry)
    case.turn()
    assert (case.state(entry), server_of(case).made) == ("VERIFIED", 2)


def test_what_was_made_for_another_offer_does_not_count(case: Case) -> None:
    entry = ready(case)
    server = server_of(case)
    server.refuse = lambda method, *_: Told(404) if method in ("HEAD", "PATCH") else None
    case.turn()
    assert case.state(entry) == "ASKING"
    case.until(entry, "WAITING", 10)
    server.link, server.refuse = f"{LINK}-2", lambda *_: None
    case.notice(entry, f"{UPLOAD}-2")
    case.turn()
    assert case.state(entry) == "VERIFIED"
    assert server.seen[-3:] == [
        ("OPTIONS", server.link, ""),
        ("POST", server.link, ""),
        ("PATCH", f"{server.link}/2", "0"),
    ]


@pytest.mark.parametrize(
    "location",
    [None, "", "http://elsewhere.example/1", "http://localhost:3001/1", "http://[", LINK],
)
def test_an_upload_that_is_made_elsewhere_gets_no_byte(case: Case, location: str | None) -> None:
    """A receiver must not be able to send a file to a third."""
    told = {} if location is None else {"Location": location}
    server_of(case).refuse = lambda method, *_: Told(201, told) if method == "POST" else None
    entry = ready(case)
    case.turn()
    assert case.state(entry) == "READY"
    assert "where it could be sent to" in str(case.entry(entry).last_error)
    assert server_of(case).methods() == ["OPTIONS", "POST"]


@pytest.mark.parametrize(
    "told",
    [
        Told(404),
        Told(405),
        Told(200, {"Allow": "POST"}),
        Told(204, {"Tus-Version": "2.0.0", "Tus-Extension": "creation"}),
        Told(204, {"Tus-Version": "1.0.0", "Tus-Extension": "checksum"}),
    ],
)
def test_who_offers_no_uploads_by_tus_gets_one_post(case: Case, told: Told) -> None:
    """Asked once for each offer."""
    case.receiver.now("send", CUT, {})
    server_of(case).refuse = lambda *_: told
    entry = ready(case)
    case.until(entry, "VERIFIED", 10)
    assert case.receiver.times("send") == 2
    assert server_of(case).methods() == ["OPTIONS"]


def test_who_cannot_say_now_is_asked_again(case: Case) -> None:
    case.receiver.now("send", CUT, {})
    server_of(case).refuse = lambda *_: Told(502)
    entry = ready(case)
    case.until(entry, "VERIFIED", 10)
    assert server_of(case).methods() == ["OPTIONS", "OPTIONS"]


def test_who_has_a_part_already_and_cannot_say_is_waited_for(case: Case) -> None:
    case.receiver.cut = CUT
    entry = ready(case)
    case.turn()
    after = restarted(case)
    server_of(case).refuse = lambda *_: Told(502)
    after.after(1)
    assert after.state(entry) == "READY"
    assert case.receiver.times("send") == 0
    server_of(case).refuse = lambda *_: None
    after.until(entry, "VERIFIED", 10)
    assert server_of(case).received == 5


def test_a_digest_that_is_known_goes_with_the_bytes(case: Case) -> None:
    """RFC 9530 beside a POST, metadata beside tus: a resend is checked on the spot."""
    case.receiver.now("complete", refused(409), case.receiver.stored)
    case.receiver.tus = None
    entry = ready(case)
    case.turn()
    assert case.receiver.sha256 is None
    case.until(entry, "VERIFIED", 10)
    assert case.receiver.sha256 == DIGEST


def test_a_clock_that_stands_still_is_no_trouble() -> None:
    """The first piece can be over within one tick of the clock."""
    assert next_piece(1, Clock().seconds()) >= MIB
