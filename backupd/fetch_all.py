"""Bringing every video back: what goes where, several at once, and on again where it was cut."""

from __future__ import annotations

import errno
import hashlib
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backupd.control import Api, ApiFailed
from backupd.errors import BackupdError
from backupd.fetch import Unfit, fetch, name_of
from backupd.requests import video_key
from backupd.sender.catalogue import stem_of, video_of
from backupd.storage.names import folder_name
from backupd.trust.files import sync_folder

__all__ = ["AllFetched", "Outcome", "Wanted", "plan"]

TRIES = 5
"""So often in a row nothing more may come of one file; the waits between are 1, 2, 4 … seconds."""

_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG}
_READ = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file that is to be there in the end: the backups that it may be, best first.

    ``newest`` is the one that it should be: whole ones come before damaged ones.
    """

    newest: Any
    choices: tuple[Any, ...]
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """``state`` is restored, there (it was already), older (than should be), or missing."""

    wanted: Wanted
    state: str
    why: str = ""
    backup: Any = None


class _Lost(BackupdError):
    """This copy cannot be had; another may."""


class _Hopeless(BackupdError):
    """Nothing more can be had: it is the same for every file."""


# -- what goes where -------------------------------------------------------------------------------


def plan(backups: Iterable[Any], *, every: bool = False) -> list[Wanted]:
    """The files for ``backups`` of one peer, listed oldest first: the newest of each video.

    The sender finds each video there by its id: the file lies under its own name where that tells
    the id, and in a folder that is called by the id where it does not. With ``every`` each version
    has a folder of its own in there. It depends on the list alone, so a second run goes on.
    Whatever the server says, each part of a path is a name in the folder before it.
    """
    versions: dict[str, list[Any]] = {}
    for backup in backups:
        versions.setdefault(video_key(backup["videoId"]), []).append(backup)
    found: list[tuple[Any, tuple[Any, ...], list[tuple[str, ...]]]] = []
    for listed in versions.values():
        newest_first = [one for _, one in sorted(enumerate(listed), key=_age, reverse=True)]
        if every:
            found += [(one, (one,), [_version_path(one)]) for one in newest_first]
        else:
            whole_first = sorted(newest_first, key=lambda one: bool(one["problem"]))
            newest = newest_first[0]
            found.append((newest, tuple(whole_first), _paths(newest)))
    levels = _apart([paths for _, _, paths in found])
    return [
        Wanted(newest, choices, paths[level])
        for (newest, choices, paths), level in zip(found, levels, strict=True)
    ]


def _age(numbered: tuple[int, Any]) -> tuple[str, int]:
    return numbered[1]["storedAt"], numbered[0]


def _paths(backup: Any) -> list[tuple[str, ...]]:
    """Where it may lie: each further one meets fewer others."""
    name, key = name_of(backup), video_key(backup["videoId"])
    folder = folder_name(key)
    paths = [(folder, name), (folder, folder_name(backup["backupId"]), name)]
    return [(name,), *paths] if video_key(video_of(stem_of(name))) == key else paths


def _version_path(backup: Any) -> tuple[str, ...]:
    stamp = backup["storedAt"][:19].replace(":", "-")
    folder = folder_name(video_key(backup["videoId"]))
    return folder, folder_name(f"{stamp}-{backup['backupId']}"), name_of(backup)


def _apart(paths: list[list[tuple[str, ...]]]) -> list[int]:
    """Which of its paths each takes, so that no two meet, also where case does not count."""
    levels = [0] * len(paths)
    while True:
        taken = [
            tuple(part.casefold() for part in some[level])
            for some, level in zip(paths, levels, strict=True)
        ]
        times = Counter(taken)
        folders = {path[:depth] for path in taken for depth in range(1, len(path))}
        moved = False
        for number, path in enumerate(taken):
            meets = times[path] > 1 or path in folders
            if meets and levels[number] + 1 < len(paths[number]):
                levels[number] += 1
                moved = True
        if not moved:
            return levels


# -- bringing it -----------------------------------------------------------------------------------


class AllFetched:
    """Brings files into a folder; ``moved`` hears, in several threads, how far each one is."""

    def __init__(
        self,
        api: Api,
        into: Path,
        *,
        force: bool = False,
        moved: Callable[[Wanted, int], None] = lambda wanted, done: None,
        wait_unit: float = 1.0,
    ) -> None:
        self._api = api
        self._into = into
        self._force = force
        self._moved = moved
        self._wait_unit = wait_unit
        self._stop = threading.Event()
        self._hopeless = "It was interrupted."

    def target(self, wanted: Wanted) -> Path:
        """The file that it becomes."""
        return self._into.joinpath(*wanted.path)

    def room_needed(self, wanted: Iterable[Wanted]) -> int:
        """Bytes that are still to come, as far as sizes tell."""
        needed = 0
        for one in wanted:
            size = one.newest["size"]
            target = self.target(one)
            if not (target.is_file() and target.stat().st_size == size):
                partial = _partial(target, one.newest)
                needed += size - (min(size, partial.stat().st_size) if partial.exists() else 0)
        return needed

    def run(self, wanted: Iterable[Wanted], at_once: int) -> Generator[Outcome]:
        """Each outcome as it is known; at most ``at_once`` files are on their way.

        Closing it ends those that are, and begins no other.
        """
        pool = ThreadPoolExecutor(at_once)
        try:
            for done in as_completed([pool.submit(self._get, one) for one in wanted]):
                yield done.result()
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _get(self, wanted: Wanted) -> Outcome:
        try:
            self._go_on()
            return self._best(wanted)
        except _Hopeless as error:
            self._hopeless = str(error)
            self._stop.set()
            return Outcome(wanted, "missing", str(error))
        except OSError as error:
            where = self.target(wanted)
            return Outcome(wanted, "missing", f"{where} cannot be written: {error.strerror}")

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise _Hopeless(self._hopeless)

    def _best(self, wanted: Wanted) -> Outcome:
        target, should = self.target(wanted), wanted.newest["sha256"]
        there = self._digest(target)
        if there == should:
            return Outcome(wanted, "there", backup=wanted.newest)
        ours = {one["sha256"] for one in wanted.choices}
        if target.is_dir() and not target.is_symlink():
            return Outcome(wanted, "missing", f"a folder is there as {target}; move it away")
        if there is not None and there not in ours and not self._force:
            why = f"another file is there as {target}; --force replaces it"
            return Outcome(wanted, "missing", why)
        reasons = []
        for choice in wanted.choices:
            if choice["problem"]:
                reasons.append(_damaged(choice))
            try:
                if there != choice["sha256"]:
                    self._bring(wanted, choice, target)
            except _Lost as error:
                reasons.append(f"{_called(choice)}: {error}")
                continue
            if choice["sha256"] == should:
                return Outcome(wanted, "restored", backup=choice)
            if not reasons:
                reasons = [_damaged(wanted.newest)]
            return Outcome(wanted, "older", "; ".join(reasons), choice)
        return Outcome(wanted, "missing", "; ".join(reasons))

    def _digest(self, target: Path) -> str | None:
        """Of the file that is there; empty for what is none; None where nothing is."""
        if not target.is_symlink() and not target.exists():
            return None
        if target.is_symlink() or not target.is_file():
            return ""
        hasher = hashlib.sha256()
        with target.open("rb") as file:
            while block := file.read(_READ):
                self._go_on()
                hasher.update(block)
        return hasher.hexdigest()

    def _bring(self, wanted: Wanted, choice: Any, target: Path) -> None:
        """Raises `_Lost` when this copy cannot be had."""
        _make_folder(target.parent, self._into)
        partial = _partial(target, choice)
        for _ in range(1 if choice["problem"] else 2):  # the partial file may have been wrong
            digest = self._fetch(wanted, choice, partial)
            if digest == choice["sha256"]:
                partial.replace(target)
                sync_folder(target.parent)
                return
            partial.unlink()
        raise _Lost(
            f"the bytes that came have SHA-256 {digest} instead of {choice['sha256']}; there, "
            f"`backupctl verify {choice['backupId']}` finds it damaged and has it repaired"
        )

    def _fetch(self, wanted: Wanted, choice: Any, partial: Path) -> str:
        def done(count: int) -> None:
            self._go_on()
            self._moved(wanted, count)

        failures, most = 0, _size(partial)
        while True:
            try:
                return fetch(self._api, choice, partial, done)
            except Unfit as error:
                raise _Lost(str(error)) from error
            except ApiFailed as error:
                if (why := _of_our_disk(error)) is not None:
                    raise _Hopeless(f"{partial.parent} cannot be written: {why}") from error
                if error.status in (401, 403):
                    raise _Hopeless(str(error)) from error
                come = _size(partial)
                failures, most = (0 if come > most else failures + 1), max(come, most)
                if error.status in (404, 410) or (error.status == 500 and failures > 1):
                    if not come:
                        partial.unlink(missing_ok=True)
                    raise _Lost(str(error)) from error
                if failures >= TRIES:
                    # Not of this file alone: every further one would only wait as long.
                    raise _Hopeless(str(error)) from error
            self._stop.wait(self._wait_unit * 2**failures)
            self._go_on()


def _of_our_disk(error: ApiFailed) -> str | None:
    """What is wrong with where we write, if it is that."""
    cause = error.__cause__
    # The numbers of TLS errors are others than the system's.
    if isinstance(cause, ssl.SSLError) or not isinstance(cause, OSError):
        return None
    return cause.strerror if cause.errno in _LOCAL else None


def _called(backup: Any) -> str:
    return f"backup {backup['backupId']} of {backup['storedAt'][:16].replace('T', ' ')}"


def _damaged(backup: Any) -> str:
    return f"{_called(backup)} is damaged there: {backup['problem']}"


def _partial(target: Path, backup: Any) -> Path:
    return target.with_name(f".{folder_name(backup['backupId'])}.part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _make_folder(folder: Path, top: Path) -> None:
    """Make it and those around it, up to ``top``, durably."""
    if folder.is_dir():
        return
    if folder == top:
        folder.mkdir(parents=True, exist_ok=True)
    else:
        _make_folder(folder.parent, top)
        folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
