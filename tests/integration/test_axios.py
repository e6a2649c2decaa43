"""The example in Node, which knows nothing of ours, against a real daemon."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from tests.integration.daemons import CLIP, REPOSITORY, Daemon, clean_environment, free_port, run


def test_the_axios_example_backs_a_video_up(tmp_path: Path) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        assert not os.environ.get("BACKUPD_TEST_ALL"), "node and npm are not here"
        pytest.skip("node and npm are not here")
    copy = tmp_path / "axios"
    shutil.copytree(
        REPOSITORY / "examples" / "axios", copy, ignore=shutil.ignore_patterns("node_modules")
    )
    installed = run(["npm", "install", "--no-audit", "--no-fund"], clean_environment(), cwd=copy)
    if installed.code:
        assert not os.environ.get("BACKUPD_TEST_ALL"), installed.err
        pytest.skip(f"npm install does not work here: {installed.err[-300:]}")
    with Daemon(tmp_path, loop_interval="0.2") as receiver:
        environment = clean_environment() | {
            "SERVER_A": receiver.url,
            "PORT": str(free_port()),
            "VIDEO": str(CLIP),
            "TIMEOUT_SECONDS": "30",
        }
        done = run(["node", "server-b.mjs"], environment, cwd=copy)
        assert done.code == 0, done.out + done.err
        (kept,) = receiver.backups()
        assert kept["videoId"] == 2
        assert kept["contentType"] == "video/mp4"
        assert kept["sha256"] == hashlib.sha256(CLIP.read_bytes()).hexdigest()
