"""What the system refuses is told in one line, with the path, and never as a traceback."""

from __future__ import annotations

import errno
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from backupd.terminal import Group


def ends(error: OSError) -> tuple[int, str]:
    """Exit code and words of a command that meets this."""

    @click.group(cls=Group)
    def main() -> None:
        pass

    @main.command()
    def meet() -> None:
        raise error

    done = CliRunner().invoke(main, ["meet"])
    return done.exit_code, " ".join(done.stderr.split())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """As `restore --all --into` meets it below a file, or where nobody may write."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as met:  # noqa: PT011
        (tmp_path / "file" / "below").mkdir(parents=True)
    code, told = ends(met.value)
    assert code == 1
    assert told == f"backupctl: {tmp_path}/file/below: Not a directory."


def test_a_reader_who_has_read_enough() -> None:
    """`backupctl list | head` is no failure that anybody is to hear of."""
    assert ends(BrokenPipeError(errno.EPIPE, "Broken pipe")) == (1, "")
