""" "It is your turn": whom to believe."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest
from twisted.internet.defer import Deferred, fail

from backupd.errors import Ambiguous, Busy, Forbidden, Invalid, NoSuchEntry, Over
from backupd.interfaces import Entry
from backupd.waiting import go_on
from tests.ledger.offs import at_once
from tests.outcomes import result_of
from tests.sender.kit import COMPLETE, UPLOAD, Case, refused

B = "http://localhost:3333"
P = ParamSpec("P")
T = TypeVar("T")


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


def test_the_bare_path_means_the_older_version(case: Case) -> None:
    """The newer has not been asked for yet."""
    old = case.waiting()
    case.receiver.now("complete", refused(500))
    case.notice(old)
    case.turn()
    new = case.queued(data=b"a new cut")
    assert new.entry_id != old.entry_id
    assert bare(case, 2) == old.entry_id


def test_a_repeat_is_taken_and_changes_nothing(case: Case) -> None:
    """No second transfer, and no other links, as long as it is being sent."""
    entry = case.waiting()
    case.notice(entry)
    assert case.notice(entry, UPLOAD + "2", COMPLETE + "2").upload_link == UPLOAD
    case.receiver.now("complete", refused(500), case.receiver.stored)
    case.turn()
    assert case.notice(entry, UPLOAD + "2").state == "SENT"
    case.after(1)
    assert case.notice(entry).state == "VERIFIED"
    case.turn()
    assert case.receiver.times("send") == 1
    assert case.receiver.times("complete") == 2


def test_a_notice_does_not_keep_a_changed_file_from_being_asked_for(case: Case) -> None:
    """A receiver that calls more often than we pause would lead back to the old file for ever."""
    entry = case.waiting()
    case.file(data=b"longer video")
    for _ in range(3):
        case.notice(entry)
        case.turn()
    asks = [heard for heard in case.receiver.heard if heard[0] == "ask"]
    asked = [heard[2]["diskEmptySpaceRequire"] for heard in asks]
    assert asked == [str(entry.size), "12"]
    assert case.state(entry) == "VERIFIED"


@pytest.mark.parametrize("lost", [False, True], ids=["answered", "not answered"])
def test_a_notice_that_overtakes_the_answer_is_that_of_this_question(
    case: Case, lost: bool
) -> None:
    """Also with the link that the entry has come back from: a receiver may give the same for ever,
    say it once, and have no address at which it could be asked how things are.
    """
    case.receiver.now("send", refused(404), {"success": True})
    case.receiver.now("ask", {"success": True})
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "ASKING"

    def at_once(message: dict[str, object]) -> object:
        case.notice(entry)
        return refused(500) if lost else {"success": True}

    case.receiver.now("ask", at_once, {"success": True})
    assert case.until(entry, "VERIFIED") < 60


def test_who_says_no_and_calls_all_the_same_is_believed(case: Case) -> None:
    """One that has the request under way already may say no to a second question."""
    case.receiver.now("send", refused(404), {"success": True})
    entry = case.waiting()
    case.receiver.now("ask", {"success": False, "message": "In progress already"})
    for _ in range(3):
        case.notice(entry)
        case.turn()
    assert case.state(entry) == "VERIFIED"


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


# -- the receiver's copy is damaged ----------------------------------------------------------------


def stored(case: Case, **more: Any) -> Entry:
    """An entry that the receiver has stored."""
    entry = case.waiting(**more)
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "VERIFIED"
    return case.entry(entry)


def test_what_was_stored_is_sent_again_on_a_new_link(case: Case) -> None:
    """From its beginning to its end, and the entry tells of the new backup then."""
    entry = stored(case)
    case.receiver.now(
        "complete", lambda message: case.receiver.stored(message) | {"backupId": "b2"}
    )
    case.clock.advance(1000 * 86400)
    ready = case.notice(entry, UPLOAD + "2", COMPLETE + "2")
    assert (ready.state, ready.backup_id, ready.upload_link) == ("READY", None, UPLOAD + "2")
    case.turn()
    again = case.entry(entry)
    assert (again.state, again.backup_id, again.sha256) == ("VERIFIED", "b2", entry.sha256)
    assert case.receiver.times("send") == 2
    assert case.receiver.body == b"video"
    assert case.receiver.heard[-1][:2] == ("complete", COMPLETE + "2")


def test_a_repeat_of_that_sends_nothing_either(case: Case) -> None:
    """Neither while it is sent, nor once it is stored."""
    entry = stored(case)
    for _ in range(2):
        case.notice(entry, UPLOAD + "2", COMPLETE + "2")
    case.turn()
    assert case.notice(entry, UPLOAD + "2", COMPLETE + "2").state == "VERIFIED"
    case.turn()
    assert case.receiver.times("send") == 2


def test_what_nobody_verified_is_sent_again_too(case: Case) -> None:
    case.receiver.now("complete", {"success": True})
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "UNVERIFIED"
    assert case.notice(entry, UPLOAD + "2").state == "READY"


@pytest.mark.parametrize(
    ("upload", "complete"),
    [("http://localhost:3001/up", COMPLETE), (UPLOAD + "2", "http://localhost:3001/complete")],
)
def test_nobody_else_can_have_it_sent_again(case: Case, upload: str, complete: str) -> None:
    """Not by links that lead elsewhere, nor with another video's name, nor on the bare path."""
    entry = stored(case)
    with pytest.raises(Forbidden):
        case.notice(entry, upload, complete)
    with pytest.raises(Invalid, match="videoId"):
        result_of(go_on(case.outbox.notice(entry.capability, 3, UPLOAD + "2", COMPLETE)))
    with pytest.raises(NoSuchEntry):
        bare(case, entry.video, UPLOAD + "2")
    case.turn()
    assert case.entry(entry) == entry
    assert case.receiver.times("send") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"other"),
        lambda path: path.write_bytes(b"longer than it was"),
        lambda path: path.write_bytes(b""),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["gone", "changed", "longer", "empty", "a folder"],
)
def test_a_file_that_is_not_the_same_is_not_sent(
    case: Case, change: Callable[[Path], object]
) -> None:
    """The web answers 410, the receiver asks no more, and the entry tells what was stored."""
    entry = stored(case)
    file = Path(entry.path)
    change(file)
    if file.is_file():
        os.utime(file, ns=(0, entry.modified_ns + 1))
    with pytest.raises(Over, match="cannot be sent again"):
        case.notice(entry, UPLOAD + "2")
    case.turn()
    assert case.entry(entry) == entry


def test_a_file_that_cannot_be_looked_at_is_asked_for_later(tmp_path: Path) -> None:
    """A disk that is away at the moment is no reason to say that there is none."""

    def away(f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        if gone:
            return fail(OSError(errno.EIO, "Input/output error"))
        return at_once(f, *args, **kwargs)

    gone = False
    case = Case(tmp_path, off=away)
    entry = stored(case)
    gone = True
    with pytest.raises(Busy, match="Input/output error") as caught:
        case.notice(entry, UPLOAD + "2")
    assert caught.value.retry_after >= 60
    assert case.entry(entry) == entry


def test_a_link_that_is_dead_by_then_is_asked_for_anew(case: Case) -> None:
    """What was begun again is brought to an end like anything else."""
    entry = stored(case)
    case.receiver.now("standing", refused(410))
    case.notice(entry, UPLOAD + "2")
    case.turn()
    assert case.state(entry) == "ASKING"
    case.receiver.now("standing", None)
    case.until(entry, "WAITING")
    case.notice(entry, UPLOAD + "3")
    case.until(entry, "VERIFIED")
