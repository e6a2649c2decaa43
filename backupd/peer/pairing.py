"""Pairing: invite, enrol, join, renew and revoke. Two servers exchange tokens and secrets here.

Each side makes the token that the other shows it, and keeps its hash; each side makes the secret
that its own offers are signed with. So neither has to believe that the other can draw lots.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import Busy, Forbidden, Invalid, PeerFailed, Unauthorized
from backupd.peer.addresses import ANYWHERE, Reach
from backupd.peer.client import PeerClient
from backupd.peer.connector import Route, Routes
from backupd.peer.origins import check_link, is_loopback, origin_of, place_of
from backupd.trust.invitations import Invite, fingerprint, read_invite, write_invite
from backupd.trust.own_key import is_pin
from backupd.trust.peers import Invitation, Peer, Right, check_name, token_hash
from backupd.trust.registry import Peers
from backupd.trust.signing import check_secret

__all__ = ["Credentials", "Enrolment", "Grant", "Here", "Pairing"]

INVITED_FOR = 24 * 3600.0
"""Seconds for which an invitation may be used, unless the operator says otherwise."""

TRIES = 3
"""How often an enrolment is sent when its answer is lost."""

KEPT = 3
"""How many tokens and secrets of one peer hold at once while it may not have heard of the last."""


class Here(Protocol):
    """Where this server is, as others reach it."""

    @property
    def url(self) -> str: ...
    @property
    def pin(self) -> str | None: ...
    @property
    def beyond(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What the operator gives a peer; None leaves what it has."""

    rights: frozenset[Right] | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    retention: Mapping[str, Any] = field(default_factory=dict)
    networks: tuple[str, ...] | None = None
    origins: tuple[str, ...] | None = None

    def of(self, peer: Peer) -> Peer:
        """``peer`` with this. Raises `Invalid`."""
        if self.networks is not None:
            try:
                Reach.naming(self.networks)
            except ValueError as error:
                raise Invalid("networks", f"has what is no network: {error}") from error
        origins = None if self.origins is None else tuple(_origin(one) for one in self.origins)
        return replace(
            peer,
            rights=peer.rights if self.rights is None else self.rights,
            limits=replace(peer.limits, **self.limits),
            retention=replace(peer.retention, **self.retention),
            networks=peer.networks if self.networks is None else self.networks,
            origins=peer.origins if origins is None else origins,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What one side gives the other: the token to show it, and the secret that it signs with."""

    token: str = field(repr=False)
    secret: str = field(repr=False)

    def check(self) -> None:
        """Raises `Invalid`."""
        if not re.fullmatch(r"[!-~]{24,256}", self.token, re.ASCII):
            raise Invalid("token", "must be 24 to 256 printable characters")
        try:
            check_secret(self.secret)
        except ValueError as error:
            raise Invalid("signingSecret", str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What the joining server says of itself."""

    secret: str = field(repr=False)
    url: str
    pin: str | None
    given: Credentials


class Pairing:
    """Changes who is trusted. ``dial`` makes a client for a server that is no peer yet."""

    _log = Logger()

    def __init__(
        self,
        *,
        peers: Peers,
        here: Here,
        client: PeerClient,
        dial: Callable[[Routes], PeerClient],
        clock: IReactorTime,
        new_token: Callable[[], str],
    ) -> None:
        self._peers = peers
        self._here = here
        self._client = client
        self._dial = dial
        self._clock = clock
        self._new_token = new_token
        self._renewing: set[str] = set()

    def _check_here(self) -> None:
        """Raises `Invalid` when others could not reach us where our links lead."""
        url = self._here.url
        _confidential("public_url", url)
        if self._here.beyond and is_loopback(place_of(url).host):
            raise Invalid(
                "public_url", f"is not set, and {url} is this machine to whoever reads it; set it"
            )

    def _credentials(self) -> Credentials:
        key = hashlib.sha256(self._new_token().encode()).digest()
        secret = f"whsec_{base64.b64encode(key).decode()}"
        return Credentials(token=f"backupd_{self._new_token()}", secret=secret)

    # -- the side that invites --------------------------------------------------------------------

    async def invite(
        self, name: str, grant: Grant, *, seconds: float = INVITED_FOR
    ) -> tuple[Peer, str]:
        """Let a server enrol under this name; the peer, and the string to give to its operator.

        A peer that is active keeps what it has until somebody enrols. Raises `Invalid`.
        """
        check_name(name)
        self._check_here()
        secret, now = self._new_token(), self._clock.seconds()
        invitation = Invitation(secret_hash=token_hash(secret), expires_at=now + seconds)

        def step(peer: Peer | None) -> Peer:
            peer = peer or Peer(name=name, created_at=now)
            return replace(grant.of(self._free(peer, grant)), invitation=invitation)

        peer = await self._peers.change(name, step)
        invite = Invite(self._here.url, self._here.pin, secret, invitation.expires_at)
        return peer, write_invite(invite)

    async def add(self, name: str, grant: Grant) -> tuple[Peer, Credentials]:
        """A peer that is no backupd: its credentials are shown once, for its operator to carry."""
        check_name(name)
        given, now = self._credentials(), self._clock.seconds()

        def step(peer: Peer | None) -> Peer:
            if peer is not None and peer.state == "active":
                raise Invalid("name", f"{name!r} is a peer already; see `backupctl peer rotate`")
            old = peer or Peer(name=name, created_at=now)
            peer = Peer(
                name=name, created_at=old.created_at, limits=old.limits, retention=old.retention
            )
            peer = grant.of(self._free(peer, grant))
            return replace(peer, shows=(token_hash(given.token),), signs=(given.secret,))

        return await self._peers.change(name, step), given

    def _free(self, peer: Peer, grant: Grant) -> Peer:
        """Raises `Invalid` when an origin is another peer's: it would get that one's calls."""
        for url in grant.origins or ():
            self._check_free(peer.name, _origin(url))
        return peer

    def _check_free(self, name: str, origin: str) -> None:
        other = self._peers.by_origin(origin)
        if other is not None and other.name != name:
            raise Invalid("url", f"{origin} is where peer {other.name!r} is")

    def _invited(self, secret: str) -> Peer:
        """The peer that this secret is for. Raises `Unauthorized`."""
        wanted, found = token_hash(secret), None
        for peer in self._peers:
            invitation = peer.invitation
            if invitation is not None and hmac.compare_digest(invitation.secret_hash, wanted):
                found = peer
        if found is None or found.invitation is None:
            raise Unauthorized("This invitation is not known here; ask for another.")
        if found.invitation.expires_at < self._clock.seconds():
            raise Unauthorized("This invitation has expired; ask for another.")
        return found

    async def enrol(self, said: Enrolment) -> tuple[Peer, Credentials]:
        """Take in a server that was invited; the peer, and what it is given.

        The secret is used up. The same server may repeat itself, if it did not hear the answer.
        Raises `Unauthorized`, `Invalid`.
        """
        name = self._invited(said.secret).name
        said.given.check()
        _confidential("url", said.url)
        if said.pin is not None and not is_pin(said.pin):
            raise Invalid("pin", "must be sha256// and base64")
        given = self._credentials()
        shown = fingerprint(
            (self._here.url, self._here.pin),
            (said.url, said.pin),
            said.given.token,
            said.given.secret,
            given.token,
            given.secret,
        )

        def step(_: Peer | None) -> Peer:
            peer = self._invited(said.secret)
            invitation, by = peer.invitation, token_hash(said.given.token)
            if invitation is None or invitation.used_by not in (None, by):
                raise Unauthorized("This invitation has been used already; ask for another.")
            self._check_free(name, origin_of(said.url))
            return replace(
                peer,
                url=said.url,
                pin=said.pin,
                origins=(origin_of(said.url),),
                shows=(token_hash(given.token),),
                token=said.given.token,
                signs=(given.secret,),
                verifies=(said.given.secret,),
                invitation=replace(invitation, used_by=by),
                fingerprint=shown,
                revoked_at=None,
            )

        return await self._peers.change(name, step), given

    # -- the side that joins ----------------------------------------------------------------------

    async def join(self, text: str, name: str | None, grant: Grant) -> Peer:
        """Enrol with the server that invites us. Raises `Invalid`, `PeerFailed`, `PeerRefused`."""
        invite, now = read_invite(text), self._clock.seconds()
        _confidential("invitation", invite.url)
        self._check_here()
        if invite.expires_at < now:
            raise Invalid("invitation", "has expired; ask for another")
        place = place_of(invite.url)
        name = name or place.host.replace(":", "-")
        check_name(name)
        self._check_free(name, place.origin)
        self._check_name_free(name, place.origin)
        given = self._credentials()
        answer = await self._enrol(invite, given)
        theirs = Credentials(token=_text(answer, "token"), secret=_text(answer, "signingSecret"))
        theirs.check()
        shown = fingerprint(
            (invite.url, invite.pin),
            (self._here.url, self._here.pin),
            given.token,
            given.secret,
            theirs.token,
            theirs.secret,
        )

        def step(old: Peer | None) -> Peer:
            self._check_free(name, place.origin)
            self._check_name_free(name, place.origin)
            peer = replace(
                old or Peer(name=name, created_at=now),
                url=invite.url,
                pin=invite.pin,
                origins=(place.origin,),
                shows=(token_hash(given.token),),
                token=theirs.token,
                signs=(given.secret,),
                verifies=(theirs.secret,),
                invitation=None,
                fingerprint=shown,
                revoked_at=None,
            )
            return grant.of(peer)

        return await self._peers.change(name, step)

    def _check_name_free(self, name: str, origin: str) -> None:
        """A peer's name is not given to another server by mistake: it would own its backups."""
        peer = self._peers.find(name)
        if peer is not None and peer.state == "active" and origin not in peer.origins:
            raise Invalid("name", f"{name!r} is another peer already; choose one with --name")

    async def _enrol(self, invite: Invite, given: Credentials) -> Mapping[str, object]:
        """The answer of the server that invites; what is said is the same at each try."""
        client = self._dial(lambda place: Route(pin=invite.pin, reach=ANYWHERE))
        message = {
            "secret": invite.secret,
            "url": self._here.url,
            "pin": self._here.pin,
            "token": given.token,
            "signingSecret": given.secret,
        }
        url = f"{invite.url}/api/v1/peers/enrol"
        for _ in range(TRIES - 1):
            try:
                return await client.tell("POST", url, message)
            except PeerFailed as error:
                if getattr(error, "status", None) is not None:
                    raise
                self._log.info("an enrolment is sent again: {why}", why=str(error))
        return await client.tell("POST", url, message)

    # -- afterwards -------------------------------------------------------------------------------

    async def rotate(self, name: str) -> tuple[Peer, Credentials | None]:
        """New tokens and secrets, both ways; the credentials only when the peer is no backupd.

        Until the peer has shown the new token the old one holds too: whatever is lost on the way,
        nobody is locked out. Raises `Invalid`, `Busy`, `PeerFailed`.
        """
        peer = self._peers.get(name)
        if peer.state != "active":
            raise Invalid("name", f"{name!r} is {peer.state}; it has nothing that could be renewed")
        if peer.url is None:
            given = self._credentials()
            return await self._peers.change(name, lambda p: _only(_active(p), given)), given
        if name in self._renewing:
            raise Busy(f"What is shared with {name} is being renewed; that is under way already.")
        self._renewing.add(name)
        try:
            return await self._renew(name, f"{peer.url}/api/v1/peers/self"), None
        finally:
            self._renewing.discard(name)

    async def _renew(self, name: str, url: str) -> Peer:
        # One that does not answer is given nothing: of many tries it may have heard any.
        await self._client.status(url)
        given = self._credentials()
        before = (await self._peers.change(name, lambda p: _also(_active(p), given))).token
        message = {"token": given.token, "signingSecret": given.secret}
        answer = await self._client.tell("PUT", f"{url}/credentials", message)
        theirs = Credentials(token=_text(answer, "token"), secret=_text(answer, "signingSecret"))
        theirs.check()

        def settled(peer: Peer | None) -> Peer:
            # What the peer has given us meanwhile, renewing on its own, holds there for certain.
            peer = _since(_active(peer), token_hash(given.token))
            if peer.token != before:
                return peer
            return replace(peer, token=theirs.token, verifies=(theirs.secret,))

        changed = await self._peers.change(name, settled)
        await self._client.tell("POST", f"{url}/settled", {})
        return changed

    async def renewed(self, peer: Peer, theirs: Credentials) -> Credentials:
        """The peer renews: what it shows us from now on. What it showed before holds until
        `settled`. Raises `Invalid`.
        """
        theirs.check()
        given = self._credentials()

        def step(now: Peer | None) -> Peer:
            now = _also(_active(now), given)
            return replace(now, token=theirs.token, verifies=(theirs.secret,))

        await self._peers.change(peer.name, step)
        return given

    async def settled(self, peer: Peer, shown: str) -> Peer:
        """The peer has the token with the hash ``shown``: every older one is done with."""

        def step(now: Peer | None) -> Peer:
            now = _active(now)
            if shown not in now.shows:
                raise Unauthorized("This token does not hold any more.")
            return _since(now, shown)

        return await self._peers.change(peer.name, step)

    async def change(self, name: str, grant: Grant) -> Peer:
        """Other rights, limits, networks or origins. Raises `Invalid`, `NoSuchPeer`."""
        peer = self._peers.get(name)
        self._free(peer, grant)
        return await self._peers.change(name, lambda p: grant.of(p or peer))

    async def revoke(self, name: str) -> Peer:
        """It is out: none of its tokens holds, none of its secrets is kept, and should it come
        back, it may what is said then. Raises `NoSuchPeer`.
        """
        peer, now = self._peers.get(name), self._clock.seconds()

        def step(found: Peer | None) -> Peer:
            return replace(
                found or peer,
                rights=frozenset(),
                shows=(),
                token=None,
                signs=(),
                verifies=(),
                invitation=None,
                revoked_at=now,
            )

        return await self._peers.change(name, step)


def _active(peer: Peer | None) -> Peer:
    """Raises `Forbidden` when it was revoked meanwhile."""
    if peer is None or peer.state != "active":
        raise Forbidden("This peer is out.")
    return peer


def _also(peer: Peer, given: Credentials) -> Peer:
    """``peer`` with these beside what it has."""
    shows, signs = (*peer.shows, token_hash(given.token)), (*peer.signs, given.secret)
    if len(shows) > KEPT:
        # The first is the one that is known to have arrived.
        shows, signs = (shows[0], *shows[2:]), (signs[0], *signs[2:])
    return replace(peer, shows=shows, signs=signs)


def _since(peer: Peer, shown: str) -> Peer:
    """``peer`` without what is older than the token with the hash ``shown``."""
    at = peer.shows.index(shown) if shown in peer.shows else 0
    return replace(peer, shows=peer.shows[at:], signs=peer.signs[at:])


def _only(peer: Peer, given: Credentials) -> Peer:
    return replace(peer, shows=(token_hash(given.token),), signs=(given.secret,))


def _origin(url: str) -> str:
    check_link("origins", url)
    return origin_of(url)


def _confidential(member: str, url: str) -> None:
    """Raises `Invalid` for a place where tokens would be read on the way."""
    check_link(member, url)
    if "?" in url:
        raise Invalid(member, "must be the address of a server, without a query")
    place = place_of(url)
    if place.scheme != "https" and not is_loopback(place.host):
        raise Invalid(
            member,
            f"{place.origin} is not https, and tokens would be read on the way; "
            'listen with "ssl:…", or set public_url to the https address of the proxy',
        )


def _text(answer: Mapping[str, object], member: str) -> str:
    value = answer.get(member)
    if not isinstance(value, str):
        raise PeerFailed(f"The other server's answer has no {member}.")
    return value
