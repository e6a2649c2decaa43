"""The disk as one process sees it: the system calls that the storage stands on."""

from __future__ import annotations

import errno
import os
import stat as modes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.simulation.disk import BLOCK, SECTOR, Change, Disk, Folder, Inode, put
from tests.simulation.timeline import Crash

if TYPE_CHECKING:
    from tests.simulation.process import Process

__all__ = ["View"]


@dataclass(frozen=True, slots=True)
class _Status:
    st_mode: int
    st_size: int
    st_blocks: int
    st_mtime_ns: int

    @property
    def st_mtime(self) -> float:
        return self.st_mtime_ns / 1e9


@dataclass(frozen=True, slots=True)
class _Volume:
    f_bavail: int
    f_blocks: int
    f_frsize: int = BLOCK


class _Entry:
    """As much of `os.DirEntry` as is used."""

    def __init__(self, name: str, path: str, found: Inode | Folder, status: _Status) -> None:
        self.name = name
        self.path = path
        self._found = found
        self._status = status

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return isinstance(self._found, Folder)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return isinstance(self._found, Inode)

    def stat(self, *, follow_symlinks: bool = True) -> _Status:
        return self._status


class _Listing:
    """What `os.scandir` gives."""

    def __init__(self, entries: list[_Entry]) -> None:
        self._entries = entries

    def __enter__(self) -> Iterator[_Entry]:
        return iter(self._entries)

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""


class View:
    """The disk as one process sees it (`interfaces.IVolume`)."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._process = process
        self._fds: dict[int, Inode | Folder] = {}
        self._next = 3

    def _begin(self, function: str, *, changes: bool = False) -> None:
        """Something is called: the process may die here, or the call fail."""
        disk = self._disk
        if not self._process.alive:
            raise Crash
        disk.calls += 1
        if changes and disk.crash_at is not None:
            disk.crash_at -= 1
            if disk.crash_at < 0:
                disk.crash_at = None
                disk.faults_met["crash_at_call"] += 1
                raise Crash
        for fault in disk.faults:
            if fault.function != function:
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.count -= 1
            if fault.count <= 0:
                disk.faults.remove(fault)
            name = errno.errorcode[fault.number]
            disk.failed_calls[f"{function} {name}"] += 1
            self._process.machine.note(f"{function} fails: {name}")
            raise OSError(fault.number, os.strerror(fault.number))

    def opened(self, fd: int) -> Inode | Folder:
        """What is open as ``fd``."""
        return self._fds[fd]

    def _file(self, fd: int) -> Inode:
        found = self._fds.get(fd)
        if not isinstance(found, Inode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return found

    def _status(self, found: Inode | Folder) -> _Status:
        if isinstance(found, Folder):
            return _Status(modes.S_IFDIR | 0o750, BLOCK, BLOCK // SECTOR, 0)
        return _Status(
            modes.S_IFREG | 0o640,
            len(found.data),
            found.blocks * BLOCK // SECTOR,
            found.modified_ns,
        )

    # -- files ------------------------------------------------------------------------------------

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self._begin("open", changes=bool(flags & os.O_CREAT))
        folder, name, found = self._disk.find(path)
        if found is None:
            if not flags & os.O_CREAT:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            found = Inode(int(self._process.timeline.now * 1e9))
            self._disk.change(Change((folder, name, found), None))
        elif flags & os.O_EXCL and flags & os.O_CREAT:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        if flags & os.O_DIRECTORY and isinstance(found, Inode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if isinstance(found, Inode):
            found.opened += 1
        self._next += 1
        self._fds[self._next] = found
        return self._next

    def close(self, fd: int) -> None:
        if not self._process.alive:
            raise Crash
        found = self._fds.pop(fd, None)
        if found is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if isinstance(found, Inode):
            found.opened -= 1

    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int, /) -> int:
        self._begin("pwritev", changes=True)
        file, piece = self._file(fd), b"".join(buffers)
        if self._disk.short_writes and len(piece) > 1 and self._disk.rng.random() < 0.3:
            piece = piece[: self._disk.rng.randint(1, len(piece) - 1)]
        end = offset + len(piece)
        self._disk.need(-(-end // BLOCK) - file.blocks)
        put(file.data, offset, piece)
        file.unsynced.append((offset, piece))
        return len(piece)

    def pread(self, fd: int, length: int, offset: int, /) -> bytes:
        self._begin("pread")
        return bytes(self._file(fd).data[offset : offset + length])

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, /) -> int:
        got = 0
        for buffer in buffers:
            data = self.pread(fd, len(buffer), offset + got)
            buffer[: len(data)] = data
            got += len(data)
        return got

    def posix_fadvise(self, fd: int, offset: int, length: int, advice: int, /) -> None:
        pass

    def residence(self, fd: int, offset: int, length: int, /) -> bytes | None:
        return None

    def ftruncate(self, fd: int, length: int, /) -> None:
        self._begin("ftruncate", changes=True)
        file = self._file(fd)
        del file.data[length:]
        file.data.extend(bytes(max(0, length - len(file.data))))
        file.allocated = min(file.allocated, length)
        file.unsynced.append((length, None))

    def posix_fallocate(self, fd: int, offset: int, length: int, /) -> None:
        self._begin("posix_fallocate", changes=True)
        file = self._file(fd)
        self._disk.need(-(-(offset + length) // BLOCK) - file.blocks)
        file.allocated = max(file.allocated, offset + length)
        if len(file.data) < offset + length:
            file.unsynced.append((offset + length, None))
            file.data.extend(bytes(offset + length - len(file.data)))

    def punch_hole(self, fd: int, offset: int, length: int, /) -> None:
        self._begin("punch_hole", changes=True)
        file = self._file(fd)
        end = min(offset + length, len(file.data))
        if end > offset:
            zeros = bytes(end - offset)
            put(file.data, offset, zeros)
            file.unsynced.append((offset, zeros))
            file.holes = max(file.holes, (offset + length) // BLOCK - -(-offset // BLOCK))

    def fsync(self, fd: int) -> None:
        self._sync("fsync", fd)

    def fdatasync(self, fd: int) -> None:
        self._sync("fdatasync", fd)

    def _sync(self, function: str, fd: int) -> None:
        found = self._fds.get(fd)
        try:
            self._begin(function, changes=True)
        except OSError:
            if isinstance(found, Inode):
                # The kernel tells once; these pages count as written from now on.
                found.unsynced.clear()
            raise
        if found is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if isinstance(found, Folder):
            self._disk.sync_folder(found)
            return
        for offset, written in found.unsynced:
            if written is None:
                del found.durable[offset:]
                found.durable.extend(bytes(max(0, offset - len(found.durable))))
            else:
                put(found.durable, offset, written)
        found.unsynced.clear()

    # -- what is there ----------------------------------------------------------------------------

    def fstat(self, fd: int) -> Any:
        self._begin("fstat")
        found = self._fds.get(fd)
        if found is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._status(found)

    def stat(self, path: str) -> Any:
        return self.lstat(path)

    def lstat(self, path: str) -> Any:
        self._begin("lstat")
        found = self._disk.find(path)[2]
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self._status(found)

    def access(self, path: str, mode: int) -> bool:
        return self._disk.find(path)[2] is not None

    def statvfs(self, path: str) -> Any:
        self._begin("statvfs")
        return _Volume(self._disk.free() // BLOCK, self._disk.capacity // BLOCK)

    def scandir(self, path: str) -> Any:
        self._begin("scandir")
        found = self._disk.find(path)[2]
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if isinstance(found, Inode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return _Listing(
            [
                _Entry(name, f"{path}/{name}", inner, self._status(inner))
                for name, inner in found.entries.items()
            ]
        )

    # -- names ------------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        self._begin("mkdir", changes=True)
        folder, name, found = self._disk.find(path)
        if found is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._disk.need(1)
        self._disk.change(Change((folder, name, Folder()), None))
        self._disk.count_folder(1)

    def rmdir(self, path: str) -> None:
        self._begin("rmdir", changes=True)
        folder, name, found = self._disk.find(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if isinstance(found, Inode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if found.entries:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), path)
        self._disk.change(Change(None, (folder, name)))
        self._disk.count_folder(-1)

    def rename(self, src: str, dst: str) -> None:
        self._begin("rename", changes=True)
        folder, name, found = self._disk.find(src)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), src)
        target, new, _ = self._disk.find(dst)
        self._disk.change(Change((target, new, found), (folder, name)))

    def unlink(self, path: str) -> None:
        self._begin("unlink", changes=True)
        folder, name, found = self._disk.find(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if isinstance(found, Folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self._disk.change(Change(None, (folder, name)))
