"""A file system that forgets: the disk of the simulation, mounted for real processes by FUSE.

``python -m tests.torture.forgetful_disk FOLDER SEED`` mounts it there. Every time it is unmounted
the power is cut (`Disk.power_cut`: what was not synced is gone, but for what chance had written
back), and what is left is mounted again, until the process is ended.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import stat
import time
from typing import Any, cast

import mfusepy

from tests.simulation.disk import BLOCK, Disk, Folder, Inode
from tests.simulation.process import Process
from tests.simulation.view import View

__all__ = ["main"]

CAPACITY = 512 * 1024**2
KEEP_SIZE, PUNCH_HOLE = 1, 2
"""Modes of fallocate(2)."""


class _Machine:
    """Of what a `View` wants of a process: it lives, and nobody listens."""

    alive = True

    @property
    def timeline(self) -> _Machine:
        return self

    @property
    def now(self) -> float:
        return time.time()


class Forgetful(mfusepy.Operations):  # type: ignore[misc]
    """The calls of the kernel, for a `View`. One at a time: no locks.

    What is open is known by its handle; ``path`` is None for what has no name any more.
    """

    use_ns = True

    def __init__(self, disk: Disk, modes: dict[Inode | Folder, int]) -> None:
        self._disk = disk
        self._view = View(disk, cast(Process, _Machine()))
        self._modes = modes

    # -- what is there ----------------------------------------------------------------------------

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        if path is None:
            found: Inode | Folder | None = self._view.opened(cast(int, fh))
            status = self._view.fstat(cast(int, fh))
        else:
            found = self._disk.find(path)[2]
            status = self._view.lstat(path)
        assert found is not None
        usual = 0o755 if isinstance(found, Folder) else 0o644
        return {
            "st_mode": stat.S_IFMT(status.st_mode) | self._modes.get(found, usual),
            "st_nlink": 2 if isinstance(found, Folder) else 1,
            "st_size": status.st_size,
            "st_blocks": status.st_blocks,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            "st_mtime": status.st_mtime_ns,
            "st_ctime": status.st_mtime_ns,
            "st_atime": status.st_mtime_ns,
        }

    def statfs(self, path: str) -> dict[str, int]:
        blocks = self._disk.free() // BLOCK
        return {
            "f_bsize": BLOCK,
            "f_frsize": BLOCK,
            "f_blocks": self._disk.capacity // BLOCK,
            "f_bfree": blocks,
            "f_bavail": blocks,
            "f_files": 10**6,
            "f_ffree": 10**6,
            "f_favail": 10**6,
            "f_namemax": 255,
        }

    def access(self, path: str, amode: int) -> int:
        return 0

    def chmod(self, path: str, mode: int) -> int:
        found = self._disk.find(path)[2]
        if found is not None:
            self._modes[found] = stat.S_IMODE(mode)
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0

    def utimens(self, path: str, times: object = None) -> int:
        return 0

    # -- files ------------------------------------------------------------------------------------

    def create(self, path: str, mode: int, flags: int = 0) -> int:
        fd = self._view.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self.chmod(path, mode)
        return fd

    def open(self, path: str, flags: int) -> int:
        fd = self._view.open(path, flags & ~os.O_CREAT)
        if flags & os.O_TRUNC:
            self._view.ftruncate(fd, 0)
        return fd

    def release(self, path: str | None, fh: int) -> int:
        self._view.close(fh)
        return 0

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        return self._view.pread(fh, size, offset)

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        return self._view.pwritev(fh, [data], offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        fd = self._view.open(path, os.O_RDWR)
        self._view.ftruncate(fd, length)
        self._view.close(fd)
        return 0

    def fallocate(self, path: str | None, mode: int, offset: int, size: int, fh: int) -> int:
        if mode == 0:
            self._view.posix_fallocate(fh, offset, size)
        elif mode == KEEP_SIZE | PUNCH_HOLE:
            self._view.punch_hole(fh, offset, size)
        else:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return 0

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        (self._view.fdatasync if datasync else self._view.fsync)(fh)
        return 0

    # -- folders ----------------------------------------------------------------------------------

    def opendir(self, path: str) -> int:
        return self._view.open(path, os.O_DIRECTORY)

    def releasedir(self, path: str | None, fh: int) -> int:
        self._view.close(fh)
        return 0

    def readdir(self, path: str | None, fh: int) -> list[str]:
        return [".", "..", *cast(Folder, self._view.opened(fh)).entries]

    def fsyncdir(self, path: str | None, datasync: int, fh: int) -> int:
        self._view.fsync(fh)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._view.mkdir(path)
        return self.chmod(path, mode)

    def rmdir(self, path: str) -> int:
        self._view.rmdir(path)
        return 0

    def unlink(self, path: str) -> int:
        self._view.unlink(path)
        return 0

    def rename(self, old: str, new: str) -> int:
        self._view.rename(old, new)
        return 0


def main() -> None:
    """Mount, forget, mount again."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.forgetful_disk")
    parser.add_argument("folder")
    parser.add_argument("seed", type=int)
    options = parser.parse_args()
    disk = Disk(CAPACITY, random.Random(options.seed), lambda text: None)
    modes: dict[Inode | Folder, int] = {}
    while True:
        # One call at a time, so that there is an order of what is done; names and sizes are
        # asked for anew each time, and a file that is unlinked while it is open goes at once.
        mfusepy.FUSE(
            Forgetful(disk, modes),
            options.folder,
            foreground=True,
            nothreads=True,
            fsname="forgetful",
            hard_remove=True,
            entry_timeout=0.0,
            attr_timeout=0.0,
        )
        disk.power_cut()


if __name__ == "__main__":
    main()
