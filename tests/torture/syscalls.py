"""System calls that fail, at the first, the second and later calls, while uploads run.

Whatever fails, and whenever: an upload fails with a clear answer or succeeds, no descriptor is
synced again after a sync of it failed, and when the disk is well again, after a restart or
without one, everything that was acknowledged is there and the rest comes to its end.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.daemons import Daemon, wait_until
from tests.integration.faults import Strace
from tests.integration.traces import SYNCS, Trace
from tests.torture.scratch import scratch
from tests.torture.witness import KINDS, POLITE, Witness

__all__ = ["TABLE", "Case", "daemon_in", "no_findings", "one_of_each", "run", "run_case"]

TURNS = {"max_concurrent_transfers": "100", "max_per_peer": "100"}
WAL = "ledger.sqlite3-wal"
DATABASE = "ledger.sqlite3"
FULL = ("ENOSPC", "EDQUOT")
"""What is no defect of the disk, and never a 500."""

SIZES = (150_000, 1_400_000)
"""Bytes of a video: with large pieces that go around the page cache, and without."""

MOST = 120
"""Videos that are sent at most until a call has been made to fail."""

MANY_COMMITS = ("tus",) * len(KINDS), 200_000
"""What is sent meanwhile: the database is written now and then only, when its log is worked off."""

MANY_FILES = KINDS, 30_000
"""And for any other call: all that is done once for each file is done by 16 threads in turn."""

ALTERNATIVES = {
    "pwritev": ("pwritev", "pwritev2"),
    "rename": ("rename", "renameat", "renameat2"),
    "unlink": ("unlink", "unlinkat"),
    "mkdir": ("mkdir", "mkdirat"),
}
"""What the C library of another machine may make of a call."""


@dataclass(frozen=True)
class Case:
    """Which call fails how, and the how manieth of each thread: ``2+`` is all from the second on.

    ``file`` is the only one of the daemon's own files that it fails for, if it is named.
    """

    name: str
    error: str
    when: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.file or 'anywhere'} {self.error} {self.when}"


def _table() -> list[Case]:
    every = ("1", "2", "5", "1+", "3+")
    calls = ["fdatasync", "fsync", "pwritev", "rename", "ftruncate", "fallocate", "unlink"]
    calls += ["mkdir", "openat"]
    found = [Case(name, error, n) for name in calls for error in ("EIO", "ENOSPC") for n in every]
    for error in ("EIO", "ENOSPC"):
        found += [Case("fdatasync", error, n, WAL) for n in ("1", "2", "7", "20", "1+", "9+")]
        found += [Case("pwrite64", error, n, WAL) for n in ("1", "2", "15", "100", "1+", "60+")]
        found += [Case("pwrite64", error, n, DATABASE) for n in ("1", "2+")]
        found += [Case("fdatasync", error, "1+", DATABASE)]
    found += [Case("statfs", "EIO", n) for n in ("1", "1+")]
    for name in ("pwritev", "fallocate", "mkdir", "openat", "rename"):
        found += [Case(name, "EDQUOT", n) for n in ("1", "1+")]
    found += [Case("pwrite64", "EDQUOT", n, WAL) for n in ("2", "15+")]
    return found


TABLE = _table()


def one_of_each(chance: random.Random) -> list[Case]:
    """A case for every call, among those that are soon reached."""
    kinds: dict[tuple[str, str], list[Case]] = {}
    for case in TABLE:
        if case.file != DATABASE and int(case.when.rstrip("+")) <= 2:
            kinds.setdefault((case.name, case.file), []).append(case)
    return [chance.choice(cases) for cases in kinds.values()]


def daemon_in(folder: Path) -> Daemon:
    """One whose log may tell of a disk that fails."""
    daemon = Daemon(folder, loop_interval="0.2", **TURNS)
    daemon.incidents_expected = True
    return daemon


def run_case(daemon: Daemon, case: Case, chance: random.Random) -> tuple[int, str]:
    """Uploads of every kind while calls fail: how many calls that were, and a line about it."""
    with Witness(daemon, chance) as witness:
        old = witness.video("post", 50_000)
        witness.finish([old])
        videos = [witness.video(kind, chance.randrange(*SIZES)) for kind in KINDS]
        for video in videos:
            video.most = chance.choice((100_000, len(video.data)))
            video.allowed = POLITE if case.error in FULL else POLITE | {500}
        kinds, size = MANY_COMMITS if case.file == DATABASE else MANY_FILES
        names = ALTERNATIVES.get(case.name, (case.name,))
        strace = Strace(
            daemon.folder,
            daemon.pid,
            {*SYNCS, "openat", "close", *names},
            fail=(names, case.error),
            when=case.when,
            path=daemon.root / ".backupd" / case.file if case.file else None,
        )
        with strace:
            stopped = witness.try_each(videos)
            # Those that were stopped ask where they stand and go on, whether it still fails or not.
            witness.try_each([one for one, why in zip(videos, stopped, strict=True) if why])
            while not _injected(strace) and len(videos) < MOST:
                # A call that is rare, or whose n-th no thread has made yet.
                more = [witness.video(kind, size) for kind in kinds]
                for video in more:
                    video.most, video.allowed = 20_000, videos[0].allowed
                stopped += witness.try_each(more)
                videos += more
            deleted = daemon.call("DELETE", _path_of(old.stored), operator=True).status
        assert deleted in {200, 500, 503, 507}, deleted
        injected = _injected(strace)
        Trace(strace.lines, "").check_no_second_sync(f"{daemon.root}/.backupd/incoming/")
        assert daemon.process is not None
        assert daemon.process.poll() is None, f"it died:\n{daemon.text()[-3000:]}"
        restarts = chance.random() < 0.5
        if restarts:
            daemon.kill()
            daemon.start()
        _is_gone(daemon, old.stored)
        witness.videos.remove(old)
        old.close()
        witness.check()
        witness.finish()
        no_findings(daemon)
        witness.forget(videos)
        witness.accounted()
    failed = sum(why is not None for why in stopped)
    after = "after a kill" if restarts else "without a restart"
    line = f"{case}: {injected} calls failed, {failed} of {len(videos)} uploads stopped; {after}"
    return injected, line


def _injected(strace: Strace) -> int:
    """How many calls have been made to fail."""
    return sum("(INJECTED)" in line for line in strace.lines)


def _path_of(backup: Any) -> str:
    return f"/api/v1/backups/{backup['backupId']}?now=true"


def _is_gone(daemon: Daemon, backup: Any) -> None:
    """Deleting it works now, whatever became of the first try."""
    assert daemon.call("DELETE", _path_of(backup), operator=True).status in {200, 404}
    assert list(daemon.root.glob(f"*/*/{backup['backupId']}")) == []


def no_findings(daemon: Daemon) -> None:
    """Files and list agree."""
    path = "/api/v1/inspection"
    daemon.call("POST", path, {"repair": False}, operator=True)

    def ended() -> Any:
        seen = daemon.call("GET", path, operator=True).json
        return None if seen["running"] else seen

    seen = wait_until(ended, "files and list are compared")
    assert (seen["findings"], seen["failure"]) == ([], None), seen


def run(
    chance: random.Random, told: Callable[[str], None], *, cases: Sequence[Case] = TABLE
) -> None:
    """Every case of the table, in an order of chance, on one daemon."""
    order = chance.sample(cases, len(cases))
    unreached = []
    with scratch("syscalls") as folder, daemon_in(folder) as daemon:
        for case in order:
            try:
                injected, line = run_case(daemon, case, chance)
            except BaseException as error:
                error.add_note(f"{case} was made to fail")
                raise
            if not injected:
                unreached.append(case)
            told(line)
    told(f"calls were made to fail in {len(order) - len(unreached)} of {len(order)} cases")
    missed = "; ".join(sorted(map(str, unreached)))
    assert not missed, f"{MOST} videos, and no thread made so many calls: {missed}"
