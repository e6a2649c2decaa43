"""One receiver and one sender of the original kind, and a door that cuts, for the tests."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cutter import Cutter
from tests.integration.daemons import Daemon
from tests.integration.places import SIZE, Place
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


# -- clients that others wrote ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def video_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video, or what passes for one."""
    path = tmp_path_factory.mktemp("video") / "Ferien, 2.mp4"
    path.write_bytes(random.Random(5).randbytes(SIZE))
    return path


@pytest.fixture
def cutter() -> Iterator[Cutter]:
    door = Cutter()
    yield door
    door.close()


@pytest.fixture
def behind(tmp_path: Path, cutter: Cutter) -> Iterator[Daemon]:
    """A daemon behind that door; the links that it hands out lead through it."""
    turns = {"max_concurrent_transfers": "100", "max_per_peer": "100"}
    with Daemon(tmp_path, host=cutter.host, loop_interval="0.2", **turns) as running:
        cutter.target = running.port
        yield running


@pytest.fixture(params=["link", "direct"])
def place(
    request: pytest.FixtureRequest,
    behind: Daemon,
    cutter: Cutter,
    sender: PlainSender,
    video_file: Path,
) -> Place:
    return Place(behind, cutter.url, sender if request.param == "link" else None, video_file)
