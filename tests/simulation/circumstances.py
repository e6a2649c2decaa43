"""What a few histories have beyond the others, each drawn by a chance of its own: so the others
stay the histories that they were.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from backupd.receiver import joining
from backupd.sender import delivery

if TYPE_CHECKING:
    from tests.simulation.plan import Plan

__all__ = ["cancel_received", "in_parts", "recut", "rot", "silence", "slowly", "vanish"]

SILENCE = 80
"""Of so many histories one is of a server that says nothing."""

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
        # On a slow disk joining goes on long after nobody waits for its answer any more.
        "JOINING": rng.choice((5, int(delivery.JOINING[0]))),
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


def recut(plan: Plan, rng: random.Random) -> tuple[float, str, dict[str, Any]] | None:
    """A video changes, and is sent again, when all of the old one is there and not confirmed."""
    hindered = any(action.kind != "send" for action in plan.actions)
    if rng.randrange(12) or not hindered:
        return None
    send = rng.choice([action for action in plan.actions if action.kind == "send"])
    plan.capacity[send.what["to"]] += plan.videos[send.what["video"]].size + 49_152
    return send.at, "recut", send.what


def vanish(plan: Plan, rng: random.Random) -> tuple[float, str, dict[str, Any]] | None:
    """The owner of a video removes it, before it is sent or meanwhile.

    Not one that changes, goes twice, or would have to be sent again.
    """
    if rng.randrange(10) or plan.unhindered or any(a.kind == "rot" for a in plan.actions):
        return None
    sends = [action for action in plan.actions if action.kind == "send"]
    used = Counter(a.what["video"] for a in plan.actions if a.kind in ("send", "touch", "recut"))
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


def silence(
    plan: Plan, rng: random.Random
) -> tuple[list[tuple[str, str, int]], list[tuple[float, str, dict[str, Any]]]] | None:
    """Instead of all that: a sender with many videos for a server that says nothing for a while,
    and a few for another. The videos, and what happens.
    """
    if rng.randrange(SILENCE) or plan.unhindered:
        return None
    settings = plan.machines["A"] | {
        "loop_interval": 5.0,
        "offer_deadline": 86400.0,
        "upload_expiry": 3600.0,
    }
    plan.machines = {name: dict(settings) for name in ("A", "B", "C")}
    plan.weather |= {"bandwidth": 1e7, "delay": (0.0005, 0.05)}
    plan.sqlite = plan.cramped = False
    plan.silent, lasts = "C", rng.uniform(200.0, 400.0)
    sends = [("C", rng.uniform(1.0, 2.0)) for _ in range(rng.randint(33, 45))]
    sends += [("A", rng.uniform(2.0, 5.0)), *(("A", rng.uniform(2.0, lasts)) for _ in range(4))]
    videos = [("B", str(number), rng.choice((1, 511, 4096))) for number in range(len(sends))]
    actions: list[tuple[float, str, dict[str, Any]]] = [
        (at, "send", {"video": number, "to": to}) for number, (to, at) in enumerate(sends)
    ]
    actions.append((0.3, "power", {"machine": "C", "lasts": lasts}))
    room = sum(size + 49_152 for _, _, size in videos)
    plan.capacity = dict.fromkeys(plan.machines, settings["reserved_space"] + room + 1_000_000)
    plan.calm_at, plan.patience, plan.abandons = lasts + 5.0, 3 * 3600.0, 0.0
    return videos, actions
