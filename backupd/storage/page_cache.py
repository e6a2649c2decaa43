"""What of a file lies in the page cache, and memory to read the rest into past it."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator

from backupd.memory import buffer_of

__all__ = ["PAGE", "Rooms", "absent", "present", "residence"]

PAGE = mmap.PAGESIZE

_KEPT_ROOMS = 8 * 1024 * 1024
"""Bytes of memory that are kept for the next reader; what was lent beyond them goes back."""

_libc = ctypes.CDLL(None, use_errno=True)
_PRESENT = bytes(value & 1 for value in range(256))


def residence(fd: int, offset: int, length: int) -> bytes | None:
    """See `IVolume`. The kernel does not tell of files that we neither own nor may write."""
    count = -(-length // PAGE)
    told = ctypes.create_string_buffer(count)
    try:
        # A private mapping of which no page is ever touched; writable only for its address.
        with mmap.mmap(fd, length, access=mmap.ACCESS_COPY, offset=offset) as mapped:
            begin = ctypes.c_char.from_buffer(mapped)
            failed = _libc.mincore(ctypes.byref(begin), ctypes.c_size_t(length), told)
            del begin
    except (OSError, ValueError):
        return None
    return None if failed else told.raw.translate(_PRESENT)


def present(pages: bytes) -> int:
    """How many bytes from the first on are there, of what `residence` told."""
    first = pages.find(0)
    return (len(pages) if first < 0 else first) * PAGE


def absent(pages: bytes) -> Iterator[tuple[int, int]]:
    """The runs of bytes ``[start, stop)`` that were not there, of what `residence` told."""
    for run in re.finditer(rb"\0+", pages):
        yield run.start() * PAGE, run.end() * PAGE


class Rooms:
    """Memory at page boundaries, lent to readers and used again, for its first touch is dear."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self, length: int) -> memoryview:
        """At least ``length`` bytes. May be called in any thread, as `give_back` may."""
        while True:
            try:
                room = self._free.pop()
            except IndexError:
                return buffer_of(-(-length // PAGE) * PAGE)
            if len(room) >= length:
                return room

    def give_back(self, room: memoryview) -> None:
        """It is read no more."""
        if sum(map(len, self._free.copy())) + len(room) <= _KEPT_ROOMS:
            self._free.append(room)
