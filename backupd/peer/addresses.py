"""Which addresses may be called for another: an explicit table, and nothing else.

The properties of `ipaddress` do not answer this question: 100.64.0.1 is not ``is_private`` there,
and 64:ff9b::a00:1, 2002:a00:1::1, ::127.0.0.1, fec0::1 and 168.63.129.16 are all ``is_global``.
Of IPv6 only the one block that addresses are given out from is public, less what is special in
it; whatever carries an IPv4 address inside is refused, whichever that is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from typing import TypeAlias

__all__ = ["ANYWHERE", "LOOPBACK", "PUBLIC", "Address", "Network", "Reach", "kind_of", "literal"]

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_GLOBAL_UNICAST = IPv6Network("2000::/3")

_SPECIAL: dict[Network, str] = {
    ip_network(network): kind
    for kind, networks in {
        "an unspecified": "0.0.0.0/8 ::/128",
        "a loopback": "127.0.0.0/8 ::1/128",
        "a private": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7",
        "a shared": "100.64.0.0/10",
        "a link-local": "169.254.0.0/16 fe80::/10",
        "a site-local": "fec0::/10",
        "a multicast": "224.0.0.0/4 ff00::/8",
        "a broadcast": "255.255.255.255/32",
        # Azure answers its machines with their secrets there, from what is a public address.
        "a cloud platform's": "168.63.129.16/32",
        "a documentation": "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24 2001:db8::/32 3fff::/20",
        "a benchmarking": "198.18.0.0/15 2001:2::/48",
        "an IPv4-mapped": "::ffff:0:0/96",
        "an IPv4-compatible": "::/96",
        "an IPv4-translated": "::ffff:0:0:0/96",
        "a NAT64": "64:ff9b::/96 64:ff9b:1::/48",
        "a 6to4": "2002::/16 192.88.99.0/24",
        "a Teredo": "2001::/32",
        "a reserved": (
            "192.0.0.0/24 192.31.196.0/24 192.52.193.0/24 192.175.48.0/24 240.0.0.0/4 "
            "100::/64 2001::/23 2620:4f:8000::/48 5f00::/16"
        ),
    }.items()
    for network in networks.split()
}
_MOST_SPECIFIC_FIRST = sorted(_SPECIAL, key=lambda network: -network.prefixlen)

_ISATAP = 0x00005EFE
"""The third quarter of an address that carries IPv4 for an ISATAP tunnel (RFC 5214), whatever
lies before it; the bit for "universal" aside."""


def kind_of(address: Address) -> str | None:
    """What is special about an address, with its article; None for a public one."""
    for network in _MOST_SPECIFIC_FIRST:
        if address in network:
            return _SPECIAL[network]
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return "a scoped"
        if address not in _GLOBAL_UNICAST:
            return "a reserved"
        if (int(address) >> 32) & 0xFDFFFFFF == _ISATAP:
            return "an ISATAP"
    return None


def literal(host: str) -> Address | None:
    """The address that a URL's host is, None for a name that has to be looked up.

    Raises `ValueError` for what one program reads as an address and another as a name
    (``127.1``, ``0x7f000001``, ``0177.0.0.1``, ``2130706433``), and for what is neither.
    """
    if ":" in host:
        address = IPv6Address(host)
        if address.scope_id is not None:
            raise ValueError("must not name an interface")
        return address
    last = host.rpartition(".")[2]
    if re.fullmatch(r"[0-9]+|0[xX][0-9a-fA-F]*", last, re.ASCII):
        try:
            return IPv4Address(host)
        except AddressValueError as error:
            raise ValueError("is an address in a form that can be read in two ways") from error
    label = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
    if len(host) > 253 or not re.fullmatch(rf"{label}(?:\.{label})*", host.lower(), re.ASCII):
        raise ValueError("has a host that is no name and no address")
    return None


_WORDS = {
    "loopback": "127.0.0.0/8 ::1/128",
    "private": "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7",
}


@dataclass(frozen=True, slots=True)
class Reach:
    """Where a connection may go: public addresses, if ``public``, and the networks in ``named``.

    With ``anywhere`` it is not asked: the operator has named the place.
    """

    named: tuple[Network, ...] = ()
    public: bool = True
    anywhere: bool = False

    @classmethod
    def naming(cls, words: Iterable[str]) -> Reach:
        """Public addresses and these: networks, addresses, ``loopback`` or ``private``.

        Raises `ValueError`.
        """
        texts = [text for word in words for text in _WORDS.get(word, word).split() or [""]]
        return cls(named=tuple(ip_network(text) for text in texts))

    def refusal(self, address: Address) -> str | None:
        """Why this address is not called, as "a loopback address"; None when it is."""
        if self.anywhere or any(address in network for network in self.named):
            return None
        kind = kind_of(address)
        if kind is not None:
            return f"{kind} address"
        return None if self.public else "no loopback address"


PUBLIC = Reach()
LOOPBACK = Reach(named=(IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")), public=False)
ANYWHERE = Reach(anywhere=True)
