"""Which file is which video. What blocks is to be called off the reactor thread."""

from __future__ import annotations

import errno
import hashlib
import mimetypes
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from backupd.errors import Invalid
from backupd.interfaces import IFileSystem
from backupd.peer.open_file import FileGone
from backupd.requests import VideoId, video_key
from backupd.storage.names import is_component

__all__ = [
    "STILL",
    "Catalogue",
    "VideoFile",
    "Watcher",
    "content_type_of",
    "examine",
    "id_of",
    "video_of",
]

STILL = 60.0
"""Seconds for which a file must not have changed before it is taken for whole."""

MAX_ID = 128
MAX_NUMBER = 2**53 - 1

# The standard library's own table only: the same type on every machine.
_TYPES = mimetypes.MimeTypes()
_TYPES.add_type("video/x-matroska", ".mkv")


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A file as it is now."""

    path: str
    video: VideoId
    size: int
    modified_ns: int


def examine(path: str, fs: IFileSystem = os) -> tuple[int, int]:
    """Size and time of the last change of a regular file. Blocks.

    Raises `FileGone` when there is none any more, and `OSError`, also when it is empty.
    """
    try:
        found = fs.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise FileGone(f"{path} does not exist.") from error
        raise
    if not stat.S_ISREG(found.st_mode):
        raise FileGone(f"{path} is no file.")
    if found.st_size == 0:
        raise OSError(errno.ENODATA, "it is empty")
    if not fs.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return found.st_size, found.st_mtime_ns


def video_of(name: str) -> VideoId:
    """The id that a file or folder is called by: ``2.mp4`` is 2, ``holiday.mp4`` is "holiday"."""
    clean = "".join(char if char.isprintable() else "_" for char in name)
    if len(clean) > MAX_ID:
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{clean[: MAX_ID - 13]}~{digest[:12]}"
    return id_of(clean)


def id_of(text: str) -> VideoId:
    """The same video as ``text``: a number where that is written so, and ``text`` anywhere else."""
    if text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_NUMBER)):
        number = int(text)
        if number <= MAX_NUMBER and video_key(number) == text:
            return number
    return text


def stem_of(path: str) -> str:
    """The file's name without its extension."""
    return os.path.splitext(os.path.basename(path))[0]


def content_type_of(path: str) -> str | None:
    """The media type that the file's name tells of."""
    return _TYPES.guess_type(f"x{os.path.splitext(path)[1]}")[0]


class Catalogue:
    """The videos in ``folders``: ``2.mp4``, the largest file of a folder ``2``, or a name as id."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = [os.path.abspath(folder) for folder in folders]
        self.unreadable: dict[str, str] = {}
        """What `everything` could not look into the last time, and why."""

    def find(self, video: VideoId) -> str:
        """The path of a video's file. Blocks. Raises `Invalid` when there is none.

        A file with just this name comes before a folder, and that before a file whose name has
        an extension more; of several, the largest. The id is compared, never made a path.
        """
        key, trouble = video_key(video), ""
        for folder in self._folders if is_component(key) else ():
            try:
                path = _path_in(folder, key)
            except OSError as error:
                # Another may have it.
                trouble += f"; {error.filename or folder} cannot be read: {error.strerror}"
                continue
            if path is not None:
                return path
        where = ", ".join(self._folders) or "the settings: they name no `videos` folder"
        raise Invalid("videoId", f"video {key[:MAX_ID]!r} is not in {where}{trouble}")

    def everything(self) -> Iterator[VideoFile]:
        """Every video there is; empty and hidden files are none. Blocks.

        What cannot be looked into is in `unreadable` then, and hides nothing else.
        """
        self.unreadable = {}
        for folder in self._folders:
            try:
                entries = list(_visible(folder))
            except OSError as error:
                self.unreadable[folder] = str(error.strerror)
                continue
            for entry in entries:
                try:
                    file = _video_at(entry)
                except FileNotFoundError:
                    continue  # it was there a moment ago
                except OSError as error:
                    self.unreadable[entry.path] = str(error.strerror)
                    continue
                if file is not None:
                    yield file


def _path_in(folder: str, key: str) -> str | None:
    exact, inside, stems = [], [], []
    for entry in _visible(folder):
        if entry.name == key and entry.is_file():
            exact.append(entry)
        elif entry.name == key and entry.is_dir():
            inside += [one for one in _visible(entry.path) if one.is_file()]
        elif stem_of(entry.name) == key and entry.is_file():
            stems.append(entry)
    for found in (exact, inside, stems):
        if found:
            return max(found, key=lambda one: one.stat().st_size).path
    return None


def _video_at(entry: os.DirEntry[str]) -> VideoFile | None:
    """The video that an entry of a folder is, if it is one."""
    if entry.is_file():
        file, name = entry, stem_of(entry.name)
    elif entry.is_dir():
        inside = [one for one in _visible(entry.path) if one.is_file()]
        if not inside:
            return None
        file, name = max(inside, key=lambda one: one.stat().st_size), entry.name
    else:
        return None
    now = file.stat()
    return (
        VideoFile(file.path, video_of(name), now.st_size, now.st_mtime_ns) if now.st_size else None
    )


def _visible(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


@dataclass(slots=True)
class _Seen:
    file: VideoFile
    since: float
    reported: bool


class Watcher:
    """Tells of files that have not changed for `STILL` seconds, once per change."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._known: set[tuple[str, int, int]] = set()

    def know(self, path: str, size: int, modified_ns: int) -> None:
        """This file, as it was then, needs no telling."""
        self._known.add((path, size, modified_ns))

    def look(self, files: Iterable[VideoFile], now: float) -> list[VideoFile]:
        """Take in what there is at ``now``, in seconds; the files that are whole and new."""
        before, self._seen = self._seen, {}
        whole = []
        for file in files:
            seen = before.get(file.path)
            if seen is None or seen.file != file:
                known = (file.path, file.size, file.modified_ns) in self._known
                seen = _Seen(file, now, reported=known)
            elif not seen.reported and now - seen.since >= STILL:
                seen.reported = True
                # Also should it be away for a while, and be back.
                self.know(file.path, file.size, file.modified_ns)
                whole.append(file)
            self._seen[file.path] = seen
        return whole

    def forget(self, path: str) -> None:
        """It could not be taken: tell of it again after another `STILL` seconds."""
        seen = self._seen.pop(path, None)
        if seen is not None:
            self._known.discard((path, seen.file.size, seen.file.modified_ns))
