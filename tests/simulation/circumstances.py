"""What a few histories have beyond the others, each drawn by a chance of its own: so the others
stay the histories that they were.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from backupd.receiver import joining

if TYPE_CHECKING:
    from tests.simulation.plan import Plan

__all__ = ["cancel_received", "in_parts", "rot", "slowly", "vanish"]

LEAST = (4096, 16_384, 65_536)
"""Bytes of a part at least, where files go in several."""


def in_parts(plan: Plan, rng: random.Random) -> None:
    """Parts that are as small as the videos, where the way is long enough to be worth it."""
    least = rng.choice(LEAST)
    plan.knobs |= {
        "LEAST": least,
        "TRIAL": least * rng.choice((1, 4)),
        "LARGER": rng.choice((2, 4)),
        "ROUNDS": rng.choice((0, 0, 10)),
        "STRIDE": rng.choice((4096, joining.STRIDE)),
    }


def slowly(plan: Plan, rng: random.Random) -> tuple[float, str, dict[str, Any]] | None:
    """A way so slow that an upload takes several leases, and nothing that hinders it; perhaps a
    slow disk, so that it also takes a lease until something of it is durable.
    """
    largest = max(video.size for video in plan.videos)
    if any(action.kind != "send" for action in plan.actions) or largest < 65_536:
        return None
    plan.unhindered = True
    if not rng.randrange(4):
        return None
    for settings in plan.machines.values():
        settings |= {"offer_lease": 20.0, "upload_expiry": 40.0, "min_rate": 0}
    plan.weather["bandwidth"] = rng.uniform(1200.0, 1500.0)
    # A sender that takes a lease to read what it sends loses its turn, and rightly so.
    senders = {plan.videos[action.what["video"]].machine for action in plan.actions}
    receivers = [a.what["to"] for a in plan.actions if a.what["to"] not in senders]
    if not rng.randrange(3) or not receivers:
        return None
    to = rng.choice(receivers)
    # In one piece: with what is noted of every part, and nothing coming meanwhile, a lease is over.
    plan.knobs["LEAST"] = largest
    return 0.5, "slow_disk", {"machine": to, "seconds": 5.0, "lasts": 1000.0}


def cancel_received(plan: Plan, rng: random.Random) -> tuple[float, str, dict[str, Any]] | None:
    """The operator of a receiver takes back what has arrived, before its sender has said so."""
    hindered = any(action.kind != "send" for action in plan.actions)
    if rng.randrange(20) or not hindered:
        return None
    send = rng.choice([action for action in plan.actions if action.kind == "send"])
    return send.at, "cancel_received", {"machine": send.what["to"]}


def vanish(plan: Plan, rng: random.Random) -> tuple[float, str, dict[str, Any]] | None:
    """The owner of a video removes it, before it is sent or meanwhile.

    Not one that changes, goes twice, or would have to be sent again.
    """
    if rng.randrange(10) or plan.unhindered or any(a.kind == "rot" for a in plan.actions):
        return None
    sends = [action for action in plan.actions if action.kind == "send"]
    used = Counter(a.what["video"] for a in plan.actions if a.kind in ("send", "touch"))
    once = [send for send in sends if used[send.what["video"]] == 1]
    if not once:
        return None
    send = rng.choice(once)
    at = send.at + rng.choice((0.0, rng.uniform(0.0, 2.0), rng.uniform(0.0, 20.0)))
    return at, "vanish", {"video": send.what["video"]}


def rot(plan: Plan, rng: random.Random) -> tuple[float, str, dict[str, Any]] | None:
    """Something that is kept rots on the disk, and is read again: by the scrub, or because its
    operator wants to know.

    Not where who sent it may be heard no more, nor where clocks jump by more than it is read in.
    """
    hinders = any(action.kind in ("revoke", "jump") for action in plan.actions)
    if rng.randrange(8) or hinders or plan.cramped:
        return None
    send = rng.choice([action for action in plan.actions if action.kind == "send"])
    to, video = send.what["to"], plan.videos[send.what["video"]]
    period = rng.choice((0.0, 900.0, 3600.0))
    plan.machines[to]["scrub_period"] = period
    plan.capacity[to] += video.size + 49_152
    what = {
        "machine": to,
        "owner": video.machine,
        "name": video.name,
        "late": rng.choice((0.0, rng.uniform(0.0, 5.0), rng.uniform(0.0, 100.0))),
        "verify": rng.uniform(0.0, 60.0) if not period or rng.random() < 0.3 else None,
        "lasts": 400.0,
    }
    return send.at, "rot", what
