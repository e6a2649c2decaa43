"""The messages about peers: what the operator says, and what two servers say when they pair."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from backupd.web.messages import Link, Name, Said

__all__ = [
    "ChangePeer",
    "Credentials",
    "Enrol",
    "InvitePeer",
    "JoinPeer",
    "LimitsField",
    "LimitsView",
    "Nothing",
    "Paired",
    "PeerList",
    "PeerView",
    "Renew",
    "RetentionField",
    "RetentionView",
]

RightField = Literal["send", "restore", "delete", "admin"]
Token = Annotated[str, Meta(max_length=256)]
Texts = Annotated[list[Name], Meta(max_length=64)]
Amount = Annotated[int, Meta(ge=1, le=2**60)]
Versions = Annotated[int, Meta(ge=0, le=10**9)]
Seconds = Annotated[float, Meta(ge=0, le=36500 * 86400)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]
Bandwidth = Annotated[str, Meta(max_length=1024)] | dict[str, str]
"""A rate, a table of rates by the time of day, or such a table in one line."""


class _Message(Struct, rename="camel", kw_only=True):
    """The base of all: members are camelCase, unknown ones are ignored."""


# -- what comes in ---------------------------------------------------------------------------------


class LimitsField(_Message):
    """What a peer may have; null is no limit, a member that is not there is left as it is."""

    quota: Amount | UnsetType | None = UNSET
    max_pending: Amount | UnsetType | None = UNSET
    max_uploads: Amount | UnsetType | None = UNSET
    max_size: Amount | UnsetType | None = UNSET
    requests_per_second: Rate | UnsetType | None = UNSET
    bandwidth_in: Bandwidth | UnsetType | None = UNSET
    bandwidth_out: Bandwidth | UnsetType | None = UNSET


class RetentionField(_Message):
    """How long a peer's versions are kept, times in seconds; null is as the settings say, 0 is
    without such a rule, a member that is not there is left as it is.
    """

    keep_last: Versions | UnsetType | None = UNSET
    keep_for: Seconds | UnsetType | None = UNSET
    minimum_keep: Seconds | UnsetType | None = UNSET


class ChangePeer(_Message):
    """Other rights, limits, retention, networks or origins for a peer."""

    rights: list[RightField] | None = None
    limits: LimitsField | None = None
    retention: RetentionField | None = None
    networks: Texts | None = None
    origins: Texts | None = None


class InvitePeer(ChangePeer, kw_only=True):
    """Invite a server; with ``direct``, a program that is no backupd, whose token is shown."""

    name: Name
    seconds: Annotated[float, Meta(gt=0, le=30 * 86400)] = 86400.0
    direct: bool = False


class JoinPeer(ChangePeer, kw_only=True):
    """Join the server that has made this invitation."""

    invitation: Name
    name: Name | None = None


class Renew(_Message):
    """What one server gives another to show it, and to verify its offers with."""

    token: Token
    signing_secret: Token


class Enrol(Renew, kw_only=True):
    """What a server that was invited says of itself."""

    secret: Token
    url: Link
    pin: Token | None = None


class Nothing(_Message):
    """An object without members."""


# -- what goes out ---------------------------------------------------------------------------------


class LimitsView(_Message):
    """What a peer may have; null is no limit."""

    quota: int | None
    max_pending: int | None
    max_uploads: int | None
    max_size: int | None
    requests_per_second: float | None
    bandwidth_in: str | None
    bandwidth_out: str | None


class RetentionView(_Message):
    """How long a peer's versions are kept; null is as the settings say, 0 without such a rule."""

    keep_last: int | None
    keep_for: float | None
    minimum_keep: float | None


class PeerView(_Message):
    """A peer, without anything that is secret."""

    name: str
    state: str
    rights: list[str]
    limits: LimitsView
    retention: RetentionView
    url: str | None
    pin: str | None
    origins: list[str]
    networks: list[str]
    fingerprint: str | None
    created_at: str
    invited_until: str | None
    revoked_at: str | None


class PeerList(_Message):
    """Every peer."""

    peers: list[PeerView]


class Paired(Said):
    """A peer as it is now; what is secret is shown once, to whom it is for."""

    peer: PeerView
    invitation: str | UnsetType = UNSET
    token: str | UnsetType = UNSET
    signing_secret: str | UnsetType = UNSET


class Credentials(_Message):
    """What the other server shows us from now on, and verifies our offers with."""

    token: str
    signing_secret: str
