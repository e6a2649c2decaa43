"""Streaming request bodies, in memory and on a clock."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import re
from math import inf

import pytest
from twisted.internet.defer import CancelledError, Deferred

from backupd.errors import TooLarge, UploadCut
from backupd.web.body import HIGH_WATER
from backupd.web.site import ASKING, LEAST_SHARE, PIECE, TURN
from tests.web.connection import CHUNKED, CONTINUE, EXPECTING, SIZED, SiteCase


class DispatchTests(SiteCase):
    def test_the_handler_runs_before_the_body(self) -> None:
        request = self.begin(SIZED % 3)
        assert (request.path, request.args) == (b"/up", {b"x": [b"1"]})
        assert (request.body.length, request.body.ended) == (3, False)

    def test_a_body_that_came_with_its_headers_is_whole(self) -> None:
        request = self.begin(SIZED % 3 + b"abc")
        assert request.body.ended
        assert [self.read(request), self.read(request)] == [b"abc", b""]

    def test_a_request_without_a_body_has_an_ended_one(self) -> None:
        request = self.begin(b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (request.body.length, request.body.ended) == (0, True)
        assert self.read(request) == b""

    def test_forms_are_not_parsed(self) -> None:
        kind = b"Content-Type: application/x-www-form-urlencoded\r\n"
        request = self.begin(
            b"POST /up HTTP/1.1\r\nHost: a\r\n" + kind + b"Content-Length: 3\r\n\r\na=b"
        )
        assert (request.args, self.read(request)) == ({}, b"a=b")

    def test_an_answer_at_once_to_headers_and_part_of_the_body_is_sent(self) -> None:
        self.send(b"POST /now HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        assert b"200 OK" in self.transport.value()
        assert self.transport.value().endswith(b"at once\r\n0\r\n\r\n")

    def test_after_a_body_the_connection_goes_on(self) -> None:
        request = self.begin(SIZED % 3, b"ab")
        self.read(request)
        self.send(b"c")
        assert [self.read(request), self.read(request)] == [b"c", b""]
        assert b"close" not in self.answer().lower()
        assert not self.transport.disconnecting
        second = self.begin(SIZED % 2 + b"de")
        assert second is not request
        assert self.read(second) == b"de"

    def test_a_body_that_arrived_need_not_be_read_for_the_connection_to_go_on(self) -> None:
        self.begin(SIZED % 3 + b"abc")
        assert b"close" not in self.answer().lower()
        assert not self.transport.disconnecting

    def test_many_pipelined_requests_are_answered_in_order(self) -> None:
        """However many: they need no deeper stack."""
        post = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n%04d"
        self.send(b"".join(post % number for number in range(2000)))
        bodies = re.findall(rb"\r\n4\r\n([0-9]{4})\r\n0\r\n", self.transport.value())
        assert [int(body) for body in bodies] == list(range(2000))

    def test_a_pipelined_request_waits_for_the_answer_before_it(self) -> None:
        self.begin(SIZED % 3 + b"abc" + SIZED % 3)
        assert len(self.handlers.requests) == 1
        self.answer()
        assert len(self.handlers.requests) == 2
        assert not self.handlers.requests[1].body.ended


class ReadTests(SiteCase):
    def test_a_read_waits_for_the_next_piece(self) -> None:
        request = self.begin(SIZED % 6)
        reading = request.body.read()
        self.assertNoResult(reading)
        self.send(b"abc")
        assert self.successResultOf(reading) == b"abc"

    def test_the_end_comes_again_and_again(self) -> None:
        request = self.begin(SIZED % 3, b"abc")
        assert [self.read(request) for _ in range(3)] == [b"abc", b"", b""]

    def test_small_chunks_of_one_segment_are_one_piece(self) -> None:
        request = self.begin(CHUNKED, b"1\r\na\r\n2\r\nbc\r\n", b"1\r\nd\r\n0\r\n\r\n")
        assert request.body.length is None
        assert [self.read(request) for _ in range(3)] == [b"abc", b"d", b""]

    def test_a_cancelled_read_loses_nothing(self) -> None:
        request = self.begin(SIZED % 6)
        reading = request.body.read()
        reading.cancel()
        self.failureResultOf(reading, CancelledError)
        self.send(b"abc")
        assert self.read(request) == b"abc"

    def test_two_readers_at_once_are_a_defect(self) -> None:
        request = self.begin(SIZED % 3)
        reading = request.body.read()
        with pytest.raises(RuntimeError):
            request.body.read()
        self.send(b"abc")
        assert self.successResultOf(reading) == b"abc"

    def test_read_all_joins_a_small_body(self) -> None:
        request = self.begin(SIZED % 6, b"abc")
        whole = Deferred.fromCoroutine(request.body.read_all(6))
        self.send(b"def")
        assert self.successResultOf(whole) == b"abcdef"

    def test_read_all_refuses_an_announced_length_before_reading(self) -> None:
        request = self.begin(EXPECTING)
        whole = Deferred.fromCoroutine(request.body.read_all(2))
        assert self.failureResultOf(whole, TooLarge).value.limit == 2
        assert self.transport.value() == b""

    def test_read_all_refuses_chunks_as_soon_as_they_are_too_many(self) -> None:
        request = self.begin(CHUNKED, b"3\r\nabc\r\n")
        whole = Deferred.fromCoroutine(request.body.read_all(2))
        self.failureResultOf(whole, TooLarge)


class FlowTests(SiteCase):
    def test_the_network_waits_at_high_water_until_half_is_read(self) -> None:
        piece = b"x" * (HIGH_WATER // 4)
        request = self.begin(SIZED % (HIGH_WATER * 9), piece, piece, piece)
        assert self.transport.producerState == "producing"
        self.send(piece)
        assert self.transport.producerState == "paused"
        self.read(request)
        self.read(request)
        assert self.transport.producerState == "paused"
        self.read(request)
        self.read(request)
        assert self.transport.producerState == "producing"

    def test_a_waiting_reader_is_served_before_the_network_waits(self) -> None:
        request = self.begin(SIZED % (HIGH_WATER * 9))
        request.body.read()
        self.send(b"x" * HIGH_WATER)
        assert self.transport.producerState == "producing"

    def test_tiny_pieces_count_for_what_they_take(self) -> None:
        self.begin(SIZED % HIGH_WATER, *[b"x"] * (HIGH_WATER // 64))
        assert self.transport.producerState == "paused"

    def test_while_the_network_waits_the_client_cannot_time_out(self) -> None:
        request = self.begin(SIZED % (HIGH_WATER * 9), b"x" * HIGH_WATER)
        self.clock.advance(1000)
        assert self.transport.connected
        assert request.body.silent_for() == 0
        self.read(request)
        request.body.read().addErrback(lambda failure: failure.trap(UploadCut))
        self.clock.advance(59)
        assert request.body.silent_for() == 59
        assert self.transport.connected
        self.clock.advance(1)
        assert not self.transport.connected

    def test_after_a_wait_the_next_request_can_time_out(self) -> None:
        request = self.begin(SIZED % (HIGH_WATER + 1), b"x" * HIGH_WATER)
        self.read(request)
        reading = request.body.read()
        self.send(b"y")
        assert self.successResultOf(reading) == b"y"
        self.answer()
        self.clock.advance(60)
        assert not self.transport.connected

    def test_a_body_that_ends_in_spite_of_the_wait_ends_the_wait(self) -> None:
        """A TLS transport can still deliver what it has decrypted."""
        self.begin(SIZED % (HIGH_WATER + 1), b"x" * HIGH_WATER)
        assert self.transport.producerState == "paused"
        self.send(b"y")
        assert self.transport.producerState == "producing"
        self.answer()
        self.clock.advance(60)
        assert not self.transport.connected

    def test_silence_counts_from_the_last_byte_to_the_end(self) -> None:
        request = self.begin(SIZED % 3)
        self.clock.advance(4)
        assert request.body.silent_for() == 4
        self.send(b"a")
        self.clock.advance(2)
        assert request.body.silent_for() == 2
        self.send(b"bc")
        self.clock.advance(100)
        assert request.body.silent_for() == 0

    def test_a_dead_connection_is_silent_for_ever(self) -> None:
        request = self.begin(SIZED % 3, b"a")
        self.cut()
        assert request.body.silent_for() == inf
        assert self.read(request) == b"a"
        assert request.body.silent_for() == inf

    def test_an_answer_that_flows_again_does_not_end_the_wait(self) -> None:
        self.begin(SIZED % (HIGH_WATER * 9), b"x" * HIGH_WATER)
        self.channel.pauseProducing()
        self.channel.resumeProducing()
        assert self.transport.producerState == "paused"

    def test_long_bodies_come_in_large_pieces(self) -> None:
        request = self.begin(SIZED % (PIECE + 1))
        assert self.transport.bufferSize == PIECE
        self.send(b"x" * PIECE, b"x")
        assert self.transport.bufferSize == 65536
        assert request.body.ended


class ShareTests(SiteCase):
    """How much of a long body is taken at once, when that makes others wait."""

    def test_while_nobody_asks_a_body_takes_what_there_is(self) -> None:
        self.begin(SIZED % (PIECE + 1))
        assert self.site.share() > 1024 * PIECE
        self.send(b"x" * (PIECE + 1))
        self.answer()

    def test_while_others_ask_all_together_take_a_turns_worth(self) -> None:
        self.begin(SIZED % 1, b"x")
        shares = []
        for self.site.streaming in (0, 1, 2, 4, 100):
            shares.append(self.site.share())
        assert shares == [TURN, TURN, TURN // 2, TURN // 4, LEAST_SHARE]
        self.site.streaming = 0
        self.clock.advance(ASKING + 0.1)
        assert self.site.share() > 1024 * PIECE
        self.answer()


class ContinueTests(SiteCase):
    def test_100_is_sent_once_and_only_when_the_body_is_read(self) -> None:
        request = self.begin(EXPECTING)
        assert self.transport.value() == b""
        request.body.read()
        assert self.transport.value() == CONTINUE
        self.send(b"ab")
        request.body.read()
        self.send(b"c")
        assert self.transport.value() == CONTINUE

    def test_a_refusal_needs_no_100(self) -> None:
        self.begin(EXPECTING)
        assert self.answer().startswith(b"HTTP/1.1 200 OK")

    def test_old_clients_get_no_100(self) -> None:
        request = self.begin(EXPECTING.replace(b"HTTP/1.1", b"HTTP/1.0"))
        request.body.read()
        assert self.transport.value() == b""
        self.send(b"abc")

    def test_a_client_that_waits_for_100_is_not_silent(self) -> None:
        request = self.begin(EXPECTING)
        self.clock.advance(1000)
        assert self.transport.connected
        assert request.body.silent_for() == 0
        request.body.read()
        self.clock.advance(5)
        assert request.body.silent_for() == 5
        self.send(b"abc")


class EarlyAnswerTests(SiteCase):
    def test_the_rest_is_thrown_away_and_then_the_connection_closed(self) -> None:
        request = self.begin(SIZED % 9, b"abc")
        assert b"Connection: close\r\n" in self.answer()
        assert self.transport.connected
        self.send(b"def")
        self.failureResultOf(request.body.read(), UploadCut)
        assert self.transport.connected
        self.send(b"ghi" + SIZED % 3)
        assert not self.transport.connected
        assert len(self.handlers.requests) == 1

    def test_an_answer_that_began_before_the_end_is_the_last(self) -> None:
        """Even if the body has ended when the answer does: the client was told so."""
        request = self.begin(SIZED % 9, b"abc")
        request.write(b"I begin")
        self.send(b"defghi")
        assert b"Connection: close\r\n" in self.answer()
        assert not self.transport.connected

    def test_too_many_bytes_close_it(self) -> None:
        self.begin(SIZED % 9000)
        self.answer()
        self.send(b"x" * 1000)
        assert self.transport.connected
        self.send(b"x")
        assert not self.transport.connected

    def test_too_many_seconds_close_it(self) -> None:
        self.begin(SIZED % 9000)
        self.answer()
        self.clock.advance(29)
        self.send(b"x")
        assert self.transport.connected
        self.clock.advance(1)
        assert not self.transport.connected

    def test_a_client_that_does_not_take_its_answer_is_let_go(self) -> None:
        self.transport.stuck = True
        self.begin(SIZED % 9000)
        self.answer()
        self.clock.advance(30)
        assert self.transport.connected
        self.clock.advance(15)
        assert self.transport.aborted

    def test_a_client_that_does_not_take_its_last_answer_is_let_go(self) -> None:
        self.transport.stuck = True
        self.begin(b"GET /up HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        self.answer()
        self.clock.advance(59)
        assert self.transport.connected
        self.clock.advance(1)
        assert self.transport.aborted

    def test_a_client_that_was_made_to_wait_is_heard_again(self) -> None:
        self.begin(SIZED % (HIGH_WATER * 9), b"x" * HIGH_WATER)
        assert self.transport.producerState == "paused"
        self.answer()
        assert self.transport.producerState == "producing"

    def test_malformed_chunks_after_the_answer_only_close_it(self) -> None:
        self.begin(CHUNKED)
        answer = self.answer()
        self.send(b"no chunk\r\n")
        assert not self.transport.connected
        assert self.transport.value() == answer


class LostTests(SiteCase):
    def test_what_arrived_before_the_cut_comes_first(self) -> None:
        request = self.begin(SIZED % 9, b"abc", b"def")
        self.cut()
        assert [self.read(request), self.read(request)] == [b"abc", b"def"]
        for _ in range(2):
            cut = self.failureResultOf(request.body.read(), UploadCut)
            assert "after 6 bytes" in str(cut.value)

    def test_a_waiting_read_fails_and_the_handler_is_cancelled(self) -> None:
        request = self.begin(SIZED % 9, b"abc")
        self.read(request)
        reading = request.body.read()
        self.cut()
        self.failureResultOf(reading, UploadCut)
        assert self.handlers.cancelled == 1

    def test_a_body_that_arrived_whole_stays_whole(self) -> None:
        request = self.begin(SIZED % 3 + b"abc")
        self.cut()
        assert [self.read(request), self.read(request)] == [b"abc", b""]
        assert self.handlers.cancelled == 1

    def test_a_handler_that_was_reading_is_cancelled_quietly(self) -> None:
        self.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        self.cut()
        assert self.transport.value() == b""
        assert self.flushLoggedErrors() == []
        assert self.finished == []

    def test_malformed_chunks_cut_the_body_at_once(self) -> None:
        """Also when the 400 cannot be sent yet; what comes after them is not looked at."""
        self.transport.stuck = True
        request = self.begin(CHUNKED, b"3\r\nabc\r\nno chunk\r\n")
        assert self.read(request) == b"abc"
        self.failureResultOf(request.body.read(), UploadCut)
        assert self.handlers.cancelled == 1
        self.send(b"no chunk either\r\n")
        head, _, body = self.transport.value().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert (json.loads(body)["status"], json.loads(body)["success"]) == (400, False)

    def test_malformed_chunks_with_the_headers_reach_no_handler(self) -> None:
        self.send(CHUNKED + b"no chunk\r\n")
        assert self.handlers.requests == []
        assert self.transport.value().startswith(b"HTTP/1.1 400 ")

    def test_silence_cuts_the_body(self) -> None:
        request = self.begin(SIZED % 9, b"abc")
        self.clock.advance(59)
        self.send(b"d")
        self.clock.advance(59)
        assert self.transport.connected
        self.clock.advance(1)
        assert not self.transport.connected
        assert [self.read(request), self.read(request)] == [b"abc", b"d"]
        self.failureResultOf(request.body.read(), UploadCut)

    def test_abort_closes_the_connection_and_cuts_the_body(self) -> None:
        request = self.begin(SIZED % 9)
        reading = request.body.read()
        request.body.abort()
        self.failureResultOf(reading, UploadCut)
        assert self.transport.aborted
        request.body.abort()

    def test_abort_leaves_the_answer_to_a_whole_body_alone(self) -> None:
        request = self.begin(SIZED % 3 + b"abc")
        request.body.abort()
        assert not self.transport.aborted
        assert self.read(request) == b"abc"


class SiteTests(SiteCase):
    def test_answered_requests_are_told_with_their_seconds(self) -> None:
        request = self.begin(SIZED % 3)
        self.clock.advance(2)
        self.send(b"abc")
        self.clock.advance(3)
        self.answer()
        assert self.finished == [(request, 5)]

    def test_starting_leaves_no_clock_running(self) -> None:
        self.cut()
        self.site.startFactory()
        assert self.clock.getDelayedCalls() == []
        self.site.stopFactory()

    def test_only_http_1_1_is_spoken(self) -> None:
        assert self.site.acceptableProtocols() == [b"http/1.1"]

    def test_lengths_that_make_no_sense_are_refused(self) -> None:
        self.send(b"PUT /up HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")
        assert self.transport.value().startswith(b"HTTP/1.1 400 ")
        assert self.handlers.requests == []
