"""How many restores are under way at once: each has a file open, and memory to read into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from backupd.errors import Busy

__all__ = ["EACH", "MOST", "AtOnce"]

MOST = 128
EACH = 64
"""Of these, how many one peer may have: nobody's slow readers take everybody's places."""

COME_BACK = 10.0


class AtOnce:
    """Counts what is under way, by whom."""

    def __init__(self, most: int = MOST, each: int = EACH) -> None:
        self._most = most
        self._each = each
        self._of: Counter[str] = Counter()

    def check(self, whose: str) -> None:
        """Raises `Busy` when there is no place now."""
        if self._of.total() >= self._most or self._of[whose] >= self._each:
            raise Busy("As many restores are under way as may be; ask again shortly.", COME_BACK)

    @contextmanager
    def place(self, whose: str) -> Iterator[None]:
        """Have one of the places. Raises `Busy` when there is none."""
        self.check(whose)
        self._of[whose] += 1
        try:
            yield
        finally:
            self._of[whose] -= 1
            if not self._of[whose]:
                del self._of[whose]
