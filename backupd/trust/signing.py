"""Signatures of offers, as the Standard Webhooks specification says (standardwebhooks.com).

What is signed is the message's id, the time, and the body as it stands, joined by dots. The id
is the same over all tries of one offer; the time is that of the try.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Sequence

from backupd.errors import Forbidden

__all__ = ["TOLERANCE", "Replays", "check_secret", "signed", "verify"]

TOLERANCE = 300.0
"""Seconds by which the clocks of two servers may differ, a message's journey included."""

_PREFIX = "whsec_"
_REMEMBERED = 10_000


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)


def check_secret(secret: str) -> None:
    """Raises `ValueError` unless this is a secret of 24 to 64 bytes: ``whsec_`` and base64."""
    try:
        length = len(_key(secret)) if secret.startswith(_PREFIX) else 0
    except (binascii.Error, ValueError):
        length = 0
    if not 24 <= length <= 64:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 bytes")


def _signature(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    content = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(_key(secret), content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def signed(secrets: Sequence[str], message_id: str, seconds: int, body: bytes) -> dict[str, str]:
    """The headers that sign ``body``, with each of the secrets; none when there is none."""
    if not secrets:
        return {}
    timestamp = str(seconds)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(
            _signature(secret, message_id, timestamp, body) for secret in secrets
        ),
    }


class Replays:
    """Remembers what was verified, for as long as it would be verified again."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str, str], float] = {}

    def first(self, sender: str, message_id: str, timestamp: str, now: float) -> bool:
        """Whether this message of ``sender`` is seen for the first time."""
        while self._seen:
            oldest = next(iter(self._seen))
            if now - self._seen[oldest] <= 2 * TOLERANCE and len(self._seen) < _REMEMBERED:
                break
            del self._seen[oldest]
        key = (sender, message_id, timestamp)
        if key in self._seen:
            return False
        self._seen[key] = now
        return True


def verify(
    secrets: Sequence[str],
    headers: tuple[str | None, str | None, str | None],
    body: bytes,
    *,
    now: float,
    sender: str,
    replays: Replays,
) -> None:
    """Raises `Forbidden` unless one of the secrets has signed this, lately, and for the first time.

    ``headers`` are ``webhook-id``, ``webhook-timestamp`` and ``webhook-signature``.
    """
    message_id, timestamp, signature = headers
    if not message_id or not timestamp or not signature:
        raise Forbidden(f"An offer of {sender} must be signed, and this one is not.")
    if not re.fullmatch(r"[0-9]{1,12}", timestamp, re.ASCII):
        raise Forbidden("webhook-timestamp is no number of seconds.")
    right = False
    for secret in secrets:
        wanted = _signature(secret, message_id, timestamp, body).encode()
        for given in signature.split(" ")[:16]:
            right |= hmac.compare_digest(wanted, given.encode("utf-8", "surrogatepass"))
    if not right:
        raise Forbidden(f"The signature of this offer is not one of {sender}.")
    if abs(now - int(timestamp)) > TOLERANCE:
        raise Forbidden(
            "The offer was signed more than 5 minutes away from now; are both clocks right?"
        )
    if not replays.first(sender, message_id, timestamp, now):
        raise Forbidden("This very offer has come before.")
