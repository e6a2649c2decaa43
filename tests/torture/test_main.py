"""What cannot be tried on a machine is not told to be well."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from tests.torture import disks, forgetful, kills, long, network, scratch, syscalls
from tests.torture.__main__ import SECTIONS, main


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who may mount nothing, make no network, and use no program."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(scratch, "REPOSITORY", tmp_path)
    monkeypatch.setattr(network, "check_proxies", lambda folder, chance, told: None)
    monkeypatch.delenv("BACKUPD_TEST_ALL", raising=False)


def test_what_needs_root_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the reason, and once more in the last line; where all must be tried it has failed."""
    for all_of_it, code in (("", 0), ("1", 1)):
        monkeypatch.setenv("BACKUPD_TEST_ALL", all_of_it)
        assert main(["--seed", "1", "--only", "network", "disks"]) == code
        lines = capsys.readouterr().out.splitlines()
        why = "only root makes network namespaces"
        told = f"network: not tried: half-open connections: {why}; weathers: {why}"
        assert told in lines
        assert "disks: not tried: only root mounts file systems" in lines
        assert not [line for line in lines if line.startswith(("network: well", "disks: well"))]
        assert lines[-1] == "NOT TRIED on this machine: part of network, disks"


def test_a_section_that_skips_is_not_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it, before anything is done."""

    def run(*_: object) -> None:
        pytest.skip("nobody has it here")

    monkeypatch.setattr(forgetful, "run", run)
    monkeypatch.setattr(syscalls, "run", lambda *_: None)
    assert main(["--seed", "1", "--only", "forgetful", "syscalls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "forgetful: not tried: nobody has it here" in lines
    assert lines[-1] == "NOT TRIED on this machine: forgetful"
    assert main(["--seed", "1", "--only", "syscalls"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("syscalls: well")


def test_a_part_that_was_not_tried_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trial(folder: Path, kind: str, what: str, *_: object, only_ledger: bool = False) -> None:
        if kind == "ext4":
            pytest.skip("no ext4 here")

    monkeypatch.setattr(disks, "trial", trial)
    assert main(["--seed", "1", "--only", "disks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("disks: not tried: full before on ext4: no ext4") for line in lines)
    assert lines[-1] == "NOT TRIED on this machine: part of disks"


def test_a_section_that_failed_names_the_command_that_repeats_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that decides what is done: the seed, and how many kills, minutes and restarts."""

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("something is lost")

    for module in (kills, long, syscalls):
        monkeypatch.setattr(module, "run", fails)
    words = "--seed 7 --only kills long syscalls --kills 20 --minutes 12.5 --restarts 0"
    assert main(words.split()) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "FAILED kills; again: python -m tests.torture --seed 7 --only kills --kills 20",
        "FAILED long; again: python -m tests.torture --seed 7 --only long"
        " --minutes 12.5 --restarts 0",
        "FAILED syscalls; again: python -m tests.torture --seed 7 --only syscalls",
    ]


def test_a_repeated_run_is_given_what_the_first_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command names every option that the section takes."""
    given: list[object] = []
    monkeypatch.setattr(long, "run", lambda *_, **options: given.append(options))
    first = ["--seed", "7", "--only", "long", "--minutes", "0.1", "--restarts", "3"]
    assert main(first) == 0
    options = argparse.Namespace(minutes=0.1, restarts=3)
    again = SECTIONS["long"].again("long", 7, options)
    assert main(again.split()[3:]) == 0
    assert given == [{"minutes": 0.1, "restarts": 3}] * 2
