"""Open files: an upload being written, a backup being read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock

from zope.interface import implementer

from backupd.errors import NoRoom, StorageFailed
from backupd.interfaces import IUpload, IVolume, IWindowed, Window
from backupd.storage.page_cache import PAGE, Rooms, absent, present

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

    def __init__(
        self,
        fs: IVolume,
        fd: int,
        what: str,
        path: str | None = None,
        keep_name: Callable[[], None] | None = None,
    ) -> None:
        """``path`` is for opening it a second time, for direct writes; ``keep_name`` syncs the
        folder of one that is new."""
        super().__init__(fs, fd, what)
        self._path = path if _DIRECT else None
        self._keep_name = keep_name
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
            if self._keep_name is not None:
                # Bytes first: on most file systems that has written the name already.
                self._keep_name()
                self._keep_name = None
        self._lost = False

    def close(self) -> None:
        direct, self._direct = self._direct, None
        try:
            if direct is not None:
                with doing(f"close the {self._what}"):
                    self._fs.close(direct)
        finally:
            super().close()


@implementer(IWindowed)
class DiskStored(_OpenFile):
    """A kept backup's file, read so that the page cache stays as it was.

    What is there is taken from there. The rest is read past it (``O_DIRECT``): that leaves no
    trace, and costs a tenth of filling the cache. On a volume that cannot do that, the pages that
    were not there before are dropped again at once.
    """

    def __init__(
        self, fs: IVolume, fd: int, what: str, direct: Callable[[], int], rooms: Rooms
    ) -> None:
        super().__init__(fs, fd, what)
        self._open_directly = direct
        self._rooms = rooms
        self._opening = Lock()
        self._direct: int | None = None
        self._tried = False

    def size(self) -> int:
        fd = self._open_fd()
        with doing(f"look at the {self._what}"):
            return int(self._fs.fstat(fd).st_size)

    def forget(self, offset: int, length: int) -> None:
        fd = self._open_fd()
        with suppress(OSError):
            self._fs.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, length: int) -> bytes:
        window = self.window(offset, length, length)
        try:
            if window.data is not None:
                return bytes(window.data)
            return super().read(offset, window.length)
        finally:
            window.release()

    def window(self, offset: int, length: int, room: int) -> Window:
        fd = self._open_fd()
        with doing(f"read the {self._what} at {offset}"):
            length = min(length, int(self._fs.fstat(fd).st_size) - offset)
            if length <= 0:
                return Window(0, fd, memoryview(b""))
            skip = offset % PAGE
            there = self._fs.residence(fd, offset - skip, skip + length)
            cached = 0 if there is None else min(present(there) - skip, length)
            if cached == length or cached >= room:
                return Window(cached, fd)
            length = min(length, room)
            count = -(-(skip + length) // PAGE)
            lent = self._rooms.take(count * PAGE)
            known = None if there is None else there[:count]
            got = self._fill(lent[: count * PAGE], offset - skip, known)
        data = lent[skip : min(got, skip + length)]
        return Window(len(data), fd, data, lambda: self._rooms.give_back(lent))

    def close(self) -> None:
        direct, self._direct = self._direct, None
        try:
            if direct is not None:
                with doing(f"close the {self._what}"):
                    self._fs.close(direct)
        finally:
            super().close()

    def _fill(self, room: memoryview, offset: int, there: bytes | None) -> int:
        """Read until ``room`` is full or the file ends; how many bytes that were."""
        direct = self._directly()
        if direct is not None:
            try:
                return self._read_all(direct, room, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # The volume wants other boundaries than pages.
        fd = self._open_fd()
        # The kernel is to read what is asked for and nothing beyond, which nobody would drop.
        self._fs.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        self._fs.posix_fadvise(fd, offset, len(room), os.POSIX_FADV_WILLNEED)
        got = self._read_all(fd, room, offset)
        for start, stop in absent(there or b""):
            self._fs.posix_fadvise(fd, offset + start, stop - start, os.POSIX_FADV_DONTNEED)
        return got

    def _read_all(self, fd: int, room: memoryview, offset: int) -> int:
        got = 0
        while got < len(room) and (count := self._fs.preadv(fd, [room[got:]], offset + got)):
            got += count
            if got % PAGE:  # the end; and from here no direct read could go on
                break
        return got

    def _directly(self) -> int | None:
        """The file, opened once more for reading past the page cache; None where that cannot be."""
        with self._opening:
            if not self._tried:
                self._tried = True
                try:
                    self._direct = self._open_directly()
                except OSError:
                    return None  # a volume without, or the file has just been deleted
            return self._direct
