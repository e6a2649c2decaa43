"""A disk that forgets what was not synced, is full, fails, and is torn by a power cut.

What the kernel has in memory and what the disk has are two things here. `power_cut` throws the
first away, but for what happened to be written back: any part of the writes of a file that were
not synced, any beginning of the changes of a folder that were not. A rename happens whole or not
at all, as on a journalling file system. A failed sync is told once: what it was to write is lost,
and the next sync says nothing of it (fsync(2) on Linux).
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["BLOCK", "SECTOR", "Change", "Disk", "Fault", "Folder", "Inode", "put"]

BLOCK = 4096
SECTOR = 512


@dataclass(eq=False)
class Inode:
    """A file. ``data`` is what is read; ``durable`` what a power cut leaves for certain."""

    modified_ns: int
    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Writes ``(offset, bytes)``, and cuts ``(length, None)``, in their order."""
    allocated: int = 0
    holes: int = 0
    """Blocks at its start that were given back."""

    links: int = 0
    opened: int = 0

    @property
    def blocks(self) -> int:
        return max(-(-len(self.data) // BLOCK), -(-self.allocated // BLOCK)) - self.holes


@dataclass(eq=False)
class Folder:
    """A folder, as it is and as it is on the disk."""

    entries: dict[str, Inode | Folder] = field(default_factory=dict)
    durable: dict[str, Inode | Folder] = field(default_factory=dict)


@dataclass(slots=True)
class Change:
    """What was done to folders: names that appear, names that go; both or neither."""

    appear: tuple[Folder, str, Inode | Folder] | None
    vanish: tuple[Folder, str] | None

    def folders(self) -> list[Folder]:
        return [one[0] for one in (self.appear, self.vanish) if one is not None]

    def apply(self, which: Callable[[Folder], dict[str, Inode | Folder]]) -> None:
        if self.vanish is not None:
            which(self.vanish[0]).pop(self.vanish[1], None)
        if self.appear is not None:
            which(self.appear[0])[self.appear[1]] = self.appear[2]


@dataclass(slots=True)
class Fault:
    """The next ``count`` calls of ``function`` fail with ``number``, once ``skip`` have passed."""

    function: str
    number: int
    skip: int
    count: int


class Disk:
    """The disk of a machine; it outlives every process. ``note`` is told of injected faults."""

    def __init__(self, capacity: int, rng: random.Random, note: Callable[[str], None]) -> None:
        self.capacity = capacity
        self.rng = rng
        self.root = Folder()
        self.foreign = 0
        """Bytes that other programs have taken."""
        self.faults: list[Fault] = []
        self.crash_at: int | None = None
        """After so many more changing calls the process dies."""
        self.calls = 0
        self.faults_met: Counter[str] = Counter()
        """What has happened in calls, by kind."""
        self.failed_calls: Counter[str] = Counter()
        """Those that were made to fail, by function and error."""
        self.full = 0
        """How often there was truly no room, and nobody else had taken it."""
        self.short_writes = False
        self._note = note
        self._journal: list[Change] = []
        self._inodes: dict[Inode, None] = {}
        self._folders = 0

    # -- room -------------------------------------------------------------------------------------

    def used(self) -> int:
        """Bytes that our own files and folders occupy."""
        blocks = self._folders
        for inode in [one for one in self._inodes if not (one.links or one.opened)]:
            del self._inodes[inode]
        for inode in self._inodes:
            blocks += inode.blocks
        return blocks * BLOCK

    def free(self) -> int:
        return max(0, self.capacity - self.foreign - self.used())

    def need(self, blocks: int) -> None:
        """Raises ENOSPC unless so many more blocks can be had."""
        if blocks > 0 and blocks * BLOCK > self.free():
            if not self.foreign:
                self.full += 1
            self._note(f"no room for {blocks} blocks, {self.free()} bytes free")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # -- names ------------------------------------------------------------------------------------

    def find(self, path: str) -> tuple[Folder, str, Inode | Folder | None]:
        """The folder that ``path`` is in, its name there, and what has it. Raises `OSError`."""
        parts = [part for part in path.split("/") if part]
        folder = self.root
        if not parts:
            return folder, "", folder
        for part in parts[:-1]:
            inner = folder.entries.get(part)
            if inner is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if isinstance(inner, Inode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            folder = inner
        return folder, parts[-1], folder.entries.get(parts[-1])

    def change(self, change: Change) -> None:
        if change.vanish is not None:
            gone = change.vanish[0].entries.get(change.vanish[1])
            if isinstance(gone, Inode):
                gone.links -= 1
        if change.appear is not None:
            over = change.appear[0].entries.get(change.appear[1])
            if isinstance(over, Inode):
                over.links -= 1
            if isinstance(change.appear[2], Inode):
                change.appear[2].links += 1
                self._inodes[change.appear[2]] = None
        change.apply(lambda folder: folder.entries)
        self._journal.append(change)

    def count_folder(self, sign: int) -> None:
        self._folders += sign

    def sync_folder(self, folder: Folder) -> None:
        """What was done to it is on the disk, and what that stands on."""
        concerned = {id(folder)}
        last = -1
        # From the newest back: what a change stands on was done before it.
        chosen: list[bool] = [False] * len(self._journal)
        for place in range(len(self._journal) - 1, last, -1):
            change = self._journal[place]
            touched = [id(one) for one in change.folders()]
            if any(one in concerned for one in touched):
                chosen[place] = True
                concerned.update(touched)
        for place, change in enumerate(self._journal):
            if chosen[place]:
                change.apply(lambda one: one.durable)
        self._journal = [c for place, c in enumerate(self._journal) if not chosen[place]]

    def take(self, path: str) -> bool:
        """Somebody else removes a file, durably; whether there was one."""
        folder, name, found = self.find(path)
        if not isinstance(found, Inode):
            return False
        self.change(Change(None, (folder, name)))
        self.sync_folder(folder)
        return True

    # -- the end of a process ---------------------------------------------------------------------

    def process_died(self) -> None:
        """Nobody has anything open any more."""
        for inode in self._inodes:
            inode.opened = 0

    def power_cut(self) -> None:
        """Forget what was not synced, but for what chance had written back."""
        self.process_died()
        rng = self.rng
        keep = rng.choice((0.0, 0.5, 1.0))
        lost: set[int] = set()
        for change in self._journal:
            touched = [id(folder) for folder in change.folders()]
            if rng.random() < keep and not any(one in lost for one in touched):
                change.apply(lambda folder: folder.durable)
            else:
                lost.update(touched)
        self._journal.clear()
        kept = rng.choice((0.0, 0.5, 1.0))
        inodes: dict[Inode, None] = {}
        self._folders = self._restore(self.root, inodes)
        for inode in inodes:
            self._tear(inode, kept)
        self._inodes = inodes

    def _restore(self, folder: Folder, inodes: dict[Inode, None]) -> int:
        """Make what is on the disk what is there; how many folders that are."""
        count = 0
        folder.entries = dict(folder.durable)
        for inner in folder.entries.values():
            if isinstance(inner, Folder):
                count += 1 + self._restore(inner, inodes)
            else:
                inner.links = inner.links + 1 if inner in inodes else 1
                inodes[inner] = None
        return count

    def _tear(self, inode: Inode, kept: float) -> None:
        data, rng = inode.durable, self.rng
        for offset, written in inode.unsynced:
            chance = rng.random()
            if chance >= kept:
                continue
            if written is None:
                del data[offset:]
                data.extend(bytes(max(0, offset - len(data))))
                continue
            for start in range(0, len(written), SECTOR):
                # The last write may be torn: some of its sectors are there.
                if chance < kept / 2 or rng.random() < 0.5:
                    put(data, offset + start, written[start : start + SECTOR])
        inode.unsynced.clear()
        inode.data = bytearray(data)
        inode.durable = data

    # -- for whoever looks from outside -----------------------------------------------------------

    def content(self, path: str) -> bytes | None:
        """What a file has, None when there is none."""
        try:
            found = self.find(path)[2]
        except OSError:
            return None
        return bytes(found.data) if isinstance(found, Inode) else None

    def durable(self, path: str) -> bytes | None:
        """What a power cut leaves of a file for certain."""
        found: Inode | Folder | None = self.root
        for part in path.split("/")[1:]:
            found = found.durable.get(part) if isinstance(found, Folder) else None
        return bytes(found.durable) if isinstance(found, Inode) else None

    def occupied(self, path: str) -> int | None:
        """Bytes of the blocks of a file, None when there is none."""
        try:
            found = self.find(path)[2]
        except OSError:
            return None
        return found.blocks * BLOCK if isinstance(found, Inode) else None

    def names(self, path: str) -> list[str]:
        """What is in a folder."""
        try:
            found = self.find(path)[2]
        except OSError:
            return []
        return list(found.entries) if isinstance(found, Folder) else []

    def everything(self, path: str = "") -> Iterator[tuple[str, bytes]]:
        """Every file below ``path``, with what it has."""
        for name in self.names(path):
            found = self.find(f"{path}/{name}")[2]
            if isinstance(found, Inode):
                yield f"{path}/{name}", bytes(found.data)
            else:
                yield from self.everything(f"{path}/{name}")

    def put(self, path: str, content: bytes, modified_ns: int, *, over: bool = False) -> None:
        """A whole file, on the disk, with the folders around it; ``over`` the one that is there."""
        folder = self.root
        *around, name = [part for part in path.split("/") if part]
        for part in around:
            inner = folder.entries.get(part)
            if not isinstance(inner, Folder):
                inner = Folder()
                folder.entries[part] = folder.durable[part] = inner
                self._folders += 1
            folder = inner
        known = folder.entries.get(name)
        if isinstance(known, Inode):
            if over:
                known.data, known.durable = bytearray(content), bytearray(content)
                known.modified_ns = modified_ns
                return
            known.links -= 1
        inode = Inode(modified_ns, bytearray(content), bytearray(content), links=1)
        folder.entries[name] = folder.durable[name] = inode
        self._inodes[inode] = None


def put(data: bytearray, offset: int, piece: bytes | memoryview) -> None:
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(piece)] = piece
