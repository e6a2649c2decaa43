"""A case in which no call was made to fail proves nothing, and says so."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.torture import scratch, syscalls
from tests.torture.syscalls import Case

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


def test_a_case_in_which_no_call_failed_is_an_error(reached: set[Case]) -> None:
    """Whichever call it is, and however many others of the same kind there were."""
    for missing in (FIRST, ALL, FIFTH):
        reached.clear()
        reached |= {FIRST, ALL, FIFTH} - {missing}
        with pytest.raises(AssertionError, match=f"so many calls: {re.escape(str(missing))}$"):
            run(FIRST, ALL, FIFTH)


def test_all_that_were_not_reached_are_named(reached: set[Case]) -> None:
    """The rest has been tried before."""
    reached |= {FIRST}
    with pytest.raises(AssertionError, match=f"so many calls: {re.escape(str(ALL))}; {FIFTH}$"):
        run(FIFTH, FIRST, ALL)
