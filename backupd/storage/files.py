"""Open files: an upload being written, a backup being read."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from zope.interface import implementer

from backupd.errors import NoRoom, StorageFailed
from backupd.interfaces import IStored, IUpload, IVolume

__all__ = ["DiskStored", "DiskUpload", "doing", "write_all"]

_MAX_PIECES = 1024  # IOV_MAX


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Turn an `OSError` into the error that callers expect, saying that ``what`` failed."""
    try:
        yield
    except OSError as error:
        kind = NoRoom if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageFailed
        raise kind(f"Could not {what}: {error.strerror or error}.") from error


def write_all(fs: IVolume, fd: int, pieces: Sequence[bytes], offset: int) -> None:
    """Write ``pieces`` behind each other at ``offset``, however little one call takes."""
    rest: list[bytes | memoryview] = [piece for piece in pieces if piece]
    first = 0
    while first < len(rest):
        written = fs.pwritev(fd, rest[first : first + _MAX_PIECES], offset)
        if written <= 0:
            raise OSError(errno.EIO, "the volume takes no more bytes")
        offset += written
        while written and written >= len(rest[first]):
            written -= len(rest[first])
            first += 1
        if written:
            rest[first] = memoryview(rest[first])[written:]


class _OpenFile:
    """A descriptor that is closed once, and not used after that."""

    def __init__(self, fs: IVolume, fd: int, what: str) -> None:
        self._fs = fs
        self._fd: int | None = fd
        self._what = what

    def _open_fd(self) -> int:
        if self._fd is None:
            raise StorageFailed(f"The {self._what} is closed.")
        return self._fd

    def read(self, offset: int, length: int) -> bytes:
        fd = self._open_fd()
        with doing(f"read the {self._what} at {offset}"):
            return self._fs.pread(fd, length, offset)

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            with doing(f"close the {self._what}"):
                self._fs.close(fd)


@implementer(IUpload)
class DiskUpload(_OpenFile):
    """An unfinished upload. Beyond what was written, allocated bytes read as zeros."""

    _lost = False

    def allocate(self, length: int) -> None:
        """On a file system that cannot promise blocks nothing happens: a write may get `NoRoom`."""
        fd = self._open_fd()
        if length <= 0:
            return
        with doing(f"allocate {length} bytes to the {self._what}"):
            try:
                self._fs.posix_fallocate(fd, 0, length)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise

    def occupied(self) -> int:
        fd = self._open_fd()
        with doing(f"look at the {self._what}"):
            return int(self._fs.fstat(fd).st_blocks) * 512

    def write(self, pieces: Sequence[bytes], offset: int) -> None:
        fd = self._open_fd()
        with doing(f"write to the {self._what} at {offset}"):
            write_all(self._fs, fd, pieces, offset)

    def give_back(self, length: int) -> None:
        fd = self._open_fd()
        with doing(f"free the first {length} bytes of the {self._what}"):
            try:
                self._fs.punch_hole(fd, 0, length)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise

    def sync(self) -> None:
        fd = self._open_fd()
        if self._lost:
            raise StorageFailed(f"The {self._what} could not be synced; open it anew.")
        # The kernel tells of a failed write-back once: a second sync would succeed without it.
        self._lost = True
        with doing(f"sync the {self._what}"):
            self._fs.fdatasync(fd)
        self._lost = False


@implementer(IStored)
class DiskStored(_OpenFile):
    """A kept backup's file."""

    def size(self) -> int:
        fd = self._open_fd()
        with doing(f"look at the {self._what}"):
            return int(self._fs.fstat(fd).st_size)
