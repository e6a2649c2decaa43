"""One sync of a folder for all who ask for it at the same time."""

from __future__ import annotations

import threading
from queue import SimpleQueue

from backupd.storage.shared import Shared


class Calls:
    """Calls that begin when they are let, and end when they are let."""

    def __init__(self) -> None:
        self.begun: SimpleQueue[None] = SimpleQueue()
        self.go: SimpleQueue[BaseException | None] = SimpleQueue()
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        self.begun.put(None)
        error = self.go.get(timeout=10)
        if error is not None:
            raise error


def asking(shared: Shared, outcomes: SimpleQueue[BaseException | None]) -> threading.Thread:
    def ask() -> None:
        try:
            shared()
        except OSError as error:
            outcomes.put(error)
        else:
            outcomes.put(None)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def wait_for(shared: Shared, asked: int) -> None:
    while shared._asked < asked:
        threading.Event().wait(0.001)


def test_one_after_the_other() -> None:
    """With nobody else there, each has a call of its own."""
    count = []
    shared = Shared(lambda: count.append(1))
    shared()
    shared()
    assert len(count) == 2


def test_those_who_come_meanwhile_share_the_next() -> None:
    """The call under way began before they asked, so it says nothing to them."""
    calls, outcomes = Calls(), SimpleQueue[BaseException | None]()
    shared = Shared(calls)
    threads = [asking(shared, outcomes)]
    calls.begun.get(timeout=10)
    threads += [asking(shared, outcomes) for _ in range(5)]
    wait_for(shared, 6)
    calls.go.put(None)
    calls.begun.get(timeout=10)
    assert outcomes.get(timeout=10) is None
    assert outcomes.empty()
    calls.go.put(None)
    for thread in threads:
        thread.join(10)
    assert [outcomes.get() for _ in range(5)] == [None] * 5
    assert calls.count == 2


def test_what_failed_answers_nobody_else() -> None:
    """A call that raised is an error of one; the next makes its own."""
    calls, outcomes = Calls(), SimpleQueue[BaseException | None]()
    shared = Shared(calls)
    first = asking(shared, outcomes)
    calls.begun.get(timeout=10)
    others = [asking(shared, outcomes) for _ in range(2)]
    wait_for(shared, 3)
    calls.go.put(OSError("EIO"))
    assert isinstance(outcomes.get(timeout=10), OSError)
    calls.begun.get(timeout=10)
    calls.go.put(OSError("EIO"))
    assert isinstance(outcomes.get(timeout=10), OSError)
    calls.begun.get(timeout=10)
    calls.go.put(None)
    assert outcomes.get(timeout=10) is None
    for thread in (first, *others):
        thread.join(10)
