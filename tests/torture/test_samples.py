"""Whether it grows: what is lost with each upload is found, and warming up is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.torture.samples import Sample, complaints

MIB = 1024**2
HOUR, RATE = 3600.0, 22_796 / 3600
"""An hour, and how many uploads there were in a second of one."""

RESTARTS = (1 / 8, 1 / 4, 3 / 8, 1 / 2)
"""The shares of the hour after which a daemon was started again."""


def run(
    seconds: float,
    restarts: Sequence[float] = (),
    *,
    rate: float = RATE,
    memory: Callable[[int], float] = lambda done: 0.0,
    descriptors: Callable[[int], float] = lambda done: 0.0,
    threads: Callable[[int], float] = lambda done: 0.0,
) -> list[Sample]:
    """What would be seen; each value is added to the usual, and follows the uploads of a life."""
    samples = []
    for number in range(900):
        at = number * seconds / 900
        begun = max(share * seconds for share in (0.0, *restarts) if share * seconds <= at)
        done = int((at - begun) * rate)
        samples.append(
            Sample(
                at=at,
                pid=int(begun),
                done=int(at * rate),
                memory=120 * MIB + memory(done),
                descriptors=40 + descriptors(done),
                threads=20 + threads(done),
                cpu=0.0,
                ledger=MIB,
                log=0.0,
                trash=0.0,
                reserved=0.0,
                waiting=0.0,
            )
        )
    return samples


def told(samples: list[Sample]) -> list[str]:
    """What is complained about, without the figures."""
    return [one.split(" grew")[0] for one in complaints("receiver", samples)]


def test_what_stands_still_is_well() -> None:
    for restarts in ((), RESTARTS):
        assert told(run(HOUR, restarts)) == []


def test_eight_kilobytes_an_upload_are_found_within_the_hour() -> None:
    """With restarts, as the hour has them, and in one life."""
    for restarts in ((), RESTARTS):
        assert told(run(HOUR, restarts, memory=lambda done: 8_000.0 * done)) == ["receiver: memory"]


def test_two_kilobytes_an_upload_are_found() -> None:
    for restarts in ((), RESTARTS):
        assert told(run(HOUR, restarts, memory=lambda done: 2_000.0 * done)) == ["receiver: memory"]


def test_what_a_life_takes_by_nature_is_no_leak() -> None:
    """0.35 KiB an upload, and before that 30 MiB of warming up, over twelve minutes."""

    def memory(done: int) -> float:
        return 350.0 * done + min(done / RATE / 720, 1.0) * 30 * MIB

    for restarts in ((), RESTARTS):
        assert told(run(HOUR, restarts, memory=memory)) == []


def test_a_descriptor_or_a_thread_of_each_hundredth_upload_is_found() -> None:
    for restarts in ((), RESTARTS):
        found = run(HOUR, restarts, descriptors=lambda done: done / 100, threads=lambda d: d // 100)
        assert told(found) == ["receiver: descriptors", "receiver: threads"]


def test_a_minute_finds_what_is_lost_with_each() -> None:
    """A descriptor, a thread and 20 KiB; the growth of a process that is warming up passes."""
    minute = 60.0
    assert told(run(minute, rate=40, memory=lambda done: 20_000.0 * done)) == ["receiver: memory"]
    assert told(run(minute, rate=40, memory=lambda done: 6_000.0 * done)) == []
    each = run(minute, rate=40, descriptors=float, threads=float)
    assert told(each) == ["receiver: descriptors", "receiver: threads"]


def test_a_life_that_was_cut_short_is_no_measure() -> None:
    """It warms up, each time anew; the one that fills the second half of the run has done so."""
    warming = run(600, (1 / 4, 1 / 2), memory=lambda done: min(done / RATE / 130, 1.0) * 30 * MIB)
    assert told(warming) == []
