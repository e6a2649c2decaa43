"""The daemon's own folder: one daemon to a root, and a token that nobody else can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from backupd.errors import SettingsError, StorageFailed
from backupd.own_folder import OwnFolder, read_token
from backupd.settings import Settings

TOKEN = "t" * 43


def own(root: Path, token: str = TOKEN) -> OwnFolder:
    return OwnFolder(Settings(root=str(root)), lambda: token)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / ".backupd" / "control-token"


def test_first_start(tmp_path: Path, token_file: Path) -> None:
    """The first start makes a folder and a token that only their owner can read."""
    folder = own(tmp_path)
    folder.claim()
    assert token_file.read_text() == f"{TOKEN}\n"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(token_file.parent.stat().st_mode) == 0o700
    assert {path.name for path in token_file.parent.iterdir()} == {
        "control-token",
        "lock",
        "root-mark",
    }
    folder.release()


def test_a_new_root_is_there_after_a_power_cut(tmp_path: Path, synced: list[str]) -> None:
    """Every folder that got a new name in it is synced, and that around the root in any case."""
    folder = own(tmp_path / "far" / "away" / "root")
    folder.claim()
    folder.release()
    away = tmp_path / "far" / "away"
    assert {str(tmp_path), str(tmp_path / "far"), str(away)} <= set(synced)
    synced.clear()
    folder.claim()
    folder.release()
    assert str(away) in synced


def test_mode_whatever_the_umask(tmp_path: Path, token_file: Path) -> None:
    """A lax umask opens the token to nobody."""
    before = os.umask(0)
    try:
        folder = own(tmp_path / "new" / "root")
        folder.claim()
        folder.release()
    finally:
        os.umask(before)
    token = tmp_path / "new" / "root" / ".backupd" / "control-token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700


def test_later_starts_keep_the_token(tmp_path: Path) -> None:
    """A token that was handed out stays good over restarts."""
    first = own(tmp_path)
    first.claim()
    first.release()
    second = own(tmp_path, "another token of at least 32 characters")
    second.claim()
    assert second.is_token(TOKEN)
    second.release()


def test_a_crash_while_the_token_is_made(tmp_path: Path, token_file: Path) -> None:
    """What a killed first start left half-written does not keep the next from starting."""
    token_file.parent.mkdir()
    (token_file.parent / "control-token.new").write_text("tt")
    folder = own(tmp_path)
    folder.claim()
    assert read_token(str(token_file)) == TOKEN
    folder.release()


def test_is_token(tmp_path: Path) -> None:
    """Only the whole token is it, whatever a header holds; before the claim nothing is."""
    folder = own(tmp_path)
    assert not folder.is_token("")
    assert not folder.is_token(TOKEN)
    folder.claim()
    assert folder.is_token(TOKEN)
    for wrong in ("", TOKEN[:-1], TOKEN + "t", TOKEN.upper(), "é" * 43, "\udce9" * 43):
        assert not folder.is_token(wrong)
    folder.release()


def test_second_daemon(tmp_path: Path) -> None:
    """A second daemon on the same root is refused, until the first has let go."""
    first, second = own(tmp_path), own(tmp_path)
    first.claim()
    for _ in range(2):
        with pytest.raises(SettingsError, match="another backupd is running") as caught:
            second.claim()
        assert caught.value.name == "root"
    first.release()
    first.release()
    second.claim()
    second.release()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_open_token(tmp_path: Path, token_file: Path, mode: int) -> None:
    """A token that others can read is refused, and the message says what to do."""
    token_file.parent.mkdir()
    token_file.write_text(TOKEN)
    token_file.chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        read_token(str(token_file))
    folder = own(tmp_path)
    with pytest.raises(SettingsError, match="chmod 600"):
        folder.claim()
    token_file.chmod(0o600)
    folder.claim()  # the failed claim has let go of the lock
    folder.release()


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 43])
def test_no_token(tmp_path: Path, token_file: Path, content: bytes) -> None:
    """A file that holds no token is refused; an empty one would let everybody in."""
    token_file.parent.mkdir()
    token_file.write_bytes(content)
    token_file.chmod(0o600)
    with pytest.raises(SettingsError, match="control token"):
        own(tmp_path).claim()


def test_missing_token(token_file: Path) -> None:
    """Whoever reads a token that was never made is told so by `FileNotFoundError`."""
    with pytest.raises(FileNotFoundError):
        read_token(str(token_file))


def test_root_that_cannot_be_written(tmp_path: Path, token_file: Path) -> None:
    """A root that is a file, below one, or whose own folder is one: one line that names it."""
    (tmp_path / "file").write_text("")
    (tmp_path / ".backupd").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "root", tmp_path):
        with pytest.raises(SettingsError, match="cannot be written") as caught:
            own(root).claim()
        assert caught.value.name == "root"
        assert str(root) in str(caught.value)


def test_token_that_cannot_be_written(tmp_path: Path, token_file: Path) -> None:
    """A token that cannot be made ends the start, and the lock is free again."""
    blocked = token_file.parent / "control-token.new"
    blocked.mkdir(parents=True)
    with pytest.raises(SettingsError, match="cannot be written"):
        own(tmp_path).claim()
    blocked.rmdir()
    folder = own(tmp_path)
    folder.claim()
    folder.release()


def test_free(tmp_path: Path) -> None:
    """Admission asks for the room on the ledger's volume."""
    folder = own(tmp_path)
    folder.claim()
    assert folder.free() > 0
    folder.release()


def test_free_where_the_ledger_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger in another place is on the volume of its own folder."""
    asked: list[str] = []
    statvfs = os.statvfs

    def spy(path: str) -> os.statvfs_result:
        asked.append(path)
        return statvfs(path)

    monkeypatch.setattr(os, "statvfs", spy)
    other = tmp_path / "other"
    other.mkdir()
    OwnFolder(Settings(root=str(tmp_path)), str, str(other / "ledger.sqlite3")).free()
    monkeypatch.chdir(other)
    OwnFolder(Settings(root=str(tmp_path)), str, "ledger.sqlite3").free()
    assert asked == [str(other), str(other)]


def test_free_cannot_be_told(tmp_path: Path) -> None:
    """A volume that cannot be asked is a failure of the storage, and no defect."""
    with pytest.raises(StorageFailed, match="ledger"):
        OwnFolder(Settings(root=str(tmp_path)), str, "/no/such/folder/ledger").free()


def test_the_cause_comes_first(tmp_path: Path) -> None:
    """`twistd` cuts the line of a start in the background: a long path must not hide the cause."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError) as caught:
        own(tmp_path / "file" / ("x" * 200)).claim()
    assert str(caught.value).startswith("root: cannot be written (Not a directory)")
