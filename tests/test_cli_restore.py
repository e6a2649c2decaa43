"""``backupctl restore ID``: under which name the file is written."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backupd.cli_restore import restore

DATA = b"the video"


class Server:
    """Keeps one backup, whose name it chose itself."""

    def __init__(self, name: str) -> None:
        self.backup: dict[str, Any] = {
            "backupId": "id",
            "peer": "someone",
            "videoId": 2,
            "fileName": name,
            "contentType": "video/mp4",
            "size": len(DATA),
            "sha256": hashlib.sha256(DATA).hexdigest(),
            "storedAt": "2026-11-24T00:00:00.000Z",
            "verifiedAt": None,
            "problem": None,
        }

    def call(self, method: str, path: str) -> Any:
        return self.backup

    def open(self, method: str, path: str, headers: dict[str, str]) -> Any:
        return io.BytesIO(DATA)


def restored(folder: Path, name: str, *words: str) -> list[str]:
    """What lies in the folder once the backup has been restored."""
    done = CliRunner().invoke(restore, ["id", "--json", *words], obj=Server(name))
    assert done.exit_code == 0, done.output
    for path in folder.iterdir():
        assert path.read_bytes() == DATA
    return os.listdir(folder)


@pytest.mark.parametrize("with_folder", [False, True])
@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("holiday.mp4", "holiday.mp4"),
        (".bash_profile", "_bash_profile"),
        ("../.ssh/authorized_keys", "_._.ssh_authorized_keys"),
        ("a\x9b2Jb.mp4", "a_2Jb.mp4"),
        ("a\u202e4pm.exe", "a_4pm.exe"),
        ("..", "__"),
        ("", "video-2.mp4"),
    ],
)
def test_the_name_is_harmless_whatever_the_server_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, written: str, with_folder: bool
) -> None:
    """Never a hidden file, never one elsewhere, and nothing that a terminal obeys."""
    monkeypatch.chdir(tmp_path)
    into = ["-o", str(tmp_path)] if with_folder else []
    assert restored(tmp_path, name, *into) == [written]


def test_a_name_that_was_asked_for_is_the_one(tmp_path: Path) -> None:
    wanted = str(tmp_path / ".mine")
    assert restored(tmp_path, "holiday.mp4", "-o", wanted) == [".mine"]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "device. Free some space there. Run"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "exceeded. Free some space there. Run"),
        (OSError(errno.EROFS, "Read-only file system"), "system. See to it that you may write"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "reset. Run the same again"),
        (ssl.SSLError(errno.EACCES, "a number of its own"), "own. Run the same again"),
        (http.client.IncompleteRead(b""), ". Run the same again"),
    ],
)
def test_what_went_wrong_says_what_to_do(tmp_path: Path, error: Exception, advice: str) -> None:
    """To run the same again is not all that it takes where the place is at fault."""

    class Fails(Server):
        def open(self, method: str, path: str, headers: dict[str, str]) -> Any:
            raise error

    output = str(tmp_path / "x")
    done = CliRunner().invoke(restore, ["id", "-o", output], obj=Fails("x"))
    assert done.exit_code == 1
    assert advice in " ".join(str(done.exception or done.output).split())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    output = str(tmp_path / "none" / "x")
    done = CliRunner().invoke(restore, ["id", "-o", output], obj=Server("x"))
    assert done.exit_code == 1
    assert "No such file or directory. Make its folder first" in str(done.exception)


# -- the bytes ------------------------------------------------------------------------------------


class Answer(io.BytesIO):
    """Bytes of a content, and the status before them."""

    def __init__(self, status: int, data: bytes) -> None:
        super().__init__(data)
        self.status = status


class Gives(Server):
    """Answers as a test says, and notes what it was asked for."""

    def __init__(self, status: int, data: bytes) -> None:
        super().__init__("x")
        self.status, self.data = status, data
        self.asked: list[dict[str, str]] = []

    def open(self, method: str, path: str, headers: dict[str, str]) -> Any:
        self.asked.append(headers)
        return Answer(self.status, self.data)


def got(server: Server, target: Path, *words: str) -> tuple[int, str]:
    """Exit code and words of a restore."""
    done = CliRunner().invoke(restore, ["id", "-o", str(target), *words], obj=server)
    return done.exit_code, done.output + str(done.exception or "")


def test_it_goes_on_with_the_same_bytes_only(tmp_path: Path) -> None:
    """The rest is asked for unless the server has others by now."""
    (tmp_path / "x.part").write_bytes(DATA[:4])
    server = Gives(206, DATA[4:])
    assert got(server, tmp_path / "x")[0] == 0
    assert (tmp_path / "x").read_bytes() == DATA
    digest = server.backup["sha256"]
    assert server.asked == [{"Range": "bytes=4-", "If-Range": f'"{digest}"'}]


def test_a_server_that_sends_all_is_taken_at_its_word(tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(DATA[:4])
    assert got(Gives(200, DATA), tmp_path / "x")[0] == 0
    assert (tmp_path / "x").read_bytes() == DATA


def test_what_is_longer_than_all_of_it_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(DATA + b"!")
    server = Gives(200, DATA)
    assert got(server, tmp_path / "x")[0] == 0
    assert (server.asked, (tmp_path / "x").read_bytes()) == ([{}], DATA)


def test_what_ends_early_is_kept_for_the_next_time(tmp_path: Path) -> None:
    code, told = got(Gives(200, DATA[:4]), tmp_path / "x")
    assert (code, "Only 4 of 9 bytes came. Run the same again" in told) == (1, True)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("x.part", DATA[:4])]


class Endless(Answer):
    """Never ends."""

    def __init__(self) -> None:
        super().__init__(200, b"")
        self.given = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.given += size or 0
        assert self.given < 2**24, "it is taken without end"
        return bytes(size or 0)


@pytest.mark.parametrize("before", [b"", DATA[:4]])
def test_no_more_is_taken_than_it_has(tmp_path: Path, before: bytes) -> None:
    """Nothing stays that a second try would go on from."""
    if before:
        (tmp_path / "x.part").write_bytes(before)
    server = Gives(200, b"")
    server.open = lambda *_, **__: Endless()  # type: ignore[method-assign]
    code, told = got(server, tmp_path / "x")
    assert code == 1
    assert "More than the 9 bytes of backup id came" in told
    assert "Try again, and `backupctl verify id` there." in told
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "more",
    [
        {"sha256": None},
        {"sha256": "a\r\nb: c"},
        {"sha256": "A" * 64},
        {"size": -1},
        {"size": "9"},
        {"size": float("inf")},
        {"fileName": None},
        {"problem": 5},
    ],
)
def test_what_could_not_be_checked_is_not_asked_for(tmp_path: Path, more: dict[str, Any]) -> None:
    """A digest that is none would stand in a header of ours, and no file can have such a size."""
    (tmp_path / "x.part").write_bytes(DATA[:4])
    server = Gives(206, DATA[4:])
    server.backup |= more
    code, told = got(server, tmp_path / "x")
    assert (code, "tells of a backup what cannot be" in told, server.asked) == (1, True, [])


def test_other_bytes_are_thrown_away(tmp_path: Path) -> None:
    code, told = got(Gives(200, DATA[::-1]), tmp_path / "x")
    assert (code, "they were thrown away" in " ".join(told.split())) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays_unless_it_is_forced(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"mine")
    code, told = got(Gives(200, DATA), target)
    assert (code, "--force" in told, target.read_bytes()) == (1, True, b"mine")
    assert got(Gives(200, DATA), target, "--force")[0] == 0
    assert target.read_bytes() == DATA


def test_it_is_there_after_a_power_cut(tmp_path: Path, synced: list[str]) -> None:
    """The bytes before they get their name, and the name before anybody is told."""
    assert got(Gives(200, DATA), tmp_path / "x")[0] == 0
    assert synced == [str(tmp_path / "x.part"), str(tmp_path)]
