"""One entry of the outbox, from state to state."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from backupd.errors import LedgerFailed, PeerFailed
from backupd.waiting import go_on
from tests.outcomes import result_of
from tests.sender.kit import COMPLETE, STATUS, UPLOAD, A, Case, refused

DIGEST = hashlib.sha256(b"video").hexdigest()
AWAY = PeerFailed(f"{A} refused the connection.")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_the_way_of_a_video(case: Case) -> None:
    """Asked, called, sent, confirmed, verified."""
    entry = case.queued()
    assert case.state(entry) == "ASKING"
    case.turn()
    assert case.receiver.heard == [
        (
            "ask",
            A,
            {
                "videoId": 2,
                "diskEmptySpaceRequire": "5",
                "linkForServerAtoNoticeServerBWhenServerAIsReady": (
                    "http://localhost:4000/api/v1/backup/serverAisReadyForBackup/"
                    + entry.capability
                ),
                "fileName": "2.mp4",
                "contentType": "video/mp4",
            },
        )
    ]
    waiting = case.entry(entry)
    assert (waiting.state, waiting.request_id, waiting.status_url) == ("WAITING", "r1", STATUS)
    assert case.notice(entry).state == "READY"
    case.turn()
    assert case.receiver.heard[1:] == [
        ("standing", UPLOAD),
        ("send", UPLOAD, "video/mp4", "2.mp4"),
        ("complete", COMPLETE, {"videoId": 2, "success": True, "size": 5, "sha256": DIGEST}),
    ]
    assert case.receiver.body == b"video"
    done = case.entry(entry)
    assert (done.state, done.sha256, done.backup_id) == ("VERIFIED", DIGEST, "b1")
    assert (done.content_url, done.last_error) == (f"{A}/b1", None)
    result_of(go_on(case.outbox.stop()))
    assert case.clock.getDelayedCalls() == []


# -- asking ---------------------------------------------------------------------------------------


def test_a_no_is_asked_again_after_1_2_4_seconds_and_at_most_5_minutes(case: Case) -> None:
    case.receiver.now("ask", {"success": False, "message": "No room."})
    entry = case.queued()
    case.turn()
    waits = []
    for _ in range(11):
        waits.append(case.entry(entry).due_at - case.clock.seconds())
        case.after(waits[-1])
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert case.entry(entry).last_error == "No room."
    assert case.entry(entry).attempts == 12


def test_a_no_that_says_when_is_asked_again_then(case: Case) -> None:
    case.receiver.now("ask", {"success": False, "message": "No room.", "retryAfter": 42})
    entry = case.queued()
    case.turn()
    assert case.entry(entry).due_at - case.clock.seconds() == 42


@pytest.mark.parametrize(("asked", "wait"), [(0, 1), (1e8, 3600)])
def test_another_server_makes_us_neither_spin_nor_wait_for_ever(
    case: Case, asked: float, wait: float
) -> None:
    case.receiver.now("ask", {"success": False, "retryAfter": asked})
    entry = case.queued()
    case.turn()
    assert case.entry(entry).due_at - case.clock.seconds() == wait


def test_a_receiver_that_is_away_is_tried_until_it_is_there(case: Case) -> None:
    case.receiver.now("ask", AWAY, refused(500), refused(503, after=9), {"success": True})
    entry = case.queued()
    case.turn()
    assert case.entry(entry).last_error == str(AWAY)
    assert case.until(entry, "WAITING") == 1 + 2 + 9
    assert case.entry(entry).last_error is None


def test_the_notice_may_come_before_the_answer(case: Case) -> None:
    """A receiver with a free turn calls back at once."""
    answer: Deferred[object] = Deferred()
    case.receiver.now("ask", answer)
    entry = case.queued()
    case.turn()
    case.notice(entry)
    case.turn()
    assert case.receiver.times("send") == 0  # one step of an entry at a time
    answer.callback({"success": True, "requestId": "r1", "statusUrl": STATUS})
    case.turn()
    assert case.state(entry) == "VERIFIED"
    assert case.entry(entry).request_id == "r1"


def test_a_no_that_the_notice_overtook_is_nothing(case: Case) -> None:
    answer: Deferred[object] = Deferred()
    case.receiver.now("ask", answer)
    entry = case.queued()
    case.turn()
    case.notice(entry)
    answer.callback({"success": False})
    assert case.state(entry) == "READY"


@pytest.mark.parametrize(
    "url",
    ["http://localhost:3001/x", "http://evil/", "nonsense", 7, None, "http://a@localhost:3000"],
)
def test_a_status_url_elsewhere_is_never_called(case: Case, url: object) -> None:
    """Such a receiver is asked again every 5 minutes instead."""
    case.receiver.now("ask", {"success": True, "statusUrl": url})
    entry = case.waiting()
    assert case.entry(entry).status_url is None
    case.after(299)
    assert case.receiver.times("ask") == 1
    case.after(1)
    assert case.receiver.times("ask") == 2
    assert case.receiver.times("status") == 0


def test_what_is_asked_for_is_what_the_file_has_now(case: Case) -> None:
    entry = case.queued()
    case.file(data=b"longer video")
    case.turn()
    assert case.receiver.heard[0][2]["diskEmptySpaceRequire"] == "12"
    assert case.entry(entry).size == 12


# -- waiting --------------------------------------------------------------------------------------


def test_the_place_in_the_queue_is_looked_up_every_5_to_60_seconds(case: Case) -> None:
    entry = case.waiting()
    assert case.outbox.progress(case.entry(entry)) == (0, None)
    moments = []
    for _ in range(2000):
        before = case.receiver.times("status")
        case.after(1)
        if case.receiver.times("status") > before:
            moments.append(case.clock.seconds())
    waits = [b - a for a, b in zip([0, *moments], moments, strict=False)]
    assert waits[:3] == [5, 5, 5]
    assert waits[-1] == 60
    assert waits == sorted(waits)
    assert case.outbox.progress(case.entry(entry)) == (0, 3)
    assert case.state(entry) == "WAITING"


@pytest.mark.parametrize(
    "answer",
    [
        refused(404),
        refused(410),
        {"state": "EXPIRED"},
        {"state": "CANCELLED", "reason": "x"},
        {"state": "FAILED"},
    ],
)
def test_a_request_that_the_receiver_forgot_or_ended_is_made_again(
    case: Case, answer: object
) -> None:
    entry = case.waiting()
    case.receiver.now("status", answer, {"state": "PENDING"})
    case.until(entry, "ASKING")
    assert case.entry(entry).last_error
    case.until(entry, "WAITING")
    assert case.receiver.times("ask") == 2


def test_a_request_that_is_over_is_not_told_for_the_one_that_follows_it(case: Case) -> None:
    """The answer that named the new one was lost, and its notice came all the same."""
    entry = case.waiting()
    case.receiver.now("status", refused(404))
    case.receiver.now("ask", AWAY)
    case.until(entry, "ASKING")
    case.after(60)
    case.notice(entry)
    case.turn()
    done = case.entry(entry)
    assert (done.state, done.request_id, done.status_url) == ("VERIFIED", None, None)


def test_who_has_no_room_any_more_knows_the_request_no_more(case: Case) -> None:
    case.receiver.now("status", {"state": "OFFERED"})
    entry = case.waiting()
    case.receiver.now("ask", {"success": False})
    case.until(entry, "ASKING")
    told = case.entry(entry)
    assert (told.request_id, told.status_url) == (None, None)


def test_a_receiver_that_forgets_at_once_is_not_asked_ever_faster(case: Case) -> None:
    """Two servers that misunderstand each other make no whirl of messages."""
    case.waiting()
    case.receiver.now("status", refused(404))
    for _ in range(3600):
        case.after(1)
    assert case.receiver.times("ask") < 25


@pytest.mark.parametrize("state", ["OFFERED", "RECEIVING", "RECEIVED"])
def test_a_receiver_that_thinks_it_is_our_turn_is_asked_again(case: Case, state: str) -> None:
    """Its notice was lost; asked again, it repeats it."""
    entry = case.waiting()
    case.receiver.now("status", {"state": state})
    case.after(5)
    assert case.receiver.times("ask") == 2
    assert case.state(entry) == "WAITING"


def test_while_the_receiver_is_away_it_waits(case: Case) -> None:
    entry = case.waiting()
    case.receiver.now("status", AWAY, refused(500), {"state": "PENDING", "position": 1})
    case.after(5)
    assert case.entry(entry).last_error == str(AWAY)
    case.after(60)
    case.after(60)
    assert case.state(entry) == "WAITING"
    assert case.entry(entry).last_error is None
    assert case.outbox.progress(case.entry(entry)) == (0, 1)


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["ASKING", "WAITING", "READY", "SENT"])
def test_after_the_deadline_it_has_failed_and_says_why(tmp_path: Path, state: str) -> None:
    case = Case(tmp_path, send_deadline=100.0)
    for name in {"ASKING": ["ask"], "READY": ["send"], "SENT": ["complete"]}.get(state, []):
        case.receiver.now(name, AWAY)
    entry = case.queued()
    case.turn()
    if state in ("READY", "SENT"):
        case.notice(entry)
        case.turn()
    assert case.state(entry) == state
    case.until(entry, "FAILED", 200)
    assert case.clock.seconds() >= 100
    assert "its time is over" in str(case.entry(entry).last_error)
    assert (str(AWAY) in str(case.entry(entry).last_error)) is (state != "WAITING")
    told = ("complete", COMPLETE, {"videoId": 2, "success": False}) in case.receiver.heard
    assert told is (state in ("READY", "SENT"))


@pytest.mark.filterwarnings("ignore")
def test_a_defect_is_logged_and_retried_ever_later(case: Case) -> None:
    case.receiver.now("ask", RuntimeError("a defect"))
    entry = case.queued()
    for _ in range(600):
        case.after(1)
    assert case.state(entry) == "ASKING"
    assert case.receiver.times("ask") == 10
    assert "should not" in str(case.entry(entry).last_error)
    case.receiver.now("ask", {"success": True})
    case.until(entry, "WAITING", 301)


def test_while_the_ledger_fails_an_entry_rests(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = case.queued()

    def broken(*_: object) -> object:
        raise LedgerFailed("The ledger could not commit.")

    with monkeypatch.context() as patch:
        patch.setattr(case.ledger, "change_entry", broken)
        for _ in range(10):
            case.after(1)
    assert 2 <= case.receiver.times("ask") <= 3
    case.until(entry, "WAITING", 6)


def test_after_a_restart_everything_goes_on_from_the_ledger(case: Case, tmp_path: Path) -> None:
    """Whatever the state, and what is waiting is asked for at once."""
    entries = [case.queued(f"{n}.mp4", b"video" * (n + 1)) for n in range(4)]
    case.receiver.now("send", AWAY)
    case.turn()
    case.notice(entries[2])
    case.turn()
    case.receiver.now("send", {})
    case.receiver.now("complete", AWAY)
    case.notice(entries[3])
    case.turn()
    assert [case.state(entry) for entry in entries] == ["WAITING", "WAITING", "READY", "SENT"]
    result_of(go_on(case.outbox.stop()))

    second = Case(tmp_path, ledger=case.ledger, clock=case.clock)
    result_of(go_on(second.outbox.start()))
    second.turn()
    assert second.receiver.times("ask") == 2
    second.after(1)
    for entry in entries[:2]:
        second.notice(entry)
    second.after(1)
    assert [second.state(entry) for entry in entries] == ["VERIFIED"] * 4
