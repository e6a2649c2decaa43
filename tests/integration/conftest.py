"""One receiver and one sender of the original kind, for the tests of a module."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.integration.daemons import Daemon
from tests.integration.plain import PlainSender


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with turns for everybody."""
    with Daemon(
        tmp_path_factory.mktemp("receiver"),
        max_concurrent_transfers="1000",
        max_per_peer="1000",
        loop_interval="0.2",
    ) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def sender() -> Iterator[PlainSender]:
    with PlainSender() as server:
        yield server


_numbers = itertools.count(1000)


@pytest.fixture
def video() -> int:
    """The id of a video that no other test has."""
    return next(_numbers)
