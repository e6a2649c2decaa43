"""Watching the system calls of a daemon, and making some of them fail."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.integration.daemons import wait_until

__all__ = ["WRITES", "Strace"]

WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
"""Every call by which bytes come into a file; not all machines have all of them."""


class Strace:
    """strace on a running process and all its threads, while the ``with`` lasts.

    ``fail`` names calls and the error that they get, ``delay`` those that take some seconds more;
    only those on ``path``, when that is given. ``when`` says which of them, as strace does: ``2``
    is the second in each thread, ``2+`` that and all after it.
    `lines` is what was seen.
    """

    def __init__(
        self,
        folder: Path,
        pid: int,
        calls: Iterable[str],
        *,
        fail: tuple[Iterable[str], str] | None = None,
        when: str = "1+",
        delay: tuple[Iterable[str], int] | None = None,
        path: Path | None = None,
        text: int = 700,
    ) -> None:
        if shutil.which("strace") is None:
            assert not os.environ.get("BACKUPD_TEST_ALL"), "strace is not here"
            pytest.skip("strace is not here")
        self._file = folder / "strace.txt"
        self._said = folder / "strace-says.txt"
        self._file.unlink(missing_ok=True)
        self._pid = pid
        # A question mark lets a call pass that this machine does not have.
        self._command = ["strace", "-f", "-y", "-s", str(text), "-o", str(self._file)]
        self._command += ["-e", "trace=" + ",".join(f"?{one}" for one in calls)]
        if fail is not None:
            names, error = fail
            inject = f"{','.join(f'?{one}' for one in names)}:error={error}:when={when}"
            self._command += ["-e", f"inject={inject}"]
        if delay is not None:
            what, seconds = delay
            inject = f"{','.join(f'?{one}' for one in what)}:delay_enter={seconds * 10**6}"
            self._command += ["-e", f"inject={inject}"]
        if path is not None:
            self._command += ["-P", str(path)]
        self._command += ["-p", str(pid)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def lines(self) -> list[str]:
        return self._file.read_text(errors="replace").splitlines()

    def __enter__(self) -> Self:
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        wait_until(self._is_attached, "strace is attached")
        return self

    def _is_attached(self) -> bool:
        assert self._process is not None
        said = self._said.read_text()
        if self._process.poll() is not None:
            assert not os.environ.get("BACKUPD_TEST_ALL"), said
            pytest.skip(f"strace may not attach here: {said[-300:]}")
        threads = len(os.listdir(f"/proc/{self._pid}/task"))
        traced = [
            re.search(r"^TracerPid:\s+[1-9]", Path(path).read_text(), re.MULTILINE)
            for path in self._status_files()
        ]
        return all(traced) and len(traced) == threads

    def _status_files(self) -> list[str]:
        folder = f"/proc/{self._pid}/task"
        return [f"{folder}/{thread}/status" for thread in os.listdir(folder)]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        # It lets go of every thread, and writes what it still has.
        self._process.send_signal(signal.SIGINT)
        self._process.wait(20)
