"""Open files: an upload being written, a backup being read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from zope.interface import implementer

from backupd.errors import NoRoom, StorageFailed
from backupd.interfaces import IStored, IUpload, IVolume

__all__ = ["DiskStored", "DiskUpload", "doing", "write_all"]

_MAX_PIECES = 1024  # IOV_MAX

_CHANGE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_PAGE = 4096
_DIRECT = getattr(os, "O_DIRECT", 0)
_CANNOT = (errno.EINVAL, errno.EOPNOTSUPP)
"""A file system that knows no direct writes, or wants larger units than pages."""

WORTH_IT = 128 * 1024
"""Bytes in one piece from which on a write goes around the page cache."""


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Turn an `OSError` into the error that callers expect, saying that ``what`` failed."""
    try:
        yield
    except OSError as error:
        kind = NoRoom if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageFailed
        raise kind(f"Could not {what}: {error.strerror or error}.") from error


def write_all(fs: IVolume, fd: int, pieces: Sequence[bytes | memoryview], offset: int) -> None:
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
    _direct: int | None = None

    def __init__(self, fs: IVolume, fd: int, what: str, path: str | None = None) -> None:
        """``path`` is for opening it a second time, for direct writes."""
        super().__init__(fs, fd, what)
        self._path = path if _DIRECT else None
        self._opening = Lock()

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

    def write(self, pieces: Sequence[bytes | memoryview], offset: int) -> None:
        """Large pieces go around the page cache: no copy, and nobody else's pages are pushed out.

        Only whole pages of memory can; the rest of a piece, and all where it cannot be done, goes
        the usual way. `sync` is for both.
        """
        fd = self._open_fd()
        with doing(f"write to the {self._what} at {offset}"):
            for piece in pieces:
                done = self._write_direct(piece, offset)
                if done < len(piece):
                    write_all(self._fs, fd, [memoryview(piece)[done:]], offset + done)
                offset += len(piece)

    def _write_direct(self, piece: bytes | memoryview, offset: int) -> int:
        """Write what can be written directly; how many bytes from the start are done."""
        head = -offset % _PAGE
        end = head + (len(piece) - head) // _PAGE * _PAGE
        if end - head < WORTH_IT or (direct := self._direct_fd()) is None:
            return 0
        view = memoryview(piece)
        if head:
            write_all(self._fs, self._open_fd(), [view[:head]], offset)
        try:
            write_all(self._fs, direct, [view[head:end]], offset + head)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            self._path = None
            return head
        return end

    def _direct_fd(self) -> int | None:
        """The descriptor for direct writes; None where there are none, or not any more."""
        with self._opening:
            if self._path is not None and self._direct is None:
                try:
                    self._direct = self._fs.open(self._path, _CHANGE | _DIRECT)
                except OSError as error:
                    if error.errno not in _CANNOT:
                        raise
                    self._path = None
            return None if self._path is None else self._direct

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

    def close(self) -> None:
        direct, self._direct = self._direct, None
        try:
            if direct is not None:
                with doing(f"close the {self._what}"):
                    self._fs.close(direct)
        finally:
            super().close()


@implementer(IStored)
class DiskStored(_OpenFile):
    """A kept backup's file."""

    def size(self) -> int:
        fd = self._open_fd()
        with doing(f"look at the {self._what}"):
            return int(self._fs.fstat(fd).st_size)
