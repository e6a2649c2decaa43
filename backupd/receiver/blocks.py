"""Bytes from the network to the disk: few, large writes, digest and write side by side.

Pieces are gathered into blocks. Writing, hashing and syncing are three lanes, each in order
within itself and off the reactor thread; whoever puts a block waits while too many are under
way, so memory stays bounded and the network is slowed when the disk is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime

from backupd.interfaces import IUpload, OffThread
from backupd.waiting import go_on

__all__ = ["BLOCK", "BlockWriter", "Hasher"]

BLOCK = 2 * 1024 * 1024
"""Bytes that are gathered before they are written. With 4 MiB it was slower than with 1."""

DEPTH = 3
"""Blocks under way at once."""

SYNC_BYTES = 64 * 1024 * 1024
SYNC_SECONDS = 3.0
"""The durable offset moves when this much has come since it last did."""

# Freed memory stays in the heap: by default glibc gives it back to the kernel block by block, and
# every page of the next block costs a fault (see M_MMAP_THRESHOLD in mallopt(3): freeing one large
# piece, never touched, raises the bound to twice its size). Other C libraries do not mind.
bytearray(8 * 1024 * 1024)


class Hasher(Protocol):
    """A running digest, as of `hashlib`."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...
    def digest(self) -> bytes: ...


def _update(hashers: Sequence[Hasher], pieces: Sequence[bytes]) -> None:
    for piece in pieces:
        for hasher in hashers:
            hasher.update(piece)


class BlockWriter:
    """Writes one upload from ``offset`` on, and checkpoints it as it goes.

    ``checkpoint(offset)`` is awaited with every offset that has become durable. After a write that
    failed nothing more is written: what is behind a hole must never count as durable.
    """

    def __init__(
        self,
        upload: IUpload,
        hashers: Sequence[Hasher],
        offset: int,
        *,
        off: OffThread,
        clock: IReactorTime,
        checkpoint: Callable[[int], Deferred[Any]],
    ) -> None:
        self._upload = upload
        self._hashers = hashers
        self._off = off
        self._clock = clock
        self._checkpoint = checkpoint
        self.offset = offset
        self.durable = offset
        self._pieces: list[bytes] = []
        self._gathered = 0
        self._started = offset
        self._written = offset
        self._writes = DeferredLock()
        self._hashes = DeferredLock()
        self._under_way: deque[Deferred[Any]] = deque()
        self._syncing: Deferred[None] | None = None
        self._synced_at = self._flushed_at = clock.seconds()
        self._write_failed: BaseException | None = None
        self.sync_failed = False

    async def put(self, piece: bytes) -> None:
        """Take one piece; waits while too much is under way."""
        self._pieces.append(piece)
        self._gathered += len(piece)
        self.offset += len(piece)
        slow = self._clock.seconds() - self._flushed_at >= SYNC_SECONDS
        if self._gathered >= BLOCK or slow:
            self._start()
            while len(self._under_way) >= DEPTH:
                await self._under_way.popleft()
            await self._keep_up()

    def _start(self) -> None:
        pieces, self._pieces = self._pieces, []
        offset, size = self._started, self._gathered
        self._started += size
        self._gathered = 0
        self._flushed_at = self._clock.seconds()

        async def write() -> None:
            if self._write_failed is not None:
                raise self._write_failed
            try:
                await self._off(self._upload.write, pieces, offset)
            except BaseException as error:
                self._write_failed = error
                raise
            self._written = offset + size

        async def both() -> None:
            written = self._writes.run(lambda: go_on(write()))
            hashed = self._hashes.run(self._off, _update, self._hashers, pieces)
            try:
                await written
            finally:
                await hashed

        self._under_way.append(go_on(both()))

    async def _keep_up(self) -> None:
        """Start a sync when one is due, and wait for one that falls too far behind."""
        if self._syncing is not None and self._syncing.called:
            done, self._syncing = self._syncing, None
            await done
        behind = self._written - self.durable
        if self._syncing is None:
            late = self._clock.seconds() - self._synced_at >= SYNC_SECONDS
            if behind >= SYNC_BYTES or (late and behind):
                self._syncing = go_on(self._sync())
        elif behind >= 3 * SYNC_BYTES:
            done, self._syncing = self._syncing, None
            await done

    async def _sync(self) -> None:
        target = self._written
        self._synced_at = self._clock.seconds()
        try:
            await self._off(self._upload.sync)
        except BaseException:
            self.sync_failed = True
            raise
        await self._checkpoint(target)
        self.durable = target

    async def settle(self) -> None:
        """Wait until nothing is under way any more; raises the first error."""
        first: BaseException | None = None
        if self._gathered:
            self._start()
        while self._under_way:
            try:
                await self._under_way.popleft()
            except Exception as error:
                first = first or error
        if self._syncing is not None:
            done, self._syncing = self._syncing, None
            try:
                await done
            except Exception as error:
                first = first or error
        if first is not None:
            raise first

    async def sync(self) -> int:
        """Make all that was put durable; the offset that is. The caller records it."""
        await self.settle()
        if self.sync_failed:
            raise RuntimeError("a descriptor whose sync failed must not be synced again")
        try:
            await self._off(self._upload.sync)
        except BaseException:
            self.sync_failed = True
            raise
        return self._written
