"""Machines that know each other: peers with tokens, rights and secrets, as after pairing."""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass

from backupd.trust.peers import Peer, Right, token_hash
from backupd.trust.registry import InMemory
from tests.simulation.machine import Machine
from tests.simulation.stranger import Stranger

__all__ = ["acquaint"]


@dataclass(frozen=True, slots=True)
class _Known:
    """What one shows the other, and what its offers to the other are signed with."""

    token: str
    secret: str


def acquaint(machines: Iterable[Machine], stranger: Stranger, rng: random.Random) -> None:
    """Give every machine a record of each of the others, and of the stranger."""
    everybody: list[Machine | Stranger] = [*machines, stranger]
    pairs = {
        (one.name, other.name): _Known(
            f"{rng.getrandbits(192):048x}", f"whsec_{b64encode(rng.randbytes(32)).decode()}"
        )
        for one in everybody
        for other in everybody
        if one is not other
    }
    for one in everybody:
        one.peer = one.name.lower()
        if isinstance(one, Stranger):
            one.tokens = {
                other.port: pairs[one.name, other.name].token
                for other in everybody
                if other is not one
            }
            continue
        one.peer_records = InMemory()
        for other in everybody:
            if other is not one:
                ours, theirs = pairs[one.name, other.name], pairs[other.name, one.name]
                one.peer_records.write(
                    Peer(
                        name=other.name.lower(),
                        created_at=0.0,
                        rights=frozenset({Right.SEND, Right.RESTORE}),
                        url=other.url,
                        origins=(other.url,),
                        networks=("127.0.0.0/8",),
                        shows=(token_hash(theirs.token),),
                        token=ours.token,
                        signs=(ours.secret,),
                        verifies=(theirs.secret,),
                    )
                )
