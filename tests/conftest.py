"""What every test gets: nothing may be left behind in the reactor or in the log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.internet import reactor
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import provider


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
