"""``backupctl verify``: it says that a backup is whole only when it has been read to its end."""

from __future__ import annotations

from typing import Any, cast

import pytest
from click.testing import CliRunner

from backupd import cli
from backupd.control import Api, ApiFailed

LISTED = {"backupId": "1", "size": 9, "problem": None, "verifiedAt": "2026-01-01T00:00:00.000Z"}
READING = {"verifying": {"readBytes": 4, "size": 9}}


class Daemon:
    """Answers one look after the other, until the backup is gone."""

    def __init__(self, *looks: dict[str, Any]) -> None:
        self.looks = list(looks)

    def call(self, method: str, path: str) -> Any:
        if not self.looks:
            raise ApiFailed("There is no backup 1.", 404)
        return self.looks.pop(0) if method == "GET" else LISTED


def verified(*looks: dict[str, Any]) -> Any:
    return cli._verify(cast(Api, Daemon(*looks)), LISTED, lambda done: None)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "POLL", 0)


def test_one_that_was_read_to_its_end_is_whole() -> None:
    later = LISTED | {"verifiedAt": "2026-01-01T00:00:00.001Z"}
    assert verified(LISTED | READING, LISTED | READING, later) == later
    assert verified(later)["problem"] is None


def test_one_that_was_never_verified_before_is_whole_too() -> None:
    later = LISTED | {"verifiedAt": "2026-01-01T00:00:00.001Z"}
    before = LISTED | {"verifiedAt": None}
    assert cli._verify(cast(Api, Daemon(later)), before, lambda done: None)["problem"] is None


def test_one_whose_reading_failed_is_not() -> None:
    """The daemon stopped reading, or could not write down what it found."""
    for looks in ((LISTED,), (LISTED | READING, LISTED)):
        assert "log" in verified(*looks)["problem"]


def test_damage_is_told_as_it_is() -> None:
    assert verified(LISTED | READING, LISTED | {"problem": "rot"})["problem"] == "rot"


def test_one_that_gave_way_to_a_copy_ends_nothing() -> None:
    """Before it was asked about, or while it was read: the others are read all the same."""
    for looks in ((), (LISTED | READING,)):
        assert "another copy has its place" in verified(*looks)["problem"]


def test_where_nothing_is_kept_nothing_is_called_whole() -> None:
    class Empty(Daemon):
        def pages(self, path: str, member: str, query: dict[str, Any]) -> Any:
            return iter(())

    done = CliRunner().invoke(cli.verify, obj=Empty())
    assert (done.exit_code, done.stdout) == (0, "No backups are kept here yet.\n")
