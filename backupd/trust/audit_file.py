"""The audit log on the disk: lines of JSON that are only ever added to.

``audit.jsonl`` is the newest, ``audit.jsonl.1`` the one before it, and so on: `FILES` in all, of
`MAX_SIZE` bytes each. Events are numbered through, also from one file to the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from backupd.errors import StorageFailed

__all__ = ["FILES", "MAX_SIZE", "AuditFile"]

MAX_SIZE = 16 * 1024 * 1024
FILES = 16

_TAIL = 64 * 1024
"""No line is longer than this."""

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class AuditFile:
    """The files. Every method blocks; `append` is called by one thread at a time."""

    def __init__(self, path: str, *, max_size: int = MAX_SIZE, files: int = FILES) -> None:
        self._path = path
        self._max_size = max_size
        self._files = files
        self._fd: int | None = None
        self._size = 0
        self._number = 0

    def append(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Add events, durably, all or none. Raises `StorageFailed`."""
        try:
            self._append(events)
        except OSError as error:
            self.close()
            raise StorageFailed(
                f"The audit log {self._path} cannot be written: {error.strerror}."
            ) from error

    def _append(self, events: Sequence[Mapping[str, Any]]) -> None:
        fd = self._open()
        number = self._number
        lines = []
        for event in events:
            number += 1
            text = json.dumps({"n": number} | dict(event), ensure_ascii=True)
            lines.append(f"{text}\n".encode("ascii"))
        data = b"".join(lines)
        if self._size and self._size + len(data) > self._max_size:
            self._rotate()
            fd = self._open()
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        except OSError:
            # What is said of these events later must not be there twice, nor half a line.
            with contextlib.suppress(OSError):
                os.ftruncate(fd, self._size)
            raise
        self._size += len(data)
        self._number = number

    def _open(self) -> int:
        if self._fd is not None:
            return self._fd
        fd = os.open(self._path, _FLAGS, 0o600)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise StorageFailed(f"The audit log {self._path} is no file.")
            os.fchmod(fd, 0o600)
            if found.st_size and os.pread(fd, 1, found.st_size - 1) != b"\n":
                os.write(fd, b"\n")
            if not found.st_size:
                self._sync_folder()
            self._size = os.fstat(fd).st_size
            self._number = self._last_number()
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return fd

    def _rotate(self) -> None:
        self.close()
        for number in range(self._files - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._name(number - 1), self._name(number))
        self._sync_folder()

    def _sync_folder(self) -> None:
        folder = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Let go of the file; the next event opens it again."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):
                os.close(fd)

    # -- reading ----------------------------------------------------------------------------------

    def read(self, after: int | None, limit: int) -> list[dict[str, Any]]:
        """The first events after that number, or the last there are. Raises `StorageFailed`."""
        found: list[dict[str, Any]] = []
        try:
            if after is None:
                after = max(0, self._last_number() - limit)
            for number in range(self._files - 1, -1, -1):
                with contextlib.suppress(FileNotFoundError), open(self._name(number), "rb") as file:
                    if _last(file) > after:
                        found += _take(file, after, limit - len(found))
                if len(found) >= limit:
                    break
        except OSError as error:
            raise StorageFailed(
                f"The audit log {self._path} cannot be read: {error.strerror}."
            ) from error
        return found

    def _last_number(self) -> int:
        for number in range(self._files):
            with contextlib.suppress(FileNotFoundError), open(self._name(number), "rb") as file:
                if (last := _last(file)) > 0:
                    return last
        return 0

    def _name(self, number: int) -> str:
        return f"{self._path}.{number}" if number else self._path


def _event(line: bytes) -> dict[str, Any] | None:
    """What a line says; None for one that a crash has cut."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("n"), int) else None


def _events(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    for line in file:
        if (event := _event(line)) is not None:
            yield event


def _last(file: IO[bytes]) -> int:
    """The number of the last event in a file; 0 when there is none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    numbers = [int(event["n"]) for event in _events(file)]
    return numbers[-1] if numbers else 0


def _take(file: IO[bytes], after: int, limit: int) -> list[dict[str, Any]]:
    """The first events with a larger number: where they begin is found by halving."""
    low, high = 0, file.seek(0, os.SEEK_END)
    while low < high:
        middle = (low + high) // 2
        _align(file, middle)
        event = next(_events(file), None)
        if event is None or event["n"] > after:
            high = middle
        else:
            low = middle + 1
    _align(file, low)
    found: list[dict[str, Any]] = []
    for event in _events(file):
        if len(found) >= limit:
            break
        if event["n"] > after:
            found.append(event)
    return found


def _align(file: IO[bytes], at: int) -> None:
    """Go to the first line that begins behind ``at``, or at the very beginning."""
    file.seek(at)
    if at:
        file.readline()
