"""What is to be sent, and when."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from backupd.errors import AlreadyStored, Invalid, LedgerFailed, NoSuchEntry, PeerFailed, PeerSilent
from backupd.interfaces import Entry
from backupd.peer.file_body import BLOCK
from backupd.waiting import go_on
from tests.ledger.offs import WhenTold
from tests.outcomes import pending, result_of
from tests.sender.kit import COMPLETE, UPLOAD, A, Case, refused

B = "http://localhost:3333"


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def enqueue(case: Case, **what: Any) -> Entry:
    return result_of(go_on(case.outbox.enqueue(**what)))


# -- queueing -------------------------------------------------------------------------------------


def test_an_entry_is_what_the_file_is(case: Case) -> None:
    path = case.file("Ferien 2026.webm", b"12345678")
    entry = enqueue(case, path=path, to=f"{A}/")
    assert (entry.state, entry.video, entry.to) == ("ASKING", "Ferien 2026", A)
    assert (entry.file_name, entry.content_type) == ("Ferien 2026.webm", "video/webm")
    assert (entry.size, entry.modified_ns) == (8, os.stat(path).st_mtime_ns)
    assert entry.deadline == 7 * 86400
    assert case.nudges == 1


def test_a_file_that_is_being_sent_to_the_same_server_is_not_queued_twice(case: Case) -> None:
    path = case.file()
    first = enqueue(case, path=path, to=A)
    assert enqueue(case, path=path, to=f"{A}/").entry_id == first.entry_id
    assert enqueue(case, path=path, to=B).entry_id != first.entry_id


@pytest.mark.parametrize("state", ["WAITING", "READY"])
def test_what_is_queued_is_what_the_file_is_now(case: Case, state: str) -> None:
    """The entry for it asks anew, and nobody waits until that is noticed."""
    case.receiver.now("send", PeerFailed("It is away."))
    entry = case.waiting(data=b"old")
    if state == "READY":
        case.notice(entry)
        case.turn()
    assert case.state(entry) == state
    deadline = case.entry(entry).deadline
    case.clock.advance(1)
    again = case.queued(data=b"a new cut")
    assert (again.entry_id, again.state, again.request_id) == (entry.entry_id, "ASKING", None)
    assert again.deadline == deadline + 1
    case.receiver.now("send", {})
    case.until(entry, "WAITING")
    case.notice(entry, UPLOAD + "2", COMPLETE + "2")
    case.until(entry, "VERIFIED")
    assert_new(case, entry)


def two_versions(case: Case, why: Exception) -> tuple[Entry, Entry]:
    """An entry of which all has arrived, and that of the file as it is now, behind it."""
    case.receiver.now("complete", why)
    old = case.waiting(data=b"old")
    case.notice(old)
    case.turn()
    assert case.state(old) == "SENT"
    new = case.queued(data=b"a new cut")
    assert new.entry_id != old.entry_id
    return old, new


def test_what_changes_while_the_old_is_confirmed_is_sent(case: Case) -> None:
    """By an entry of its own, which asks when the old has come to its end: the receiver knows one
    request for a video, and would confirm the old as the new.
    """
    old, new = two_versions(case, PeerFailed("It is away."))
    asked = case.receiver.times("ask")
    case.after(20)
    assert case.entry(new).last_error == "The version before it is to be confirmed first."
    assert (case.state(new), case.receiver.times("ask")) == ("ASKING", asked)
    case.receiver.now("complete", case.receiver.stored)
    case.until(new, "WAITING", 70)
    assert case.state(old) == "VERIFIED"
    case.notice(new, UPLOAD + "2", COMPLETE + "2")
    case.until(new, "VERIFIED")
    assert_new(case, new)


@pytest.mark.parametrize(("name", "to"), [("2.mp4", B), ("2.mkv", A)])
def test_only_a_version_of_the_same_file_there_is_waited_for(
    case: Case, name: str, to: str
) -> None:
    """Neither another server nor another file of that video holds it up."""
    case.receiver.now("complete", PeerFailed("It is away."))
    case.notice(case.waiting(data=b"old"))
    case.turn()
    other = case.queued(name, b"a new cut", to)
    case.turn()
    assert (other.video, case.state(other)) == (2, "WAITING")


def test_the_old_gives_way_to_the_new_where_it_would_have_to_ask(case: Case) -> None:
    """Both would bring the file as it is now."""
    old, new = two_versions(case, PeerFailed("It is away."))
    case.receiver.now("complete", refused(410), case.receiver.stored)
    case.until(old, "CANCELLED", 400)
    assert case.entry(old).last_error == f"The file has changed; entry {new.entry_id} sends it."
    case.until(new, "WAITING", 70)


def test_an_entry_that_gives_way_says_nothing_of_the_server(case: Case) -> None:
    """One that is silent is silent still, and gets one place and not four."""
    _, new = two_versions(case, PeerSilent("It said nothing."))
    case.turn()
    assert "to be confirmed first" in str(case.entry(new).last_error)
    assert case.outbox._courier.silent == {A}


def test_the_last_byte_of_the_old_comes_as_the_new_is_queued(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a version of its own then, too."""
    old, enqueue = case.waiting(data=b"old"), case.ledger.enqueue

    def late(entry: Entry) -> Deferred[Entry]:
        monkeypatch.undo()
        kept = enqueue(entry)
        result_of(case.ledger.change_entry(old.entry_id, lambda one: replace(one, state="SENT")))
        return kept

    monkeypatch.setattr(case.ledger, "enqueue", late)
    new = case.queued(data=b"a new cut")
    assert new.entry_id != old.entry_id
    assert (new.state, new.size, case.state(old)) == ("ASKING", 9, "SENT")


def assert_new(case: Case, entry: Entry) -> None:
    done = case.entry(entry)
    assert (done.size, done.sha256) == (9, hashlib.sha256(b"a new cut").hexdigest())
    assert case.receiver.body == b"a new cut"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("2.mp4", "absolute"),
        ("/nowhere/2.mp4", "does not exist"),
        ("/tmp", "is no file"),  # noqa: S108
        ("/dev/null", "is no file"),
        ("/tmp/a\0b", "absolute"),  # noqa: S108
        ("/tmp/\udcff", "UTF-8"),  # noqa: S108
    ],
)
def test_what_is_no_file_is_not_queued(case: Case, path: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        enqueue(case, path=path, to=A)


def test_an_empty_file_is_not_queued(case: Case) -> None:
    with pytest.raises(Invalid, match="it is empty"):
        enqueue(case, path=case.file(data=b""), to=A)


@pytest.mark.parametrize(
    "to", ["", "localhost:3000", "ftp://a/", f"{A}/?x", f"{A}/#x", "http://u@a"]
)
def test_where_it_goes_must_be_a_server(case: Case, to: str) -> None:
    with pytest.raises(Invalid, match="to"):
        enqueue(case, path=case.file(), to=to)


def test_without_a_path_the_catalogue_knows(tmp_path: Path) -> None:
    case = Case(tmp_path, videos=(str(tmp_path / "videos"),))
    path = case.file("videos/7.mp4")
    assert enqueue(case, video=7, to=A).path == path
    with pytest.raises(Invalid, match="videoId"):
        enqueue(case, video=8, to=A)
    with pytest.raises(Invalid, match="path"):
        enqueue(case, to=A)


# -- the loop -------------------------------------------------------------------------------------


def test_at_most_max_sends_uploads_run_and_questions_go_on_beside_them(tmp_path: Path) -> None:
    case = Case(tmp_path, max_sends=2)
    sending: list[Deferred[object]] = [Deferred(), Deferred()]
    case.receiver.now("send", *sending, {})
    ready = [case.waiting(name=f"{n}.mp4") for n in range(4)]
    for entry in ready:
        case.notice(entry)
    case.turn()
    assert case.receiver.times("send") == 2
    late = case.queued("late.mp4")
    case.turn()
    assert case.state(late) == "WAITING"
    for answer in sending:
        answer.callback({})
    case.turn()
    assert [case.state(entry) for entry in ready] == ["VERIFIED"] * 4


def test_an_entry_is_never_carried_twice_at_once(case: Case) -> None:
    asking: Deferred[object] = Deferred()
    case.receiver.now("ask", asking)
    case.queued()
    for _ in range(5):
        case.after(5)
    assert case.receiver.times("ask") == 1
    asking.callback({"success": True})


def test_it_wakes_the_loop_for_the_next_step(case: Case) -> None:
    """A second is a second, whatever the loop's own interval."""
    case.receiver.now("ask", {"success": False})
    case.queued()
    case.turn()
    case.clock.advance(0.9)
    assert case.nudges == 0
    case.clock.advance(0.1)
    assert case.nudges == 1


def test_a_tick_never_fails(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> object:
        raise LedgerFailed("The ledger could not be read.")

    monkeypatch.setattr(case.ledger, "entries_due", broken)
    result_of(go_on(case.outbox.tick()))


def test_more_entries_than_places_are_all_asked_for(case: Case) -> None:
    entries = [case.queued(f"{n}.mp4") for n in range(300)]
    for _ in range(10):
        case.turn()
    assert {case.state(entry) for entry in entries} == {"WAITING"}
    assert case.receiver.times("ask") == 300


def test_a_restart_asks_again_for_more_than_a_page(tmp_path: Path) -> None:
    case = Case(tmp_path)
    entries = [case.queued(f"{n}.mp4") for n in range(600)]
    for _ in range(20):
        case.turn()
    second = Case(tmp_path, ledger=case.ledger, clock=case.clock)
    result_of(go_on(second.outbox.start()))
    assert {second.state(entry) for entry in entries} == {"ASKING"}


# -- cancelling and stopping ----------------------------------------------------------------------


class Slow(Case):
    """A sender whose reads happen when the test says."""

    def __init__(self, folder: Path) -> None:
        self.threads = WhenTold()
        super().__init__(folder, off=self.threads)

    def run(self) -> None:
        """Let every thread come to its end."""
        while self.threads.waiting:
            self.threads.run()

    def uploading(self) -> Entry:
        """An entry whose file is being read while it is sent."""
        queueing = go_on(self.outbox.enqueue(to=A, path=self.file(data=b"v" * 3 * BLOCK)))
        self.run()
        entry = result_of(queueing)
        self.turn()
        self.run()
        self.notice(entry)
        self.turn()
        for _ in ("is it the same file?", "close", "open"):
            self.threads.run()
        assert self.receiver.times("send") == 1
        assert len(self.threads.waiting) == 1
        return entry


def open_files(path: str) -> int:
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.path.exists(link) and os.path.realpath(link) == path for link in links)


def test_cancelling_stops_the_upload_and_tells_the_receiver(tmp_path: Path) -> None:
    case = Slow(tmp_path)
    entry = case.uploading()
    cancelling = go_on(case.outbox.cancel(entry.entry_id))
    assert pending(cancelling)  # a thread still reads
    case.run()
    assert result_of(cancelling).state == "CANCELLED"
    case.turn()
    assert case.receiver.heard[-1] == ("complete", COMPLETE, {"videoId": 2, "success": False})
    assert case.state(entry) == "CANCELLED"
    assert len(case.receiver.body) < 3 * BLOCK
    assert open_files(entry.path) == 0
    assert case.outbox.progress(case.entry(entry)) == (0, None)


def test_cancelling_again_is_harmless_and_nothing_follows(case: Case) -> None:
    entry = case.waiting()
    for _ in range(2):
        cancelled = result_of(go_on(case.outbox.cancel(entry.entry_id)))
        assert cancelled.state == "CANCELLED"
    heard = len(case.receiver.heard)
    for _ in range(100):
        case.after(60)
    assert len(case.receiver.heard) == heard


def test_what_is_stored_cannot_be_cancelled(case: Case) -> None:
    entry = case.waiting()
    case.notice(entry)
    case.turn()
    with pytest.raises(AlreadyStored):
        result_of(go_on(case.outbox.cancel(entry.entry_id)))
    with pytest.raises(NoSuchEntry):
        result_of(go_on(case.outbox.cancel("none")))


def test_an_answer_does_not_bring_a_cancelled_entry_back(case: Case) -> None:
    asking: Deferred[object] = Deferred(lambda _: None)
    case.receiver.now("ask", asking)
    entry = case.queued()
    case.turn()
    result_of(go_on(case.outbox.cancel(entry.entry_id)))
    case.turn()
    assert case.state(entry) == "CANCELLED"


def test_stopping_cuts_uploads_and_waits_for_their_threads(tmp_path: Path) -> None:
    """The entry stays READY: the next process goes on where the receiver stands."""
    case = Slow(tmp_path)
    entry = case.uploading()
    stopping = go_on(case.outbox.stop())
    assert pending(stopping)
    case.run()
    result_of(stopping)
    assert open_files(entry.path) == 0
    assert case.state(entry) == "READY"
    assert case.clock.getDelayedCalls() == []
    result_of(go_on(case.outbox.tick()))
    assert case.threads.waiting == []


def test_progress_is_what_has_been_handed_to_the_network(tmp_path: Path) -> None:
    case = Slow(tmp_path)
    entry = case.uploading()
    case.threads.run()
    assert case.outbox.progress(case.entry(entry)) == (BLOCK, None)
    stopping = go_on(case.outbox.stop())
    case.run()
    result_of(stopping)


# -- watched folders ------------------------------------------------------------------------------


def entries(case: Case) -> list[Entry]:
    return [one for _, one in result_of(case.ledger.entries(over=None, after=0, limit=100))]


def watching(folder: Path, **more: Any) -> Case:
    return Case(folder, videos=(str(folder / "videos"),), watch_to=A, **more)


def test_a_file_that_is_still_for_a_minute_is_queued_by_itself(tmp_path: Path) -> None:
    case = watching(tmp_path)
    path = case.file("videos/5.mp4", b"a")
    case.turn()
    case.after(40)
    case.file("videos/5.mp4", b"longer")
    case.after(40)
    case.after(59)
    assert entries(case) == []
    case.after(10)
    assert [(one.path, one.video, one.to) for one in entries(case)] == [(path, 5, A)]
    for _ in range(100):
        case.after(10)
    assert len(entries(case)) == 1


def test_a_watched_file_that_changes_while_the_old_is_confirmed(tmp_path: Path) -> None:
    """It is queued as any other."""
    case = watching(tmp_path)
    case.file("videos/5.mp4", b"old")
    case.turn()
    case.after(70)
    [entry] = entries(case)
    case.receiver.now("complete", PeerFailed("It is away."))
    case.notice(entry)
    case.turn()
    assert case.state(entry) == "SENT"
    case.file("videos/5.mp4", b"a new cut")
    for _ in range(9):
        case.after(10)
    assert [(one.state, one.size) for one in entries(case)] == [("SENT", 3), ("ASKING", 9)]


def test_what_was_queued_before_a_restart_is_not_queued_again(tmp_path: Path) -> None:
    """Whatever became of it; until the file changes."""
    first = watching(tmp_path)
    first.file("videos/5.mp4")
    first.turn()
    first.after(60)
    (entry,) = entries(first)
    result_of(go_on(first.outbox.cancel(entry.entry_id)))
    second = watching(tmp_path, ledger=first.ledger, clock=first.clock)
    for _ in range(20):
        second.after(10)
    assert len(entries(second)) == 1
    second.file("videos/5.mp4", b"a new cut")
    for _ in range(20):
        second.after(10)
    assert len(entries(second)) == 2


def test_a_watched_folder_that_is_away_is_no_trouble(tmp_path: Path) -> None:
    case = watching(tmp_path)
    case.turn()
    case.after(10)
    case.file("videos/5.mp4")
    case.after(10)
    case.after(60)
    assert len(entries(case)) == 1


def test_what_cannot_be_read_there_is_told_once(
    tmp_path: Path,
) -> None:
    case = Case(tmp_path, videos=(f"{tmp_path}/away", f"{tmp_path}/videos"), watch_to=A)
    case.file("videos/5.mp4")
    with capturedLogs() as logs:
        case.turn()
        for _ in range(9):
            case.after(10)
    assert len(entries(case)) == 1
    told = [one for one in logs if one.get("path") == f"{tmp_path}/away"]
    assert len(told) == 1


def test_what_was_away_and_is_back_is_not_queued_again(tmp_path: Path) -> None:
    """A volume that is mounted again is not sent anew."""
    case = watching(tmp_path)
    case.file("videos/5.mp4")
    case.turn()
    case.after(70)
    (entry,) = entries(case)
    result_of(go_on(case.outbox.cancel(entry.entry_id)))
    for was, now in (("videos", "away"), ("away", "videos")):
        (tmp_path / was).rename(tmp_path / now)
        (tmp_path / "videos").mkdir(exist_ok=True)
        for _ in range(9):
            case.after(10)
        if now == "away":
            (tmp_path / "videos").rmdir()
    assert len(entries(case)) == 1


def test_a_catalogue_that_cannot_be_read_is_told_as_such(tmp_path: Path) -> None:
    case = Case(tmp_path, videos=(str(tmp_path / "away"),))
    with pytest.raises(Invalid, match=r"away.*No such file"):
        enqueue(case, video=7, to=A)
    case = Case(tmp_path, videos=(str(tmp_path / "away"), str(tmp_path / "videos")))
    path = case.file("videos/7.mp4")
    assert enqueue(case, video=7, to=A).path == path
