"""How many requests in a second a peer may send, on a clock."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from backupd.errors import TooManyRequests
from backupd.trust.peers import Limits, Peer
from backupd.trust.rates import RequestRates


def peer(rate: float | None, name: str = "a") -> Peer:
    return Peer(name=name, created_at=0, limits=Limits(requests_per_second=rate))


class RateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.rates = RequestRates(self.clock)

    def taken(self, of: Peer, tries: int) -> int:
        count = 0
        for _ in range(tries):
            try:
                self.rates.take(of)
            except TooManyRequests:
                continue
            count += 1
        return count

    def test_one_second_s_worth_at_once_and_the_rate_ever_after(self) -> None:
        assert self.taken(peer(10), 100) == 10
        total = 0
        for _ in range(1000):
            self.clock.advance(0.01)
            total += self.taken(peer(10), 3)
        assert abs(total / 100 - 1) < 0.02

    def test_less_than_one_a_second(self) -> None:
        assert self.taken(peer(0.2), 5) == 1
        with pytest.raises(TooManyRequests) as refused:
            self.rates.take(peer(0.2))
        assert refused.value.retry_after == 5
        self.clock.advance(5)
        assert self.taken(peer(0.2), 5) == 1

    def test_who_is_refused_is_not_punished(self) -> None:
        """Asking again and again puts nothing off."""
        assert self.taken(peer(1), 1000) == 1
        self.clock.advance(1)
        assert self.taken(peer(1), 1) == 1

    def test_each_peer_has_its_own(self) -> None:
        assert self.taken(peer(2), 5) == 2
        assert self.taken(peer(2, "b"), 5) == 2
        assert self.taken(peer(None, "c"), 5) == 5
