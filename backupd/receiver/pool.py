"""Buffers for blocks: aligned as direct writes want them, and used again and again."""

from __future__ import annotations

from backupd.memory import HUGE, buffer_of

__all__ = ["ALIGN", "BLOCK", "BlockPool"]

BLOCK = HUGE
"""Bytes that are gathered before they are written."""

ALIGN = 4096
"""Direct writes want addresses, offsets and lengths that are multiples of this."""

KEPT = 32
"""Buffers that are kept for the next block while others are lent; more go back to the system."""

RESTING = 3
"""Buffers that are kept when none is lent: what one upload has under way."""


class BlockPool:
    """Buffers of `BLOCK` bytes and a little more.

    The first touch of memory costs a fault for every page, and in a virtual machine several times
    more than that; a buffer that was used a moment ago costs nothing.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._free: list[memoryview] = []
        self._lent = 0

    def take(self) -> memoryview:
        """A buffer; what is in it is left from its last use."""
        self._lent += 1
        if self._free:
            return self._free.pop()
        # A page more, so that a block may begin anywhere in a page, as its place in the file does.
        return buffer_of(BLOCK + ALIGN)

    def give_back(self, buffer: memoryview) -> None:
        """For the next one who takes; nobody may use it any more."""
        self._lent -= 1
        if len(self._free) < self._kept:
            self._free.append(buffer)
        if not self._lent:
            del self._free[RESTING:]

    def __len__(self) -> int:
        """How many are kept at the moment."""
        return len(self._free)
