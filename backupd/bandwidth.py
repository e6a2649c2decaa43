"""How fast bytes may go, by the time of day: what the settings say, and how it is kept.

A `Bucket` is one limit, shared by all that draw on it. It hands out turns at moments on one line of
time, each as long as its bytes take at the rate of that moment: so the rate is exact over any time,
however many draw, and nobody ever has more than a fraction of a second's bytes at once. A `Pace`
is what one transfer draws on: its peer's bucket, and that of all together.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

__all__ = ["UNLIMITED", "Bandwidth", "Bucket", "Pace", "Schedule", "parse_rate"]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(
    r"(?:(?P<days>[a-z]{3}(?:-[a-z]{3})?(?:,[a-z]{3}(?:-[a-z]{3})?)*))? ?"
    r"(?:(?P<from>[0-9]{2}:[0-9]{2})-(?P<to>[0-9]{2}:[0-9]{2}))?",
    re.ASCII,
)
_RATE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kMG]?)(bit|B)/s", re.ASCII)
_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_DAY = 24 * 60

WANTED = (
    'must be a rate such as "20 Mbit/s" or "2.5 MB/s", "unlimited", or a table of them such as '
    '{"mon-fri 08:00-18:00" = "20 Mbit/s", "*" = "unlimited"}'
)

TURN = 0.1
"""Seconds that the bytes of one turn take at most."""

BEHIND = 0.25
"""Seconds that whoever comes late may catch up."""


def parse_rate(text: str) -> float | None:
    """Bytes in a second, None for ``unlimited``; ``k``, ``M``, ``G`` are powers of 1000.

    Raises `ValueError`.
    """
    if text == "unlimited":
        return None
    match = _RATE.fullmatch(text)
    rate = 0.0
    if match is not None:
        rate = float(match[1]) * _FACTORS[match[2]] / (8 if match[3] == "bit" else 1)
    if rate < 1:
        raise ValueError(WANTED)
    return rate


@dataclass(frozen=True, slots=True)
class _Span:
    """Some hours of some days; those that go past midnight belong to the day they begin on."""

    days: frozenset[int]
    start: int
    end: int

    def has(self, day: int, minute: int) -> bool:
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        if minute >= self.start:
            return day in self.days
        return minute < self.end and (day - 1) % 7 in self.days


@dataclass(frozen=True, slots=True)
class Schedule:
    """A rate by the local time of day: that of the first span that has it, else ``otherwise``."""

    text: str = "unlimited"
    spans: tuple[tuple[_Span, float | None], ...] = ()
    otherwise: float | None = None

    @classmethod
    def parse(cls, value: object) -> Schedule:
        """From a rate, a table, or a table in one line: ``mon-fri 08:00-18:00 = 20 Mbit/s; …``.

        Raises `ValueError`.
        """
        if isinstance(value, str):
            return _from_text(value)
        if not isinstance(value, Mapping) or not value:
            raise ValueError(WANTED)
        if not all(isinstance(part, str) for pair in value.items() for part in pair):
            raise ValueError(WANTED)
        return _from_text("; ".join(f"{when} = {rate}" for when, rate in value.items()))

    def __str__(self) -> str:
        return self.text

    @property
    def limits(self) -> bool:
        """Whether there is any time at which it limits."""
        return any(rate is not None for rate in (self.otherwise, *(rate for _, rate in self.spans)))

    def rate(self, now: time.struct_time) -> float | None:
        """Bytes in a second at this time; None for as fast as it goes."""
        minute = now.tm_hour * 60 + now.tm_min
        for span, rate in self.spans:
            if span.has(now.tm_wday, minute):
                return rate
        return self.otherwise


UNLIMITED = Schedule()


@lru_cache(maxsize=1024)
def _from_text(text: str) -> Schedule:
    if "=" not in text:
        return Schedule(text, (), parse_rate(text.strip()))
    spans: list[tuple[_Span, float | None]] = []
    otherwise: float | None = None
    seen: set[str] = set()
    for part in text.split(";"):
        when, _, said = (one.strip() for one in part.partition("="))
        if when in seen:
            raise ValueError(f"says {when!r} twice")
        seen.add(when)
        rate = parse_rate(said)
        if when == "*":
            otherwise = rate
        else:
            spans.append((_span(when), rate))
    shown = "; ".join(
        " = ".join(one.strip() for one in part.split("=")) for part in text.split(";")
    )
    return Schedule(shown, tuple(spans), otherwise)


def _span(when: str) -> _Span:
    match = _SPAN.fullmatch(when)
    if match is None or not when:
        raise ValueError(WANTED)
    days: set[int] = set()
    for part in (match["days"] or "mon-sun").split(","):
        first, _, last = part.partition("-")
        if not {first, last or first} <= set(_DAYS):
            raise ValueError(f"has no day {part!r}; days are {', '.join(_DAYS)}")
        start, end = _DAYS.index(first), _DAYS.index(last or first)
        days |= {day % 7 for day in range(start, end + (7 if end < start else 0) + 1)}
    start, end = _minute(match["from"] or "00:00"), _minute(match["to"] or "24:00")
    if start == end:
        raise ValueError(f"has no time in {when!r}")
    return _Span(frozenset(days), start, end)


def _minute(text: str) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    if minutes > 59 or hours * 60 + minutes > _DAY:
        raise ValueError(f"has no time {text!r}; times are 00:00 to 24:00")
    return hours * 60 + minutes


class Bucket:
    """One limit, shared by everybody that draws on it; ``rate`` is asked at every turn."""

    def __init__(self, clock: IReactorTime, rate: Callable[[], float | None]) -> None:
        self._clock = clock
        self.rate = rate
        self._next = 0.0

    def draw(self, count: int, rate: float) -> float:
        """Take ``count`` bytes; the seconds until they may go."""
        now = self._clock.seconds()
        begin = max(self._next, now - BEHIND)
        self._next = begin + count / rate
        return max(0.0, begin - now)

    def give_back(self, count: int) -> None:
        """So many of what was taken did not go."""
        rate = self.rate()
        if rate is not None:
            self._next -= count / rate


class Pace:
    """What one transfer draws on; ``buckets`` is asked at every turn."""

    def __init__(self, clock: IReactorTime, buckets: Callable[[], Sequence[Bucket]]) -> None:
        self._clock = clock
        self._buckets = buckets

    @property
    def limits(self) -> bool:
        """Whether anything limits it now."""
        return any(one.rate() is not None for one in self._buckets())

    async def turn(self, most: int) -> int:
        """Wait for a turn; how many bytes may go now, ``most`` or fewer but one at least."""
        limits = [(one, rate) for one in self._buckets() if (rate := one.rate()) is not None]
        if not limits:
            return most
        count = max(1, min(most, *(int(rate * TURN) for _, rate in limits)))
        wait = max(bucket.draw(count, rate) for bucket, rate in limits)
        if wait:
            turn: Deferred[None] = Deferred()
            late = self._clock.callLater(wait, turn.callback, None)
            try:
                await turn
            except BaseException:
                if late.active():
                    late.cancel()
                self.give_back(count)
                raise
        return count

    def give_back(self, count: int) -> None:
        """So many of a turn's bytes did not go."""
        for bucket in self._buckets():
            bucket.give_back(count)


class Bandwidth:
    """The limits of one direction: of all together, and of each peer that has one of its own.

    ``own`` is what a peer's record says, ``wall`` what the times of day go by. What is said later
    holds for transfers that are under way too, from their next turn on.
    """

    def __init__(
        self,
        together: Schedule,
        clock: IReactorTime,
        own: Callable[[str], str | None] = lambda peer: None,
        wall: Callable[[], float] | None = None,
    ) -> None:
        self._wall: Callable[[], float] = wall or clock.seconds
        self._clock = clock
        self._own = own
        self._together = self._bucket(lambda: together) if together.limits else None
        self._peers: dict[str, Bucket] = {}

    def of(self, peer: str | None) -> Pace | None:
        """What a transfer of this peer draws on; None when nothing will ever limit it."""
        if peer is not None:
            return Pace(self._clock, lambda: self._buckets(peer))
        together = self._together
        return None if together is None else Pace(self._clock, lambda: (together,))

    def _buckets(self, peer: str) -> Sequence[Bucket]:
        together = () if self._together is None else (self._together,)
        if self._own(peer) is None:
            return together
        if peer not in self._peers:
            self._peers[peer] = self._bucket(lambda: Schedule.parse(self._own(peer) or "unlimited"))
        return (*together, self._peers[peer])

    def _bucket(self, schedule: Callable[[], Schedule]) -> Bucket:
        def rate() -> float | None:
            return schedule().rate(time.localtime(self._wall()))

        return Bucket(self._clock, rate)
