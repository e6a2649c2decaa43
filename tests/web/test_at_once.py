"""So many restores at once, in all and of one peer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest
from twisted.internet.defer import Deferred

from backupd.errors import Busy, StorageFailed
from backupd.trust.peers import Right
from backupd.web.at_once import EACH, AtOnce
from tests.web.closed import ClosedCase


def test_nobody_has_more_than_its_share_and_all_have_no_more_than_there_is() -> None:
    places = AtOnce(most=3, each=2)
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(places.place("a"))
        with pytest.raises(Busy) as refused, places.place("a"):
            pass
        assert refused.value.retry_after > 0
        with places.place("b"), pytest.raises(Busy), places.place("c"):
            pass
        with places.place("c"):
            pass
    with places.place("a"), places.place("a"):
        pass


class RestoresTests(ClosedCase):
    def test_one_too_many_is_told_when_to_come(self) -> None:
        """Before anything is looked up for it; another peer has its own."""
        self.put("b", Right.SEND, Right.RESTORE)
        path = f"/api/v1/backups/{self.kept('b')}/content"
        opening: list[Deferred[Any]] = []

        def never(*_: object) -> Deferred[Any]:
            opening.append(Deferred())
            return opening[-1]

        with mock.patch.object(self.service, "off", never):
            for _ in range(EACH):
                head = f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer b\r\n\r\n"
                self.talk().say(head.encode())
            assert len(opening) == EACH
            with mock.patch.object(self.service.ledger, "backup", side_effect=AssertionError):
                refused = self.ask("GET", path, token="b")
            assert (refused.status, refused.headers["retry-after"]) == (503, "10")
            assert len(opening) == EACH
        assert self.ask("GET", path, token="c").status == 404
        for one in opening:
            one.errback(StorageFailed("It cannot be opened."))
        assert self.ask("GET", path, token="b").body == b"video"
