"""Who may be connected: how many in all, and how many from one address.

When all places are taken, a new connection takes that of the one that has been idle for longest:
a client between two requests loses nothing but the way back. Only when nobody is idle it is
refused, before a byte of it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from typing import Protocol

from twisted.internet.address import IPv4Address as TcpAddress
from twisted.internet.address import IPv6Address as Tcp6Address
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

__all__ = ["Connections", "Guest"]

_log = Logger()

SAY_AGAIN = 60.0
"""Seconds between two lines of the log about connections that are refused."""

NETWORK = 64
"""Bits of an IPv6 address that one customer has one of; what is behind them costs nothing."""


class Guest(Protocol):
    """A connection, as far as it matters here."""

    def let_go(self) -> None:
        """Close it; it is idle."""


class Connections:
    """Every connection to a site.

    ``most`` in all, ``most_of_one`` from one address; what ``exempt`` says of an address counts in
    all only: behind a proxy is everybody.
    """

    def __init__(
        self,
        most: int,
        most_of_one: int,
        clock: IReactorTime,
        exempt: Callable[[object], bool] = lambda address: False,
    ) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._clock = clock
        self._exempt = exempt
        self._places: dict[Guest, str | None] = {}
        self._of: Counter[str] = Counter()
        self._idle: dict[Guest, None] = {}
        self.refused = 0
        self._said_at: float | None = None

    def __len__(self) -> int:
        return len(self._places)

    def come(self, guest: Guest, address: object) -> bool:
        """Whether there is a place for it; it has it until it is `gone`, and is idle."""
        key = None if self._exempt(address) else _key(address)
        if key is not None and self._of[key] >= self._most_of_one:
            self._refuse(f"{key} has {self._most_of_one} connections (max_connections_per_address)")
            return False
        if len(self._places) >= self._most:
            if not self._idle:
                self._refuse(f"there are {self._most} connections (max_connections)")
                return False
            oldest = next(iter(self._idle))
            self.gone(oldest)
            oldest.let_go()
        self._places[guest] = key
        if key is not None:
            self._of[key] += 1
        self._idle[guest] = None
        return True

    def of_address(self, guest: Guest) -> int:
        """How many its address has; 0 for one that is exempt."""
        key = self._places.get(guest)
        return 0 if key is None else self._of[key]

    def idle(self, guest: Guest) -> None:
        """It waits for its next request."""
        if guest in self._places:
            self._idle[guest] = None

    def busy(self, guest: Guest) -> None:
        """A request has begun."""
        self._idle.pop(guest, None)

    def gone(self, guest: Guest) -> None:
        """Its place is free. Again is harmless."""
        self._idle.pop(guest, None)
        key = self._places.pop(guest, None)
        if key is not None:
            self._of[key] -= 1
            if not self._of[key]:
                del self._of[key]

    def _refuse(self, why: str) -> None:
        self.refused += 1
        now = self._clock.seconds()
        if self._said_at is None or now - self._said_at >= SAY_AGAIN:
            self._said_at = now
            _log.warn(
                "connections are refused ({count} so far): {why}", count=self.refused, why=why
            )


def _key(address: object) -> str | None:
    """What connections are counted under; None for a socket in the file system."""
    if not isinstance(address, TcpAddress | Tcp6Address):
        return None
    try:
        parsed = ip_address(address.host.partition("%")[0])
    except ValueError:
        return address.host
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> NETWORK << NETWORK)}/{NETWORK}"
