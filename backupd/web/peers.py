"""Peers: the operator's endpoints, and those that two servers pair by. PROTOCOL.md, section 7."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from msgspec import UNSET, Struct, structs

from backupd.bandwidth import Schedule
from backupd.errors import Forbidden, Invalid
from backupd.peer.pairing import Credentials, Enrolment, Grant
from backupd.trust.peers import Peer, Right
from backupd.web import messages
from backupd.web import peer_messages as said
from backupd.web.endpoint import Answer, Api, Call, Who
from backupd.web.messages import timestamp

__all__ = ["routes"]

PATH = "/api/v1/peers"


def routes(api: Api) -> None:
    """Register the endpoints."""
    _operator(api)
    _between(api)


def view(peer: Peer) -> said.PeerView:
    """What is told of a peer."""
    invitation = peer.invitation
    open_ = invitation is not None and invitation.used_by is None
    return said.PeerView(
        name=peer.name,
        state=peer.state,
        rights=sorted(peer.rights),
        limits=said.LimitsView(**asdict(peer.limits)),
        retention=said.RetentionView(**asdict(peer.retention)),
        url=peer.url,
        pin=peer.pin,
        origins=list(peer.origins),
        networks=list(peer.networks),
        fingerprint=peer.fingerprint,
        created_at=timestamp(peer.created_at) or "",
        invited_until=timestamp(invitation.expires_at) if invitation and open_ else None,
        revoked_at=timestamp(peer.revoked_at),
    )


def _grant(message: said.ChangePeer) -> Grant:
    limits = _said(message.limits)
    for name, member in (("bandwidth_in", "bandwidthIn"), ("bandwidth_out", "bandwidthOut")):
        if limits.get(name) is not None:
            limits[name] = _schedule(limits[name], member)
    return Grant(
        rights=None if message.rights is None else frozenset(map(Right, message.rights)),
        limits=limits,
        retention=_said(message.retention),
        networks=None if message.networks is None else tuple(message.networks),
        origins=None if message.origins is None else tuple(message.origins),
    )


def _said(members: Struct | None) -> dict[str, Any]:
    """The members that are there."""
    found = {} if members is None else structs.asdict(members)
    return {name: value for name, value in found.items() if value is not UNSET}


def _schedule(said: str | dict[str, str], member: str) -> str:
    """As it is kept: in one line. Raises `Invalid`."""
    try:
        return Schedule.parse(said).text
    except ValueError as error:
        raise Invalid(member, str(error)) from error


def _shown(peer: Peer, message: str, given: Credentials | None) -> said.Paired:
    paired = said.Paired(success=True, message=message, peer=view(peer))
    if given is not None:
        paired.token, paired.signing_secret = given.token, given.secret
    return paired


def _operator(api: Api) -> None:
    service = api.service

    @api.endpoint(
        "GET", PATH, says="Every peer, the revoked too.", gives=said.PeerList, who=Who.OPERATOR
    )
    async def peers(call: Call) -> Answer:
        return Answer(said.PeerList(peers=[view(peer) for peer in service.peers]))

    @api.endpoint(
        "POST",
        PATH,
        says="Invite a peer, or add one that is no backupd; what is secret is shown once.",
        takes=said.InvitePeer,
        gives=said.Paired,
        who=Who.OPERATOR,
        unbreakable=True,
        notes="peer-invited",
    )
    async def invite(call: Call, message: said.InvitePeer) -> Answer:
        grant = _grant(message)
        if message.direct:
            call.event = "peer-added"
            peer, given = await service.pairing.add(message.name, grant)
            return Answer(_shown(peer, "The peer is added", given), 201)
        peer, text = await service.pairing.invite(message.name, grant, seconds=message.seconds)
        paired = _shown(peer, "The peer is invited", None)
        paired.invitation = text
        return Answer(paired, 201)

    @api.endpoint(
        "POST",
        f"{PATH}/join",
        says="Join the server that has made an invitation.",
        takes=said.JoinPeer,
        gives=said.Paired,
        who=Who.OPERATOR,
        unbreakable=True,
        notes="peer-joined",
    )
    async def join(call: Call, message: said.JoinPeer) -> Answer:
        peer = await service.pairing.join(message.invitation, message.name, _grant(message))
        call.noted = f"as {peer.name}"
        return Answer(_shown(peer, "The servers are paired", None), 201)

    @api.endpoint("GET", f"{PATH}/<name>", says="One peer.", gives=said.PeerView, who=Who.OPERATOR)
    async def peer(call: Call, name: str) -> Answer:
        return Answer(view(service.peers.get(name)))

    @api.endpoint(
        "PATCH",
        f"{PATH}/<name>",
        says="Change what a peer may do and have.",
        takes=said.ChangePeer,
        gives=said.PeerView,
        who=Who.OPERATOR,
        unbreakable=True,
        notes="peer-set",
    )
    async def change(call: Call, message: said.ChangePeer, name: str) -> Answer:
        changed = view(await service.pairing.change(name, _grant(message)))
        call.noted = messages.encode(message).decode()
        return Answer(changed)

    @api.endpoint(
        "DELETE",
        f"{PATH}/<name>",
        says="Revoke a peer: it is out at once, and so is all that it has under way.",
        gives=said.PeerView,
        who=Who.OPERATOR,
        unbreakable=True,
        notes="peer-revoked",
    )
    async def revoke(call: Call, name: str) -> Answer:
        return Answer(view(await service.revoke(name)))

    @api.endpoint(
        "POST",
        f"{PATH}/<name>/rotate",
        says="Renew the tokens and secrets that are shared with a peer.",
        gives=said.Paired,
        who=Who.OPERATOR,
        unbreakable=True,
        notes="peer-rotated",
    )
    async def rotate(call: Call, name: str) -> Answer:
        peer, given = await service.pairing.rotate(name)
        return Answer(_shown(peer, "Tokens and secrets are renewed", given))


def _between(api: Api) -> None:
    service = api.service

    @api.endpoint(
        "POST",
        f"{PATH}/enrol",
        says="A server that was invited enrols, once, with the secret of its invitation.",
        takes=said.Enrol,
        gives=said.Credentials,
        who=Who.EVERYBODY,
        unbreakable=True,
        notes="peer-enrolled",
    )
    async def enrol(call: Call, message: said.Enrol) -> Answer:
        theirs = Credentials(token=message.token, secret=message.signing_secret)
        enrolment = Enrolment(
            secret=message.secret, url=message.url.rstrip("/"), pin=message.pin, given=theirs
        )
        peer, given = await service.pairing.enrol(enrolment)
        call.noted = f"as {peer.name}"
        return Answer(said.Credentials(token=given.token, signing_secret=given.secret))

    @api.endpoint(
        "GET", f"{PATH}/self", says="What we know of you.", gives=said.PeerView, who=Who.ANYONE
    )
    async def myself(call: Call) -> Answer:
        return Answer(view(_peer(call)))

    @api.endpoint(
        "PUT",
        f"{PATH}/self/credentials",
        says="A peer renews what we show it; the answer renews what it shows us.",
        takes=said.Renew,
        gives=said.Credentials,
        who=Who.ANYONE,
        unbreakable=True,
        notes="peer-rotated",
    )
    async def renew(call: Call, message: said.Renew) -> Answer:
        theirs = Credentials(token=message.token, secret=message.signing_secret)
        given = await service.pairing.renewed(_peer(call), theirs)
        return Answer(said.Credentials(token=given.token, signing_secret=given.secret))

    @api.endpoint(
        "POST",
        f"{PATH}/self/settled",
        says="A peer has what was renewed, and shows it here: what was before is done with.",
        takes=said.Nothing,
        gives=messages.Said,
        who=Who.ANYONE,
        unbreakable=True,
    )
    async def settled(call: Call, message: said.Nothing) -> Answer:
        await service.pairing.settled(_peer(call), call.caller.shown)
        return Answer(messages.Said(success=True, message="The old token holds no more"))


def _peer(call: Call) -> Peer:
    """Raises `Forbidden` when it is no peer that calls."""
    if call.caller.peer is None:
        raise Forbidden("This is for a peer, with its token.")
    return call.caller.peer
