"""A file as the body of a request."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.interfaces import IConsumer
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from backupd.bandwidth import Bandwidth, Schedule
from backupd.peer.file_body import BLOCK, SLICE, FileBody
from backupd.peer.open_file import FileChanged, FileDigest, FileGone, FileState
from backupd.waiting import go_on
from tests.ledger.offs import WhenTold, at_once
from tests.outcomes import pending, result_of


@implementer(IConsumer)
class Sink:
    """Takes bytes; pauses the producer after each piece when ``full``."""

    def __init__(self, body: FileBody, *, full: bool = False) -> None:
        self.pieces: list[bytes] = []
        self.body = body
        self.full = full

    def write(self, data: bytes) -> None:
        self.pieces.append(data)
        if self.full:
            self.body.pauseProducing()

    def registerProducer(self, producer: object, streaming: bool) -> None: ...

    def unregisterProducer(self) -> None: ...

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


class Sample:
    """A file, and bodies made of it."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        path.write_bytes(data)
        self.stat = path.stat()
        self.state = FileState(str(path), self.stat.st_size, self.stat.st_mtime_ns)
        self.clock = Clock()

    def body(self, off: Any = at_once, **more: Any) -> FileBody:
        return FileBody(self.state, off=off, clock=self.clock, **more)

    def digest(self, off: Any = at_once) -> FileDigest:
        return FileDigest(self.state, off)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return Sample(tmp_path / "2.mp4", os.urandom(3 * BLOCK + 17))


def open_files(path: Path) -> int:
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.path.exists(link) and os.path.realpath(link) == str(path) for link in links)


@pytest.mark.parametrize("offset", [0, 1, BLOCK, 3 * BLOCK + 16, 3 * BLOCK + 17])
def test_it_sends_what_lies_behind_the_offset_and_digests_everything(
    sample: Sample, offset: int
) -> None:
    told: list[int] = []
    digest = sample.digest()
    result_of(go_on(digest.follow(offset)))
    body = sample.body(progress=told.append, digest=digest)
    result_of(go_on(body.open(offset)))
    assert body.length == len(sample.data) - offset
    sink = Sink(body)
    result_of(body.startProducing(sink))
    result_of(go_on(body.close()))
    assert sink.data == sample.data[offset:]
    assert digest.sha256 == hashlib.sha256(sample.data).hexdigest()
    assert told[0] == offset
    assert told[-1] == len(sample.data)
    assert told == sorted(told)
    assert open_files(sample.path) == 0


def test_it_ends_where_it_is_told(sample: Sample) -> None:
    body = sample.body()
    result_of(go_on(body.open(5, BLOCK + 9)))
    assert body.length == BLOCK + 4
    sink = Sink(body)
    result_of(body.startProducing(sink))
    result_of(go_on(body.close()))
    assert sink.data == sample.data[5 : BLOCK + 9]


def test_one_piece_goes_out_for_each_time_the_transport_is_empty(sample: Sample) -> None:
    """So silence of the network shows, however large the blocks are that are read."""
    body = sample.body()
    result_of(go_on(body.open()))
    sink = Sink(body, full=True)
    done = body.startProducing(sink)
    times = 1
    while pending(done):
        assert len(sink.pieces) == times
        sample.clock.advance(1)
        body.resumeProducing()
        times += 1
    assert sink.data == sample.data
    assert max(map(len, sink.pieces)) == SLICE
    result_of(go_on(body.close()))


def test_a_network_that_takes_pieces_at_once_gets_whole_blocks(sample: Sample) -> None:
    """And small ones again once it is slow: a piece must not take longer than silence may."""
    body = sample.body()
    result_of(go_on(body.open()))
    sink = Sink(body, full=True)
    body.startProducing(sink)
    while len(sink.data) < BLOCK:
        body.resumeProducing()
    body.resumeProducing()
    assert len(sink.pieces[-1]) == BLOCK
    sample.clock.advance(10)
    body.resumeProducing()
    assert len(sink.pieces[-1]) == SLICE
    result_of(go_on(body.close()))


@pytest.mark.parametrize("at", [0, 1, BLOCK, 2 * BLOCK + 3])
def test_a_digest_outlives_a_connection_and_takes_no_byte_twice(sample: Sample, at: int) -> None:
    """A second body begins before what the first one read."""
    digest = sample.digest()
    for start, end in ((0, 2 * BLOCK + 3), (at, None)):
        body = sample.body(digest=digest)
        result_of(go_on(body.open(start, end)))
        result_of(body.startProducing(Sink(body)))
        result_of(go_on(body.close()))
    assert digest.sha256 == hashlib.sha256(sample.data).hexdigest()


def test_a_digest_takes_nothing_behind_a_gap(sample: Sample) -> None:
    """What is missing is read by itself, afterwards."""
    digest = sample.digest()
    body = sample.body(digest=digest)
    result_of(go_on(body.open(BLOCK)))
    result_of(body.startProducing(Sink(body)))
    result_of(go_on(body.close()))
    assert (digest.at, digest.sha256) == (0, None)
    result_of(go_on(digest.follow(len(sample.data))))
    assert digest.sha256 == hashlib.sha256(sample.data).hexdigest()
    assert open_files(sample.path) == 0


def test_it_reads_one_block_ahead_and_never_two_at_once(sample: Sample) -> None:
    off = WhenTold()
    body = sample.body(off)
    opening = go_on(body.open())
    off.run()
    result_of(opening)
    sink = Sink(body)
    done = body.startProducing(sink)
    assert len(off.waiting) == 1
    body.pauseProducing()
    off.run()
    assert len(off.waiting) == 1
    off.run()
    assert len(off.waiting) == 0  # one to send, one ahead, and nobody wants either yet
    assert sink.pieces == []
    body.resumeProducing()
    assert sink.data == sample.data[: 2 * BLOCK]
    while off.waiting:
        assert len(off.waiting) == 1
        off.run()
    result_of(done)
    closing = go_on(body.close())
    off.run()
    result_of(closing)


def test_it_is_read_no_faster_than_it_may_go(sample: Sample) -> None:
    """At 1 MB/s a body of several megabytes takes its seconds, smoothly, and arrives whole."""
    pace = Bandwidth(Schedule.parse("1 MB/s"), sample.clock).of(None)
    body = sample.body(pace=pace)
    result_of(go_on(body.open()))
    sink = Sink(body)
    done = body.startProducing(sink)
    went = [len(sink.data)]
    while not done.called:
        sample.clock.advance(0.1)
        went.append(sum(map(len, sink.pieces)))
    result_of(done)
    assert sink.data == sample.data
    assert went[0] <= 500_000
    seconds = len(went) / 10
    assert abs(len(sample.data) / 1e6 - seconds) < 0.05 * seconds + 0.5
    steps = [after - before for before, after in itertools.pairwise(went)]
    assert max(steps) <= 2e5
    result_of(go_on(body.close()))


def test_a_body_that_is_stopped_while_it_waits_for_its_turn_ends(sample: Sample) -> None:
    pace = Bandwidth(Schedule.parse("1 MB/s"), sample.clock).of(None)
    body = sample.body(pace=pace)
    result_of(go_on(body.open()))
    sink = Sink(body)
    pending(body.startProducing(sink))
    before = sink.data
    body.stopProducing()
    sample.clock.advance(10)
    assert sink.data == before
    result_of(go_on(body.close()))
    assert open_files(sample.path) == 0


def test_a_file_that_is_another_one_is_not_opened(sample: Sample) -> None:
    sample.path.write_bytes(b"other")
    body = sample.body()
    with pytest.raises(FileChanged):
        result_of(go_on(body.open()))
    result_of(go_on(body.close()))
    assert open_files(sample.path) == 0


def test_a_file_that_is_gone_says_so(sample: Sample) -> None:
    sample.path.unlink()
    with pytest.raises(FileGone):
        result_of(go_on(sample.body().open()))


@pytest.mark.parametrize("change", ["shrink", "rewrite"])
def test_a_file_that_changes_while_it_is_sent_fails(sample: Sample, change: str) -> None:
    """Bytes of two versions never end up as one upload with a digest."""
    digest = sample.digest()
    body = sample.body(digest=digest)
    result_of(go_on(body.open()))
    sink = Sink(body, full=True)
    done = body.startProducing(sink)
    if change == "shrink":
        os.truncate(sample.path, BLOCK)
    else:
        with sample.path.open("r+b") as file:
            file.write(b"other")
        os.utime(sample.path, ns=(0, 0))
    while pending(done):
        body.resumeProducing()
    with pytest.raises(FileChanged):
        result_of(done)
    assert digest.sha256 is None
    assert len(sink.data) < len(sample.data)
    result_of(go_on(body.close()))


def test_a_file_that_cannot_be_read_fails(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    body = sample.body()
    result_of(go_on(body.open()))

    def broken(fd: int, length: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(OSError, match="Input/output error"):
        result_of(body.startProducing(Sink(body)))
    result_of(go_on(body.close()))


def test_close_waits_for_the_read_that_is_under_way(sample: Sample) -> None:
    """No descriptor is closed under a thread: its number could be another file by then."""
    off = WhenTold()
    body = sample.body(off)
    opening = go_on(body.open())
    off.run()
    result_of(opening)
    sink = Sink(body)
    done = body.startProducing(sink)
    body.stopProducing()
    closing = go_on(body.close())
    assert pending(closing)
    assert open_files(sample.path) == 1
    off.run()
    off.run()
    result_of(closing)
    assert open_files(sample.path) == 0
    assert pending(done)
    assert sink.pieces == []


def test_opening_can_be_cancelled(sample: Sample) -> None:
    off = WhenTold()
    body = sample.body(off)
    opening = go_on(body.open(3 * BLOCK))
    outcome: list[object] = []
    opening.addBoth(outcome.append)
    opening.cancel()
    assert isinstance(outcome[0], Failure)
    closing = go_on(body.close())
    off.run()
    off.run()
    result_of(closing)
    assert open_files(sample.path) == 0
    assert not off.waiting


@settings(deadline=None)
@given(actions=st.lists(st.sampled_from(["pause", "resume", "run"]), max_size=60))
def test_whatever_the_order_the_bytes_are_right(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str]
) -> None:
    sample = Sample(tmp_path_factory.mktemp("any") / "f", b"0123456789" * (BLOCK // 4))
    off = WhenTold()
    body = sample.body(off)
    go_on(body.open())
    off.run()
    sink = Sink(body)
    done = body.startProducing(sink)
    for action in actions:
        if action == "pause":
            body.pauseProducing()
        elif action == "resume":
            body.resumeProducing()
        elif off.waiting:
            off.run()
        assert len(off.waiting) <= 1
        assert sample.data.startswith(sink.data)
    body.resumeProducing()
    while off.waiting:
        off.run()
    result_of(done)
    assert sink.data == sample.data
    go_on(body.close())
    off.run()
