"""Origins of URLs, and which URLs may be called.

One strict pattern says what a URL is, so that no two libraries can read different hosts in it.
"""

from __future__ import annotations

import functools
import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from backupd.errors import Forbidden, Invalid

__all__ = [
    "Place",
    "check_link",
    "check_loopback",
    "is_loopback",
    "origin_of",
    "place_of",
    "same_origin",
]

MAX_URL = 2048
_URL = re.compile(
    r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?([/?][!-\[\]-~]*)?",
    re.IGNORECASE | re.ASCII,
)
_PORTS = {"http": 80, "https": 443}


class Place(NamedTuple):
    """What a URL names: ``host`` is lower case and without brackets, ``target`` is never empty."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        """Host and port as a Host header has them, without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """``scheme://host:port``, without the scheme's own port."""
        return f"{self.scheme}://{self.netloc}"


def place_of(url: str) -> Place:
    """What ``url`` names. Raises `ValueError` for what is no absolute http or https URL."""
    match = _URL.fullmatch(url)
    if match is None or len(url) > MAX_URL or "#" in url:
        raise ValueError("must be an absolute http or https URL")
    scheme, host = match[1].lower(), match[2].lower()
    if host.startswith("["):
        host = str(IPv6Address(host[1:-1]))
    port = int(match[3]) if match[3] else _PORTS[scheme]
    if not 0 < port < 65536:
        raise ValueError("has a port that does not exist")
    target = match[4] or "/"
    return Place(scheme, host, port, target if target.startswith("/") else f"/{target}")


def origin_of(url: str) -> str:
    """``scheme://host:port``, lower case, without the scheme's own port. Raises `ValueError`."""
    return place_of(url).origin


def same_origin(one: str, other: str) -> bool:
    """Whether two URLs have one origin. Raises `ValueError`."""
    return origin_of(one) == origin_of(other)


def check_link(member: str, url: str) -> None:
    """Raises `Invalid` unless ``url`` is an absolute http or https URL without surprises."""
    if len(url) > MAX_URL:
        raise Invalid(member, f"is longer than {MAX_URL} characters")
    if re.search(r"[^!-~]|\\", url):
        raise Invalid(member, "has characters that a URL must not have")
    if "#" in url:
        raise Invalid(member, "must not have a fragment")
    if "@" in url and "@" in re.split("[/?]", url.partition("://")[2], maxsplit=1)[0]:
        raise Invalid(member, "must not hold user information")
    try:
        place_of(url)
    except AddressValueError as error:
        raise Invalid(member, "has a host that is no IPv6 address") from error
    except ValueError as error:
        raise Invalid(member, str(error)) from error


@functools.lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether ``host`` is ``localhost`` or a loopback literal; no name is looked up.

    Only what cannot be read in two ways: ``127.1``, ``0x7f.0.0.1``, ``localhost.`` and IPv4
    inside IPv6 are none. An IPv6 address may stand in brackets.
    """
    host = host.lower()
    if host == "localhost":
        return True
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        if ":" in bare:
            return "%" not in bare and IPv6Address(bare) == IPv6Address("::1")
        return bare == host and IPv4Address(host).is_loopback
    except AddressValueError:
        return False


def check_loopback(member: str, url: str) -> None:
    """Raises `Forbidden` unless the host is ``localhost`` or a loopback literal.

    ``url`` has passed `check_link`.
    """
    if not is_loopback(place_of(url).host):
        raise Forbidden(
            f"{member} must be on localhost or a loopback address while no peers are configured."
        )
