"""Fixtures for what runs histories in the tests' own process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest

from tests.simulation.taken_apart import unheard


@pytest.fixture(autouse=True)
def taken_apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What dead processes left suspended is taken apart within the test that killed them."""
    monkeypatch.setattr(sys, "unraisablehook", unheard(sys.unraisablehook))
    yield
    gc.collect()
