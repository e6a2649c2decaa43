"""The one string that pairs two servers, and the short fingerprint that both show afterwards."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

import msgspec

from backupd.errors import Invalid
from backupd.trust.peers import token_hash

__all__ = ["Invite", "fingerprint", "read_invite", "write_invite"]

_PREFIX = "backupd-invite-"
_CHECK = 4


@dataclass(frozen=True, slots=True)
class Invite:
    """Where the inviting server is, the public key that it must have there (None: one that the
    system's authorities vouch for), and the secret that may be used once until it expires.
    """

    url: str
    pin: str | None
    secret: str = field(repr=False)
    expires_at: float


def write_invite(invite: Invite) -> str:
    """The string: safe to paste anywhere, without a character that a shell would read."""
    plain = (invite.url, invite.pin, invite.secret, int(invite.expires_at))
    data = msgspec.msgpack.encode(plain)
    check = hashlib.sha256(data).digest()[:_CHECK]
    return _PREFIX + base64.urlsafe_b64encode(data + check).decode().rstrip("=")


def read_invite(text: str) -> Invite:
    """Raises `Invalid` for what is no invitation, or not a whole one. The URL is not checked."""
    text = "".join(text.split())
    if not text.startswith(_PREFIX) or len(text) > 4096:
        raise Invalid("invitation", f"is none; one begins with {_PREFIX}")
    packed = text.removeprefix(_PREFIX)
    try:
        data = base64.b64decode(packed + "=" * (-len(packed) % 4), b"-_", validate=True)
        data, check = data[:-_CHECK], data[-_CHECK:]
        if hashlib.sha256(data).digest()[:_CHECK] != check:
            raise ValueError("it is damaged")
        url, pin, secret, expires_at = msgspec.msgpack.decode(
            data, type=tuple[str, str | None, str, int]
        )
    except (ValueError, binascii.Error, msgspec.DecodeError) as error:
        raise Invalid("invitation", "is damaged; was it copied whole?") from error
    return Invite(url, pin, secret, float(expires_at))


def fingerprint(
    inviter: tuple[str, str | None], joiner: tuple[str, str | None], *secrets: str
) -> str:
    """What both sides of a pairing can compare: 80 bits over both addresses and keys, and over
    every secret that was exchanged, in the order in which it was sent.

    Whoever stands in between has to show each side another key or other secrets, and so another
    fingerprint.
    """
    told = [*(part or "" for side in (inviter, joiner) for part in side)]
    told += [token_hash(secret) for secret in secrets]
    digest = hashlib.sha256("\n".join(["backupd pairing 1", *told]).encode()).digest()
    letters = base64.b32encode(digest[:10]).decode().lower()
    return "-".join(letters[at : at + 4] for at in range(0, 16, 4))
