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
        self.backup = {
            "backupId": "id",
            "videoId": 2,
            "fileName": name,
            "contentType": "video/mp4",
            "size": len(DATA),
            "sha256": hashlib.sha256(DATA).hexdigest(),
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
