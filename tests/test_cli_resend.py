"""``backupctl resend``: what is queued again, of all that one receiver kept or was to keep."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from backupd import cli_resend
from backupd.cli_resend import resend
from backupd.control import ApiFailed

A, C = "http://a.example", "http://c.example"


class Daemon:
    """Has an outbox, and these files."""

    def __init__(self, *entries: dict[str, Any], files: str) -> None:
        self.entries = list(entries)
        self.files = files
        self.queued: list[str] = []
        self.looks = 0
        self.ends = "VERIFIED"

    def pages(self, path: str, member: str, query: dict[str, Any]) -> Any:
        if query:
            self.looks += 1
            if self.looks > 1:  # how they end
                self.entries = [one | {"state": self.ends} for one in self.entries]
        return iter(self.entries)

    def call(self, method: str, path: str, body: dict[str, Any]) -> Any:
        if body.get("path") not in list(self.files):
            raise ApiFailed("path: does not exist", 400)
        self.queued.append(body["path"])
        return {"entry": entry(body["path"], "ASKING", to=C)}


def entry(path: str, state: str, to: str = A, **more: Any) -> dict[str, Any]:
    told = {"path": path, "videoId": path, "state": state, "to": to, "sha256": None}
    told |= {"entryId": path + to, "lastError": None, "backupId": None}
    return told | {"createdAt": "2026-01-01", "fileName": path, "size": 1, "sentBytes": 0} | more


def run(daemon: Daemon, *options: str) -> tuple[int, Any]:
    options = options or ("--detach",)
    done = CliRunner().invoke(resend, ["--to", C, *options, "--json"], obj=daemon)
    return done.exit_code, json.loads(done.stdout)


def waited(daemon: Daemon) -> tuple[int, Any]:
    return run(daemon, "--from", A)


def test_what_was_given_up_because_the_receiver_was_dead_goes_too() -> None:
    """It is stored nowhere; what its owner has cancelled is not meant."""
    daemon = Daemon(
        entry("1", "VERIFIED"), entry("2", "FAILED"), entry("3", "CANCELLED"), files="123"
    )
    assert run(daemon)[0] == 0
    assert daemon.queued == ["1", "2"]


def test_a_later_failure_hides_nothing() -> None:
    """What was stored once is named when its file is gone; what never was is its owner's."""
    daemon = Daemon(entry("1", "VERIFIED"), entry("1", "FAILED"), entry("2", "FAILED"), files="")
    code, told = run(daemon)
    assert (code, [one["videoId"] for one in told["gone"]]) == (1, ["1"])


def test_what_is_there_by_now_does_not() -> None:
    daemon = Daemon(
        entry("0", "VERIFIED"), entry("1", "FAILED"), entry("2", "FAILED"),
        entry("1", "VERIFIED", to=C), entry("2", "FAILED", to=C), files="012",
    )  # fmt: skip
    assert run(daemon)[0] == 0
    assert daemon.queued == ["0", "2"]


def test_a_receiver_that_never_kept_anything_is_not_asked_about() -> None:
    """A mistyped address is none of several."""
    daemon = Daemon(
        entry("1", "VERIFIED"), entry("2", "FAILED", to="http://typo.example"), files="12"
    )
    code, told = run(daemon)
    assert (code, told["from"], daemon.queued) == (0, A, ["1"])


@pytest.mark.parametrize(("ends", "code"), [("VERIFIED", 0), ("UNVERIFIED", 3), ("FAILED", 1)])
def test_what_an_earlier_run_has_queued_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, ends: str, code: int
) -> None:
    """It ends with 0 only when it is stored and verified there, not while it is on its way."""
    monkeypatch.setattr(cli_resend, "POLL", 0)
    daemon = Daemon(entry("1", "VERIFIED"), entry("1", "ASKING", to=C), files="1")
    daemon.ends = ends
    assert waited(daemon)[0] == code
    assert daemon.looks == 2
    assert daemon.queued == []


def test_what_was_stored_unverified_before_is_so_still() -> None:
    daemon = Daemon(entry("1", "VERIFIED"), entry("1", "UNVERIFIED", to=C), files="1")
    code, told = waited(daemon)
    assert (code, told["before"]) == (3, 1)


def test_what_keeps_it_waiting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that is full may be so for days."""
    monkeypatch.setattr(cli_resend, "POLL", 0)
    full = "[The video needs 2 B, and 1 B can still be promised.]"
    daemon = Daemon(entry("1", "VERIFIED"), entry("1", "ASKING", to=C, lastError=full), files="1")
    done = CliRunner().invoke(resend, ["--to", C, "--from", A], obj=daemon)
    assert f"1 waits: {full}" in done.stderr
