"""Digest fields (RFC 9530): what a client wants to get, and how a digest is written."""

from __future__ import annotations

import base64
import re

from backupd.web.site import StreamingRequest

__all__ = ["preferences", "sha256_field", "wants_sha256"]

_KEY = r"[a-z*][a-z0-9_.*-]*"
_INTEGER = r"-?[0-9]{1,15}"
_BARE = "|".join(
    (
        r"-?[0-9]{1,12}\.[0-9]{1,3}",
        _INTEGER,
        r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"',
        r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*",
        r":[A-Za-z0-9+/=]*:",
        r"\?[01]",
        r"@-?[0-9]{1,15}",
        r'%"(?:[\x20\x21\x23\x24\x26-\x7e]|%[0-9a-f]{2})*"',
    )
)
_PARAMETERS = rf"(?:; *{_KEY}(?:=(?:{_BARE}))?)*"
_ITEM = rf"(?:{_BARE}){_PARAMETERS}"
_LIST = rf"\( *(?:{_ITEM}(?: +{_ITEM})*)? *\){_PARAMETERS}"
_MEMBER = re.compile(
    rf"(?P<key>{_KEY})(?:=(?:(?P<list>{_LIST})|(?P<value>{_BARE}){_PARAMETERS})|{_PARAMETERS})"
)
_COMMA = re.compile(r"[ \t]*,[ \t]*")


def preferences(field: str) -> dict[str, int]:
    """The weights that a ``Want-…-Digest`` field gives to algorithms.

    It is a Dictionary of Integers from 0 to 10 (RFC 9651, section 3.2). Of members that are
    anything else nothing is told; of a field that is no Dictionary nothing at all, as it is to
    be ignored whole.
    """
    field = field.strip(" ")
    found: dict[str, int] = {}
    at = 0
    while at < len(field):
        member = _MEMBER.match(field, at)
        if member is None:
            return {}
        value = member["value"] or ""
        if re.fullmatch(_INTEGER, value) and 0 <= int(value) <= 10:
            found[member["key"]] = int(value)
        else:
            found.pop(member["key"], None)  # the last of several counts, whatever it is
        at = member.end()
        if at < len(field):
            comma = _COMMA.match(field, at)
            if comma is None or comma.end() == len(field):
                return {}
            at = comma.end()
    return found


def wants_sha256(request: StreamingRequest, name: str) -> bool | None:
    """Whether the field says that SHA-256 is welcome; None where it does not mention it.

    It is a hint: we have no other digest, and who asks for another one may still like this.
    """
    lines = request.requestHeaders.getRawHeaders(name, [])
    weight = preferences(", ".join(lines)).get("sha-256")
    return None if weight is None else weight > 0


def sha256_field(digest: bytes) -> str:
    """The value of ``Repr-Digest`` or ``Content-Digest``."""
    return f"sha-256=:{base64.b64encode(digest).decode()}:"
