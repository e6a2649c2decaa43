"""The system calls that the disk storage stands on: the module `os`, and what it lacks."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

from backupd.interfaces import IVolume
from backupd.storage.page_cache import residence

__all__ = ["SYSTEM"]

_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE goes with FALLOC_FL_KEEP_SIZE: fallocate(2)


def _libc() -> Any:
    """``fallocate`` of the C library, None where there is none."""
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        return None
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return fallocate


class _System:
    """See `IVolume`."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    pwritev = staticmethod(os.pwritev)
    pread = staticmethod(os.pread)
    preadv = staticmethod(os.preadv)
    posix_fadvise = staticmethod(os.posix_fadvise)
    residence = staticmethod(residence)
    fsync = staticmethod(os.fsync)
    fdatasync = staticmethod(os.fdatasync)
    ftruncate = staticmethod(os.ftruncate)
    posix_fallocate = staticmethod(os.posix_fallocate)
    fstat = staticmethod(os.fstat)
    lstat = staticmethod(os.lstat)
    statvfs = staticmethod(os.statvfs)
    mkdir = staticmethod(os.mkdir)
    rmdir = staticmethod(os.rmdir)
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)
    access = staticmethod(os.access)
    stat = staticmethod(os.stat)

    def __init__(self) -> None:
        self._fallocate = _libc()

    def scandir(self, path: str) -> Any:
        return os.scandir(path)

    def punch_hole(self, fd: int, offset: int, length: int, /) -> None:
        """Free the blocks that lie whole within; raises `OSError` where that cannot be."""
        if self._fallocate is None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        if self._fallocate(fd, _PUNCH_HOLE, offset, length) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


SYSTEM: IVolume = _System()
