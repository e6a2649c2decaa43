"""Backups as plain files on a volume.

``<root>/<peer>/<video>/<backup id>/`` holds the video under its own name and `SIDECAR` beside it;
unfinished uploads lie in ``<root>/.backupd/incoming/<upload id>``. No name made from what a client
sent begins with a dot, so the two never meet. Symbolic links below the root are refused, never
followed; the root itself may be one.

Whoever calls takes care that one backup is not kept, described or removed by two at once;
different backups, also of one video, are free to.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import Any

from zope.interface import implementer

from backupd.errors import BytesGone, StorageFailed
from backupd.interfaces import Damaged, Found, IStorage, IStored, IUpload, IVolume, Part
from backupd.requests import Backup, VideoId, video_key
from backupd.storage import names, sidecar
from backupd.storage.files import DiskStored, DiskUpload, doing, write_all
from backupd.storage.names import INCOMING, PRIVATE, SIDECAR, is_component
from backupd.storage.page_cache import Rooms
from backupd.storage.shared import Shared
from backupd.storage.system import SYSTEM

__all__ = ["DiskStorage"]

_NEW_SIDECAR = f".{SIDECAR}.new"
_NOT_PEERS = frozenset({PRIVATE, "lost+found"})

MAX_TOLD = 1000
"""So much at most is said of one backup's folder."""

_FOLDER_MODE = 0o750
_FILE_MODE = 0o640
_SAFELY = os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY
_CHANGE = os.O_RDWR | _SAFELY
_READ = os.O_RDONLY | os.O_NONBLOCK | _SAFELY  # not blocking: should it be a pipe after all
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_BLOCK = 512  # the unit of st_blocks
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def _checked(identifier: str) -> str:
    if _ID.fullmatch(identifier) is None:
        raise StorageFailed(f"{identifier!r} is no id that files could be named after.")
    return identifier


@implementer(IStorage)
class DiskStorage:
    """Backups under the folder ``root``; ``fs`` takes the place of the system in tests."""

    def __init__(self, root: str, *, fs: IVolume = SYSTEM) -> None:
        self._root = os.path.abspath(root)
        self._fs = fs
        # Folders are made and removed by several threads: no one may remove, because it is
        # empty, a folder that another is about to use.
        self._folders = Lock()
        self._rooms = Rooms()
        self._sync_incoming = Shared(lambda: self._sync_folder(*INCOMING))

    def prepare(self) -> None:
        with doing("make the root folder"):
            self._make_root(self._root)
        self._make_folder(*INCOMING)

    def free(self) -> int:
        with doing("ask for the room on the volume"):
            volume = self._fs.statvfs(self._root)
        return int(volume.f_bavail * volume.f_frsize)

    def capacity(self) -> int:
        with doing("ask for the size of the volume"):
            volume = self._fs.statvfs(self._root)
        return int(volume.f_blocks * volume.f_frsize)

    # -- unfinished uploads ---------------------------------------------------------------------

    def create(self, upload_id: str) -> IUpload:
        # Its entry in the folder is synced with its first bytes: without any it may be gone.
        path = self._incoming(upload_id)
        with doing(f"create the upload {upload_id}"):
            fd = self._fs.open(path, _CREATE, _FILE_MODE)
        return DiskUpload(self._fs, fd, f"upload {upload_id}", path, self._sync_incoming)

    def reopen(self, upload_id: str) -> IUpload:
        path = self._incoming(upload_id)
        if self._size(path, f"upload {upload_id}") is None:
            raise BytesGone(f"The bytes of the upload {upload_id} are gone.", upload_id)
        with doing(f"open the upload {upload_id}"):
            fd = self._fs.open(path, _CHANGE)
        return DiskUpload(self._fs, fd, f"upload {upload_id}", path)

    def rename(self, upload_id: str, new_id: str) -> None:
        old, new = self._incoming(upload_id), self._incoming(new_id)
        there = self._size(old, f"upload {upload_id}") is not None
        done = self._size(new, f"upload {new_id}") is not None
        if there and done:
            raise StorageFailed(f"The uploads {upload_id} and {new_id} are both there.")
        if not there and not done:
            raise BytesGone(f"The bytes of the upload {upload_id} are gone.", upload_id)
        with doing(f"rename the upload {upload_id}"):
            if there:
                self._fs.rename(old, new)
            # Also when an earlier try got as far as here: it may not have got any further.
            self._sync_folder(*INCOMING)

    def discard(self, upload_id: str) -> None:
        path = self._incoming(upload_id)
        with doing(f"discard the upload {upload_id}"):
            self._unlink(path)

    def uploads(self) -> dict[str, int]:
        if not self._is_there(*INCOMING):
            return {}
        found: dict[str, int] = {}
        with (
            doing("list the unfinished uploads"),
            self._fs.scandir(self._path(*INCOMING)) as entries,
        ):
            for entry in entries:
                if _ID.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # discarded meanwhile
                        blocks = entry.stat(follow_symlinks=False).st_blocks
                        found[entry.name] = blocks * _BLOCK
        return found

    # -- backups --------------------------------------------------------------------------------

    def place(self, peer: str, video: VideoId, backup_id: str, file_name: str) -> tuple[str, str]:
        folders = names.folder_name(peer), names.folder_name(video_key(video)), _checked(backup_id)
        return "/".join(folders), names.file_name(file_name, video, None)

    def keep(self, upload_id: str, backup: Backup) -> None:
        upload, parts = self._incoming(upload_id), self._parts(backup)
        target = self._path(*parts, backup.name)
        self._is_there(*parts)  # or not yet: but nothing else is in its place
        arrived = self._size(upload, f"upload {upload_id}")
        kept = self._size(target, f"file of the backup {backup.backup_id}")
        self._check_keep(upload_id, arrived, backup, kept)

        self._make_folder(*parts)
        if arrived is not None:
            with doing(f"cut the upload {upload_id} to {backup.size} bytes"):
                self._change(upload, lambda fd: self._fs.ftruncate(fd, backup.size))
        self._write_sidecar(parts, backup)
        if arrived is not None:
            with doing(f"give the upload {upload_id} its final name"):
                self._fs.rename(upload, target)
        # Also when an earlier try got as far as here: it may not have got any further.
        with doing(f"sync the folders of the backup {backup.backup_id}"):
            self._sync_folder(*parts)
            self._sync_incoming()

    def describe(self, backup: Backup) -> None:
        self._stored_path(backup)
        parts = self._parts(backup)
        self._write_sidecar(parts, backup)
        with doing(f"sync the folder of the backup {backup.backup_id}"):
            self._sync_folder(*parts)

    def open(self, backup: Backup) -> IStored:
        path = self._stored_path(backup)
        what = f"backup {backup.backup_id}"
        with doing(f"open the {what}"):
            fd = self._fs.open(path, _READ)

        def direct() -> int:
            return self._fs.open(path, _READ | os.O_DIRECT)

        return DiskStored(self._fs, fd, what, direct, self._rooms)

    def remove(self, backup: Backup) -> None:
        # The sidecar goes last: what a crash leaves is `Damaged` and says whose video it was,
        # not a large file that nobody knows.
        parts = self._parts(backup)
        if self._is_there(*parts):
            with doing(f"remove the backup {backup.backup_id}"):
                for name in (backup.name, _NEW_SIDECAR, SIDECAR):
                    self._unlink(self._path(*parts, name))
        with doing(f"remove the folder of the backup {backup.backup_id}"):
            with self._folders:
                depth = self._remove_empty(parts)
            # One sync is enough: whatever else went was below that folder.
            self._sync_innermost(parts[:depth])

    def walk(self) -> Iterator[Found | Damaged]:
        return self._walk(())

    def inspect(self, folder: str) -> list[Found | Damaged]:
        parts = tuple(folder.split("/"))
        try:
            if not self._is_there(*parts):
                return [_damaged(parts, "Its folder is gone.", Part.FILE)]
        except StorageFailed as error:
            return [_damaged(parts, str(error), Part.FILE)]
        return list(islice(self._inspect(parts), MAX_TOLD))

    # -- the steps of `keep` and `remove` -------------------------------------------------------

    def _check_keep(
        self, upload_id: str, arrived: int | None, backup: Backup, kept: int | None
    ) -> None:
        if arrived is None and kept is None:
            raise BytesGone(
                f"Neither the upload {upload_id} nor the backup {backup.backup_id} is there.",
                upload_id,
            )
        if arrived is not None and kept is not None:
            raise StorageFailed(
                f"The upload {upload_id} would replace the file of the backup {backup.backup_id}."
            )
        if arrived is not None and arrived < backup.size:
            raise BytesGone(
                f"The upload {upload_id} has {arrived} of the backup's {backup.size} bytes.",
                upload_id,
            )
        if kept is not None and kept != backup.size:
            raise StorageFailed(
                f"The file of the backup {backup.backup_id} has {kept} bytes, not {backup.size}."
            )

    def _change(self, path: str, change: Callable[[int], object]) -> None:
        """Do something to the content of a file, and sync it."""
        fd = self._fs.open(path, _CHANGE)
        try:
            change(fd)
            self._fs.fsync(fd)
        finally:
            self._fs.close(fd)

    def _write_sidecar(self, parts: tuple[str, ...], backup: Backup) -> None:
        """Replace the sidecar whole; the caller syncs the folder."""
        new, data = self._path(*parts, _NEW_SIDECAR), sidecar.encode(backup)
        with doing(f"write the description of the backup {backup.backup_id}"):
            self._unlink(new)
            fd = self._fs.open(new, _CREATE, _FILE_MODE)
            try:
                write_all(self._fs, fd, [data], 0)
                self._fs.fsync(fd)
            finally:
                self._fs.close(fd)
            self._fs.rename(new, self._path(*parts, SIDECAR))

    def _remove_empty(self, parts: tuple[str, ...]) -> int:
        """Remove the innermost folder and those around it that are empty; how many are left."""
        for depth in range(len(parts), 0, -1):
            try:
                self._fs.rmdir(self._path(*parts[:depth]))
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return depth
                raise
        return 0

    # -- walking --------------------------------------------------------------------------------

    def _walk(self, parts: tuple[str, ...]) -> Iterator[Found | Damaged]:
        try:
            with self._fs.scandir(self._path(*parts)) as entries:
                for entry in entries:
                    below = (*parts, entry.name)
                    if entry.name in _NOT_PEERS and not parts:
                        continue
                    if not entry.is_dir(follow_symlinks=False):
                        yield _damaged(below, "It is not a folder, and not part of a backup.")
                    elif len(below) < 3:
                        yield from self._walk(below)
                    else:
                        yield from self._inspect(below)
        except FileNotFoundError as error:
            if not parts:
                raise StorageFailed("The root folder is gone.") from error
        except OSError as error:
            if not parts:
                raise StorageFailed(f"Could not list the root folder: {error.strerror}.") from error
            yield _damaged(parts, f"It cannot be listed: {error.strerror}.", Part.FOLDER)

    def _inspect(self, parts: tuple[str, ...]) -> Iterator[Found | Damaged]:
        """What is to be said of one backup's folder."""
        description = (*parts, SIDECAR)
        if not all(is_component(part) for part in parts):
            yield _damaged(parts, "Its path is not one that a backup could have.")
            return
        try:
            backup = sidecar.decode(self._read_sidecar(parts), "/".join(parts))
        except FileNotFoundError:
            yield _damaged(parts, f"There is no {SIDECAR} in it.", Part.DESCRIPTION)
            return
        except OSError as error:
            yield _damaged(description, f"It cannot be read: {error.strerror}.", Part.DESCRIPTION)
            return
        except ValueError as error:
            yield _damaged(description, str(error), Part.DESCRIPTION)
            return
        file = (*parts, backup.name)
        try:
            status = self._status(self._path(*file), "file of the backup")
        except StorageFailed as error:
            yield _damaged(file, str(error), Part.FILE)
        else:
            if status is None:
                yield _damaged(file, "It is missing.", Part.FILE)
            elif status.st_size != backup.size:
                why = f"It has {status.st_size} bytes, its description says {backup.size}."
                yield _damaged(file, why, Part.FILE)
            else:
                yield Found(backup=backup, changed_at=status.st_mtime)
        yield from self._foreign(parts, {backup.name, SIDECAR, _NEW_SIDECAR})

    def _foreign(self, parts: tuple[str, ...], ours: set[str]) -> Iterator[Damaged]:
        try:
            with self._fs.scandir(self._path(*parts)) as entries:
                for entry in entries:
                    if entry.name not in ours:
                        yield _damaged((*parts, entry.name), "It is not part of the backup.")
        except OSError as error:
            yield _damaged(parts, f"It cannot be listed: {error.strerror}.", Part.FOLDER)

    def _read_sidecar(self, parts: tuple[str, ...]) -> bytes:
        fd = self._fs.open(self._path(*parts, SIDECAR), _READ)
        try:
            data = self._fs.pread(fd, sidecar.MAX_SIZE + 1, 0)
        finally:
            self._fs.close(fd)
        if len(data) > sidecar.MAX_SIZE:
            raise ValueError("It is longer than any description.")
        return data

    # -- paths, folders, and what is there ------------------------------------------------------

    def _path(self, *parts: str) -> str:
        return os.path.join(self._root, *parts)

    def _incoming(self, upload_id: str) -> str:
        path = self._path(*INCOMING, _checked(upload_id))
        if not self._is_there(*INCOMING):
            raise StorageFailed(f"The folder {'/'.join(INCOMING)} is gone; is the volume mounted?")
        return path

    def _parts(self, backup: Backup) -> tuple[str, ...]:
        """The folders of a backup below the root, outermost first."""
        parts = tuple(backup.folder.split("/"))
        if len(parts) != 3 or not all(is_component(part) for part in (*parts, backup.name)):
            raise StorageFailed(f"The backup {backup.backup_id} has no place below the root.")
        if parts[2] != _checked(backup.backup_id) or backup.name.casefold() == SIDECAR:
            raise StorageFailed(f"The backup {backup.backup_id} has the place of something else.")
        return parts

    def _stored_path(self, backup: Backup) -> str:
        parts = self._parts(backup)
        path = self._path(*parts, backup.name)
        what = f"file of the backup {backup.backup_id}"
        if not self._is_there(*parts) or self._size(path, what) is None:
            raise StorageFailed(f"The {what} is gone.")
        return path

    def _is_there(self, *parts: str) -> bool:
        """Whether this folder is; `StorageFailed` when something else is in its place."""
        for depth in range(1, len(parts) + 1):
            where = "/".join(parts[:depth])
            with doing(f"look at {where}"):
                try:
                    mode = self._fs.lstat(self._path(*parts[:depth])).st_mode
                except FileNotFoundError:
                    return False
            if not stat.S_ISDIR(mode):
                raise StorageFailed(f"{where} is not a folder.")
        return True

    def _size(self, path: str, what: str) -> int | None:
        """The size of a plain file, None when there is none; `StorageFailed` for anything else."""
        status = self._status(path, what)
        return None if status is None else int(status.st_size)

    def _status(self, path: str, what: str) -> Any:
        with doing(f"look at the {what}"):
            try:
                status = self._fs.lstat(path)
            except FileNotFoundError:
                return None
        if not stat.S_ISREG(status.st_mode):
            raise StorageFailed(f"The {what} is not a plain file.")
        return status

    def _make_root(self, path: str) -> None:
        try:
            self._fs.mkdir(path, _FOLDER_MODE)
        except FileExistsError:
            return
        except FileNotFoundError:
            self._make_root(os.path.dirname(path))
            self._fs.mkdir(path, _FOLDER_MODE)
        self._sync(os.path.dirname(path), _FOLDER)

    def _make_folder(self, *parts: str) -> None:
        """Make a folder and those around it, durably, where they are missing."""
        where = "/".join(parts)
        with self._folders, doing(f"make the folder {where}"):
            for depth in range(1, len(parts) + 1):
                if not self._is_there(*parts[:depth]):
                    self._fs.mkdir(self._path(*parts[:depth]), _FOLDER_MODE)
        # Also around folders that were there: a crash may have come between making and syncing.
        with doing(f"sync the folders around {where}"):
            for depth in range(len(parts)):
                self._sync_folder(*parts[:depth])

    def _sync_folder(self, *parts: str) -> None:
        self._sync(self._path(*parts), _FOLDER | os.O_NOFOLLOW if parts else _FOLDER)

    def _sync_innermost(self, parts: tuple[str, ...]) -> None:
        """Sync a folder, or the one around it that is left when another thread removed it."""
        while True:
            try:
                return self._sync_folder(*parts)
            except FileNotFoundError:
                if not parts:
                    raise
                parts = parts[:-1]

    def _sync(self, path: str, flags: int) -> None:
        fd = self._fs.open(path, flags)
        try:
            self._fs.fsync(fd)
        finally:
            self._fs.close(fd)

    def _unlink(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.unlink(path)


def _damaged(parts: tuple[str, ...], why: str, part: Part = Part.FOREIGN) -> Damaged:
    """``why`` about a path below the root; bytes in it that are not UTF-8 are shown as escapes."""
    path = os.fsencode("/".join(parts)).decode("utf-8", "backslashreplace")
    return Damaged(path=path, why=why, part=part)
