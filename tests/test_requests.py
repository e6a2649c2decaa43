"""The life of a backup request: which step leads where, and which is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.errors import AlreadyStored, BackupdError, Over, WrongState
from backupd.requests import (
    MAX_TRIES,
    Ask,
    Backup,
    BackupRequest,
    Cancelled,
    Expired,
    Failed,
    Offered,
    Pending,
    Received,
    Receiving,
    Stored,
    Storing,
    asked_again,
    ended,
    expired,
    lapsed,
    live,
    offer_failed,
    progressed,
    received,
    receiving,
    rejected,
    same_video,
    state_name,
    stored,
    storing,
    taken,
    video_key,
)

NOW = 1_000.0
ASK = Ask(
    request_id="request-1",
    peer="http://localhost:3002",
    origin="http://localhost:3002",
    video=2,
    callback="http://localhost:3002/ready",
    size=50,
    capability="capability-1",
    created_at=900.0,
)
AGAIN = replace(
    ASK,
    request_id="request-2",
    capability="capability-2",
    created_at=NOW,
    callback="http://localhost:3002/later",
    size=70,
)
BACKUP = Backup(
    backup_id="backup-1",
    request_id="request-1",
    peer=ASK.peer,
    video=2,
    file_name="a.mp4",
    content_type=None,
    size=40,
    sha256="ab" * 32,
    stored_at=NOW,
    verified_at=NOW,
    folder="peer/video/backup-1",
    name="a.mp4",
)

# Every state with its lease and its time just up.
STATES: list[BackupRequest] = [
    Pending(ask=ASK, due_at=950.0, expires_at=NOW, tries=1, attempts=3, last_error="refused"),
    Offered(ask=ASK, lease_until=NOW, expires_at=NOW, tries=1),
    Receiving(ask=ASK, lease_until=NOW, expires_at=NOW, tries=1),
    Received(ask=ASK, upload_id="upload-1", size=40, sha256="ab" * 32, expires_at=NOW, tries=1),
    Storing(ask=ASK, upload_id="upload-1", backup=BACKUP, expires_at=NOW, tries=1),
    Stored(ask=ASK, backup_id="backup-1", size=40, sha256="ab" * 32, ended_at=950.0),
    Expired(ask=ASK, reason="late", ended_at=950.0),
    Cancelled(ask=ASK, reason="taken back", ended_at=950.0),
    Failed(ask=ASK, reason="wrong bytes", ended_at=950.0),
]
BY_NAME = {state_name(state): state for state in STATES}
ENDS = ("STORED", "EXPIRED", "CANCELLED", "FAILED")

Step = Callable[[BackupRequest], BackupRequest]
STEPS: dict[str, Step] = {
    "asked_again": lambda r: asked_again(r, ask=AGAIN, now=NOW),
    "offer_failed": lambda r: offer_failed(r, due_at=NOW + 5, expires_at=NOW + 100, why="no"),
    "taken": lambda r: taken(r, lease_until=NOW + 10, expires_at=NOW + 100),
    "receiving": lambda r: receiving(r, lease_until=NOW + 10),
    "progressed": lambda r: progressed(r, lease_until=NOW + 10, expires_at=NOW + 100),
    "received": lambda r: received(
        r, upload_id="upload-2", size=41, sha256="cd" * 32, expires_at=NOW + 100
    ),
    "rejected": lambda r: rejected(r, why="other bytes", now=NOW),
    "lapsed": lambda r: lapsed(r, now=NOW),
    "storing": lambda r: storing(r, backup=BACKUP),
    "stored": lambda r: stored(r, now=NOW),
    "expired": lambda r: expired(r, now=NOW),
    "cancelled": lambda r: ended(r, Cancelled, reason="taken back", now=NOW),
    "failed": lambda r: ended(r, Failed, reason="gave up", now=NOW),
}

# Where each step leads from PENDING, OFFERED, RECEIVING, RECEIVED, STORING; "-" is a WrongState.
# From an end every step raises, but for "stored", which may be said again.
TABLE = """
asked_again   PENDING    OFFERED    RECEIVING  RECEIVED   STORING
offer_failed  PENDING    OFFERED    RECEIVING  RECEIVED   STORING
taken         OFFERED    OFFERED    RECEIVING  RECEIVED   STORING
receiving     -          RECEIVING  RECEIVING  RECEIVING  -
progressed    PENDING    OFFERED    RECEIVING  RECEIVED   STORING
received      -          -          RECEIVED   RECEIVED   -
rejected      -          -          RECEIVING  PENDING    -
lapsed        PENDING    PENDING    PENDING    RECEIVED   STORING
storing       -          -          -          STORING    STORING
stored        -          -          -          -          STORED
expired       EXPIRED    EXPIRED    EXPIRED    EXPIRED    STORING
cancelled     CANCELLED  CANCELLED  CANCELLED  CANCELLED  -
failed        FAILED     FAILED     FAILED     FAILED     -
"""
ROWS = {row[0]: row[1:] for row in (line.split() for line in TABLE.strip().splitlines())}
CELLS = [
    (step, state_name(state), outcome)
    for step, outcomes in ROWS.items()
    for state, outcome in zip(STATES, outcomes, strict=False)
]


def test_table_is_whole() -> None:
    """The table tells of every step and every live state."""
    assert set(ROWS) == set(STEPS)
    assert all(len(outcomes) == 5 for outcomes in ROWS.values())


@pytest.mark.parametrize(("step", "state", "outcome"), CELLS)
def test_steps(step: str, state: str, outcome: str) -> None:
    """Each step leads from each live state where the table says, or raises `WrongState`."""
    if outcome == "-":
        with pytest.raises(WrongState) as caught:
            STEPS[step](BY_NAME[state])
        assert caught.value.state == state
    else:
        assert state_name(STEPS[step](BY_NAME[state])) == outcome


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("state", ENDS)
def test_no_step_leaves_an_end(step: str, state: str) -> None:
    """What has ended stays so: 409 material when it is stored, 410 when it is not."""
    if (step, state) == ("stored", "STORED"):
        assert STEPS[step](BY_NAME[state]) is BY_NAME[state]
        return
    with pytest.raises(AlreadyStored if state == "STORED" else Over):
        STEPS[step](BY_NAME[state])


@pytest.mark.parametrize("state", BY_NAME)
def test_states_are_frozen(state: str) -> None:
    """A step makes a new value; no value ever changes."""
    with pytest.raises(FrozenInstanceError):
        BY_NAME[state].ask = AGAIN  # type: ignore[misc]


def test_over_tells_why() -> None:
    """Who comes too late is told how it ended, and why."""
    with pytest.raises(Over, match="EXPIRED: late"):
        live(BY_NAME["EXPIRED"], "received")


@pytest.mark.parametrize("state", ["PENDING", "OFFERED", "RECEIVING", "RECEIVED"])
def test_asked_again_keeps_the_request(state: str) -> None:
    """Link and size change; id, capability and age are those that were handed out."""
    new = STEPS["asked_again"](BY_NAME[state])
    assert new.ask == replace(
        AGAIN, request_id=ASK.request_id, capability=ASK.capability, created_at=ASK.created_at
    )


@pytest.mark.parametrize(
    ("changes", "holds"), [({}, True), ({"size": 7}, False), ({"callback": "http://b/"}, False)]
)
def test_a_digest_holds_for_the_video_it_was_told_of(changes: dict[str, Any], holds: bool) -> None:
    """Not for another size, nor for whoever asks by another link: that may be another version."""
    ask = replace(ASK, sha256="ab" * 32)
    again = replace(ask, sha256=None, **changes)
    new = asked_again(Pending(ask=ask, due_at=NOW), ask=again, now=NOW)
    assert new.ask.sha256 == ("ab" * 32 if holds else None)


def test_asked_again_is_due_at_once() -> None:
    """A waiting request whose sender is back is due now, never later than it was."""
    waiting = replace(BY_NAME["PENDING"], due_at=NOW + 300)  # type: ignore[arg-type]
    new = asked_again(waiting, ask=AGAIN, now=NOW)
    assert isinstance(new, Pending)
    assert (new.due_at, new.attempts) == (NOW, 0)
    early = asked_again(BY_NAME["PENDING"], ask=AGAIN, now=NOW)
    assert isinstance(early, Pending)
    assert early.due_at == 950.0


def test_asked_again_while_storing() -> None:
    """What is on its way to its final name is not changed any more."""
    assert STEPS["asked_again"](BY_NAME["STORING"]) is BY_NAME["STORING"]


def test_offer_failed_counts_and_waits() -> None:
    """A failed offer is counted, tried again at the time given, and says why it failed."""
    new = STEPS["offer_failed"](BY_NAME["PENDING"])
    assert isinstance(new, Pending)
    assert (new.attempts, new.due_at, new.last_error) == (4, NOW + 5, "no")


def test_first_offer_sets_the_deadline() -> None:
    """The deadline counts from the first offer; later ones do not move it."""
    fresh = Pending(ask=ASK, due_at=NOW)
    first = offer_failed(fresh, due_at=NOW + 5, expires_at=NOW + 100, why="no")
    second = offer_failed(first, due_at=NOW + 10, expires_at=NOW + 200, why="no")
    assert fresh.expires_at is None
    assert first.expires_at == second.expires_at == NOW + 100


def test_second_turn_does_not_prolong() -> None:
    """Who let a turn lapse and takes another still ends a day after the last byte."""
    back = lapsed(BY_NAME["RECEIVING"], now=NOW)
    again = taken(back, lease_until=NOW + 10, expires_at=NOW + 500)
    assert again.expires_at == BY_NAME["RECEIVING"].expires_at  # type: ignore[union-attr]


def test_first_turn_begins_the_expiry() -> None:
    """The time to deliver begins when the offer is taken; the offer's deadline is past then."""
    new = taken(BY_NAME["PENDING"], lease_until=NOW + 10, expires_at=NOW + 100)
    assert isinstance(new, Offered)
    assert (new.lease_until, new.expires_at) == (NOW + 10, NOW + 100)


@pytest.mark.parametrize("state", ["OFFERED", "RECEIVING"])
def test_progress_moves_lease_and_expiry(state: str) -> None:
    """Durable bytes keep the turn, and begin the expiry anew."""
    new = STEPS["progressed"](BY_NAME[state])
    assert isinstance(new, Offered | Receiving)
    assert (new.lease_until, new.expires_at) == (NOW + 10, NOW + 100)


@pytest.mark.parametrize("state", ["PENDING", "STORING"])
def test_progress_elsewhere_changes_nothing(state: str) -> None:
    """Bytes that become durable after the turn is over change no state."""
    assert STEPS["progressed"](BY_NAME[state]) is BY_NAME[state]


def test_progress_beside_what_is_whole() -> None:
    """It puts off the end, which would take these bytes too; and never brings it nearer."""
    later = replace(BY_NAME["RECEIVED"], expires_at=NOW + 101)  # type: ignore[arg-type]
    assert STEPS["progressed"](later) == later
    new = STEPS["progressed"](BY_NAME["RECEIVED"])
    assert new == replace(BY_NAME["RECEIVED"], expires_at=NOW + 100)  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["OFFERED", "RECEIVING"])
def test_lease_that_runs_on(state: str) -> None:
    """A turn is kept until its lease is over."""
    assert lapsed(BY_NAME[state], now=NOW - 0.001) is BY_NAME[state]


@pytest.mark.parametrize("state", ["PENDING", "OFFERED", "RECEIVING", "RECEIVED"])
def test_time_that_is_not_up(state: str) -> None:
    """Nothing expires early, and nothing expires that has no deadline yet."""
    assert expired(BY_NAME[state], now=NOW - 0.001) is BY_NAME[state]
    timeless = replace(BY_NAME[state], expires_at=None)  # type: ignore[arg-type]
    assert expired(timeless, now=1e12) is timeless


@pytest.mark.parametrize(("later", "ends"), [(0.0, True), (0.5, True), (2.0, False)])
def test_a_lease_beyond_the_time(later: float, ends: bool) -> None:
    """It holds if it was given since then; not if both began at once, whichever way rounded."""
    until = NOW - 20.0 + 600.0 + later
    request = replace(BY_NAME["RECEIVING"], lease_until=until)  # type: ignore[arg-type]
    assert isinstance(expired(request, now=NOW, lease=600.0, expiry=20.0), Expired) is ends


def test_expired_tells_the_last_error() -> None:
    """An expired request says what went wrong last."""
    late = expired(BY_NAME["PENDING"], now=NOW)
    assert isinstance(late, Expired)
    assert late.reason == "refused"


@pytest.mark.parametrize("kind", ["RECEIVING", "RECEIVED"])
def test_max_tries(kind: str) -> None:
    """Wrong bytes may come `MAX_TRIES` - 1 times; the next time the request has FAILED."""
    request: Any = replace(BY_NAME[kind], tries=0)  # type: ignore[arg-type]
    for count in range(1, MAX_TRIES):
        request = rejected(request, why="other bytes", now=NOW)
        assert request.tries == count
        if isinstance(request, Pending):
            offer = taken(request, lease_until=NOW, expires_at=NOW)
            turn = receiving(offer, lease_until=NOW)
            request = received(turn, upload_id="u", size=1, sha256="", expires_at=NOW)
    last = rejected(request, why="other bytes", now=NOW)
    assert isinstance(last, Failed)
    assert (last.reason, last.ended_at) == ("other bytes", NOW)


def test_stored_tells_what_was_kept() -> None:
    """STORED carries the id, size and digest of its backup."""
    end = stored(BY_NAME["STORING"], now=NOW)
    assert (end.backup_id, end.size, end.sha256) == ("backup-1", 40, "ab" * 32)


@given(st.integers(0, 2**53 - 1), st.integers(0, 2**53 - 1))
def test_number_and_text_name_one_video(one: int, other: int) -> None:
    """``2`` and ``"2"`` are the same video; ``2`` and ``3``, or ``"02"``, are not."""
    assert same_video(one, str(one))
    assert same_video(one, other) == (one == other)
    assert not same_video(one, f"0{one}")
    assert video_key(one) == str(one)


times = st.floats(NOW - 200, NOW + 200)


@st.composite
def any_step(draw: st.DrawFn) -> Step:
    """Any step, at any time."""
    t, u = draw(times), draw(times)
    steps: list[Step] = [
        lambda r: asked_again(r, ask=AGAIN, now=t),
        lambda r: offer_failed(r, due_at=t, expires_at=u, why="no"),
        lambda r: taken(r, lease_until=t, expires_at=u),
        lambda r: receiving(r, lease_until=t),
        lambda r: progressed(r, lease_until=t, expires_at=u),
        lambda r: received(r, upload_id="u", size=1, sha256="", expires_at=u),
        lambda r: rejected(r, why="other bytes", now=t),
        lambda r: lapsed(r, now=t),
        lambda r: storing(r, backup=BACKUP),
        lambda r: stored(r, now=t),
        lambda r: expired(r, now=t),
        lambda r: ended(r, Failed, reason="gave up", now=t),
    ]
    return draw(st.sampled_from(steps))


@given(st.lists(any_step(), max_size=40))
def test_any_life(steps: list[Step]) -> None:
    """Whatever happens in whatever order.

    No end is left; STORING leads nowhere but to STORED; the request stays the one that was
    handed out; tries never go down; and once it was its turn, a deadline stands.
    """
    request: BackupRequest = Pending(ask=ASK, due_at=NOW)
    for step in steps:
        before = request
        try:
            request = step(request)
        except BackupdError:
            assert request is before
            continue
        assert request.ask.request_id == ASK.request_id
        assert request.ask.capability == ASK.capability
        if state_name(before) in ENDS:
            assert request is before
        if isinstance(before, Storing):
            assert isinstance(request, Storing | Stored)
        if isinstance(request, Pending | Offered | Receiving | Received | Storing):
            assert isinstance(before, Pending | Offered | Receiving | Received | Storing)
            assert before.tries <= request.tries < MAX_TRIES
            if not isinstance(request, Pending) or request.accepted or request.attempts:
                assert request.expires_at is not None
