"""Videos that need no room: the bytes of each follow from its number, at any place in it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

__all__ = ["MIB", "Video", "pieces"]

MIB = 1024**2
PERIOD = 33_554_467
"""Bytes after which a video repeats itself: a prime, so that no block or page lies as another."""

_POOL = random.Random(1).randbytes(PERIOD)


class Video:
    """``size`` bytes that no video of another number has in the same place."""

    def __init__(self, number: int, size: int) -> None:
        self.number = number
        self.size = size
        self._begin = number * 7_368_787 % PERIOD

    def piece(self, start: int, stop: int) -> bytes:
        """Its bytes from ``start`` to ``stop``."""
        found = []
        stop = min(stop, self.size)
        while start < stop:
            at = (self._begin + start) % PERIOD
            part = _POOL[at : at + stop - start]
            found.append(part)
            start += len(part)
        return found[0] if len(found) == 1 else b"".join(found)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for start, stop in pieces(0, self.size, 4 * MIB):
            digest.update(self.piece(start, stop))
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Make it a file."""
        with path.open("wb") as file:
            for start, stop in pieces(0, self.size, 4 * MIB):
                file.write(self.piece(start, stop))


def pieces(start: int, stop: int, length: int) -> Iterator[tuple[int, int]]:
    """From ``start`` to ``stop`` in steps of ``length``."""
    for at in range(start, stop, length):
        yield at, min(at + length, stop)
