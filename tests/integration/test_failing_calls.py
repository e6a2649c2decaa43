"""System calls that fail while uploads run: one case of each call; torture tries the whole table.

What must hold is in `tests.torture.syscalls`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.integration.daemons import Daemon
from tests.torture.syscalls import Case, daemon_in, one_of_each, run_case


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon_in(tmp_path_factory.mktemp("calls")) as running:
        yield running


@pytest.mark.parametrize("case", one_of_each(random.Random(5)), ids=str)
def test_a_call_that_fails_loses_nothing_that_was_acknowledged(daemon: Daemon, case: Case) -> None:
    injected, line = run_case(daemon, case, random.Random(str(case)))
    assert injected > 0, line
