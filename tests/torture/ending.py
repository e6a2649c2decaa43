"""When faults have ceased everything comes to its end, and nothing is left over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from tests.integration.daemons import wait_until
from tests.torture import books
from tests.torture.clients import Client, fetched
from tests.torture.scene import Scene

__all__ = ["come_to_an_end", "listed", "nothing_is_left"]

ENOUGH = 200.0
"""Seconds for all that is under way to come to its end once nothing is killed any more."""

SOON = 60.0
"""Seconds for leases, requests and trash to run out, where they are set to short times."""


def come_to_an_end(scene: Scene, crowd: Sequence[Client]) -> None:
    """Every client brings home what it has begun."""
    scene.ending.set()
    deadline = time.monotonic() + ENOUGH
    while late := [f"{one.name}, {one.doing}" for one in crowd if one.is_alive()]:
        scene.check()
        assert time.monotonic() < deadline, f"not at their end after {ENOUGH:.0f} s: {late}"
        time.sleep(0.1)
    scene.check()


def nothing_is_left(scene: Scene, *, others: bool = False) -> None:
    """Nothing is under way, nothing reserved, no file without a reason; what is kept is whole.

    With ``others`` more may be kept than what the scene knows to be stored.
    """
    receiver, sender = scene.receiver, scene.sender
    wait_until(lambda: receiver.requests() == [], "no request is alive", SOON)
    wait_until(lambda: receiver.incoming == [], "no bytes of uploads are left", SOON)
    promised = books.figure(receiver, "backupd_promised_bytes")
    assert promised == 0, f"{promised} bytes are still promised, to nobody"
    left = sender.call("GET", "/api/v1/outbox?state=going", operator=True).json["entries"]
    assert left == [], f"entries that never ended: {left}"
    trash = "/api/v1/backups?trash=true"
    wait_until(
        lambda: receiver.call("GET", trash, operator=True).json["backups"] == [],
        "the trash is empty",
        SOON,
    )
    found = books.living(receiver)
    found.check_backups(scene.stored)
    kept = {one["backup_id"] for one in found.backups}
    assert others or kept == set(scene.stored), f"kept for nobody: {kept - set(scene.stored)}"
    wait_until(lambda: books.living(receiver).orphans() == [], "no file is an orphan")
    for one in (receiver, sender):
        examined = one.ctl("doctor")
        assert examined.code == 0, examined.out + examined.err
    for backup_id, video in scene.stored.items():
        data = fetched(receiver, f"/api/v1/backups/{backup_id}")
        assert data == video.sha256(), f"video {video.number} came back as other bytes"


def listed(counts: Counter[str]) -> str:
    """For people."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
