"""A case in which no call was made to fail proves nothing, and says so."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.torture import scratch, syscalls
from tests.torture.syscalls import TABLE, Case

FIRST, ALL, FIFTH = (
    Case("rename", "EIO", "1"),
    Case("fsync", "EIO", "1+"),
    Case("fsync", "EIO", "5"),
)


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[Case]:
    """The cases in which calls are made to fail."""
    cases: set[Case] = set()

    @contextmanager
    def no_daemon(folder: Path) -> Iterator[None]:
        yield None

    monkeypatch.setattr(scratch, "REPOSITORY", tmp_path)
    monkeypatch.setattr(syscalls, "daemon_in", no_daemon)
    monkeypatch.setattr(syscalls, "run_case", lambda _, case, __: (int(case in cases), str(case)))
    return cases


def run(*cases: Case) -> list[str]:
    told: list[str] = []
    syscalls.run(random.Random(1), told.append, cases=cases)
    return told


def test_it_says_in_how_many_cases_calls_failed(reached: set[Case]) -> None:
    reached |= {FIRST, ALL, FIFTH}
    assert run(FIRST, ALL, FIFTH)[-1] == "calls were made to fail in 3 of 3 cases"


def test_later_calls_that_nobody_made_are_named(reached: set[Case]) -> None:
    reached |= {FIRST, ALL}
    assert run(FIRST, ALL, FIFTH)[-2:] == [
        "calls were made to fail in 2 of 3 cases",
        "no thread made so many calls: fsync anywhere EIO 5",
    ]


def test_a_first_call_that_nobody_made_is_an_error(reached: set[Case]) -> None:
    """However many others of the same call there were."""
    for missing in (FIRST, ALL):
        reached.clear()
        reached |= {FIRST, ALL, FIFTH} - {missing}
        with pytest.raises(AssertionError, match=f"ever called: {missing}".replace("+", r"\+")):
            run(FIRST, ALL, FIFTH)


def test_a_call_that_never_failed_is_an_error(reached: set[Case]) -> None:
    """Whichever of its cases was tried: the short form takes one of each."""
    reached |= {FIRST}
    with pytest.raises(AssertionError, match=f"ever called: {FIFTH}"):
        run(FIRST, FIFTH)


def test_every_call_has_a_case_that_is_certain() -> None:
    """So each is seen to fail, whatever is not reached."""
    certain = {(case.name, case.file) for case in TABLE if case.certain}
    assert {(case.name, case.file) for case in TABLE} == certain
