"""A transport with Twisted's own buffer, before a network that takes what a test says."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock


class Link(FileDescriptor):
    """The test calls `take`; the reactor is not needed."""

    connected = 1

    def __init__(self) -> None:
        super().__init__(cast(Any, Clock()))
        self.taken = 0
        self.aborted = False
        self._room = 0

    def take(self, count: int) -> None:
        """The network takes so many bytes, if there are so many."""
        self._room = count
        cast(Any, self).doWrite()

    def writeSomeData(self, data: bytes) -> int:
        count = min(len(data), self._room)
        self._room -= count
        self.taken += count
        return count

    def abortConnection(self) -> None:
        self.aborted = self.disconnecting = True

    # -- what a reactor would do ------------------------------------------------------------------

    def startReading(self) -> None:
        pass

    def stopReading(self) -> None:
        pass

    def startWriting(self) -> None:
        pass

    def stopWriting(self) -> None:
        pass

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def setTcpKeepAlive(self, enabled: bool) -> None:
        pass

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 1)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 2)
