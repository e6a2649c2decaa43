"""What happens in a history: drawn from its seed, and told in a list from which items can be left
out one by one, so that a long history that fails becomes a short one that fails.
"""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass, field
from typing import Any

from tests.simulation import circumstances

__all__ = ["FAILING", "KINDS", "WEEK", "Action", "Plan", "Video", "draw"]

CALM = 3
"""Of so many histories one has no faults, but that something may be taken away."""

CROWDED = 80
"""Of so many histories one is of many small videos that wait for one turn."""

FUNCTIONS = {
    "open": (errno.EIO, errno.ENOSPC, errno.EMFILE),
    "pwritev": (errno.EIO, errno.ENOSPC),
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "fsync": (errno.EIO, errno.ENOSPC),
    "posix_fallocate": (errno.EIO, errno.ENOSPC, errno.EOPNOTSUPP),
    "ftruncate": (errno.EIO,),
    "rename": (errno.EIO, errno.ENOSPC),
    "mkdir": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO, errno.ENOSPC),
    "pread": (errno.EIO,),
    "lstat": (errno.EIO,),
    "statvfs": (errno.EIO,),
    "scandir": (errno.EIO,),
    "fstat": (errno.EIO,),
}

FAILING = tuple(
    f"{function} {errno.errorcode[error]}"
    for function, errors in FUNCTIONS.items()
    for error in errors
)
"""The calls of a disk that may fail, each with the error that it may get."""


@dataclass(frozen=True, slots=True)
class Video:
    """A video of a machine; its bytes follow from its name and number."""

    machine: str
    name: str
    size: int

    @property
    def path(self) -> str:
        return f"/videos/{self.name}.mp4"

    def content(self, version: int = 0) -> bytes:
        """The bytes, of which no two stretches are alike."""
        source = random.Random(f"{self.machine}/{self.name}/{version}")
        return source.randbytes(self.size)


@dataclass(frozen=True, slots=True)
class Action:
    """Something that happens at ``at`` seconds; ``what`` says how exactly."""

    at: float
    kind: str
    what: dict[str, Any]

    def __str__(self) -> str:
        words = " ".join(f"{key}={value}" for key, value in self.what.items())
        return f"{self.at:10.3f} {self.kind} {words}"


@dataclass(slots=True)
class Plan:
    """A whole history before it has happened."""

    seed: int
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)
    capacity: dict[str, int] = field(default_factory=dict)
    sqlite: bool = False
    lazy_reads: bool = False
    peers: bool = False
    """They know each other, and show tokens."""

    cramped: bool = False
    """There is not room for everything."""

    unhindered: bool = False
    """Nothing happens that could make a sender late: it keeps its turn until all has arrived."""

    silent: str | None = None
    """The machine that says nothing until the faults cease, where nothing else happens."""

    knobs: dict[str, int] = field(default_factory=dict)
    weather: dict[str, Any] = field(default_factory=dict)
    videos: list[Video] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    calm_at: float = 60.0
    """When the last fault has ceased."""

    patience: float = 0.0
    """Seconds after that within which everything has to come to its end."""

    abandons: float = 0.0
    """Seconds more until what a sender has given up, and could not say so, has ended too."""


def draw(seed: int, *, sqlite_share: float = 0.04) -> Plan:
    """The plan of a seed."""
    rng = random.Random(f"plan {seed}")
    plan = Plan(seed)
    plan.sqlite = rng.random() < sqlite_share
    plan.lazy_reads = rng.random() < 0.2
    names = ["A", "B", "C"][: rng.choice((2, 2, 2, 3))]
    floor = rng.choice((0, 65536))
    loop = rng.choice((5.0, 5.0, 5.0, 30.0))
    lease = rng.choice((20.0, 60.0, 600.0))
    for name in names:
        plan.machines[name] = {
            "reserved_space": floor,
            "loop_interval": loop,
            "max_concurrent_transfers": rng.choice((1, 2, 4)),
            "max_per_peer": rng.choice((1, 2)),
            "offer_lease": lease,
            "offer_deadline": rng.choice((600.0, 3600.0, 86400.0)),
            "upload_expiry": rng.choice((900.0, 3600.0, 86400.0)),
            "max_sends": rng.choice((1, 2, 4)),
            "shutdown_grace": rng.choice((1.0, 30.0)),
            "trash_period": rng.choice((60.0, 600.0, 14 * 86400.0)),
            "keep_last": rng.choice((None, None, 1, 2)),
            "keep_for": rng.choice((None, None, 300.0)),
            "minimum_keep": rng.choice((None, 60.0)),
        }
    plan.knobs = {
        "BLOCK": rng.choice((1024, 8192, 2 * 1024 * 1024)),
        "SYNC_BYTES": rng.choice((4096, 32768, 64 * 1024 * 1024)),
        "FILE_BLOCK": rng.choice((4096, 65536, 1024 * 1024)),
        "SLICE": rng.choice((2048, 16384, 131072)),
        "PIECE": rng.choice((4096, 65536, 64 * 1024 * 1024)),
        "WORTH": rng.choice((8192, 16 * 1024 * 1024)),
    }
    plan.weather = {
        "pieces": rng.choice((1, 2, 6)),
        "bandwidth": rng.choice((1e7, 1e7, 2e5, 1e4)),
        "delay": rng.choice(((0.0005, 0.002), (0.0005, 0.05), (0.05, 0.6))),
    }
    _videos(plan, names, rng)
    if rng.randrange(CALM):
        for _ in range(rng.choice((1, 1, 2, 3, 5, 8))):
            plan.actions.append(_fault(plan, names, rng))
        _begun_ahead(plan, names, random.Random(f"clock {seed}"))
    if rng.random() < 0.4:
        _strangers(plan, names, rng)
    plan.peers = rng.random() < 0.2
    if plan.peers and rng.random() < 0.4:
        machine = rng.choice(names)
        who = rng.choice([name.lower() for name in [*names, "X"] if name != machine])
        what = {"machine": machine, "who": who}
        plan.actions.append(Action(rng.uniform(1.0, 100.0), "revoke", what))
    if rng.random() < 0.2:
        _again(plan, rng)
        _keeping(plan, names, rng)
    elif rng.random() < 0.15:
        plan.cramped = True
        for name in names:
            floor = plan.machines[name]["reserved_space"]
            own = sum(one.size + 8192 for one in plan.videos if one.machine == name)
            room = rng.choice((60_000, 150_000, 300_000))
            plan.capacity[name] = floor + own + 20_000 + room
    for action in plan.actions:
        if action.kind == "touch" and action.what["moved"]:
            # Who reads the old one has it open still.
            video = plan.videos[action.what["video"]]
            plan.capacity[video.machine] += video.size + 8192
    _take(plan, random.Random(f"take {seed}"))
    circumstances.in_parts(plan, random.Random(f"parts {seed}"))
    for more in (
        circumstances.slowly(plan, random.Random(f"slowly {seed}")),
        circumstances.rot(plan, random.Random(f"rot {seed}")),
        circumstances.cancel_received(plan, random.Random(f"cancel {seed}")),
        circumstances.recut(plan, random.Random(f"recut {seed}")),
    ):
        if more is not None:
            plan.actions.append(Action(*more))
    gone = circumstances.vanish(plan, random.Random(f"vanish {seed}"))
    if gone is not None:
        plan.actions.append(Action(*gone))
    plan.actions.sort(key=lambda action: action.at)
    ends = [action.at + action.what.get("lasts", 0.0) for action in plan.actions]
    plan.calm_at = max([60.0, *ends]) + 5.0
    plan.patience = 3 * 3600.0
    if any(action.kind == "stranger" for action in plan.actions):
        plan.patience = 8 * 3600.0
    if plan.cramped:
        plan.patience = 2 * 3600.0
    if any(_abandons(action) for action in plan.actions):
        plan.abandons = max(one["upload_expiry"] for one in plan.machines.values())
    crowd = random.Random(f"crowd {seed}")
    if not crowd.randrange(CROWDED) and not plan.unhindered:
        _crowd(plan, crowd)
        return plan
    silence = circumstances.silence(plan, random.Random(f"mute {seed}"))
    if silence is not None:
        videos, actions = silence
        plan.videos = [Video(*one) for one in videos]
        plan.actions = sorted((Action(*one) for one in actions), key=lambda action: action.at)
    return plan


def _crowd(plan: Plan, rng: random.Random) -> None:
    """Instead of all that: several senders with many small videos, and one turn for all of them."""
    names = ["A", "B", "C", "D"][: rng.choice((3, 3, 4))]
    settings = plan.machines["A"] | {
        "max_concurrent_transfers": 1,
        "offer_deadline": 86400.0,
        "upload_expiry": 3600.0,
    }
    plan.machines = {name: dict(settings) for name in names}
    plan.sqlite = plan.cramped = False
    plan.videos, plan.actions, plan.abandons = [], [], 0.0
    for owner in names[1:]:
        for _ in range(rng.randint(10, 20)):
            what = {"video": len(plan.videos), "to": "A"}
            size = rng.choice((1, 511, 4096))
            plan.videos.append(Video(owner, str(what["video"]), size))
            plan.actions.append(Action(rng.uniform(0.5, 5.0), "send", what))
    room = sum(video.size + 49_152 for video in plan.videos)
    if rng.random() < 0.5:
        room += _eager(plan, rng)
    plan.capacity = dict.fromkeys(names, settings["reserved_space"] + room + 1_000_000)
    plan.actions.sort(key=lambda action: action.at)
    plan.calm_at, plan.patience = 65.0, 3 * 3600.0


def _eager(plan: Plan, rng: random.Random) -> int:
    """A sender that uses its links, and never answers an offer; the room that it needs."""
    count, size = rng.randint(10, 20), rng.choice((1, 511, 4096))
    for number in range(count):
        what = {"to": "A", "number": number, "size": size, "spare": 0, "habit": "eager"}
        what |= {"directly": False, "twice": False, "announced": "none", "told": 0}
        plan.actions.append(Action(rng.uniform(0.5, 5.0), "stranger", what))
    return count * (size + 49_152)


def _abandons(action: Action) -> bool:
    """Whether somebody may give up what he has sent, and not be heard, or not say so."""
    what = action.what
    match action.kind:
        case "revoke" | "vanish":
            return True
        case "cancel":
            return bool(what["side"] == "entry")
        case "jump":
            return bool(what["seconds"] > WEEK)
    return False


def _strangers(plan: Plan, names: list[str], rng: random.Random) -> None:
    """Senders that are not ours. What they leave behind has to expire: soon, in their histories."""
    for settings in plan.machines.values():
        settings |= {
            "loop_interval": rng.choice((5.0, 30.0)),
            "offer_lease": rng.choice((20.0, 60.0)),
            "offer_deadline": rng.choice((600.0, 1800.0)),
            "upload_expiry": rng.choice((900.0, 1800.0)),
        }
    twice = rng.random() < 0.3
    for number in range(rng.choice((1, 2, 3))):
        size = rng.choice((1, 511, 4096, 20_000, 65_536))
        spare = rng.choice((0, 0, 5000, 40_000))
        to = rng.choice(names)
        what = {
            "to": to,
            "number": number,
            "size": size,
            "spare": spare,
            "directly": rng.random() < 0.3,
            "habit": rng.choice(HABITS),
            "twice": twice,
            "announced": rng.choice(("none", "none", "right", "wrong")),
            "told": rng.choice((202, 202, 202, 202, 500, 0, 410)),
            "steps": rng.choice((0, 1, 3, 6, 12)),
            "lies": rng.choice((0.0, 0.3, 0.6)),
            "pause": rng.choice((1.0, 30.0, 100.0)),
            "gives_up": rng.random() < 0.3,
        }
        plan.actions.append(Action(rng.uniform(0.5, 40.0), "stranger", what))
        plan.capacity[to] += size + spare + 49_152


def _again(plan: Plan, rng: random.Random) -> None:
    """A video is sent once more, changed or as it is: there are two versions of it."""
    for action in [one for one in plan.actions if one.kind == "send"]:
        if rng.random() < 0.5:
            at, to = rng.uniform(60.0, 500.0), action.what["to"]
            video = plan.videos[action.what["video"]]
            if rng.random() < 0.7:
                touched = {"video": action.what["video"], "moved": False}
                plan.actions.append(Action(at - 1.0, "touch", touched))
            plan.actions.append(Action(at, "send", action.what))
            plan.capacity[to] += video.size + 49_152


def _keeping(plan: Plan, names: list[str], rng: random.Random) -> None:
    """What the operators do with what they keep."""
    for _ in range(rng.choice((1, 2, 4))):
        what: dict[str, Any] = {
            "machine": rng.choice((names[0], rng.choice(names))),
            "how": rng.choice(("delete", "delete", "remove", "undelete", "lock", "lock")),
            "pick": rng.randrange(5),
            "operator": rng.random() < 0.5,
            "seconds": rng.choice((30.0, 600.0, 3600.0)),
        }
        plan.actions.append(Action(rng.uniform(5.0, 700.0), "keep", what))


def _take(plan: Plan, rng: random.Random) -> None:
    """Somebody at a receiver removes the file of an unfinished upload.

    Not where room is short: what was free by mistake for a while may be promised to others.
    """
    if rng.randrange(10) or plan.cramped:
        return
    sends = [action for action in plan.actions if action.kind == "send"]
    for _ in range(rng.choice((1, 1, 2))):
        send = rng.choice(sends)
        what: dict[str, Any] = {
            "machine": send.what["to"],
            "whole": rng.random() < 0.6,
            "late": rng.choice((0.0, 0.0, rng.uniform(0.0, 0.02), rng.uniform(0.0, 5.0))),
            "lasts": rng.choice((60.0, 400.0)),
        }
        plan.actions.append(Action(send.at * rng.random(), "take", what))


def _begun_ahead(plan: Plan, names: list[str], rng: random.Random) -> None:
    """A daemon begins by a clock that is ahead, and the next one by a clock that was put right."""
    if rng.randrange(10):
        return
    machine, seconds, at = rng.choice(names), rng.choice(JUMPS), rng.uniform(0.9, 40.0)
    right = at + rng.choice((rng.uniform(1.0, 60.0), rng.uniform(30.0, 400.0)))
    for moment, jump in ((at, seconds), (right, -seconds)):
        what = {"machine": machine, "seconds": jump, "lasts": 0.0}
        plan.actions.append(Action(moment, "jump", what))
        ends = moment + rng.choice((0.0, rng.uniform(0.0, 30.0)))
        what = {"machine": machine, "lasts": rng.uniform(0.1, 20.0)}
        plan.actions.append(Action(ends, rng.choice(("kill", "power", "restart")), what))


def _videos(plan: Plan, names: list[str], rng: random.Random) -> None:
    sizes = (1, 511, 4096, 4097, 20_000, 65_536, 150_000)
    total = dict.fromkeys(names, 0)
    for number in range(rng.choice((1, 1, 2, 3, 5))):
        owner = rng.choice(names[1:])
        size = rng.choice(sizes)
        plan.videos.append(Video(owner, str(number), size))
        to = rng.choice([name for name in names if name != owner])
        total[to] += size + 49_152
        total[owner] += size + 8192
        at = rng.choice((1.0, rng.uniform(0.0, 30.0)))
        plan.actions.append(Action(at, "send", {"video": number, "to": to}))
    tight = rng.random() < 0.3
    for name in names:
        floor = plan.machines[name]["reserved_space"]
        plan.capacity[name] = floor + total[name] + (60_000 if tight else 1_000_000)


KINDS = (
    "kill",
    "power",
    "crash_at_call",
    "crash_at_commit",
    "restart",
    "part",
    "cut",
    "slow_disk",
    "disk_fault",
    "ledger_fault",
    "fill",
    "storm",
    "cancel",
    "disk_fault",
    "crash_at_call",
    "cut",
    "refuse_connections",
    "touch",
    "verify",
    "jump",
    "jump",
)

WEEK = 7 * 86400.0
JUMPS = (60.0, 3600.0, 5 * 3600.0, 30 * 3600.0, 400 * 86400.0)
HABITS = (None, None, None, "wrong digest", "wrong size")


def _fault(plan: Plan, names: list[str], rng: random.Random) -> Action:
    kind = rng.choice(KINDS)
    machine = rng.choice(names)
    at = rng.choice((rng.uniform(0.9, 3.0), rng.uniform(0.0, 40.0)))
    lasts = rng.choice((rng.uniform(0.1, 3.0), rng.uniform(1.0, 60.0), rng.uniform(30.0, 400.0)))
    what: dict[str, Any] = {"machine": machine}
    match kind:
        case "kill" | "power" | "restart":
            what["lasts"] = lasts
        case "crash_at_call":
            what |= {"calls": rng.randrange(40), "lasts": lasts}
        case "crash_at_commit":
            what |= {"commits": rng.randrange(12), "after": rng.random() < 0.5, "lasts": lasts}
        case "part":
            what |= {"other": rng.choice([n for n in names if n != machine]), "lasts": lasts}
        case "cut":
            what = {"bytes": rng.choice((rng.randrange(2000), rng.randrange(100_000)))}
            what["silent"] = rng.random() < 0.3
        case "slow_disk":
            what |= {"seconds": rng.choice((0.5, 5.0, 20.0)), "lasts": lasts}
        case "disk_fault":
            function = rng.choice((*FUNCTIONS, *("pwritev", "fdatasync", "fsync") * 3))
            what["machine"] = rng.choice((machine, names[0]))
            at = rng.choice((at, 0.5))
            what |= {
                "function": function,
                "errno": rng.choice(FUNCTIONS[function]),
                "skip": rng.choice((0, 1, 2, rng.randrange(20))),
                "count": rng.choice((1, 1, 2, 5)),
                "lasts": lasts,
            }
        case "ledger_fault":
            what |= {"count": rng.choice((1, 2, 5)), "lasts": lasts}
        case "fill":
            what |= {"part": rng.choice((0.5, 0.9, 1.0)), "lasts": lasts}
        case "storm":
            what = {"lost": rng.choice((0.2, 0.8)), "lasts": lasts, "short": rng.random() < 0.5}
        case "cancel":
            what |= {"side": rng.choice(("request", "entry")), "pick": rng.randrange(5)}
        case "touch":
            what = {"video": rng.randrange(len(plan.videos)), "moved": rng.random() < 0.5}
        case "verify":
            what |= {"pick": rng.randrange(5)}
        case "jump":
            seconds = rng.choice(JUMPS) * rng.choice((1, -1))
            what |= {"seconds": seconds, "lasts": rng.choice((0.0, lasts))}
        case "refuse_connections":
            what["lasts"] = lasts
    return Action(at, kind, what)
