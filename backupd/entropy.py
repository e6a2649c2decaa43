"""Random bytes, fetched from the system many at a time."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from threading import Lock

__all__ = ["Entropy"]

FETCHED = 4096


class Entropy:
    """Ids and capabilities out of ``source(bytes)``; no byte is used twice.

    Every system call gives the interpreter's lock away; under load it costs far more than itself
    to get it back, and an admission needs two values.
    """

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source = source
        self._lock = Lock()
        self._fetched = b""
        self._used = 0

    def take(self, count: int) -> bytes:
        """So many bytes that nobody else gets."""
        with self._lock:
            if self._used + count > len(self._fetched):
                self._fetched, self._used = self._source(max(FETCHED, count)), 0
            self._used += count
            return self._fetched[self._used - count : self._used]

    def token(self, count: int) -> str:
        """``count`` random bytes as text that may stand in a URL."""
        return base64.urlsafe_b64encode(self.take(count)).rstrip(b"=").decode()

    def id(self) -> str:
        """A random UUID (RFC 9562, version 4), 32 hexadecimal digits."""
        return uuid.UUID(bytes=self.take(16), version=4).hex
