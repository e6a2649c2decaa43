"""Memory for what is read and written past the page cache."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress

__all__ = ["HUGE", "buffer_of"]

HUGE = 2 * 1024 * 1024
"""A huge page of the usual processors."""


def buffer_of(length: int) -> memoryview:
    """New memory of ``length`` bytes, as much of it in huge pages as fills some.

    Of a huge page the first touch is one fault instead of 512, and the disk is told of one stretch
    of memory instead of 512: a direct read of 2 MiB is one request to it, where a kernel splits
    what lies in small pages as soon as there are more of them than the device takes in one. Where
    the system has no huge pages, or they are turned off, it is memory like any other.
    """
    # Private: what is shared, as `mmap` has it by default, gets no huge pages from most systems.
    spare = HUGE if length >= HUGE else 0
    whole = mmap.mmap(-1, spare + length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(whole)) % HUGE if spare else 0
    with suppress(AttributeError, OSError):  # elsewhere than on Linux, or where it is turned off
        # What does not fill one must not become one, as it would where all memory may.
        whole.madvise(mmap.MADV_NOHUGEPAGE)
        if spare:
            whole.madvise(mmap.MADV_HUGEPAGE, start, length // HUGE * HUGE)
    return memoryview(whole)[start : start + length]
