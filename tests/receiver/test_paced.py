"""Uploads that come in no faster than their peer may send, on a clock."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from backupd.bandwidth import Bandwidth, Schedule
from backupd.interfaces import Source, StraightSource
from backupd.receiver.paced import paced
from backupd.waiting import go_on


class Pieces:
    """A source that always has more."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.aborted = 0

    def read(self) -> Deferred[bytes]:
        return succeed(b"x" * self.size)

    def abort(self) -> None:
        self.aborted += 1

    def silent_for(self) -> float:
        return 4.5


class Straight(Pieces):
    def read_into(self, buffer: memoryview) -> Deferred[int]:
        count = min(self.size, len(buffer))
        buffer[:count] = b"x" * count
        return succeed(count)

    def filling(self) -> int:
        return 7


class PacedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.came = 0
        self.over = False
        self.addCleanup(self.end)

    def end(self) -> None:
        self.over = True
        self.clock.advance(10)

    def begin(self, source: Source, rate: str = "1 MB/s") -> Source:
        limited = paced(source, Bandwidth(Schedule.parse(rate), self.clock).of(None))

        async def take() -> None:
            room = memoryview(bytearray(2**21))
            while not self.over:
                if isinstance(limited, StraightSource):
                    self.came += await limited.read_into(room)
                else:
                    self.came += len(await limited.read())

        go_on(take())
        return limited

    def check_rate(self) -> None:
        assert self.came <= 700_000, "not all at once"
        self.pass_by(2)
        before = self.came
        for _ in range(4):
            second = self.came
            self.pass_by(1)
            assert self.came - second <= 1_400_000
        assert abs((self.came - before) / 4e6 - 1) < 0.05

    def pass_by(self, seconds: float) -> None:
        for _ in range(round(seconds * 100)):
            self.clock.advance(0.01)

    def test_buffers_are_filled_at_the_rate(self) -> None:
        self.begin(Straight(2**21))
        self.check_rate()

    def test_a_client_that_is_slow_loses_nothing_of_its_share(self) -> None:
        """What it did not fill of its turn is not counted."""
        self.begin(Straight(1000))
        self.check_rate()

    def test_pieces_are_read_at_the_rate(self) -> None:
        self.begin(Pieces(50_000))
        self.check_rate()

    def test_all_else_is_the_source_s(self) -> None:
        source = Straight(1000)
        limited = self.begin(source)
        assert isinstance(limited, StraightSource)
        limited.abort()
        assert (source.aborted, limited.silent_for(), limited.filling()) == (1, 4.5, 7)

    def test_a_limit_that_is_set_meanwhile_holds_at_once(self) -> None:
        """And lifted, no more; until then what comes is passed on as it is."""
        for source in (Straight(2**21), Pieces(50_000)):
            rates: dict[str, str] = {}
            limited = paced(source, Bandwidth(Schedule(), self.clock, rates.get).of("a"))

            def read(limited: Source = limited) -> Deferred[Any]:
                room = memoryview(bytearray(2**21))
                if isinstance(limited, StraightSource):
                    return limited.read_into(room)
                return limited.read()

            for _ in range(100):
                self.successResultOf(read())
            rates["a"] = "1 kB/s"
            self.successResultOf(read())
            waits = [one for _ in range(9) if not (one := read()).called]
            assert waits, source
            del rates["a"]
            self.pass_by(60)
            for one in waits:
                self.successResultOf(one)
            self.successResultOf(read())

    def test_no_limit_is_no_wrapper(self) -> None:
        source = Straight(1000)
        assert paced(source, None) is source
