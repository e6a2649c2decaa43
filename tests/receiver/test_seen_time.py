"""The receiver's own sense of time: no jump of a clock deletes anything."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from backupd.receiver.seen_time import SeenTime

START = 1_800_000_000.0
YEAR = 365 * 86400.0
HOUR = 3600.0


class SeenTimeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.steady = Clock(), Clock()
        self.clock.advance(START)
        self.time = SeenTime(self.clock, self.steady.seconds)
        self.time.begin(None)

    def passes(self, seconds: float, *, jump: float = 0.0) -> None:
        self.clock.advance(seconds + jump)
        self.steady.advance(seconds)

    def test_it_is_the_clock(self) -> None:
        for _ in range(5):
            self.passes(HOUR)
            assert self.time.now() == self.time.stamp() == self.clock.seconds()
            assert self.time.behind == 0

    def test_years_at_once_are_not_believed(self) -> None:
        """Time goes on at twice its pace from where it was; what is kept from now on is kept
        from the later of the two.
        """
        self.passes(HOUR, jump=10 * YEAR)
        assert self.time.now() == START + 2 * HOUR
        assert self.time.stamp() == START + HOUR + 10 * YEAR
        assert self.time.behind == 10 * YEAR - HOUR
        self.passes(HOUR)
        assert self.time.now() == START + 4 * HOUR

    def test_it_catches_up(self) -> None:
        """A clock that was right comes to hold again, without anybody doing anything."""
        self.passes(0.0, jump=HOUR)
        self.passes(HOUR - 1)
        assert self.time.now() < self.clock.seconds()
        self.passes(1)
        assert self.time.now() == self.clock.seconds()

    def test_back_again(self) -> None:
        """A clock that is put right is believed as it was before the jump."""
        self.passes(HOUR, jump=10 * YEAR)
        self.time.now()
        self.clock.rightNow -= 10 * YEAR
        assert self.time.now() == START + HOUR
        self.passes(HOUR)
        assert self.time.now() == START + 2 * HOUR

    def test_a_clock_that_goes_back(self) -> None:
        """Nothing that is kept from now on is noted as older than what came before it."""
        self.clock.rightNow -= 10 * YEAR
        assert self.time.now() == START - 10 * YEAR
        assert self.time.stamp() == START

    def test_a_leap_second_deletes_nothing(self) -> None:
        """Repeated, left out, or smeared over a day: what is kept for two days is kept as long, but
        for the second, and is noted as no older than what came before it.
        """
        smeared = dict.fromkeys(range(24 * 60), -1 / (24 * 60))
        for leap in ({300: -1.0}, {300: 1.0}, smeared):
            self.setUp()
            noted, until = self.time.stamp(), self.time.stamp() + 48 * HOUR
            for minute in range(48 * 60):
                self.passes(0.0, jump=leap.get(minute, 0.0))
                assert self.time.stamp() >= noted
                self.passes(60.0 if minute else 57.5)
                noted = self.time.stamp()
                assert self.time.now() < until
            assert self.time.behind == 0
            left = 0
            while self.time.now() < until:
                self.passes(1.0)
                left += 1
            assert abs(left - 3) <= 1

    def test_after_a_stop(self) -> None:
        """It goes on from the latest time that was seen, not from what the clock says."""
        self.time.begin(START - YEAR)
        assert self.time.now() == START - YEAR
        self.passes(HOUR)
        assert self.time.now() == START - YEAR + 2 * HOUR
