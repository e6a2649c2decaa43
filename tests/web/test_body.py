"""A body read into the reader's own buffer: in memory, where the parser's pieces are copied; and a
small body that trickles in."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from backupd.errors import TooSlow, UploadCut
from backupd.web.body import HIGH_WATER, PATIENCE, WHOLE
from tests.web.connection import CONTINUE, SIZED, SiteCase


class ReadIntoTests(SiteCase):
    def setUp(self) -> None:
        super().setUp()
        self.buffer = bytearray(8)

    def read_into(self) -> Deferred[int]:
        return self.handlers.requests[-1].body.read_into(memoryview(self.buffer))

    def got(self, filler: Deferred[int]) -> bytes:
        return bytes(self.buffer[: self.successResultOf(filler)])

    def test_until_full(self) -> None:
        """It fires once the buffer is full; what is over comes with the next one."""
        self.begin(SIZED % 12)
        filler = self.read_into()
        self.send(b"abcd")
        self.assertNoResult(filler)
        self.send(b"efghij")
        assert self.got(filler) == b"abcdefgh"
        filler = self.read_into()
        self.assertNoResult(filler)
        self.send(b"kl")
        assert self.got(filler) == b"ijkl"
        assert self.got(self.read_into()) == b""

    def test_what_had_come(self) -> None:
        """What arrived before anybody asked comes first, in order."""
        self.begin(SIZED % 11, b"abc", b"defghijk")
        assert self.got(self.read_into()) == b"abcdefgh"
        assert self.got(self.read_into()) == b"ijk"

    def test_slow(self) -> None:
        """After a while a few bytes are handed over with the next that come."""
        self.begin(SIZED % 12)
        filler = self.read_into()
        self.send(b"a")
        self.clock.advance(PATIENCE)
        self.assertNoResult(filler)
        self.send(b"b")
        assert self.got(filler) == b"ab"

    def test_cut(self) -> None:
        """What arrived before a cut comes first, then the cut."""
        self.begin(SIZED % 12)
        filler = self.read_into()
        self.send(b"abc")
        self.cut()
        assert self.got(filler) == b"abc"
        self.failureResultOf(self.read_into(), UploadCut)

    def test_cut_at_once(self) -> None:
        """A buffer into which nothing came fails."""
        self.begin(SIZED % 12)
        filler = self.read_into()
        self.cut()
        self.failureResultOf(filler, UploadCut)

    def test_cancelled(self) -> None:
        """Cancelling loses no byte."""
        request = self.begin(SIZED % 12)
        filler = self.read_into()
        filler.addErrback(lambda _: None)
        self.send(b"abc")
        filler.cancel()
        self.send(b"def")
        assert self.read(request) + self.read(request) == b"abcdef"

    def test_one_reader(self) -> None:
        """Nobody else may read meanwhile."""
        request = self.begin(SIZED % 12)
        self.read_into().addErrback(lambda _: None)
        for again in (self.read_into, request.body.read):
            with pytest.raises(RuntimeError):
                again()

    def test_held(self) -> None:
        """A network that was held goes on when a buffer is there, and the client may begin."""
        request = self.begin(SIZED % (HIGH_WATER * 9), b"x" * HIGH_WATER)
        assert self.transport.producerState == "paused"
        self.buffer = bytearray(HIGH_WATER)
        assert self.successResultOf(self.read_into()) == HIGH_WATER
        assert self.transport.producerState == "paused"
        self.read_into().addErrback(lambda _: None)
        assert self.transport.producerState == "producing"
        assert request.body.silent_for() == 0.0

    def test_expects(self) -> None:
        """Asking tells a client that waits for it to go on."""
        self.begin(SIZED.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n") % 12)
        assert self.transport.value() == b""
        self.read_into().addErrback(lambda _: None)
        assert self.transport.value() == CONTINUE


class Strict(Clock):
    """A clock that takes no delay below zero, as no reactor does; ``late`` is what its timers are
    behind the time when the network is listened to."""

    late = 0.0

    def seconds(self) -> float:
        return super().seconds() + self.late

    def callLater(self, delay: float, *rest: Any, **more: Any) -> Any:
        assert delay >= 0
        return super().callLater(delay, *rest, **more)


class ReadAllTests(SiteCase):
    def test_a_piece_that_is_heard_just_after_the_deadline(self) -> None:
        """Before its timer is: it is too late all the same, and no defect."""
        clock = Strict()
        self.begin(SIZED % 12)
        body = self.handlers.requests[-1].body
        body._clock = clock
        whole = Deferred.fromCoroutine(body.read_all(12))
        self.send(b"abc")
        clock.late = WHOLE + 0.01
        self.send(b"def")
        self.assertNoResult(whole)
        clock.advance(0)
        self.failureResultOf(whole, TooSlow)
        assert clock.getDelayedCalls() == []
