"""Fixtures for what runs histories in the tests' own process."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def taken_apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What dead processes left suspended complains when it is taken apart: here, and unheard."""
    yield
    monkeypatch.setattr(sys, "unraisablehook", lambda what: None)
    gc.collect()
