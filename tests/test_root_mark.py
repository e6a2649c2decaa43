"""The mark of a root: a start goes on only where the root is what the ledger is about."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from backupd.errors import SettingsError, WrongRoot
from backupd.interfaces import Remembered
from backupd.own_folder import OwnFolder, accept_root, check_root
from backupd.settings import Settings

NOTHING = Remembered()
LISTS = Remembered(None, ("p/2/a", "p/3/b"), ("upload-1",))


class Roots:
    """Roots below one folder, and a count from which tokens and marks are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)

    def new(self) -> str:
        return f"{next(self._numbers):043}"

    def settings(self, name: str) -> Settings:
        return Settings(root=str(self.folder / name))

    def claim(self, name: str, known: Remembered = NOTHING) -> str | None:
        """The mark that a start finds or makes."""
        own = OwnFolder(self.settings(name), self.new)
        own.claim(known)
        own.release()
        return own.mark

    def refused(self, name: str, known: Remembered) -> str:
        """Why a start is refused; it has made and changed nothing."""
        before = self.all()
        with pytest.raises(WrongRoot) as caught:
            self.claim(name, known)
        assert self.all() == before
        return str(caught.value)

    def accept(self, name: str, known: Remembered, user: int = 1) -> bool:
        return accept_root(self.settings(name), known, self.new, user)

    def all(self) -> dict[str, bytes | None]:
        found = self.folder.rglob("*")
        return {str(one): one.read_bytes() if one.is_file() else None for one in found}


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path)


def test_a_first_start_makes_one(roots: Roots) -> None:
    """Neither knows any: one is made, and is neither the control token nor that of another root."""
    mark = roots.claim("a")
    file = roots.folder / "a" / ".backupd" / "root-mark"
    assert file.read_text() == f"{mark}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert str(mark) not in (file.parent / "control-token").read_text()
    assert mark != roots.claim("b")


def test_both_agree(roots: Roots) -> None:
    mark = roots.claim("a")
    assert roots.claim("a", Remembered(mark)) == mark


def test_a_ledger_that_knows_none_takes_it_over(roots: Roots) -> None:
    """It is new, made anew, or older than the mark."""
    mark = roots.claim("a")
    assert roots.claim("a", NOTHING) == mark
    assert roots.claim("a", LISTS) == mark


def test_a_root_without_its_mark_is_refused(roots: Roots) -> None:
    """Whether nothing is there, an empty folder, or one in which a daemon has once been: it says
    what is missing where, and what to do.
    """
    known = Remembered(roots.claim("a"))
    (roots.folder / "empty").mkdir()
    roots.claim("once")
    (roots.folder / "once" / ".backupd" / "root-mark").unlink()
    for name in ("not-there", "not/there/either", "empty", "once"):
        told = roots.refused(name, known)
        assert told.startswith("root: has lost its mark (is the right volume mounted")
        assert str(roots.folder / name) in told
        assert "mount it" in told
        assert "`backupctl accept-root`" in told


def test_another_root_is_refused(roots: Roots) -> None:
    known = Remembered(roots.claim("a"))
    roots.claim("b")
    assert "has another mark" in roots.refused("b", known)


def test_an_empty_mark_is_none(roots: Roots) -> None:
    known = Remembered(roots.claim("a"))
    (roots.folder / "a" / ".backupd" / "root-mark").write_bytes(b"")
    assert "has lost its mark" in roots.refused("a", known)


@pytest.mark.parametrize("there", ["p/2/a", "p/3/b", ".backupd/incoming/upload-1"])
def test_an_older_installation(roots: Roots, there: str) -> None:
    """Neither knows a mark, but the ledger lists something: of that, something must be there."""
    (roots.folder / "a" / ".backupd").mkdir(parents=True)
    assert "nothing of what the ledger lists" in roots.refused("a", LISTS)
    (roots.folder / "a" / there).mkdir(parents=True)
    assert roots.claim("a", LISTS) is not None


def test_moving_it_to_a_larger_disk(roots: Roots) -> None:
    """A copy of the files is enough."""
    mark = roots.claim("a")
    copytree(roots.folder / "a", roots.folder / "b")
    assert roots.claim("b", Remembered(mark)) == mark


def test_a_lost_disk(roots: Roots) -> None:
    """What replaces it is accepted by hand, and has a mark of its own; a ledger from before that
    knows it too. The old one, should it come back, is another root.
    """
    old = roots.claim("old")
    (roots.folder / "new").mkdir()
    assert roots.accept("new", Remembered(old))
    new = roots.claim("new", Remembered(old))
    assert new not in (None, old)
    assert roots.claim("new", Remembered(new)) == new
    assert roots.claim("new", Remembered(old)) == new
    assert "has another mark" in roots.refused("old", Remembered(new))


def test_a_lost_disk_of_an_older_installation(roots: Roots) -> None:
    (roots.folder / "new").mkdir()
    assert roots.accept("new", LISTS)
    assert roots.claim("new", LISTS) is not None


def test_another_root_is_accepted(roots: Roots) -> None:
    """What was its mark before is not any more."""
    old, other = roots.claim("a"), roots.claim("b")
    assert roots.accept("b", Remembered(old))
    assert roots.claim("b", Remembered(old)) not in (None, old, other)
    assert "has another mark" in roots.refused("b", Remembered(other))


def test_nothing_to_accept(roots: Roots) -> None:
    """Where a start would go on, nothing is changed."""
    known = Remembered(roots.claim("a"))
    before = roots.all()
    assert not roots.accept("a", known)
    assert not roots.accept("b", NOTHING)
    assert roots.all() == before


def test_a_root_that_is_not_there_is_not_accepted(roots: Roots) -> None:
    """Whoever says that it is meant has looked at it."""
    known = Remembered(roots.claim("a"))
    before = roots.all()
    with pytest.raises(SettingsError, match="cannot be written"):
        roots.accept("b", known)
    assert roots.all() == before


@pytest.mark.parametrize("elsewhere", [False, True])
def test_root_does_not_accept_for_another(
    roots: Roots, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """Its mark would be one that the daemon's user cannot read; whose the ledger is, is who that
    is, also where the new disk is root's still.
    """
    known = Remembered(roots.claim("a"))
    (roots.folder / "a" / ".backupd" / "root-mark").unlink()
    ledger = roots.folder / "ledger.sqlite3"
    ledger.touch()
    settings = roots.settings("a")
    if elsewhere:
        settings = replace(settings, ledger=f"sqlite:///{ledger}")
    whose = ledger if elsewhere else roots.folder / "a" / ".backupd"
    owner, stat_of = 0, os.stat

    def stat_as(path: Any, **more: Any) -> os.stat_result:
        found = list(stat_of(path, **more))
        found[stat.ST_UID] = owner if path == str(whose) else 0
        return os.stat_result(found)

    monkeypatch.setattr(os, "stat", stat_as)
    before, owner = roots.all(), 4_000_000
    with pytest.raises(
        SettingsError, match="`setpriv --reuid 4000000 --clear-groups backupctl accept-root`"
    ) as told:
        accept_root(settings, known, roots.new, 0)
    assert f"{whose} belongs to the user 4000000" in str(told.value)
    assert roots.all() == before
    owner = 0
    assert accept_root(settings, known, roots.new, 0)


def failing(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Opening the file ``name`` fails from now on; what is called ends that."""
    opened, patch = os.open, monkeypatch

    def fail(path: str, *more: int) -> int:
        if os.path.basename(path) == name:
            raise OSError(number, os.strerror(number))
        return opened(path, *more)

    patch.setattr(os, "open", fail)
    return lambda: patch.setattr(os, "open", opened)


def test_a_full_disk(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps nobody from starting who could start without a mark; the next start makes one."""
    roots.claim("a")
    (roots.folder / "a" / ".backupd" / "root-mark").unlink()
    for number in (errno.ENOSPC, errno.EDQUOT):
        again = failing("root-mark.new", number, monkeypatch)
        assert roots.claim("a") is None
        again()
    assert roots.claim("a") is not None


def test_a_mark_that_cannot_be_written(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the start, and the lock is free again."""
    again = failing("root-mark.new", errno.EIO, monkeypatch)
    with pytest.raises(SettingsError, match=r"cannot be written \(Input/output error\)"):
        roots.claim("a")
    again()
    assert roots.claim("a") is not None


def test_a_mark_that_cannot_be_read(roots: Roots) -> None:
    """That is no root without one."""
    known = Remembered(roots.claim("a"))
    file = roots.folder / "a" / ".backupd" / "root-mark"
    file.unlink()
    file.mkdir()
    for act in (roots.claim, roots.accept):
        with pytest.raises(SettingsError, match="cannot be read") as caught:
            act("a", known)
        assert not isinstance(caught.value, WrongRoot)


def test_unmounted_while_it_starts(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at again under the lock: no mark is made where one was."""
    mark = roots.claim("a")
    file = roots.folder / "a" / ".backupd" / "root-mark"
    own = OwnFolder(roots.settings("a"), roots.new)
    fsync = os.fsync

    def unmount(handle: int) -> None:
        fsync(handle)
        file.unlink(missing_ok=True)

    monkeypatch.setattr(os, "fsync", unmount)
    with pytest.raises(WrongRoot):
        own.claim(Remembered(mark))
    assert not file.exists()
    monkeypatch.undo()
    roots.claim("a")  # the lock is free


def test_it_is_durable_before_the_ledger_is_told(roots: Roots, synced: list[str]) -> None:
    """The file, its name, and that of its folder: a power cut must not leave a ledger that knows
    a mark which no root has.
    """
    root = roots.folder / "a"
    roots.claim("a")
    own = root / ".backupd"
    assert synced[-3:] == [str(own / "root-mark.new"), str(own), str(root)]
    (roots.folder / "b").mkdir()
    roots.accept("b", Remembered("x"))
    assert synced[-2:] == [str(roots.folder / "b" / ".backupd"), str(roots.folder / "b")]


def test_a_root_under_a_relative_path(roots: Roots, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names where it looked."""
    monkeypatch.chdir(roots.folder)
    with pytest.raises(WrongRoot) as caught:
        check_root(Settings(root="here"), Remembered("x"))
    assert str(roots.folder / "here") in str(caught.value)
