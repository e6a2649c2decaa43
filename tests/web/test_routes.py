"""The short way to fixed paths: shorter, and nothing else."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred, fail
from twisted.web.resource import IResource

from backupd.trust.caller import LOCAL
from backupd.web.routes import Routes
from backupd.web.site import StreamingRequest
from tests.web.closed import CONTROL, ClosedCase
from tests.web.connection import SiteCase

GET = b"GET /short HTTP/1.1\r\nHost: a\r\n\r\n"


class ShortTests(SiteCase):
    """A path with a short way, beside those of Klein."""

    def setUp(self) -> None:
        super().setUp()
        self.given_up = 0
        self.shorts: list[Deferred[bytes]] = []
        fixed = {(b"GET", b"/short"): self.serve}
        self.channel.site.resource = Routes(fixed, self.handlers.app.resource())

    def serve(self, request: StreamingRequest) -> Deferred[bytes]:
        def cancel(_: object) -> None:
            self.given_up += 1

        request.caller = LOCAL
        self.shorts.append(Deferred(cancel))
        return self.shorts[-1]

    def test_what_is_not_fixed_is_left_to_the_others(self) -> None:
        self.send(b"POST /now HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        assert b"at once" in self.transport.value()
        for line in (b"HEAD /short", b"GET /short/", b"GET /shor%74", b"POST /short"):
            self.transport.clear()
            self.send(line + b" HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            assert self.transport.value().startswith(b"HTTP/1.1 404"), line
        assert self.shorts == []

    def test_it_is_answered_and_the_connection_goes_on(self) -> None:
        for body in (b"one", b"two"):
            self.transport.clear()
            self.send(GET)
            assert self.transport.value() == b""
            self.shorts[-1].callback(body)
            assert self.transport.value().startswith(b"HTTP/1.1 200")
            assert body in self.transport.value()
        assert len(self.finished) == 2

    def test_a_client_that_leaves_cancels_it(self) -> None:
        self.send(GET)
        self.cut()
        assert self.given_up == 1
        assert self.finished == []

    def test_a_defect_is_logged(self) -> None:
        self.send(GET)
        self.shorts[-1].errback(ZeroDivisionError())
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1


class EqualTests(ClosedCase):
    """Every fixed path of the daemon answers as it would by Klein alone."""

    def answers(self, *, short: bool) -> dict[tuple[str, str], Any]:
        found = {}
        paths = self.ask("GET", "/openapi.json", token=CONTROL).json["paths"]
        with mock.patch.object(Routes, "render", Routes.render if short else _by_klein):
            for path in paths:
                for method in ("get", "post", "put", "delete", "head", "patch"):
                    if "{" in path:
                        continue
                    said = self.ask(method.upper(), path, token=CONTROL)
                    # What a good answer says may change from one to the next.
                    body = said.body if said.status >= 400 else b""
                    found[method, path] = (said.status, sorted(said.headers), body)
        return found

    def test_the_same_answers(self) -> None:
        by_klein, short = self.answers(short=False), self.answers(short=True)
        assert {status for status, _, _ in short.values()} >= {200, 400, 405, 415}
        assert short == by_klein

    def test_a_handler_that_has_failed_is_a_problem(self) -> None:
        broken: Deferred[None] = fail(ZeroDivisionError())
        with mock.patch.object(self.service.ledger, "trouble", return_value=broken):
            said = self.ask("GET", "/readyz", token=CONTROL)
        assert said.status == 500
        assert "incident" in said.json
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1


def _by_klein(routes: Routes, request: StreamingRequest) -> Any:
    others: IResource = routes._others
    return others.render(request)
