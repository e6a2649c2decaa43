"""Full disks: small volumes that others fill before, during and at the end of uploads.

The daemon refuses politely and says what is wrong, what can be restored and deleted still can,
and when there is room again everything goes on by itself. Nothing acknowledged is lost.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.integration.daemons import Daemon
from tests.integration.volumes import KINDS as VOLUMES
from tests.integration.volumes import Ext4, Volume, ext4, tmpfs
from tests.torture.scratch import scratch
from tests.torture.syscalls import no_findings
from tests.torture.witness import KINDS, POLITE, Refused, Video, Witness

__all__ = ["POSSIBLE", "run", "trial"]

MIB = 1024**2
SIZE = 48 * MIB
INODES = 128
ROUNDS = 3
TURNS = {"max_concurrent_transfers": "100", "max_per_peer": "100"}


class Trial:
    """A daemon on a small volume, with clients, and somebody who takes the room."""

    def __init__(self, daemon: Daemon, volume: Volume, chance: random.Random) -> None:
        self.daemon, self.volume, self.chance = daemon, volume, chance
        self.witness = Witness(daemon, chance)

    @property
    def apart(self) -> bool:
        """Whether the volume has nothing but the ledger."""
        return "ledger" in self.daemon.settings

    def videos(self, size: int = 2 * MIB, piece: int = 100_000) -> list[Video]:
        """One of each kind."""
        made = [self.witness.video(kind, self.chance.randrange(size // 4, size)) for kind in KINDS]
        for video in made:
            video.most = piece
        return made

    def all_are_refused(self, videos: list[Video]) -> None:
        """None of them is stored, each is told why, and the daemon lives."""
        stopped = self.witness.try_each(videos)
        for video, why in zip(videos, stopped, strict=True):
            # On a full volume of its own the ledger commits for a while yet.
            assert self.apart or isinstance(why, Refused), f"{video} on a full disk: {why}"
        assert self.daemon.call("GET", "/healthz").status == 200

    def says_what_is_wrong(self) -> None:
        """Both ``/readyz`` and ``backupctl doctor``."""
        ready = self.daemon.call("GET", "/readyz")
        if ready.status == 200:
            assert self.apart or ready.json["availableBytes"] < MIB, ready.json
        else:
            assert ready.status == 503, ready.body
            assert "Free some space" in ready.json["detail"], ready.json
        self.doctor_says_what_is_wrong()

    def doctor_says_what_is_wrong(self) -> None:
        """``backupctl doctor``."""
        doctor = self.daemon.ctl("doctor", "--json")
        assert doctor.code == 1, doctor.out
        unwell = [one for one in doctor.json if not one["well"]]
        assert any("pace" in f"{one['told']} {one['advice']}" for one in unwell), unwell

    def goes_on(self) -> None:
        """There is room again: everything comes to its end by itself."""
        self.volume.give_back()
        self.witness.finish()
        assert self.daemon.call("GET", "/readyz").status == 200

    def ends(self) -> None:
        no_findings(self.daemon)
        self.witness.forget(self.witness.videos)
        self.witness.accounted()


def before(trial: Trial) -> None:
    """Full before anybody asks; what is kept can be restored, and deleted, which makes room."""
    kept, doomed = (trial.witness.video("post", size) for size in (300_000, 3 * MIB))
    trial.witness.finish([kept, doomed])
    if trial.chance.random() < 0.5:
        # Without what it has written since it was started.
        trial.daemon.stop()
        trial.daemon.start()
    trial.volume.fill()
    trial.all_are_refused(trial.videos())
    trial.says_what_is_wrong()
    kept.check()
    before = trial.volume.free()
    trial.witness.delete(doomed)
    if not trial.apart:
        assert trial.volume.free() > before + 2 * MIB, "deleting makes room on a full disk"
    trial.goes_on()


def during(trial: Trial) -> None:
    """Others take the room while bytes come in."""
    videos = trial.videos()
    step = max(64 * 1024, trial.volume.free() // 20)
    enough = threading.Event()

    def take() -> None:
        while not enough.wait(0.02):
            trial.volume.take(step)

    taking = threading.Thread(target=take)
    taking.start()
    try:
        trial.witness.try_each(videos)
        trial.volume.fill()
        trial.witness.try_each(trial.videos())
        trial.says_what_is_wrong()
    finally:
        enough.set()
        taking.join()
    trial.goes_on()


def _fill_before_the_end(trial: Trial) -> list[Video]:
    """Every byte but the last is there; then it is full, and the last ones come."""
    videos = trial.videos()
    for video in videos:
        video.stop_before_end = True
    trial.witness.try_each(videos)
    trial.volume.fill()
    for video in videos:
        video.stop_before_end = False
    trial.witness.try_each(videos)
    return videos


def at_the_end(trial: Trial) -> None:
    """Full before the last bytes: there is no room for what is left to do."""
    _fill_before_the_end(trial)
    trial.says_what_is_wrong()
    trial.goes_on()


def killed(trial: Trial) -> None:
    """Killed while it is full: it starts, or says in a line why not, and then does."""
    videos = _fill_before_the_end(trial)
    daemon = trial.daemon
    daemon.kill()
    trial.volume.fill()
    try:
        daemon.start()
    except AssertionError:
        assert daemon.process is not None
        assert daemon.process.poll() == 1, f"it ended with {daemon.process.poll()}"
        last = daemon.text().rstrip().splitlines()[-1]
        assert "backupd: " in last, last
        trial.volume.give_back()
        daemon.start()
    else:
        # The log that it has worked off has given room back.
        trial.volume.fill()
        trial.witness.try_each(videos)
        trial.says_what_is_wrong()
    trial.goes_on()


def without_inodes(trial: Trial) -> None:
    """There is room, but no file can be made any more; deleting makes some."""
    doomed = trial.witness.video("post", 100_000)
    trial.witness.finish([doomed])
    videos = trial.videos()
    for video in videos:
        video.stop_before_end = True
    trial.witness.try_each(videos)
    trial.volume.take_inodes()
    trial.witness.try_each(trial.videos())
    for video in videos:
        video.stop_before_end = False
    trial.witness.try_each(videos)
    trial.doctor_says_what_is_wrong()
    trial.witness.delete(doomed)
    trial.goes_on()


def read_only(trial: Trial) -> None:
    """The kernel finds an error and takes no write any more, until the operator has mended it."""
    assert isinstance(trial.volume, Ext4)
    kept = trial.witness.video("post", 100_000)
    trial.witness.finish([kept])
    videos = trial.videos()
    volume = trial.volume

    def fail() -> None:
        # A sync that the abort of ext4's journal overtakes may be answered with success though its
        # bytes are lost (`false_syncs`): no answer that is looked at may stand on one.
        with trial.witness.gate.alone():
            volume.fail()

    killer = threading.Timer(trial.chance.uniform(0.0, 0.5), fail)
    killer.start()
    for video in videos:
        video.allowed = POLITE | {500}
    trial.witness.try_each(videos)
    killer.join()
    late = trial.videos()
    for video in late:
        video.allowed = POLITE | {500}
    assert all(trial.witness.try_each(late)), "nothing can be stored any more"
    ready = trial.daemon.call("GET", "/readyz")
    assert (ready.status, "ledger" in ready.json["detail"]) == (503, True), ready.body
    doctor = trial.daemon.ctl("doctor", "--json")
    assert any("cannot be written" in one["told"] for one in doctor.json), doctor.json
    kept.check()
    trial.daemon.kill()
    trial.volume.mend()
    trial.daemon.start()
    trial.witness.check()
    trial.goes_on()


TRIALS: dict[str, Callable[[Trial], None]] = {
    "full before": before,
    "full during": during,
    "full at the end": at_the_end,
    "killed while full": killed,
    "without inodes": without_inodes,
    "read-only": read_only,
}
"""What befalls a volume."""

POSSIBLE = [
    (kind, what, only_ledger)
    for kind in VOLUMES
    for what in TRIALS
    for only_ledger in (False, True)
    if not (what == "read-only" and kind != "ext4")
    if not (what in ("read-only", "without inodes") and only_ledger)
]
"""Kind of the volume, trial, and whether only the ledger lies there."""


def trial(
    folder: Path, kind: str, what: str, chance: random.Random, *, only_ledger: bool = False
) -> None:
    """One of `TRIALS` on a volume of ``kind``, which root and ledger share, or only the ledger."""
    size = (8 if kind == "tmpfs" else 16) * MIB if only_ledger else SIZE
    inodes = INODES if what == "without inodes" else 0
    mounted: AbstractContextManager[Volume] = (
        tmpfs(folder / kind, size, inodes=inodes)
        if kind == "tmpfs"
        else ext4(folder / kind, size, inodes=inodes)
    )
    with mounted as volume:
        settings = {"root": str(volume.path / "root")}
        if only_ledger:
            settings = {"ledger": f"sqlite:///{volume.path}/ledger.sqlite3"}
        daemon = Daemon(folder, loop_interval="0.2", **(TURNS | settings))
        daemon.root = Path(daemon.settings["root"])
        daemon.incidents_expected = what == "read-only"
        with daemon:
            made = Trial(daemon, volume, chance)
            with made.witness:
                TRIALS[what](made)
                made.ends()


def run(chance: random.Random, told: Callable[[str], None]) -> list[str]:
    """All that is `POSSIBLE`, several times over.

    What could not be tried here, with the reason; skips when that is all of it.
    """
    tried = 0
    untried: dict[str, str] = {}
    for number in range(ROUNDS):
        for kind, what, only_ledger in POSSIBLE:
            where = "ledger" if only_ledger else "root and ledger"
            line = f"round {number + 1} of {ROUNDS}: {where} on {kind}, {what}"
            try:
                with scratch("disks") as folder:
                    trial(folder, kind, what, chance, only_ledger=only_ledger)
            except pytest.skip.Exception as why:
                untried[f"{what} on {kind}"] = str(why)
                line += f": not tried, {why}"
            except BaseException as error:
                error.add_note(line)
                raise
            else:
                tried += 1
            told(line)
    if not tried:
        pytest.skip("; ".join(dict.fromkeys(untried.values())))
    return [f"{what}: {why}" for what, why in untried.items()]
