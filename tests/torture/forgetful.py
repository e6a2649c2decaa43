"""Power cuts: the receiver lies, ledger and all, on a file system that forgets what is not synced.

Uploads run, the daemon is killed at an instant of chance, the power is cut, and after the next
start everything that was acknowledged is there: promises, offsets, backups, and deletions.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.integration.daemons import REPOSITORY, Daemon, wait_until
from tests.torture.scratch import scratch
from tests.torture.syscalls import no_findings
from tests.torture.witness import KINDS, Witness

__all__ = ["Mounted", "check_power_cuts", "run"]

CUTS = 60
SIZE = (100_000, 1_500_000)
PIECE = 150_000
UNMOUNT = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]


class Mounted:
    """`forgetful_disk`, mounted on ``folder`` while the ``with`` lasts.

    Skips where the kernel has no FUSE, or we may not use it.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        for what, there in (
            ("mfusepy", importlib.util.find_spec("mfusepy") is not None),
            (
                "libfuse",
                bool(ctypes.util.find_library("fuse3") or ctypes.util.find_library("fuse")),
            ),
        ):
            if not there:
                assert not os.environ.get("BACKUPD_TEST_ALL"), f"{what} is not here"
                pytest.skip(f"{what} is not here")
        try:
            # Looking at it loads what the kernel has of FUSE.
            os.close(os.open("/dev/fuse", os.O_RDWR))
        except OSError as error:
            pytest.skip(f"/dev/fuse cannot be opened: {error.strerror}")
        if os.geteuid() != 0 and shutil.which("fusermount3") is None:
            pytest.skip("only root mounts a FUSE file system without fusermount3")
        self.folder = folder
        self._seed = seed
        self._log = folder.with_name(f"{folder.name}.fuse.log")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.torture.forgetful_disk",
                    self.folder,
                    str(self._seed),
                ],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._mounted()
        return self

    def _mounted(self) -> None:
        def mounted() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()
            return os.path.ismount(self.folder)

        wait_until(mounted, "the file system is mounted")

    def _unmount(self) -> None:
        def unmounted() -> bool:
            # What a killed process had open goes a moment after it.
            return subprocess.run([*UNMOUNT, self.folder], capture_output=True).returncode == 0

        wait_until(unmounted, "it is unmounted")

    def cut_power(self) -> None:
        """Nobody may have anything open on it."""
        self._unmount()
        self._mounted()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(20)
        # The folder of a file system whose process is gone cannot even be looked at.
        subprocess.run([*UNMOUNT, self.folder], capture_output=True)


def check_power_cuts(
    folder: Path, chance: random.Random, cuts: int, told: Callable[[str], None]
) -> None:
    """So many of them, uploads of every kind under way."""
    seed = chance.randrange(2**31)
    turns = {"max_concurrent_transfers": "100", "max_per_peer": "100"}
    with Mounted(folder / "volume", seed) as disk:
        daemon = Daemon(folder, loop_interval="0.2", root=str(disk.folder / "root"), **turns)
        daemon.root = disk.folder / "root"
        with daemon, Witness(daemon, chance) as witness:
            for number in range(1, cuts + 1):
                going = [video for video in witness.videos if video.stored is None]
                for kind in KINDS[: max(0, 6 - len(going))]:
                    video = witness.video(kind, chance.randrange(*SIZE))
                    video.most = PIECE
                    going.append(video)
                timers = [threading.Timer(chance.uniform(0.02, 0.9), daemon.kill)]
                kept = [one for one in witness.videos if one.stored is not None and not one.doomed]
                if kept:
                    doomed = chance.choice(kept)
                    delete = threading.Timer(
                        chance.uniform(0.0, 0.9), witness.try_to_delete, [doomed]
                    )
                    timers.append(delete)
                for timer in timers:
                    timer.start()
                stopped = witness.try_each(going)
                for timer in timers:
                    timer.join()
                disk.cut_power()
                daemon.start()
                witness.check()
                if len(witness.videos) > 12:
                    witness.forget([one for one in witness.videos if one.stored is not None])
                told(
                    f"power cut {number} of {cuts}: {sum(one is not None for one in stopped)} of "
                    f"{len(going)} uploads were under way; {witness.told} acknowledgements hold"
                )
            witness.finish()
            no_findings(daemon)
            witness.forget(witness.videos)
            witness.accounted()


def run(chance: random.Random, told: Callable[[str], None], *, cuts: int = CUTS) -> None:
    """Power cuts at instants of chance."""
    with scratch("forgetful") as folder:
        check_power_cuts(folder, chance, cuts, told)
