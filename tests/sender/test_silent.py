"""A server that says nothing delays nothing that goes to another."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from backupd.errors import PeerFailed, PeerSilent
from backupd.interfaces import Entry
from backupd.peer.origins import origin_of
from backupd.sender.outbox import EACH, SMALL_STEPS
from backupd.sender.sharing import AHEAD, UnderWay, longest_due, share
from tests.conformance.samples import an_entry
from tests.sender.kit import A, Case, Receiver

SOON = 3.0
"""Seconds within which a step that is due begins."""

LIMITS = {"send": 60.0, "complete": 120.0}


class Town(Receiver):
    """Servers on one clock; what is told to a silent one is waited for in vain."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.silent: set[str] = set()
        self.under_way: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.at: list[tuple[float, str, str]] = []
        """When which message was told to whom."""

    async def _react(self, name: str, *heard: Any) -> Any:
        origin = origin_of(heard[0])
        self.at.append((self.clock.seconds(), name, origin))
        self.under_way[origin] += 1
        for to, count in ((origin, self.under_way[origin]), ("all", self.under_way.total())):
            self.most[to] = max(count, self.most[to])
        try:
            if origin in self.silent:
                await self._in_vain(origin, LIMITS.get(name, 15.0))
            return await super()._react(name, *heard)
        finally:
            self.under_way[origin] -= 1

    async def _in_vain(self, origin: str, limit: float) -> None:
        waited: Deferred[None] = Deferred()
        call = self.clock.callLater(limit, waited.callback, None)
        try:
            await waited
        finally:
            if call.active():
                call.cancel()
        raise PeerSilent(f"{origin} did not answer within {limit:.0f} s.")

    def first(self, name: str, origin: str, since: float) -> float:
        """How long after ``since`` this was first told to that server."""
        return next(at - since for at, *what in self.at if what == [name, origin] and at >= since)


def dead(number: int = 0) -> str:
    return f"http://localhost:{5000 + number}"


def town(folder: Path, **settings: Any) -> tuple[Case, Town]:
    clock = Clock()
    servers = Town(clock)
    return Case(folder, clock=clock, receiver=servers, **settings), servers


def pass_time(case: Case, seconds: float) -> None:
    for _ in range(int(seconds)):
        case.after(1)


def fetched(case: Case, entry: Entry) -> Entry:
    """A notice for it has come from the server that it goes to."""
    return case.notice(entry, f"{entry.to}/upload", f"{entry.to}/complete")


# -- the others -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [20, 500])
def test_however_much_waits_for_a_silent_server_others_get_theirs(
    tmp_path: Path, number: int
) -> None:
    """Asked, heeded and sent to within seconds: at once, as the silent one is found out, and when
    every entry for it has been due again for a long time.
    """
    case, servers = town(tmp_path)
    servers.silent = {dead()}
    for other in range(number):
        case.queued(f"{other}.mp4", to=dead())
    for name in ("at once.mp4", "found out.mp4", "long since.mp4"):
        begun = case.clock.seconds()
        entry = case.queued(name)
        pass_time(case, SOON)
        assert servers.first("ask", A, begun) < SOON
        told = case.clock.seconds()
        fetched(case, entry)
        pass_time(case, SOON)
        assert servers.first("send", A, told) < SOON
        assert case.state(entry) == "VERIFIED"
        pass_time(case, 10.0 if name == "at once.mp4" else 300.0)
    assert servers.most[dead()] == EACH


def test_many_silent_servers_leave_room_for_those_that_answer(tmp_path: Path) -> None:
    """Each has one step under way at most once it is known, and all together half of them."""
    case, servers = town(tmp_path)
    servers.silent = {dead(number) for number in range(40)}
    for number in range(40):
        for name in "abcde":
            case.queued(f"{number}{name}.mp4", to=dead(number))
    pass_time(case, 120)
    servers.most.clear()
    for number in range(20):
        begun = case.clock.seconds()
        case.queued(f"{number}.mp4")
        pass_time(case, SOON)
        assert servers.first("ask", A, begun) < SOON
    pass_time(case, 120)
    assert {servers.most[dead(number)] for number in range(40)} == {1}
    assert servers.most["all"] <= SMALL_STEPS // 2 + EACH


def test_places_for_uploads_are_not_held_by_a_silent_server(tmp_path: Path) -> None:
    """One that has called for many videos, and then says nothing, gets no more than a question."""
    case, servers = town(tmp_path, max_sends=1)
    case.queued("stays.mp4")  # so that it is remembered when the healthy one had its turns
    ready = [case.queued(f"{number}.mp4", to=dead()) for number in range(20)]
    case.turn()
    servers.silent = {dead()}
    for entry in ready:
        fetched(case, entry)
    pass_time(case, 200)
    for name in range(5):
        entry = case.queued(f"healthy {name}.mp4")
        pass_time(case, SOON)
        told = case.clock.seconds()
        fetched(case, entry)
        pass_time(case, SOON)
        assert servers.first("send", A, told) < SOON
        pass_time(case, 60)
    assert servers.most[dead()] == 1
    assert sum(what == ["send", dead()] for _, *what in servers.at) <= 1


def test_of_two_that_call_each_has_its_turn(tmp_path: Path) -> None:
    """What one has called for long since does not all go before what another calls for."""
    case, servers = town(tmp_path, max_sends=1)
    sending: list[Deferred[object]] = [Deferred() for _ in range(6)]
    servers.now("send", *sending, {})
    other = "http://localhost:3333"
    for number, to in enumerate((A, A, A, other, other, other)):
        fetched(case, case.waiting(name=f"{number}.mp4", to=to))
    for answer in sending:
        answer.callback({})
        case.turn()
    sent = [origin for _, name, origin in servers.at if name == "send"]
    assert sent == [A, other, A, other, A, other]


# -- the silent one -------------------------------------------------------------------------------


def test_a_server_that_is_back_is_served_soon(tmp_path: Path) -> None:
    """It is asked all the time, and what was called for goes on as soon as it answers."""
    case, servers = town(tmp_path)
    servers.silent = {dead()}
    entries = [case.queued(f"{number}.mp4", to=dead()) for number in range(200)]
    pass_time(case, 600)
    fetched(case, entries[0])
    pass_time(case, 100)
    servers.silent.clear()
    pass_time(case, 20)
    assert case.state(entries[0]) == "VERIFIED"
    assert sum(case.state(entry) == "WAITING" for entry in entries) > 50
    pass_time(case, 300)
    assert {case.state(entry) for entry in entries[1:]} == {"WAITING"}


def test_nothing_starves_at_a_silent_server(tmp_path: Path) -> None:
    """Each is tried again and again, one after the other."""
    case, servers = town(tmp_path)
    servers.silent = {dead()}
    entries = [case.queued(f"{number}.mp4", to=dead()) for number in range(30)]
    fetched(case, entries[0])
    pass_time(case, 3 * 30 * 15)
    tries = [case.entry(entry).attempts for entry in entries]
    assert min(tries) >= 2
    assert max(tries[1:]) - min(tries[1:]) <= 1


def test_its_time_ends_at_a_silent_server_too(tmp_path: Path) -> None:
    case, servers = town(tmp_path, send_deadline=100.0)
    servers.silent = {dead()}
    entries = [case.queued(f"{number}.mp4", to=dead()) for number in range(200)]
    pass_time(case, 100 + 15 + 1)
    assert {case.state(entry) for entry in entries} == {"FAILED"}


def test_who_breaks_off_is_not_silent(tmp_path: Path) -> None:
    """A connection that was cut is made again at once, whatever else is on its way."""
    case, servers = town(tmp_path, max_sends=2)
    first, second = (case.waiting(name=f"{number}.mp4") for number in range(2))
    servers.now("send", Deferred(), PeerFailed("It closed the connection."), Deferred())
    fetched(case, first)
    case.turn()
    fetched(case, second)
    case.turn()
    assert servers.times("send") == 2
    case.after(1)
    assert servers.times("send") == 3
    assert servers.times("standing") == 3  # nobody has knocked before


# -- how places are shared ------------------------------------------------------------------------


def shared(due: str, *, busy: str = "", silent: str = "", places: int = 8, each: int = 4) -> str:
    given = share(due, busy=Counter(busy), silent=silent, places=places, each=each)
    return "".join(sorted(given.elements()))


def test_each_gets_one_before_anybody_gets_two() -> None:
    assert shared("abc", places=4) == "aabc"
    assert shared("cba", places=4) == "abcc"
    assert shared("abc", busy="bbb", places=5) == "ab"


def test_nobody_gets_more_than_its_part() -> None:
    assert shared("a") == "aaaa"
    assert shared("a", busy="aaa") == "a"
    assert shared("ab", busy="aaaa") == "bbbb"


def test_the_silent_get_one_each_and_half_together() -> None:
    assert shared("a", silent="a") == "a"
    assert shared("a", busy="a", silent="a") == ""
    assert shared("abcdef", silent="abcde") == "abcdffff"
    assert shared("abcdef", busy="aabb", silent="abcde") == "ffff"
    assert shared("a", busy="bbbb", silent="a") == "a"


def test_turns_go_to_whom_least_is_done_for_and_then_round() -> None:
    steps = UnderWay(3)
    first, second, third = (an_entry(str(n), to=to) for n, to in enumerate("aab"))
    for entry in (first, second, third):
        assert not steps.full
        steps.begin(entry)
    assert steps.full
    assert steps.in_turn("abc") == ["c", "b", "a"]
    steps.end(second.entry_id)
    assert steps.in_turn("ba") == ["a", "b"]
    steps.end(first.entry_id)
    steps.end(third.entry_id)
    assert steps.in_turn("ba") == ["a", "b"]
    steps.forget_all_but("a")
    assert steps.in_turn("ab") == ["b", "a"]


def test_those_the_receiver_waits_for_are_first_but_not_for_ever() -> None:
    asking = an_entry("1", due_at=0.0)
    sent = an_entry("2", state="SENT", due_at=AHEAD - 1)
    later = an_entry("3", state="SENT", due_at=AHEAD + 1)
    assert longest_due([asking, later, sent], 9) == [sent, asking, later]
    assert longest_due([asking, later, sent], 1) == [sent]
