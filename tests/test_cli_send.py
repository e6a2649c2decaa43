"""``backupctl send``: what the daemon is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backupd.cli import send


class Daemon:
    """Notes what it is asked to send."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def call(self, method: str, path: str, body: dict[str, Any]) -> Any:
        self.asked.append(body)
        return {"entry": {}}


def asked(*words: str) -> dict[str, Any]:
    """What one call of the command asks for."""
    daemon = Daemon()
    options = ["--to", "http://a.example", "--detach", "--json"]
    done = CliRunner().invoke(send, [__file__, *options, *words], obj=daemon)
    assert done.exit_code == 0, done.output
    (body,) = daemon.asked
    return body


@pytest.mark.parametrize(
    ("said", "video"),
    [
        ("2", 2),
        ("0", 0),
        ("007", "007"),
        ("\u0667", "\u0667"),
        ("-2", "-2"),
        (str(2**53 - 1), 2**53 - 1),
        (str(2**53), str(2**53)),
        ("1" * 128, "1" * 128),
        ("1" * 5000, "1" * 5000),
        (" 2", " 2"),
        ("", ""),
        ("holiday", "holiday"),
    ],
)
def test_an_id_stays_the_one_that_was_said(said: str, video: int | str) -> None:
    """Ids are compared as texts: it is a number only where that is written in no other way."""
    body = asked("--video-id", said)
    assert (type(body["videoId"]), body["videoId"]) == (type(video), video)


def test_without_an_id_the_daemon_finds_one() -> None:
    assert asked() == {"path": str(Path(__file__).resolve()), "to": "http://a.example"}
