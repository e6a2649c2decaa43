"""Bandwidth: what may be said, and how exactly it is kept, on a clock."""

from __future__ import annotations

import calendar
import os
import time
from typing import Any, cast

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from backupd.bandwidth import Bandwidth, Pace, Schedule, parse_rate
from backupd.waiting import go_on

MONDAY = time.strptime("2026-11-23 12:00", "%Y-%m-%d %H:%M")
HOUR = 3600.0


def at(text: str) -> time.struct_time:
    return time.strptime(f"2026-11-{text}", "%Y-%m-%d %H:%M")


# -- what may be said ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("20 Mbit/s", 2.5e6),
        ("20Mbit/s", 2.5e6),
        ("8 bit/s", 1.0),
        ("1.5 Gbit/s", 187.5e6),
        ("2.5 MB/s", 2.5e6),
        ("100 kB/s", 1e5),
        ("unlimited", None),
    ],
)
def test_rates(text: str, rate: float | None) -> None:
    assert parse_rate(text) == rate
    assert Schedule.parse(text).rate(MONDAY) == rate


@pytest.mark.parametrize(
    "said",
    [
        "",
        "20",
        "20 MB",
        "0 Mbit/s",
        "7 bit/s",
        "-1 MB/s",
        "20 Mbits/s",
        "fast",
        {},
        5,
        ["20 Mbit/s"],
        {"mon": 5},
        {"mon-fry": "1 MB/s"},
        {"25:00-26:00": "1 MB/s"},
        {"08:00-08:00": "1 MB/s"},
        {"08:60-09:00": "1 MB/s"},
        {"mon 8-9": "1 MB/s"},
        {"": "1 MB/s"},
        "* = 1 MB/s; * = 2 MB/s",
        "mon = 1 MB/s;",
    ],
)
def test_what_makes_no_sense_is_refused(said: object) -> None:
    with pytest.raises(ValueError, match=r"must be|has no|twice"):
        Schedule.parse(said)


def test_the_time_of_day_says_which() -> None:
    """The first that has the time; `*` at any other, wherever it stands."""
    work = {"*": "unlimited", "mon-fri 08:00-18:00": "20 Mbit/s", "sat,sun": "40 Mbit/s"}
    schedule = Schedule.parse(work)
    assert schedule.rate(at("23 08:00")) == 2.5e6  # a Monday
    assert schedule.rate(at("23 07:59")) is None
    assert schedule.rate(at("27 17:59")) == 2.5e6
    assert schedule.rate(at("27 18:00")) is None
    assert schedule.rate(at("28 03:00")) == 5e6
    assert Schedule.parse(schedule.text) == schedule, "what is kept is what was said"


def test_a_night_belongs_to_the_day_it_begins_on() -> None:
    schedule = Schedule.parse({"fri 22:00-06:00": "1 MB/s"})
    assert schedule.rate(at("27 22:00")) == 1e6
    assert schedule.rate(at("28 05:59")) == 1e6
    assert schedule.rate(at("28 06:00")) is None
    assert schedule.rate(at("27 05:00")) is None
    over_the_week = Schedule.parse("sun 23:00-01:00 = 1 MB/s")
    assert over_the_week.rate(at("23 00:30")) == 1e6
    assert Schedule.parse("sat-mon = 1 MB/s").rate(at("29 12:00")) == 1e6


# -- how it is kept --------------------------------------------------------------------------------


class Drawing:
    """Somebody that sends as much as it may, or ``each`` bytes at a time."""

    def __init__(self, clock: Clock, pace: Pace, most: int = 2**21) -> None:
        self._clock = clock
        self._pace = pace
        self._most = most
        self.went: list[tuple[float, int]] = []
        self.stopped = False
        self.going: Deferred[None] = go_on(self._draw())

    async def _draw(self) -> None:
        while not self.stopped:
            count = await self._pace.turn(self._most)
            self.went.append((self._clock.seconds(), count))

    def within(self, start: float, end: float) -> int:
        return sum(count for when, count in self.went if start <= when < end)


class KeptTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.start = self.clock.seconds()
        self.drawing: list[Drawing] = []
        self.addCleanup(self.stop)

    def stop(self) -> None:
        for one in self.drawing:
            one.stopped = True
        self.clock.advance(10)

    def draw(self, bandwidth: Bandwidth, peer: str | None = None, **more: Any) -> Drawing:
        pace = bandwidth.of(peer)
        assert pace is not None
        self.drawing.append(Drawing(self.clock, pace, **more))
        return self.drawing[-1]

    def pass_by(self, seconds: float, step: float = 0.01) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

    def test_it_is_exact_and_smooth(self) -> None:
        """Within 5 % over any ten seconds, and never the bytes of two seconds in one."""
        one = self.draw(Bandwidth(Schedule.parse("20 Mbit/s"), self.clock))
        self.pass_by(30)
        for second in range(20):
            since = self.start + second
            assert abs(one.within(since, since + 10) / 25e6 - 1) < 0.05
            assert one.within(since, since + 1) <= 2.5e6 * 1.4
        assert one.within(self.start, self.start + 0.05) <= 2.5e6 * 0.45

    def test_transfers_of_a_peer_share_its_bucket(self) -> None:
        rates = {"a": "1 MB/s", "b": "2 MB/s"}
        both = Bandwidth(Schedule(), self.clock, rates.get)
        first, second, other = (self.draw(both, peer) for peer in ("a", "a", "b"))
        self.pass_by(20)
        end = self.clock.seconds()
        mine = [one.within(self.start, end) for one in (first, second, other)]
        assert abs((mine[0] + mine[1]) / 20e6 - 1) < 0.05
        assert abs(mine[0] / mine[1] - 1) < 0.1, "fairly"
        assert abs(mine[2] / 40e6 - 1) < 0.05

    def test_all_together_have_a_bucket_too(self) -> None:
        """The one of all limits the sum, that of a peer limits the peer."""
        bandwidth = Bandwidth(Schedule.parse("3 MB/s"), self.clock, {"a": "1 MB/s"}.get)
        limited, other = self.draw(bandwidth, "a"), self.draw(bandwidth, "b")
        self.pass_by(20)
        end = self.clock.seconds()
        assert limited.within(self.start, end) <= 21e6
        together = limited.within(self.start, end) + other.within(self.start, end)
        assert abs(together / 60e6 - 1) < 0.05

    def test_no_time_is_saved_up(self) -> None:
        """After a pause nobody has the bytes of the pause at once."""
        bandwidth = Bandwidth(Schedule.parse("1 MB/s"), self.clock)
        first = self.draw(bandwidth)
        self.pass_by(1)
        first.stopped = True
        self.pass_by(60)
        second = self.draw(bandwidth)
        since = self.clock.seconds()
        self.pass_by(2)
        assert second.within(since, since + 1) <= 1.4e6

    def test_what_did_not_go_is_given_back(self) -> None:
        pace = Bandwidth(Schedule.parse("1 MB/s"), self.clock).of(None)
        assert pace is not None
        went = 0

        async def half() -> None:
            nonlocal went
            while went < 10**7:
                count = await pace.turn(10**6)
                pace.give_back(count // 2)
                went += count - count // 2

        going = go_on(half())
        self.pass_by(10.1)
        self.successResultOf(going)
        assert went >= 10**7

    def test_the_hour_changes_the_rate_of_what_is_under_way(self) -> None:
        day = time.mktime(at("23 07:59"))
        self.clock.advance(day - self.clock.seconds())
        bandwidth = Bandwidth(
            Schedule.parse("mon-fri 08:00-18:00 = 1 MB/s; * = 4 MB/s"), self.clock
        )
        one = self.draw(bandwidth)
        self.pass_by(120)
        assert abs(one.within(day, day + 60) / 240e6 - 1) < 0.05
        assert abs(one.within(day + 60, day + 120) / 60e6 - 1) < 0.05

    def test_nothing_said_costs_nothing(self) -> None:
        for said in ("unlimited", "mon = unlimited; * = unlimited"):
            bandwidth = Bandwidth(Schedule.parse(said), self.clock)
            assert bandwidth.of(None) is None
            pace = bandwidth.of("a")
            assert pace is not None
            assert not pace.limits
            assert self.successResultOf(go_on(pace.turn(10**12))) == 10**12

    def test_what_is_said_later_holds_for_what_is_under_way(self) -> None:
        """A limit that is set, changed, and lifted."""
        rates: dict[str, str] = {}
        pace = Bandwidth(Schedule(), self.clock, rates.get).of("a")
        assert pace is not None
        assert self.successResultOf(go_on(pace.turn(10**9))) == 10**9
        for said, rate in (("1 MB/s", 1e6), ("3 MB/s", 3e6)):
            rates["a"] = said
            assert pace.limits
            one = Drawing(self.clock, pace)
            begun = self.clock.seconds()
            self.pass_by(20)
            one.stopped = True
            assert abs(one.within(begun, begun + 20) / (20 * rate) - 1) < 0.05
            self.pass_by(1)
        del rates["a"]
        assert self.successResultOf(go_on(pace.turn(10**9))) == 10**9

    def test_a_turn_that_nobody_waits_for_is_given_back(self) -> None:
        bandwidth = Bandwidth(Schedule.parse("10 B/s"), self.clock)
        pace = bandwidth.of(None)
        assert pace is not None
        waiting = [one for _ in range(20) if not (one := go_on(pace.turn(1))).called]
        for one in waiting[1:]:
            one.cancel()
            self.failureResultOf(one, CancelledError)  # type: ignore[no-untyped-call]
        self.pass_by(0.2)
        self.successResultOf(waiting[0])
        self.pass_by(0.2)
        self.successResultOf(go_on(pace.turn(1)))


# -- the times of day, where they change -----------------------------------------------------------


class DaylightTests(SynchronousTestCase):
    """Times of day are those of the clock on the wall: they go by the rules of its place."""

    def setUp(self) -> None:
        before = os.environ.get("TZ")

        def put_back() -> None:
            os.environ.pop("TZ", None)
            if before is not None:
                os.environ["TZ"] = before
            time.tzset()

        self.addCleanup(put_back)
        # Clocks go an hour forth on the last Sunday of March, back on the last one of October.
        os.environ["TZ"] = "CET-1CEST,M3.5.0,M10.5.0/3"
        time.tzset()

    def rates(self, first: str, hours: int) -> list[float | None]:
        """The rate at every full hour, from a moment in UTC on."""
        schedule = Schedule.parse("02:00-03:00 = 1 MB/s; * = 5 MB/s")
        start = calendar.timegm(time.strptime(first, "%Y-%m-%d %H:%M"))
        return [schedule.rate(time.localtime(start + hour * HOUR)) for hour in range(hours)]

    def test_an_hour_that_is_left_out(self) -> None:
        """At 02:00 it is 03:00, so what is said of that hour never holds that night."""
        assert self.rates("2026-03-28 23:00", 5) == [5e6] * 5
        assert self.rates("2026-03-27 23:00", 5) == [5e6, 5e6, 1e6, 5e6, 5e6]

    def test_an_hour_that_comes_twice(self) -> None:
        """What is said of it holds twice."""
        assert self.rates("2026-10-24 22:00", 6) == [5e6, 5e6, 1e6, 1e6, 5e6, 5e6]

    def test_a_day_of_twenty_three_hours_is_a_day(self) -> None:
        """Sunday begins and ends at midnight there."""
        schedule = Schedule.parse("sun = 1 MB/s; * = 5 MB/s")
        start = calendar.timegm(time.strptime("2026-03-28 22:00", "%Y-%m-%d %H:%M"))
        rates = [schedule.rate(time.localtime(start + hour * HOUR)) for hour in range(27)]
        assert rates == [5e6] + [1e6] * 23 + [5e6] * 3

    def test_a_clock_that_is_set_changes_the_time_of_day_and_no_wait(self) -> None:
        """The rate is that of the wall clock; what was drawn before is waited for as it was."""
        clock, wall = Clock(), Clock()
        wall.advance(calendar.timegm(time.strptime("2026-06-01 00:30", "%Y-%m-%d %H:%M")))
        limits = Schedule.parse("02:00-03:00 = 1 MB/s; * = 5 MB/s")
        pace = Bandwidth(limits, clock, wall=wall.seconds).of(None)
        assert pace is not None

        def seconds_for(count: int) -> float:
            begun = clock.seconds()
            while count:
                turn = go_on(pace.turn(count))
                while not turn.called:
                    clock.advance(0.01)
                count -= cast(int, turn.result)
            return clock.seconds() - begun

        assert abs(seconds_for(3_000_000) - 3.0) < 0.5
        wall.rightNow -= 5 * HOUR
        assert abs(seconds_for(10_000_000) - 2.0) < 0.5
