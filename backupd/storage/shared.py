"""One call for many who ask at the same time."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

__all__ = ["Shared"]


class Shared:
    """Calls ``act`` for whoever asks, one at a time and for several at once.

    Whoever asks is answered by a call that began after it asked; while one is under way, all that
    ask meanwhile share the next. What a call raises is told to the one who made it alone: the
    others make their own. May be called in any thread.
    """

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self._acting = Lock()
        self._counting = Lock()
        self._asked = self._answered = 0

    def __call__(self) -> None:
        with self._counting:
            self._asked += 1
            mine = self._asked
        with self._acting:
            if self._answered >= mine:
                return
            with self._counting:
                those = self._asked
            self._act()
            self._answered = those
