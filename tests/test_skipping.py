"""What cannot be tried is told on a laptop, and has failed where everything is to be tried."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.integration.daemons import REPOSITORY, Done, clean_environment, run

WAYS = """
import pytest

@pytest.fixture
def volume():
    pytest.skip("nobody may mount anything here")

def test_that_needs_a_volume(volume):
    pass

def test_in_the_middle():
    pytest.skip("no such program")

@pytest.mark.skipif(True, reason="it takes too long")
def test_that_is_marked():
    pass

def test_that_is_there():
    pass
"""
REASONS = ("nobody may mount anything here", "no such program", "it takes too long")


def suite(folder: Path, **environment: str) -> Done:
    """These tests, run with what every test here gets."""
    file = folder / "test_ways.py"
    file.write_text(WAYS)
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-ra",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
    ]
    words += ["-c", os.devnull, "--rootdir", str(folder), str(file)]
    return run(words, clean_environment() | environment, cwd=REPOSITORY)


def test_a_test_that_skips_says_why(tmp_path: Path) -> None:
    done = suite(tmp_path)
    assert done.code == 0, done.out
    assert "1 passed, 3 skipped" in done.out
    for reason in REASONS:
        assert reason in done.out


def test_a_test_that_skips_has_failed_where_everything_is_to_be_tried(tmp_path: Path) -> None:
    """However it skips, and it says what is missing."""
    done = suite(tmp_path, BACKUPD_TEST_ALL="1")
    assert done.code == 1, done.out
    assert "skipped" not in done.out.splitlines()[-1]
    assert "1 passed" in done.out
    for reason in REASONS:
        assert f"{reason}; with BACKUPD_TEST_ALL=1 nothing may be skipped" in done.out
