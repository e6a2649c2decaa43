"""What a trace of system calls proves: that nothing was acknowledged before it was durable."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from tests.integration.faults import WRITES

__all__ = ["TRACED", "Answered", "Call", "Trace"]

SYNCS = ("fdatasync", "fsync")
SENDS = ("sendto", "sendmsg", "write", "writev")
RENAMES = ("rename", "renameat", "renameat2", "link", "linkat")
TRACED = {*WRITES, *SYNCS, *SENDS, *RENAMES, "openat", "recvfrom", "read", "mkdir", "mkdirat"}
"""What has to be traced for a `Trace` to be read."""

_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")
_RESULT = re.compile(r"\)\s+= (-?\d+)(?:<|\s|$)")
_FILE = re.compile(r"\d+<(/[^>]*)>")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_AT = re.compile(r", (\d+)\)\s+= \d+")
_AT_WITH_FLAGS = re.compile(r", (\d+), (\w+(?:\|\w+)*)\)\s+= \d+")


@dataclass(frozen=True)
class Call:
    """One system call: when it began and ended, in lines of the trace."""

    name: str
    text: str
    began: int
    ended: int

    @property
    def result(self) -> int:
        found = _RESULT.findall(self.text)
        return int(found[-1]) if found else -1

    @cached_property
    def file(self) -> str | None:
        """The path behind the first descriptor."""
        match = _FILE.match(self.text)
        return None if match is None else match[1]

    @property
    def strings(self) -> list[str]:
        return _STRING.findall(self.text)


@dataclass(frozen=True)
class Answered:
    """An answer that acknowledges something."""

    status: int
    offset: int | None
    size: int | None
    text: str
    sent: int


@dataclass(frozen=True)
class _Written:
    start: int
    stop: int
    ended: int


class Trace:
    """A trace, and who may judge it; ``ledger`` is the path of the ledger's file."""

    def __init__(self, lines: Iterable[str], ledger: str) -> None:
        self.calls = list(_calls(lines))
        self._wal = f"{ledger}-wal"
        self._self_syncing = {
            call.text.rpartition("<")[2].rstrip(">")
            for call in self.calls
            if call.name == "openat" and re.search(r"\bO_D?SYNC\b", call.text)
        }

    # -- what became durable, and when ------------------------------------------------------------

    def uploads(self) -> list[tuple[int, str]]:
        """When which unfinished upload was made, in order."""
        found = []
        for call in self.calls:
            if call.name == "openat" and "O_CREAT" in call.text and call.result >= 0:
                path = call.text.rpartition("<")[2].rstrip(">")
                if "/incoming/" in path:
                    found.append((call.ended, path))
        return found

    def _written(self, path: str) -> list[_Written]:
        found, position = [], 0
        for call in self.calls:
            if call.name not in WRITES or call.file != path or call.result <= 0:
                continue
            if call.name in ("write", "writev"):
                start = position
                position += call.result
            else:
                pattern = _AT_WITH_FLAGS if call.name == "pwritev2" else _AT
                at = pattern.search(call.text)
                assert at is not None, f"no offset in {call.text[-200:]}"
                start = int(at[1])
            found.append(_Written(start, start + call.result, call.ended))
        return found

    def _synced(self, path: str) -> list[tuple[int, int]]:
        """When each sync of a file that succeeded began and ended."""
        return [
            (call.began, call.ended)
            for call in self.calls
            if (call.file == path and call.name in SYNCS and call.result == 0)
            or (path in self._self_syncing and call.file == path and call.name in WRITES)
        ]

    def durable(self, path: str, size: int) -> int | None:
        """When the first ``size`` bytes of a file were synced: every one, since it was written."""
        written = self._written(path)
        for began, ended in self._synced(path):
            reached = 0
            for one in sorted((w for w in written if w.ended <= began), key=lambda w: w.start):
                if one.start <= reached:
                    reached = max(reached, one.stop)
            if reached >= size:
                return ended
        return None

    def recorded(self, after: int) -> int | None:
        """When a commit of the ledger that began after that moment was synced."""
        commits = [c for c in self.calls if c.file == self._wal and c.name in WRITES]
        for began, ended in self._synced(self._wal):
            if any(after < commit.began and commit.ended <= began for commit in commits):
                return ended
        return None

    def folder_synced(self, path: str, after: int) -> int | None:
        """When a folder was synced by a call that began after that moment."""
        return next((ended for began, ended in self._synced(path) if began > after), None)

    # -- what was said ----------------------------------------------------------------------------

    def asked(self, method_and_path: str) -> list[int]:
        """When the heads of such requests came in."""
        return [
            call.ended
            for call in self.calls
            if call.name in ("recvfrom", "read")
            and call.strings
            and call.strings[0].startswith(method_and_path)
        ]

    def answers(self) -> list[Answered]:
        """Everything that acknowledges an offset or a success."""
        found = []
        for call in self.calls:
            text = call.strings[0] if call.name in SENDS and call.strings else ""
            match = re.match(r"HTTP/1\.1 (\d+) ", text)
            if match is None:
                continue
            offset = re.search(r"\\r\\nUpload-Offset: (\d+)\\r\\n", text, re.IGNORECASE)
            size = re.search(r'\\"size\\":(\d+)', text)
            if offset or (match[1] == "200" and r"\"success\":true" in text):
                found.append(
                    Answered(
                        int(match[1]),
                        int(offset[1]) if offset else None,
                        int(size[1]) if size else None,
                        text,
                        call.began,
                    )
                )
        return found

    # -- the verdicts -----------------------------------------------------------------------------

    def check_bytes(self, answer: Answered, path: str) -> None:
        """Every byte that this answer acknowledges was synced, then recorded, then acknowledged."""
        size = answer.offset if answer.offset is not None else answer.size
        assert size is not None, answer.text
        if size == 0:
            return
        synced = self.durable(path, size)
        assert synced is not None, f"{size} bytes were acknowledged, and never synced"
        assert synced < answer.sent, f"{size} bytes were acknowledged before they were synced"
        made = max(when for when, known in self.uploads() if known == path)
        named = self.folder_synced(path.rpartition("/")[0], made)
        assert named is not None, f"{size} bytes were acknowledged, and their name never synced"
        synced = max(synced, named)
        recorded = self.recorded(synced)
        assert recorded is not None, f"{size} bytes were acknowledged, and never recorded"
        assert recorded < answer.sent, f"{size} bytes were acknowledged before the record was"

    def check_kept(self, answer: Answered, upload: str, content: str, sidecar: str) -> None:
        """File, description and folders had their names durably before "stored" was said."""
        renamed: dict[str, int] = {}
        for call in self.calls:
            if call.name in RENAMES and call.result == 0:
                renamed[call.strings[1]] = call.began
        moved = renamed[content]
        whole = self._synced(upload)
        assert any(ended < moved for _, ended in whole), "renamed before it was synced"
        described = [ended for _, ended in self._synced(f"{sidecar.rpartition('/')[0]}/" + NEW)]
        assert any(ended < renamed[sidecar] for ended in described), "a description of nothing"
        last = max(moved, renamed[sidecar])
        folders = [content.rpartition("/")[0], upload.rpartition("/")[0]]
        done = [self.folder_synced(folder, last) for folder in folders]
        for folder, when in zip(folders, done, strict=True):
            assert when is not None, f"{folder} was not synced after the rename"
            assert when < answer.sent, f"{folder} was synced after the answer"
        for call in self.calls:
            if call.name.startswith("mkdir") and call.result == 0:
                parent = call.strings[0].rpartition("/")[0]
                if content.startswith(call.strings[0] + "/"):
                    synced = self.folder_synced(parent, call.ended)
                    assert synced is not None, f"{parent} was not synced for its new folder"
                    assert synced < answer.sent, f"{parent} was synced after the answer"
        recorded = self.recorded(max(when for when in done if when is not None))
        assert recorded is not None, "STORED was never recorded"
        assert recorded < answer.sent, "STORED was recorded after the answer"

    def check_no_second_sync(self, path: str) -> int:
        """No descriptor of a file, or of one in a folder whose path ends with a slash, was synced
        again after a sync of it failed; how many syncs did.
        """
        failed: set[str] = set()
        count = 0
        for call in self.calls:
            handle = call.text.partition("<")[0]
            if call.name == "openat" and (opened := _RESULT.findall(call.text)):
                failed.discard(opened[-1])
            within = call.file is not None and path.endswith("/") and call.file.startswith(path)
            if (call.file == path or within) and call.name in SYNCS:
                assert handle not in failed, "a descriptor was synced again after a failed sync"
                if call.result != 0:
                    failed.add(handle)
                    count += 1
        return count


NEW = ".backup.json.new"
"""The name of a description until it is whole."""


def _calls(lines: Iterable[str]) -> Iterator[Call]:
    """Calls in the order in which they ended; one that others interrupted is put together."""
    begun: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        match = _LINE.match(line)
        if match is None:
            continue
        thread, resumed, name, rest = match.groups()
        if resumed is not None:
            if thread in begun:
                began, first = begun.pop(thread)
                yield Call(resumed, first + rest, began, number)
        elif rest.endswith("<unfinished ...>"):
            begun[thread] = (number, rest.removesuffix("<unfinished ...>").rstrip())
        else:
            yield Call(name, rest, number, number)
