"""The other servers as values: what each may do, and what is shared with it.

Nothing here does anything. Every secret is left out of ``repr``, so that none gets into a log.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum

from backupd.errors import Invalid
from backupd.interfaces import NO_RETENTION, Retention

__all__ = ["Invitation", "Limits", "Peer", "Right", "check_name", "token_hash"]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?", re.ASCII)
_NOT_NAMES = frozenset({"enrol", "join", "local", "operator", "self"})
"""Words that paths and records use for something else."""


class Right(StrEnum):
    """What a peer may do here, each with what is its own.

    ``ADMIN`` is all that the operator may do, with everybody's.
    """

    SEND = "send"
    RESTORE = "restore"
    DELETE = "delete"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a peer may have of this server; None is no limit of its own. Sizes are bytes.

    Bandwidths are schedules in one line, as `backupd.bandwidth` reads them.
    """

    quota: int | None = None
    max_pending: int | None = None
    max_uploads: int | None = None
    max_size: int | None = None
    requests_per_second: float | None = None
    bandwidth_in: str | None = None
    bandwidth_out: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """The one-time secret that a peer may enrol with, as its hash, until it expires.

    ``used_by`` is the hash of the token that was enrolled with it: the same server may repeat its
    enrolment when the answer was lost, nobody else may.
    """

    secret_hash: str = field(repr=False)
    expires_at: float
    used_by: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another server.

    ``url``, ``pin`` and ``origins`` say where it is, by which public key it is known (None: by
    the system's authorities), and where it may be called back. ``networks`` are addresses that
    are not public and may be called for it all the same. ``shows`` are the hashes of the tokens
    that it may show us, ``token`` is what we show it; ``signs`` are the secrets that our offers
    to it are signed with, ``verifies`` those that its offers are verified with.
    """

    name: str
    created_at: float
    rights: frozenset[Right] = frozenset()
    limits: Limits = Limits()
    retention: Retention = NO_RETENTION
    url: str | None = None
    pin: str | None = None
    origins: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    shows: tuple[str, ...] = field(default=(), repr=False)
    token: str | None = field(default=None, repr=False)
    signs: tuple[str, ...] = field(default=(), repr=False)
    verifies: tuple[str, ...] = field(default=(), repr=False)
    invitation: Invitation | None = None
    fingerprint: str | None = None
    revoked_at: float | None = None

    @property
    def state(self) -> str:
        """``revoked``, ``invited`` while it has not enrolled, else ``active``."""
        if self.revoked_at is not None:
            return "revoked"
        return "active" if self.shows else "invited"

    def may(self, right: Right) -> bool:
        """Whether it has this right."""
        active = self.state == "active"
        return active and (right in self.rights or Right.ADMIN in self.rights)


def token_hash(token: str) -> str:
    """What a token is known by. Tokens are random, so that nothing slower is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def check_name(name: str) -> None:
    """Raises `Invalid` unless ``name`` can be a peer's: it is a file's and a folder's name too."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise Invalid("name", "must be 1 to 64 of a-z, 0-9, '.', '_' and '-', as a host name is")
    if name in _NOT_NAMES:
        raise Invalid("name", f"{name!r} means something else here")
