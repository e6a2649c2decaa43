"""The daemon's own time: no jump of the wall clock stops a timer or lets a lease run out."""

from __future__ import annotations

import subprocess
import sys

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from backupd.own_time import SLEW, OwnTime

START = 1_800_000_000.0
HOUR = 3600.0


class OwnTimeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.wall, self.steady = Clock(), Clock()
        self.wall.advance(START)
        self.now = OwnTime(self.wall.seconds, self.steady.seconds)

    def passes(self, seconds: float, *, jump: float = 0.0) -> None:
        self.wall.rightNow += seconds + jump
        self.steady.advance(seconds)

    def test_it_is_the_wall_clock(self) -> None:
        for _ in range(5):
            self.passes(0.4)
            assert abs(self.now() - self.wall.seconds()) < 1e-6

    def test_no_jump_is_followed_at_once(self) -> None:
        """Neither forth nor back: the next second has a twentieth more or less, at most."""
        for jump in (5 * HOUR, -30 * HOUR):
            before = self.now()
            self.passes(1.0, jump=jump)
            assert abs(self.now() - before - 1.0) <= SLEW + 1e-6

    def test_a_leap_second_ends_no_lease(self) -> None:
        """Repeated, left out, or smeared over a day: ten minutes last that, but for the second."""
        smeared = dict.fromkeys(range(86_400), -1 / 86_400)
        for leap in ({300: -1.0}, {300: 1.0}, smeared):
            self.setUp()
            before, end, lasted = self.now(), self.now() + 600.5, 0
            for second in range(1, 1200):
                self.passes(1.0, jump=leap.get(second, 0.0))
                assert self.now() > before
                before = self.now()
                lasted += before < end
            assert abs(lasted - 600) <= 1
            assert abs(self.now() - self.wall.seconds()) < 1e-3

    def test_it_never_goes_back_and_never_stands_still(self) -> None:
        self.passes(1.0, jump=-30 * HOUR)
        before = self.now()
        for _ in range(1000):
            self.passes(0.3)
            assert self.now() > before
            before = self.now()

    def test_what_has_jumped_is_followed_until_it_is_reached(self) -> None:
        """An hour within a day; from then on it is the wall clock again."""
        for jump in (HOUR, -HOUR):
            self.passes(1.0, jump=jump)
            for _ in range(24 * 60):
                self.passes(60.0)
                self.now()
            assert abs(self.now() - self.wall.seconds()) < 1e-3

    def test_however_rarely_it_is_asked(self) -> None:
        """A daemon that slept for a month has not gone past the wall clock."""
        self.passes(2.0, jump=10.0)
        self.now()
        self.passes(30 * 24 * HOUR)
        assert abs(self.now() - self.wall.seconds()) < 1e-3

    def test_a_stop_does_not_make_it_go_back(self) -> None:
        """What waits would else wait for hours, until a wall clock that was set back is there."""
        again = OwnTime(lambda: START - 5 * HOUR, self.steady.seconds)
        again.begin(START)
        assert again() == START
        self.steady.advance(100.0)
        assert START + 100.0 * (1 - SLEW) <= again() < START + 100.0

    def test_a_stop_may_have_been_long(self) -> None:
        for latest in (None, START - HOUR):
            self.now.begin(latest)
            assert self.now() == START


def test_the_reactor_goes_by_it() -> None:
    """Its timers stand on it, as those of a daemon that has started."""
    program = """
import tempfile, time
real, offset = time.time, [0.0]
time.time = lambda: real() + offset[0]
from backupd import own_time
from backupd.settings import Settings
from backupd.tap import build
from twisted.internet import reactor
with tempfile.TemporaryDirectory() as root:
    service = build(Settings(root=root, listen=("tcp:0:interface=127.0.0.1",)))
    assert isinstance(reactor.seconds, own_time.OwnTime)
    call = reactor.callLater(5, print)
    offset[0] = -18000.0
    assert service.reactor.seconds() > real() - 60
    assert 0 < call.getTime() - reactor.seconds() < 5.1
"""
    subprocess.run([sys.executable, "-c", program], check=True)
