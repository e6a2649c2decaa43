"""Notices of a peer: only one that it has signed, lately and once, makes us send."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from backupd.sender.steps import moved
from backupd.trust.peers import Right
from backupd.trust.signing import signed
from tests.receiver.world import now
from tests.web.closed import START, ClosedCase, Said
from tests.web.test_closed import problem

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()
PATH = "/api/v1/backup/serverAisReadyForBackup"


class NoticeCase(ClosedCase):
    """A video goes to peer b, which has been asked for room."""

    def setUp(self) -> None:
        super().setUp()
        self.put("b", Right.SEND, verifies=(SECRET,), url="https://b.example")
        self.put("c", Right.SEND, verifies=(OTHER,), url="https://c.example")
        video = Path(self.service.settings.root, "2.mp4")
        video.write_bytes(b"video")
        self.entry = now(self.service.outbox.enqueue(to="https://b.example", path=str(video)))
        self.tries = 0

    def body(self, **more: str) -> bytes:
        links = {
            "linkForServerBtoSendBackupToSeverA": "https://b.example/send",
            "linkForServerBtoCompleteBackupToSeverA": "https://b.example/complete",
        }
        return json.dumps({"videoId": 2} | links | more).encode()

    def notice(self, body: bytes, headers: dict[str, str], **more: Any) -> Said:
        kind = {"Content-Type": "application/json"}
        path = f"{PATH}/{self.entry.capability}"
        return self.server.ask("POST", more.pop("path", path), body, headers=kind | headers, **more)

    def state(self) -> str:
        found: str = now(self.service.ledger.entry(self.entry.entry_id)).state
        return found

    def refused(self, said: Said, words: str, status: int = 403) -> None:
        assert words in problem(said, status).json["detail"]
        assert self.state() == "ASKING"

    def sign(self, body: bytes, *, secret: str = SECRET, at: int = START) -> dict[str, str]:
        return signed([secret], "msg_1", at, body)


class NoticeTests(NoticeCase):
    def test_a_signed_one_makes_us_send(self) -> None:
        body = self.body()
        assert self.notice(body, self.sign(body)).status == 202
        assert self.state() == "READY"

    def test_the_capability_alone_does_not(self) -> None:
        self.refused(self.notice(self.body(), {}), "must be signed")

    def test_nor_with_another_peers_signature(self) -> None:
        body = self.body()
        self.refused(self.notice(body, self.sign(body, secret=OTHER)), "signature")

    def test_nor_with_other_words_than_were_signed(self) -> None:
        headers = self.sign(self.body())
        for body in (
            self.body(linkForServerBtoSendBackupToSeverA="https://b.example/other"),
            self.body() + b" ",
        ):
            self.refused(self.notice(body, headers), "signature")

    def test_nor_too_early_nor_too_late(self) -> None:
        body = self.body()
        for off in (-301, 302):
            self.refused(self.notice(body, self.sign(body, at=START + off)), "5 minutes")

    def test_a_replay_is_refused(self) -> None:
        body = self.body()
        headers = self.sign(body)
        assert self.notice(body, headers).status == 202
        said = problem(self.notice(body, headers), 403)
        assert "come before" in said.json["detail"]
        assert self.notice(body, self.sign(body, at=START + 5)).status == 202

    def test_nothing_is_sent_to_an_origin_that_was_not_asked(self) -> None:
        """However well it is signed."""
        second = START
        for elsewhere in (
            "https://c.example/send",
            "http://b.example/send",
            "https://b.example:444/send",
            "https://b.example.evil.example/send",
            "http://127.0.0.1:3000/send",
        ):
            for member in (
                "linkForServerBtoSendBackupToSeverA",
                "linkForServerBtoCompleteBackupToSeverA",
            ):
                body, second = self.body(**{member: elsewhere}), second + 1
                said = self.notice(body, self.sign(body, at=second))
                self.refused(said, "no byte is sent there")

    def test_another_peers_token_beside_it_is_refused(self) -> None:
        body = self.body()
        said = self.notice(body, self.sign(body), token="c")
        self.refused(said, "that is not c")

    def test_without_the_capability_it_takes_the_peers_token(self) -> None:
        body = self.body()
        self.refused(self.notice(body, self.sign(body), path=PATH), "token of a peer", 401)
        self.refused(self.notice(body, self.sign(body), path=PATH, token="c"), "that is not c")
        assert self.notice(body, self.sign(body, at=START + 1), path=PATH, token="b").status == 202

    def test_a_revoked_peer_cannot_have_it_sent(self) -> None:
        """Its secret is forgotten, and what goes to it is cancelled."""
        body = self.body()
        now(self.service.revoke("b"))
        problem(self.notice(body, self.sign(body)), 410)
        assert self.state() == "CANCELLED"

    def test_nor_what_was_stored_there_before(self) -> None:
        """Not by asking for it again as for a damaged copy: it needs no signature any more."""
        old = self.body()
        assert self.notice(old, self.sign(old)).status == 202
        stored = moved("VERIFIED", leaving={"READY"}, now=START)
        now(self.service.ledger.change_entry(self.entry.entry_id, stored))
        now(self.service.revoke("b"))
        again = self.body(linkForServerBtoSendBackupToSeverA="https://b.example/again")
        said = problem(self.notice(again, {}), 410)
        assert "revoked" in said.json["detail"]
        assert self.state() == "VERIFIED"
