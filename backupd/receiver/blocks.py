"""Bytes from the network to the disk: few, large writes, digest and write side by side.

Bytes are gathered in blocks, where the source can, straight from the network. For each there is
one job off the reactor thread. The first job of several hashes what comes, block after block, and
each of the others writes the next one that is hashed: so the digest, which is what takes longest,
waits for no other thread. Whoever brings a block waits while too many are under way, so memory
stays bounded and the network is slowed when the disk is.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from backupd.errors import TooLarge
from backupd.interfaces import IUpload, OffThread, Source, StraightSource
from backupd.receiver.pool import ALIGN, BLOCK, BlockPool
from backupd.sizes import format_size
from backupd.waiting import go_on

__all__ = ["BLOCK", "BlockWriter", "Hasher", "Load"]

DEPTH = 3
"""Blocks of one upload under way at once."""

ENOUGH = 4
"""Blocks of all uploads under way from which on no upload has more than one: they keep processors
and disk busy, and memory that is touched for the first time is dear."""

SYNC_BYTES = 32 * 1024 * 1024
SYNC_SECONDS = 3.0
"""The durable offset moves when this much has come since it last did.

While a sync is slow half as much again may come. With the blocks under way and what the kernel
holds of a connection, a crash costs a sender at most 64 MiB.
"""

POOL = BlockPool()
"""The buffers of all uploads: reactor thread only."""

WRITERS = 2
"""Blocks of all uploads that are written at once. They keep a disk busy; what stands in its queue
beside them only makes everybody wait who needs a sync, the ledger above all."""


def _places(count: int) -> SimpleQueue[None]:
    """To be taken and put back. Unlike `threading.Semaphore` it waits without a line of Python."""
    places: SimpleQueue[None] = SimpleQueue()
    for _ in range(count):
        places.put(None)
    return places


HASHING = _places(os.cpu_count() or 1)
"""A place for each processor: more digests at once would only push each other out of its cache,
and the reactor's thread would stand in line behind them."""

WRITING = _places(WRITERS)


class Hasher(Protocol):
    """A running digest, as of `hashlib`."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...
    def digest(self) -> bytes: ...


@dataclass(slots=True)
class Load:
    """What all uploads of a daemon have under way."""

    blocks: int = 0


@dataclass(slots=True, eq=False)
class _Block:
    """Bytes on their way to ``offset``, in a buffer that is lent to them."""

    data: memoryview
    offset: int
    buffer: memoryview
    written: bool = False


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
        checkpoint: Callable[[int], Awaitable[Any]],
        load: Load,
    ) -> None:
        self._upload = upload
        self._hashers = hashers
        self._off = off
        self._clock = clock
        self._checkpoint = checkpoint
        self._load = load
        self.offset = offset
        self.durable = offset
        self._source: StraightSource | None = None
        self._buffer: memoryview | None = None
        self._begin = self._end = 0
        self._room = 0
        self._written = offset
        self._changing = Lock()
        self._hashing = False
        self._to_hash: deque[_Block] = deque()
        self._to_write: SimpleQueue[_Block] = SimpleQueue()
        self._to_count: deque[_Block] = deque()
        self._under_way = 0
        self._fewer: Deferred[None] | None = None
        self._failed: BaseException | None = None
        self._syncing: Deferred[None] | None = None
        self._synced_at = self._flushed_at = clock.seconds()
        self.sync_failed = False

    async def take(self, source: Source, limit: int) -> int:
        """Take what comes next from ``source``: how many bytes, 0 at its end.

        Raises `TooLarge`, and takes none of them, when there are more than ``limit`` in all.
        """
        # To ask for a Protocol takes longer than all the rest here: once for each source.
        if source is not self._source and not isinstance(source, StraightSource):
            piece = await source.read()
            self._check(limit, len(piece))
            await self.put(piece)
            return len(piece)
        buffer, self._source = self._open(), source
        count = await source.read_into(buffer[self._end : self._end + self._room])
        self._check(limit, count)
        self._gathered(count)
        await self._go_on()
        return count

    def arrived(self) -> int:
        """Where the bytes end that have come so far, those of a block being filled included."""
        return self.offset + (0 if self._source is None else self._source.filling())

    def _check(self, limit: int, count: int) -> None:
        if self.offset + count > limit:
            raise TooLarge(
                f"The upload is longer than the {format_size(limit)} ({limit} bytes) "
                "that it may have.",
                limit,
            )

    async def put(self, piece: bytes) -> None:
        """Take one piece; waits while too much is under way."""
        at = 0
        while at < len(piece):
            buffer = self._open()
            part = piece[at : at + self._room] if at or len(piece) > self._room else piece
            buffer[self._end : self._end + len(part)] = part
            at += len(part)
            self._gathered(len(part))
            await self._go_on()

    def _open(self) -> memoryview:
        """The buffer of the block at hand; a new one begins in a page as it does in the file."""
        if self._buffer is None:
            self._buffer = POOL.take()
            self._begin = self._end = self.offset % ALIGN
            # The next block is to begin at a page, so that only the first and the last do not.
            self._room = BLOCK - self.offset % min(ALIGN, BLOCK)
        return self._buffer

    def _gathered(self, count: int) -> None:
        self._end += count
        self._room -= count
        self.offset += count

    async def _go_on(self) -> None:
        """Start the block at hand if it is full or its bytes have waited long enough."""
        slow = self._clock.seconds() - self._flushed_at >= SYNC_SECONDS
        if self._buffer is not None and self._end > self._begin and (not self._room or slow):
            self._start(self._buffer)
            while self._under_way >= (1 if self._load.blocks >= ENOUGH else DEPTH):
                await self._one_less()
            self._check_well()
            await self._keep_up()

    def _start(self, buffer: memoryview) -> None:
        self._buffer = None
        data = buffer[self._begin : self._end]
        self._flushed_at = self._clock.seconds()
        block = _Block(data, self.offset - len(data), buffer)
        self._to_count.append(block)
        with self._changing:
            self._to_hash.append(block)
        self._under_way += 1
        self._load.blocks += 1
        self._off(self._hash_or_write).addBoth(self._let_go)

    def _hash_or_write(self) -> _Block:
        """In a thread: hash what there is, unless somebody does; then write a block.

        Each job writes one, though not always the one that it was started for; so none waits for
        a block that never comes.
        """
        mine = False
        while (to_hash := self._next_to_hash(mine)) is not None:
            mine = True
            place = HASHING.get()
            try:
                for hasher in self._hashers:
                    hasher.update(to_hash.data)
            except Exception as error:
                self._failed = error
            finally:
                HASHING.put(place)
                self._to_write.put(to_hash)
        block = self._to_write.get()
        if self._failed is None:
            place = WRITING.get()
            try:
                self._upload.write([block.data], block.offset)
                block.written = True
            except Exception as error:
                self._failed = error
            finally:
                WRITING.put(place)
        return block

    def _next_to_hash(self, mine: bool) -> _Block | None:
        """What to hash next, for the one who does; ``mine`` says that the caller is that one.

        None for everybody else, and when there is nothing: then nobody is that one any more.
        """
        with self._changing:
            if self._hashing and not mine:
                return None
            self._hashing = bool(self._to_hash)
            return self._to_hash.popleft() if self._to_hash else None

    def _let_go(self, result: _Block | Failure) -> None:
        self._under_way -= 1
        self._load.blocks -= 1
        if isinstance(result, Failure):
            # There are no threads any more, or this one broke down.
            self._failed = self._failed or result.value
        else:
            POOL.give_back(result.buffer)
        while self._to_count and self._to_count[0].written:
            first = self._to_count.popleft()
            self._written = first.offset + len(first.data)
        waiting, self._fewer = self._fewer, None
        if waiting is not None:
            waiting.callback(None)

    def _one_less(self) -> Deferred[None]:
        """Fires once one of the blocks is not under way any more."""
        self._fewer = Deferred()
        return self._fewer

    def _check_well(self) -> None:
        """Raises what went wrong with a block."""
        if self._failed is not None:
            raise self._failed

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
        elif behind >= SYNC_BYTES + SYNC_BYTES // 2:
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
        if self._buffer is not None:
            if self._end > self._begin:
                self._start(self._buffer)
            else:
                POOL.give_back(self._buffer)
                self._buffer = None
        while self._under_way:
            await self._one_less()
        try:
            self._check_well()
        except Exception as error:
            first = error
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
