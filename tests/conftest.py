"""What every test gets: nothing may be left behind in the reactor or in the log.

And where everything is to be tried (``BACKUPD_TEST_ALL=1``, as in CI), a test that skips has
failed: nobody reads why tests skip in a run that is green.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest
from twisted.internet import reactor
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import provider


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Whatever it is that this machine does not have, or does not allow."""
    report = yield
    if report.skipped and os.environ.get("BACKUPD_TEST_ALL"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{why}; with BACKUPD_TEST_ALL=1 nothing may be skipped"
    return report


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A delayed call or an unhandled error that a test leaves behind fails it."""
    before = set(reactor.getDelayedCalls())
    unhandled: list[str] = []

    @provider(ILogObserver)
    def watch(event: LogEvent) -> None:
        if "Unhandled" in str(event.get("log_format", "")):
            unhandled.append(f"{event.get('log_format')}: {event.get('log_failure')}")

    globalLogPublisher.addObserver(watch)
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(watch)
    left = [call for call in reactor.getDelayedCalls() if call not in before]
    for call in left:
        call.cancel()
    assert not left, f"delayed calls left behind: {left}"
    assert not unhandled, f"unhandled errors: {unhandled}"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of what is synced from now on, in order."""
    paths: list[str] = []
    fsync = os.fsync

    def note(handle: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    return paths
