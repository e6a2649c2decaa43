"""Clients that others wrote, run as programs of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.daemons import REPOSITORY, clean_environment, run

__all__ = ["Running", "install"]


def install(folder: Path) -> Path:
    """What `tests/clients` names, installed under ``folder``; skips where that cannot be done."""
    if not (shutil.which("node") and shutil.which("npm")):
        assert not os.environ.get("BACKUPD_TEST_ALL"), "node and npm are not here"
        pytest.skip("node and npm are not here")
    copy = folder / "clients"
    shutil.copytree(
        REPOSITORY / "tests" / "clients", copy, ignore=shutil.ignore_patterns("node_modules")
    )
    words = ["npm", "install", "--no-audit", "--no-fund"]
    installed = run(words, clean_environment(), cwd=copy, seconds=200)
    if installed.code:
        assert not os.environ.get("BACKUPD_TEST_ALL"), installed.err
        pytest.skip(f"npm install does not work here: {installed.err[-300:]}")
    return copy


class Running:
    """tus-js-client in Node, uploading."""

    def __init__(
        self, clients: Path, environment: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        script = str(clients / "tus-upload.mjs")
        self._process = subprocess.Popen(
            ["node", script, json.dumps(options, default=str)],
            env=clean_environment() | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.events: list[dict[str, Any]] = []

    def kill(self) -> None:
        """End it at once, and hear what it had said."""
        self._process.kill()
        self._collect()

    def finish(self, seconds: float = 60.0) -> str:
        """Wait until it has succeeded; the URL of its upload."""
        err = self._collect(seconds)
        assert self._process.returncode == 0, (self.events, err)
        (url,) = [event["url"] for event in self.events if "url" in event]
        return str(url)

    def _collect(self, seconds: float = 60.0) -> str:
        try:
            out, err = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, err = self._process.communicate()
        self.events = [json.loads(line) for line in out.splitlines()]
        return err

    @property
    def accepted(self) -> int:
        """The last offset that was acknowledged to it."""
        return max((event["accepted"] for event in self.events if "accepted" in event), default=0)

    @property
    def found(self) -> int:
        """How many unfinished uploads it remembered."""
        return int(next(event["found"] for event in self.events if "found" in event))
