"""An entry's bytes in parts: joined in the end, gone on with, never sent twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from backupd.peer.answers import Answer
from backupd.peer.open_file import FileDigest, FileState
from backupd.peer.tus import Tus
from backupd.sender import lanes
from backupd.sender.delivery import MIB
from backupd.sender.lanes import Lanes
from backupd.sender.parts import InParts
from backupd.sender.places import Part, Places
from backupd.waiting import go_on
from tests.sender.kit import Case
from tests.sender.test_by_tus import CUT, LINK, ready, restarted, server_of
from tests.sender.tus_server import Told, TusServer

DATA = os.urandom(17 * MIB)
DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """The receiver is a long way off."""
    case = Case(tmp_path)
    case.receiver.tus = TusServer(LINK)
    case.receiver.far = case.clock
    return case


def finals(server: TusServer) -> list[str]:
    return [what for method, _, what in server.seen if method == "POST" and "final" in what]


def test_parts_are_made_filled_and_joined(case: Case) -> None:
    entry = ready(case, DATA)
    case.turn()
    done, server = case.entry(entry), server_of(case)
    assert (done.state, done.sha256) == ("VERIFIED", DIGEST)
    assert bytes(server.whole.data) == DATA
    assert server.whole.metadata["sha256"] == DIGEST
    (final,) = finals(server)
    assert final == "final;" + " ".join(f"{LINK}/{n}" for n in range(1, server.made))
    parts = json.loads(str(done.uploads))["parts"]
    assert [start for start, _, _ in parts] == [
        sum(length for _, length, _ in parts[:n]) for n in range(len(parts))
    ]


@pytest.mark.parametrize("restart", [False, True])
def test_what_was_acknowledged_is_never_sent_twice(case: Case, restart: bool) -> None:
    server = server_of(case)
    cuts = iter([None, CUT])

    def cut(method: str, path: str, headers: Mapping[str, str]) -> None:
        if method == "PATCH":
            case.receiver.cut = next(cuts, None)

    server.refuse = cut
    entry = ready(case, DATA)
    case.turn()
    assert case.state(entry) == "READY"
    assert 0 < server.received < len(DATA)
    if restart:
        case = restarted(case)
    case.until(entry, "VERIFIED", 30)
    assert (bytes(server.whole.data), server.received) == (DATA, len(DATA))
    assert case.entry(entry).sha256 == DIGEST


def test_a_joining_whose_answer_was_lost_is_found_done(case: Case) -> None:
    """The parts are gone, and the link has the whole."""
    server = server_of(case)
    lost: list[Told] = []

    def lose(method: str, path: str, headers: Mapping[str, str]) -> Told | None:
        if "final" not in headers.get("upload-concat", "") or lost:
            return None
        lost.append(server._create(headers))
        return Told(502)

    server.refuse = lose
    case.receiver.now("standing", len(DATA))
    entry = ready(case, DATA)
    case.until(entry, "VERIFIED", 30)
    assert server.received == len(DATA)
    assert len(finals(server)) == 1


def test_parts_that_are_gone_are_sent_again(case: Case) -> None:
    server = server_of(case)
    case.receiver.cut = CUT
    entry = ready(case, DATA)
    case.turn()
    server.uploads.clear()
    case.until(entry, "VERIFIED", 30)
    assert bytes(server.whole.data) == DATA


@pytest.mark.parametrize("restart", [False, True])
def test_joining_that_outlasts_its_answer_is_waited_for(case: Case, restart: bool) -> None:
    """The first part is the whole's by then, and the link does not tell of the whole before it is
    whole. Nothing is sent again, nor made: the same is asked until it is done."""
    server = server_of(case)
    joining, asked = False, 0

    def joins(method: str, path: str, headers: Mapping[str, str]) -> Told | None:
        nonlocal joining, asked
        if "final" in headers.get("upload-concat", ""):
            asked += 1
            if asked == 1:
                joining = True
                return Told(504)
            if asked < 5:
                return Told(409, {"Retry-After": "5"})
            return Told(201, {"Location": f"{LINK}/whole"})
        return Told(404) if joining and path == f"{LINK}/1" else None

    server.refuse = joins
    case.receiver.now("standing", 0)
    entry = ready(case, DATA)
    case.turn()
    made = server.made
    if restart:
        case = restarted(case)
    case.until(entry, "VERIFIED", 60)
    assert (server.received, server.made, asked) == (len(DATA), made, 5)
    assert len(set(finals(server))) == 1
    assert case.entry(entry).sha256 == DIGEST


def test_joining_may_take_longer_the_more_there_is_to_join(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver copies and reads it all before it says yes."""
    limits: list[float] = []
    small = case.receiver.small

    async def note(*heard: Any) -> Answer:
        headers = heard[3] if len(heard) > 3 else {}
        if "final" in headers.get("Upload-Concat", ""):
            limits.append(heard[4])
        return await small(*heard)

    monkeypatch.setattr(case.receiver, "small", note)
    ready(case, DATA)
    case.turn()
    assert limits == [120 + len(DATA) / (50 * MIB)]


@pytest.mark.parametrize("status", [400, 404, 410])
def test_what_cannot_be_joined_any_more_is_sent_again(case: Case, status: int) -> None:
    """The parts are gone, and nothing was made of them."""
    server = server_of(case)
    lost = False

    def lose(method: str, path: str, headers: Mapping[str, str]) -> Told | None:
        nonlocal lost
        if "final" in headers.get("upload-concat", ""):
            if not lost:
                server.uploads.clear()
                lost = True
                return Told(504)
            if not server.uploads:
                return Told(status)
        return None

    server.refuse = lose
    case.receiver.now("standing", None)
    entry = ready(case, DATA)
    case.until(entry, "VERIFIED", 60)
    assert bytes(server.whole.data) == DATA
    assert json.loads(str(case.entry(entry).uploads))["parts"], "and again in parts"


@pytest.mark.parametrize("status", [400, 501])
def test_who_cannot_join_after_all_gets_it_whole(case: Case, status: int) -> None:
    server = server_of(case)

    def never(method: str, path: str, headers: Mapping[str, str]) -> Told | None:
        return Told(status) if "final" in headers.get("upload-concat", "") else None

    server.refuse = never
    entry = ready(case, DATA)
    case.until(entry, "VERIFIED", 30)
    assert bytes(server.whole.data) == DATA


def test_who_offers_no_joining_gets_it_whole(case: Case) -> None:
    server_of(case).extensions = "creation"
    entry = ready(case, DATA)
    case.turn()
    assert case.state(entry) == "VERIFIED"
    assert server_of(case).made == 1


def test_a_small_file_goes_whole_however_long_the_way(case: Case) -> None:
    entry = ready(case)
    case.turn()
    assert case.state(entry) == "VERIFIED"
    assert server_of(case).made == 1


def test_another_connection_does_not_wait_for_the_end_of_a_part(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that an earlier process began may be as large as an eighth of the file; each piece of
    it that arrives tells."""
    monkeypatch.setattr(lanes, "LEAST", MIB)
    server = server_of(case)

    def no_more_than(method: str, path: str, headers: Mapping[str, str]) -> Told | None:
        return Told(413) if int(headers.get("content-length", 0)) > MIB else None

    server.refuse = no_more_than
    entry = ready(case, DATA)
    case.turn()
    assert (case.state(entry), bytes(server.whole.data)) == ("VERIFIED", DATA)
    (_, length, _), *_ = json.loads(str(case.entry(entry).uploads))["parts"]
    assert length > 2 * MIB
    asked = [method for method, _, _ in server.seen if method in ("POST", "PATCH")]
    assert asked[:4] == ["POST", "PATCH", "PATCH", "POST"], "one too large, one piece, and a part"


class Digest:
    """Follows at once, as far as it is asked to."""

    def __init__(self, size: int) -> None:
        self.file = FileState("/1.mp4", size, 0)
        self.at = 0

    async def follow(self, to: int) -> None:
        self.at = to


def test_what_has_arrived_is_followed_also_when_a_later_part_was_first() -> None:
    """Or the file would be read a second time in the end."""
    clock, digest = Clock(), Digest(20 * MIB)
    parts = [Part(start * MIB, 10 * MIB, f"{LINK}/{start}") for start in (0, 10)]
    done: dict[str, Deferred[None]] = {part.url: Deferred() for part in parts}

    async def send(part: Part, *_: object) -> None:
        await done[part.url]

    async def standing(url: str) -> int:
        return 0

    two = Lanes(0.2)
    two.wanted, two.settled = 2, True
    sending = InParts(
        Places(LINK, parts=tuple(parts)),
        tus=cast(Tus, SimpleNamespace(standing=standing)),
        digest=cast(FileDigest, digest),
        lanes=two,
        clock=clock,
        send=send,
        record=lambda places: succeed(None),
        progress=lambda count: None,
    )
    over = go_on(sending.run())
    done[parts[1].url].callback(None)
    assert (digest.at, over.called) == (0, False)
    sending._whole.add(parts[0].url)
    sending._follow()
    assert digest.at == 20 * MIB
    done[parts[0].url].callback(None)
    assert over.called
