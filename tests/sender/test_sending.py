"""One entry of the outbox, from its turn to the end: sending and confirming."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from backupd.errors import PeerFailed
from tests.sender.kit import COMPLETE, UPLOAD, A, Case, refused

DIGEST = hashlib.sha256(b"video").hexdigest()
AWAY = PeerFailed(f"{A} refused the connection.")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


# -- sending --------------------------------------------------------------------------------------


def test_an_upload_goes_on_where_the_receiver_stands(case: Case) -> None:
    case.receiver.now("standing", 3)
    case.receiver.now("resume", {"receivedBytes": 5})
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert ("resume", UPLOAD, 3) in case.receiver.heard
    assert case.receiver.body == b"eo"
    assert case.state(entry) == "VERIFIED"
    assert case.entry(entry).sha256 == DIGEST


def test_a_receiver_that_has_every_byte_is_asked_to_finish(case: Case) -> None:
    case.receiver.now("standing", 5)
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert ("resume", UPLOAD, 5) in case.receiver.heard
    assert case.receiver.body == b""
    assert case.state(entry) == "VERIFIED"


@pytest.mark.parametrize("offset", [0, 6, None])
def test_a_receiver_that_has_nothing_of_ours_is_sent_everything(
    case: Case, offset: int | None
) -> None:
    case.receiver.now("standing", offset)
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.receiver.body == b"video"
    assert case.state(entry) == "VERIFIED"


def test_what_fails_is_tried_again_after_1_2_4_seconds_and_at_most_60(case: Case) -> None:
    case.receiver.now("send", *[AWAY] * 8, {})
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    waits = []
    while case.state(entry) == "READY":
        waits.append(case.entry(entry).due_at - case.clock.seconds())
        case.after(waits[-1])
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    assert case.state(entry) == "VERIFIED"
    assert case.receiver.times("standing") == 9


@pytest.mark.parametrize("status", [404, 410, 413])
def test_an_upload_link_that_is_dead_means_asking_again(case: Case, status: int) -> None:
    case.receiver.now("send", refused(status), {})
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "ASKING"
    case.until(entry, "WAITING")
    case.notice(entry, UPLOAD + "2", COMPLETE + "2")
    case.turn()
    assert case.state(entry) == "VERIFIED"
    assert case.receiver.heard[-2][:2] == ("send", UPLOAD + "2")


@pytest.mark.parametrize("where", ["standing", "send"])
def test_a_backup_that_is_stored_already_is_only_confirmed(case: Case, where: str) -> None:
    """Our process died between its storing and our hearing of it."""
    case.receiver.now(where, refused(409))
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    done = case.entry(entry)
    assert (done.state, done.sha256) == ("VERIFIED", DIGEST)
    assert case.receiver.body == b""


def test_what_was_stored_before_is_the_version_before(case: Case) -> None:
    """As when the old one was confirmed while the new one was asked for: it is sent after all."""
    case.receiver.now("send", refused(409), {})
    case.receiver.now("complete", {"sha256": "0" * 64}, case.receiver.stored)
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "ASKING"
    assert "stored other bytes" in str(case.entry(entry).last_error)
    case.until(entry, "WAITING")
    case.notice(entry, UPLOAD + "2", COMPLETE + "2")
    case.until(entry, "VERIFIED")
    assert case.receiver.body == b"video"


@pytest.mark.parametrize(
    "conflict", [refused(409, receivedBytes=3), refused(409, after=5), refused(507), refused(401)]
)
def test_a_conflict_that_passes_is_waited_for(case: Case, conflict: Exception) -> None:
    """Another offset, or another upload that is alive; a full disk; a token that is wrong."""
    case.receiver.now("send", conflict, {})
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "READY"
    assert case.entry(entry).attempts == 1
    case.until(entry, "VERIFIED", 10)


def test_a_turn_that_is_gone_is_waited_for_again(case: Case) -> None:
    case.receiver.now("send", refused(503, after=7), {})
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "WAITING"
    assert case.entry(entry).due_at - case.clock.seconds() == 7
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "VERIFIED"


@pytest.mark.parametrize(
    "answer", [refused(422), {"sha256": "0" * 64}, {"sha256": DIGEST, "size": 4}]
)
def test_bytes_that_arrived_wrong_are_sent_again_from_the_start(case: Case, answer: object) -> None:
    case.receiver.now("standing", 3)
    case.receiver.now("resume", answer)
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "READY"
    case.until(entry, "VERIFIED", 10)
    assert case.receiver.body == b"video"
    assert case.receiver.times("send") == 1


def test_bytes_that_arrive_wrong_five_times_are_given_up(case: Case) -> None:
    case.receiver.now("send", refused(422))
    entry = case.waiting()
    case.notice(entry)
    case.until(entry, "FAILED")
    assert case.receiver.times("send") == 5
    assert "wrong 5 times" in str(case.entry(entry).last_error)


def test_fewer_bytes_than_were_sent_are_no_success(case: Case) -> None:
    case.receiver.now("standing", 2)
    case.receiver.now("resume", {"receivedBytes": 4}, {"receivedBytes": 5})
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.entry(entry).last_error == "Only 4 of 5 bytes have arrived."
    case.until(entry, "VERIFIED", 10)


def test_a_file_that_changed_is_asked_for_again_and_sent_from_the_start(case: Case) -> None:
    entry = case.waiting()
    case.notice(entry)
    case.file(data=b"another video")
    case.turn()
    assert case.state(entry) == "ASKING"
    case.until(entry, "WAITING")
    assert case.entry(entry).size == 13
    assert case.receiver.heard[-1][2]["diskEmptySpaceRequire"] == "13"
    case.receiver.now("standing", 3)
    case.notice(entry)
    case.turn()
    assert case.receiver.body == b"another video"
    assert case.state(entry) == "VERIFIED"


def test_a_file_that_is_gone_fails_and_the_receiver_is_told(case: Case) -> None:
    entry = case.waiting()
    case.notice(entry)
    os.unlink(entry.path)
    case.turn()
    assert case.state(entry) == "FAILED"
    assert case.receiver.heard[-1] == ("complete", COMPLETE, {"videoId": 2, "success": False})


def test_a_file_that_cannot_be_read_now_is_tried_again(case: Case) -> None:
    entry = case.queued()
    case.file(data=b"")
    case.turn()
    assert case.entry(entry).last_error == f"{entry.path} cannot be read: it is empty."
    case.file()
    case.after(1)
    assert case.state(entry) == "WAITING"


# -- confirming -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "state", "why"),
    [
        ({"success": True, "sha256": DIGEST.upper(), "size": 5}, "VERIFIED", None),
        ({"success": True, "sha256": DIGEST}, "VERIFIED", None),
        ({"success": True, "size": 5}, "UNVERIFIED", "names no SHA-256"),
        ({}, "UNVERIFIED", "names no SHA-256"),
        ({"sha256": "  "}, "UNVERIFIED", "names no SHA-256"),
        ({"sha256": 5}, "UNVERIFIED", "names no SHA-256"),
        ({"sha256": "0" * 64}, "FAILED", "other bytes"),
        ({"sha256": DIGEST, "size": 4}, "FAILED", "stored 4 bytes, not 5"),
        ({"size": 4}, "FAILED", "stored 4 bytes, not 5"),
    ],
)
def test_what_the_receiver_says_it_stored_is_compared(
    case: Case, answer: object, state: str, why: str | None
) -> None:
    case.receiver.now("complete", answer)
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.state(entry) == state
    assert why is None or why in str(case.entry(entry).last_error)


@pytest.mark.parametrize("answer", [AWAY, refused(500), {"success": False, "message": "disk"}])
def test_a_confirmation_that_fails_is_repeated_without_a_second_upload(
    case: Case, answer: object
) -> None:
    case.receiver.now("complete", answer, case.receiver.stored)
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "SENT"
    assert case.outbox.progress(case.entry(entry)) == (5, None)
    case.until(entry, "VERIFIED", 5)
    assert case.receiver.times("send") == 1


@pytest.mark.parametrize(
    ("status", "state"), [(409, "READY"), (422, "WAITING"), (404, "ASKING"), (410, "ASKING")]
)
def test_a_refused_confirmation_leads_back(case: Case, status: int, state: str) -> None:
    case.receiver.now("complete", refused(status), case.receiver.stored)
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.state(entry) == state
    assert case.entry(entry).last_error == f"{A} answered {status}."
    if state == "ASKING":
        case.until(entry, "WAITING")
    if state != "READY":
        case.notice(entry)
    case.until(entry, "VERIFIED", 10)


def test_stored_here_and_incomplete_there_is_no_whirl(case: Case) -> None:
    """A receiver that answers 409 to everything is bothered ever less."""
    case.receiver.now("standing", refused(409))
    case.receiver.now("complete", refused(409))
    entry = case.waiting()
    case.notice(entry)
    for _ in range(3600):
        case.after(1)
    assert case.receiver.times("complete") < 25
