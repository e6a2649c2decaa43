""" "It is your turn": whom to believe."""

from __future__ import annotations

from pathlib import Path

import pytest

from backupd.errors import Ambiguous, Forbidden, Invalid, NoSuchEntry, Over
from backupd.waiting import go_on
from tests.outcomes import result_of
from tests.sender.kit import COMPLETE, UPLOAD, Case, refused

B = "http://localhost:3333"


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def bare(case: Case, video: int | str, upload: str = UPLOAD, complete: str = COMPLETE) -> str:
    return result_of(go_on(case.outbox.notice(None, video, upload, complete))).entry_id


def test_a_notice_makes_its_entry_ready_at_once(case: Case) -> None:
    entry = case.waiting()
    ready = case.notice(entry)
    assert (ready.state, ready.upload_link, ready.complete_link) == ("READY", UPLOAD, COMPLETE)
    assert ready == case.entry(entry)
    assert case.nudges == 1


@pytest.mark.parametrize(
    ("upload", "complete"),
    [
        ("http://localhost:3001/up", COMPLETE),
        (UPLOAD, "http://localhost:3001/complete"),
        ("http://127.0.0.1:3000/up", COMPLETE),
        ("https://localhost:3000/up", COMPLETE),
        ("http://localhost.evil.example:3000/up", COMPLETE),
    ],
)
def test_links_that_lead_elsewhere_move_no_byte(case: Case, upload: str, complete: str) -> None:
    """The user is told what to do, on both sides."""
    entry = case.waiting()
    with pytest.raises(Forbidden, match=r"localhost:3000 was asked.*public_url.*HOST") as caught:
        case.notice(entry, upload, complete)
    case.turn()
    assert case.state(entry) == "WAITING"
    assert case.entry(entry).last_error == str(caught.value)
    assert case.receiver.times("standing") == case.receiver.times("send") == 0


def test_the_spelling_of_an_origin_does_not_matter(case: Case) -> None:
    entry = case.queued(to="HTTP://LOCALHOST:3000/")
    assert case.notice(entry, "http://LocalHost:3000/a", "http://localhost:03000/b").state == (
        "READY"
    )


@pytest.mark.parametrize("link", ["", "ftp://localhost:3000/", "http://a@localhost:3000/", "/x"])
def test_links_that_are_none_are_invalid(case: Case, link: str) -> None:
    entry = case.waiting()
    with pytest.raises(Invalid, match="linkForServerBtoSendBackupToSeverA"):
        case.notice(entry, link, COMPLETE)
    with pytest.raises(Invalid, match="linkForServerBtoCompleteBackupToSeverA"):
        case.notice(entry, UPLOAD, link)


def test_a_notice_that_was_not_asked_for_is_unknown(case: Case) -> None:
    case.waiting()
    with pytest.raises(NoSuchEntry):
        bare(case, 3)
    with pytest.raises(NoSuchEntry):
        result_of(go_on(case.outbox.notice("guessed", 2, UPLOAD, COMPLETE)))


def test_the_capability_must_be_that_of_the_video(case: Case) -> None:
    entry = case.waiting()
    with pytest.raises(Invalid, match="videoId"):
        result_of(go_on(case.outbox.notice(entry.capability, 3, UPLOAD, COMPLETE)))
    assert result_of(go_on(case.outbox.notice(entry.capability, "2", UPLOAD, COMPLETE)))


def test_the_bare_path_works_while_one_entry_matches(case: Case) -> None:
    entry = case.waiting()
    case.queued("3.mp4")
    assert bare(case, "2") == entry.entry_id
    assert bare(case, 2) == entry.entry_id
    case.queued("2.mp4", to=B)
    with pytest.raises(Ambiguous):
        bare(case, 2)


def test_a_repeat_is_taken_and_changes_nothing(case: Case) -> None:
    """No second transfer, and no other links, in any state."""
    entry = case.waiting()
    case.notice(entry)
    assert case.notice(entry, UPLOAD + "2", COMPLETE + "2").upload_link == UPLOAD
    case.receiver.now("complete", refused(500), case.receiver.stored)
    case.turn()
    assert case.notice(entry, UPLOAD + "2").state == "SENT"
    case.after(1)
    assert case.notice(entry, UPLOAD + "2").state == "VERIFIED"
    case.turn()
    assert case.receiver.times("send") == 1
    assert case.receiver.times("complete") == 2


def test_a_cancelled_or_failed_entry_is_over(case: Case) -> None:
    """The web answers 410, and the receiver cancels the request."""
    entry = case.waiting()
    result_of(go_on(case.outbox.cancel(entry.entry_id)))
    with pytest.raises(Over, match="CANCELLED"):
        case.notice(entry)
    case.receiver.now("complete", {"sha256": "0" * 64})
    failed = case.waiting(name="3.mp4")
    case.notice(failed)
    case.turn()
    with pytest.raises(Over, match="FAILED"):
        case.notice(failed)
