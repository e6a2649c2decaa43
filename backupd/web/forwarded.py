"""Who asked, and how, when a proxy stands in between.

``X-Forwarded-*`` is what anybody may write. It counts only when the connection comes from a proxy
that the settings list; of a chain of proxies each is believed only about the one before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from twisted.internet.address import IPv4Address as TcpAddress
from twisted.internet.address import IPv6Address as Tcp6Address
from twisted.web.http import Request

from backupd.settings import UNIX

__all__ = ["Proxies", "Way"]

Address = IPv4Address | IPv6Address
_HOPS = 32
"""No chain of proxies is longer; what is left of it is not looked at."""


@dataclass(frozen=True, slots=True)
class Way:
    """Which way a request came: from where, and what it was sent to."""

    address: str
    """The client's address; ``unix`` when it came by a socket in the file system."""

    scheme: str
    host: str | None
    """What the ``Host`` header said, as the client sent it."""


class Proxies:
    """The proxies that are believed: addresses, networks, or ``unix``."""

    def __init__(self, trusted: Iterable[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._unix = False
        for text in trusted:
            if text == UNIX:
                self._unix = True
            else:
                self._networks.append(ip_network(text))

    def way(self, request: Request) -> Way:
        """Where this request comes from."""
        nearest = _nearest(request.getClientAddress())
        here = UNIX if nearest is None else str(nearest)
        scheme, host = "https" if request.isSecure() else "http", request.getHeader("host")
        if not self._trusts(nearest):
            return Way(here, scheme, host)
        said = _last(request, "x-forwarded-proto").lower()
        return Way(
            self._client(request) or here,
            said if said in ("http", "https") else scheme,
            _last(request, "x-forwarded-host") or host,
        )

    def believed(self, peer: object) -> bool:
        """Whether connections from this address come from a proxy."""
        return self._trusts(_nearest(peer))

    def _trusts(self, address: Address | None) -> bool:
        if address is None:
            return self._unix
        return any(address in network for network in self._networks)

    def _client(self, request: Request) -> str:
        """The last address of the chain that no believed proxy has; else the first of it."""
        client = ""
        for text in reversed(_values(request, "x-forwarded-for")[-_HOPS:]):
            address = _address(text)
            if address is None:
                break
            client = str(address)
            if not self._trusts(address):
                break
        return client


def _nearest(peer: object) -> Address | None:
    """The address at the other end; None for a socket in the file system."""
    return _address(peer.host) if isinstance(peer, TcpAddress | Tcp6Address) else None


def _values(request: Request, name: str) -> list[str]:
    lines = request.requestHeaders.getRawHeaders(name) or []
    return [value.strip() for line in lines for value in line.split(",")]


def _last(request: Request, name: str) -> str:
    """What the nearest proxy said."""
    return (_values(request, name) or [""])[-1]


@lru_cache(maxsize=1024)
def _address(text: str) -> Address | None:
    """An address, with or without its port; None for anything else."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
