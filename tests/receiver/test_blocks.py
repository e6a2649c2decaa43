"""Blocks: bounded, in order, and never called durable before they are."""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from backupd.errors import LedgerFailed, StorageFailed
from backupd.interfaces import IUpload, OffThread
from backupd.receiver import blocks
from backupd.receiver.blocks import (
    DEPTH,
    ENOUGH,
    SYNC_BYTES,
    SYNC_SECONDS,
    WRITERS,
    BlockWriter,
    Load,
)
from backupd.receiver.pool import ALIGN, BLOCK, KEPT, RESTING, BlockPool
from backupd.waiting import go_on
from tests.receiver.world import ManualOff, logged, now, set_attribute, sync

BLOCK_OF_BYTES = b"x" * BLOCK
JOB = "_hash_or_write"


@implementer(IUpload)
class MemoryUpload:
    """Bytes in memory; ``durable`` is what a power cut leaves."""

    def __init__(self, log: list[str] | None = None) -> None:
        self.log = [] if log is None else log
        self.content = bytearray()
        self.durable = b""
        self.failing: Callable[[str, int], Exception | None] = lambda what, count: None
        self.counts = {"write": 0, "sync": 0}

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        error = self.failing(what, self.counts[what])
        if error is not None:
            raise error

    def allocate(self, length: int) -> None:
        raise NotImplementedError

    def occupied(self) -> int:
        return len(self.content)

    def write(self, pieces: Sequence[bytes | memoryview], offset: int) -> None:
        self._count("write")
        data = b"".join(pieces)
        self.content[len(self.content) :] = bytes(max(0, offset - len(self.content)))
        self.content[offset : offset + len(data)] = data
        self.log.append(f"write {offset + len(data)}")

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    def give_back(self, length: int) -> None:
        raise AssertionError("nothing that is being received is given back")

    def sync(self) -> None:
        self._count("sync")
        self.durable = bytes(self.content)
        self.log.append(f"sync {len(self.durable)}")

    def close(self) -> None:
        raise NotImplementedError


class Silent:
    """A straight source of which nothing comes."""

    def read(self) -> Deferred[bytes]:
        raise NotImplementedError

    def read_into(self, buffer: memoryview) -> Deferred[int]:
        return Deferred()

    def filling(self) -> int:
        return 0

    def abort(self) -> None:
        raise NotImplementedError

    def silent_for(self) -> float:
        raise NotImplementedError


def _always(error: Exception | None, what: str, count: int) -> Exception | None:
    return error


class BlockCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.log: list[str] = []
        self.upload = MemoryUpload(self.log)
        self.hasher = hashlib.sha256()
        self.off = ManualOff()
        self.load = Load()
        self.ledger_answer: Deferred[Any] = succeed(None)
        self.checkpoints: list[int] = []

    def writer(self, off: OffThread, offset: int = 0) -> BlockWriter:
        def checkpoint(at: int) -> Deferred[Any]:
            self.log.append(f"checkpoint {at}")
            self.checkpoints.append(at)
            return self.ledger_answer

        return BlockWriter(
            self.upload,
            [self.hasher],
            offset,
            off=off,
            clock=self.clock,
            checkpoint=checkpoint,
            load=self.load,
        )

    def fill(self, writer: BlockWriter, count: int) -> None:
        """Put ``count`` whole blocks, none of which has to wait."""
        for _ in range(count):
            now(writer.put(BLOCK_OF_BYTES))


class BoundedTests(BlockCase):
    """Memory is bounded, and writes are few and large."""

    def test_depth(self) -> None:
        """With `DEPTH` blocks under way `put` waits, until the oldest is written and hashed."""
        writer = self.writer(self.off)
        self.fill(writer, DEPTH - 1)
        waiting = go_on(writer.put(BLOCK_OF_BYTES))
        assert not waiting.called
        self.off.release()
        now(waiting)
        self.off.release_all()

    def test_many_uploads_have_one_block_each(self) -> None:
        """With `ENOUGH` blocks of all uploads under way, `put` waits for those of its own; what
        only waits for its bytes is none of them."""
        now(self.writer(sync).put(b"waits for more"))
        assert not go_on(self.writer(sync).take(Silent(), BLOCK)).called
        assert self.load.blocks == 0
        self.load.blocks = ENOUGH - 2
        writer = self.writer(self.off)
        self.fill(writer, 1)
        waiting = go_on(writer.put(BLOCK_OF_BYTES))
        self.off.release()
        assert waiting.called
        self.load.blocks = ENOUGH
        waiting = go_on(writer.put(BLOCK_OF_BYTES))
        self.off.release()
        assert not waiting.called
        self.off.release()
        now(waiting)
        assert self.load.blocks == ENOUGH - 1

    def test_one_hashes_and_the_others_write(self) -> None:
        """One thread hashes all that comes, in order; what is hashed another writes meanwhile."""
        writer = self.writer(self.off)
        hashed_by: list[int] = []
        written = threading.Event()

        class Noting:
            def update(self, data: bytes | memoryview, /) -> None:
                # The second block is hashed only once somebody has written the first.
                assert not hashed_by or written.wait(10)
                hashed_by.append(threading.get_ident())
                digest.update(data)

        digest, self.upload.failing = self.hasher, lambda what, count: written.set()
        writer._hashers = [cast(Any, Noting())]
        now(writer.put(b"a" * BLOCK))
        now(writer.put(b"b" * BLOCK))
        threads = [threading.Thread(target=call.run, daemon=True) for call in self.off.waiting]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), "it waits for a block that never comes"
        assert len(hashed_by) == 2
        assert len(set(hashed_by)) == 1
        assert sorted(self.log) == [f"write {BLOCK}", f"write {2 * BLOCK}"]
        assert self.hasher.digest() == hashlib.sha256(b"a" * BLOCK + b"b" * BLOCK).digest()

    def test_as_many_digests_as_processors(self) -> None:
        """However many uploads there are, no more of them are hashed at once, and no more than
        `WRITERS` blocks written."""
        taken: list[tuple[int, int]] = []

        def note() -> None:
            free = blocks.HASHING.qsize(), blocks.WRITING.qsize()
            taken.append(((os.cpu_count() or 1) - free[0], WRITERS - free[1]))

        class Noting:
            def update(self, data: bytes | memoryview, /) -> None:
                note()

        self.hasher = cast(Any, Noting())
        self.upload.failing = lambda what, count: note()
        now(self.writer(sync).put(BLOCK_OF_BYTES))
        note()
        assert taken == [(1, 0), (0, 1), (0, 0)]

    def test_only_a_whole_beginning_counts(self) -> None:
        """A block that is written before the one in front of it does not count yet."""
        set_attribute(self, blocks, "WRITING", blocks._places(2))
        set_attribute(self, blocks, "SYNC_BYTES", 1)
        writer = self.writer(self.off)
        self.fill(writer, 2)

        def meanwhile(what: str, count: int) -> None:
            if (what, count) == ("write", 1):
                self.off.release(JOB)
                self.fill(writer, 1)
                assert self.log == [f"write {2 * BLOCK}"]
                assert "sync" not in self.off.names

        self.upload.failing = meanwhile
        self.off.release(JOB)
        now(writer.put(BLOCK_OF_BYTES))
        assert "sync" in self.off.names
        self.off.release_all()

    def test_buffers_go_back(self) -> None:
        """A buffer is free again once its block is hashed and written, or has failed."""
        for error in (None, StorageFailed("EIO")):
            pool = BlockPool()
            set_attribute(self, blocks, "POOL", pool)
            self.upload.failing = partial(_always, error)
            writer = self.writer(self.off)
            now(writer.put(b"a" * BLOCK))
            now(writer.put(b"b"))
            settled = go_on(writer.settle())
            assert len(pool) == 0
            self.off.release(JOB)
            assert len(pool) == 1
            self.off.release_all()
            assert len(pool) == 2
            if error is not None:
                with pytest.raises(StorageFailed):
                    now(settled)

    def test_buffers_are_huge_pages(self) -> None:
        """The bytes of a block lie in one huge page, if the system has any."""
        pool = BlockPool()
        for buffer in [pool.take() for _ in range(3)]:
            assert ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % (2 * 1024 * 1024) == 0
            assert len(buffer) == BLOCK + ALIGN

    def test_what_many_uploads_took_is_not_kept(self) -> None:
        """While buffers are lent a handful is kept, afterwards what one upload has under way."""
        pool = BlockPool()
        lent = [pool.take() for _ in range(KEPT + 4)]
        for buffer in lent[1:]:
            pool.give_back(buffer)
        assert len(pool) == KEPT
        pool.give_back(lent[0])
        assert len(pool) == RESTING

    def test_gathered(self) -> None:
        """Small pieces are written together, one block at a time."""
        writer = self.writer(sync)
        for _ in range(BLOCK // 1024 - 1):
            now(writer.put(b"k" * 1024))
        assert self.log == []
        now(writer.put(b"k" * 1024))
        assert self.log == [f"write {BLOCK}"]

    def test_trickle(self) -> None:
        """A sender that is slow has its bytes written and checkpointed every few seconds."""
        writer = self.writer(sync)
        now(writer.put(b"a"))
        assert self.log == []
        self.clock.advance(SYNC_SECONDS)
        now(writer.put(b"b"))
        assert self.log == ["write 2", "sync 2", "checkpoint 2"]
        assert writer.durable == 2

    @given(
        st.lists(st.binary(min_size=1, max_size=40), max_size=30),
        st.integers(0, 50),
        st.integers(1, 60),
        st.floats(0, 2),
    )
    def test_any_chunking(self, pieces: list[bytes], offset: int, block: int, pause: float) -> None:
        """However the bytes are cut into pieces, content and digest are those of the whole."""
        self.setUp()
        set_attribute(self, blocks, "BLOCK", block)
        prefix = bytes(offset)
        self.upload.content[:] = prefix
        self.hasher.update(prefix)
        writer = self.writer(sync, offset)
        for piece in pieces:
            self.clock.advance(pause)
            now(writer.put(piece))
        whole = prefix + b"".join(pieces)
        assert now(writer.sync()) == len(whole)
        assert self.upload.durable == whole
        assert self.hasher.digest() == hashlib.sha256(whole).digest()


class DurableTests(BlockCase):
    """Acknowledged is on disk."""

    def test_order(self) -> None:
        """A checkpoint names an offset only after its bytes were written, then synced."""
        set_attribute(self, blocks, "SYNC_BYTES", 2 * BLOCK)
        writer = self.writer(self.off)
        self.fill(writer, 2)
        self.off.release_all()
        self.fill(writer, 1)
        assert self.off.names == [JOB, "sync"]
        # This block is written while the sync is under way: the sync does not speak for it.
        self.off.release(JOB)
        assert self.checkpoints == []
        self.off.release("sync")
        assert self.checkpoints == [2 * BLOCK]
        assert writer.durable == 2 * BLOCK
        self.off.release_all()

    def test_not_durable_before_the_ledger(self) -> None:
        """Only the ledger's commit makes an offset durable."""
        writer = self.writer(sync)
        self.ledger_answer = Deferred()
        self.clock.advance(SYNC_SECONDS)
        now(writer.put(b"a"))
        assert (self.checkpoints, writer.durable) == ([1], 0)
        self.ledger_answer.callback(None)
        assert writer.durable == 1

    def test_every_so_many_bytes(self) -> None:
        """A fast sender's offset moves every `SYNC_BYTES`."""
        set_attribute(self, blocks, "SYNC_BYTES", 4 * BLOCK)
        writer = self.writer(sync)
        self.fill(writer, 9)
        assert self.checkpoints == [4 * BLOCK, 8 * BLOCK]
        # What the blocks and the kernel hold comes to it: nobody sends more than 64 MiB again.
        assert SYNC_BYTES == 32 * 1024 * 1024

    def test_sync_falls_behind(self) -> None:
        """Writing stops when a sync is half as much again behind: so is what a crash costs."""
        set_attribute(self, blocks, "SYNC_BYTES", BLOCK)
        writer = self.writer(self.off)

        def write(count: int) -> Deferred[None]:
            done = go_on(writer.put(BLOCK_OF_BYTES))
            for _ in range(count):
                self.off.release(JOB)
            return done

        while "sync" not in self.off.names:
            now(write(1))
        stuck = write(1)
        assert not stuck.called
        self.off.release("sync")
        now(stuck)
        self.off.release_all()

    def test_hole(self) -> None:
        """What lies behind a block that could not be written never counts as durable."""
        set_attribute(self, blocks, "SYNC_BYTES", BLOCK)
        broken = StorageFailed("EIO")
        self.upload.failing = lambda what, count: broken if (what, count) == ("write", 2) else None
        writer = self.writer(self.off)
        error: Exception | None = None
        for _ in range(6):
            done = go_on(writer.put(BLOCK_OF_BYTES))
            while not done.called:
                self.off.release()
            try:
                now(done)
            except StorageFailed as found:
                error = found
                break
            self.off.release_all()
        assert error is broken
        settled = go_on(writer.settle())
        self.off.release_all()
        with pytest.raises(StorageFailed):
            now(settled)
        assert all(at <= BLOCK for at in self.checkpoints), self.checkpoints
        assert self.upload.durable[BLOCK:] == b""


class FailingTests(BlockCase):
    """Errors are reported once, and nothing fails unheard."""

    def test_sync_fails(self) -> None:
        """After a failed sync the handle is not synced again, and no offset moves."""
        self.upload.failing = lambda what, count: StorageFailed("EIO") if what == "sync" else None
        writer = self.writer(sync)
        self.clock.advance(SYNC_SECONDS)
        now(writer.put(b"a"))
        self.clock.advance(SYNC_SECONDS)
        with pytest.raises(StorageFailed):
            now(writer.put(b"b"))
        now(writer.settle())
        with pytest.raises(RuntimeError):
            now(writer.sync())
        assert self.upload.counts["sync"] == 1
        assert (self.checkpoints, writer.durable) == ([], 0)
        assert logged(self) == []

    def test_last_sync_fails(self) -> None:
        """The same for the sync at the end."""
        self.upload.failing = lambda what, count: StorageFailed("EIO") if what == "sync" else None
        writer = self.writer(sync)
        now(writer.put(b"a"))
        with pytest.raises(StorageFailed):
            now(writer.sync())
        with pytest.raises(RuntimeError):
            now(writer.sync())
        assert self.upload.counts["sync"] == 1

    def test_settle_waits_for_all(self) -> None:
        """When one block failed, `settle` still waits for the threads that hold the handle."""
        self.upload.failing = lambda what, count: StorageFailed("EIO")
        writer = self.writer(self.off)
        self.fill(writer, DEPTH - 1)
        settled = go_on(writer.settle())
        self.off.release(JOB)
        assert not settled.called
        self.off.release_all()
        with pytest.raises(StorageFailed):
            now(settled)
        assert logged(self) == []

    def test_settle_waits_for_the_sync(self) -> None:
        """The handle is free only when a sync under way has returned."""
        writer = self.writer(self.off)
        self.clock.advance(SYNC_SECONDS)
        now(writer.put(b"a"))
        self.off.release_all()
        self.clock.advance(SYNC_SECONDS)
        now(writer.put(b"b"))
        self.off.release(JOB)
        settled = go_on(writer.settle())
        assert self.off.names == ["sync"]
        assert not settled.called
        self.off.release_all()
        now(settled)

    def test_ledger_fails(self) -> None:
        """A checkpoint that the ledger could not commit is an error, and no offset moves."""
        self.ledger_answer = fail(LedgerFailed("disk full"))
        writer = self.writer(sync)
        self.clock.advance(SYNC_SECONDS)
        now(writer.put(b"a"))
        with pytest.raises(LedgerFailed):
            now(writer.put(b"b" * BLOCK))
        assert writer.durable == 0
        assert logged(self) == []
