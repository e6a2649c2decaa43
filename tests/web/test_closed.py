"""PROTOCOL.md, section 7, with peers: who is let in, and what each sees and touches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred

from backupd.trust.peers import Limits, Right, token_hash
from tests.receiver.world import now
from tests.web.closed import CONTROL, ClosedCase, Said

REQUESTS = "/api/v1/backup/requests"
BACKUPS = "/api/v1/backups"
CALLBACK = "linkForServerAtoNoticeServerBWhenServerAIsReady"


def problem(said: Said, status: int) -> Said:
    assert said.status == status, (said.status, said.body)
    if said.body:
        assert said.json["success"] is False
    return said


class StrangerTests(ClosedCase):
    """Without a token there is nothing here."""

    def test_all_but_healthz_needs_a_token_or_a_capability(self) -> None:
        """Every route that there is, from the document that is made of them."""
        assert self.ask("GET", "/healthz").status == 200
        document = self.ask("GET", "/openapi.json", token=CONTROL).json
        tried = 0
        for path, operations in document["paths"].items():
            for method in operations:
                if path in ("/healthz", "/api/v1/peers/enrol") or method == "options":
                    continue
                guessed = re.sub(r"\{\w+\}", "guessed", path)
                for token in (None, "", "guessed", "b" * 64, token_hash("b")):
                    said = self.ask(method.upper(), guessed, token=token)
                    secret = re.search(r"\{(capability|token)\}", path)
                    # A guessed capability is one that does not exist; before that it may be
                    # seen that what is asked makes no sense.
                    allowed = {400, 404, 412, 415} if secret else {401}
                    assert said.status in allowed, (method, path, said)
                tried += 1
        assert tried > 30

    def test_a_host_that_is_none_is_refused(self) -> None:
        """Whatever is asked of it, and by whom; what may stand there is taken."""
        for path in (BACKUPS, f"{BACKUPS}/x", "/no/such", "/healthz"):
            for host in (
                "a..b",
                ".",
                ".a",
                "x" * 64,
                f"a.{'x' * 64}:80",
                "\u00e9" * 60,
                "a" * 9999,
            ):
                headers = {"Host": host}
                said = problem(self.ask("GET", path, token="b", headers=headers), 400)
                assert said.json["member"] == "Host"
            for host in (
                "",
                "a",
                "a.",
                "[::1]:80",
                "192.0.2.1",
                "\u00e9.example",
                "a:b:c",
                "x" * 63,
            ):
                assert self.ask("GET", path, token="b", headers={"Host": host}).status in (200, 404)

    def test_not_even_what_there_is(self) -> None:
        """No path, no method and no video can be told from another."""
        self.room("b")
        for method, path in (
            ("GET", "/"),
            ("GET", "/nothing"),
            ("POST", "/healthz"),
            ("DELETE", "/api/v1/backup/can-accept-backup"),
            ("POST", "/api/v1/backup/receive-backup?videoId=2"),
            ("POST", "/api/v1/backup/receive-backup?videoId=3"),
        ):
            said = problem(self.ask(method, path, b"x"), 401)
            assert said.headers["www-authenticate"] == 'Bearer realm="backupd"'
            assert "b" not in said.json["detail"].split()

    def test_another_scheme_is_no_token(self) -> None:
        for value in ("Basic Yjpi", "b", "Bearer", "Bearer b c", f"Basic {CONTROL}", "bearer  "):
            problem(self.ask("GET", BACKUPS, headers={"Authorization": value}), 401)
        assert self.ask("GET", BACKUPS, headers={"Authorization": "bEaReR b"}).status == 200

    def test_the_operator_is_let_in(self) -> None:
        for path in (BACKUPS, REQUESTS, "/readyz", "/metrics", "/api/v1/peers", "/api/v1/outbox"):
            assert self.ask("GET", path, token=CONTROL).status == 200, path


class OpenTests(ClosedCase):
    """No peers: as it always was, until there is one."""

    access = "open"

    def test_the_first_peer_closes_the_door(self) -> None:
        local = {"Host": "localhost"}
        assert self.ask("GET", BACKUPS, headers=local).status == 200
        self.put("b", Right.SEND)
        problem(self.ask("GET", BACKUPS, headers=local), 401)
        assert self.ask("GET", BACKUPS, token="b").status == 200
        now(self.service.revoke("b"))
        problem(self.ask("GET", BACKUPS, headers=local), 401)

    def test_a_token_that_is_wrong_is_as_good_as_none(self) -> None:
        local = {"Host": "localhost"}
        assert self.ask("GET", BACKUPS, token="guessed", headers=local).status == 200
        problem(self.ask("GET", "/api/v1/peers", token="guessed", headers=local), 401)


class OwnTests(ClosedCase):
    """A peer sees and touches its own; another's does not exist."""

    def test_the_peer_is_the_tokens(self) -> None:
        request_id = self.room("b").json["requestId"]
        (one,) = self.ask("GET", REQUESTS, token="b").json["requests"]
        assert (one["requestId"], one["peer"]) == (request_id, "b")

    def test_two_peers_have_a_video_of_one_name(self) -> None:
        """Neither disturbs the other; without the link each means its own."""
        ids = {name: self.room(name).json["requestId"] for name in "bc"}
        assert len(set(ids.values())) == 2
        for name in "bc":
            for _ in range(2):
                said = self.ask("POST", "/api/v1/backup/receive-backup", {"videoId": 2}, token=name)
                assert said.json["requestId"] == ids[name]

    def test_what_has_ended_is_its_peers_too(self) -> None:
        """The bare path answers each for its own, and for another's not at all."""
        self.room("b")
        complete = {"videoId": 2, "success": False}
        path = "/api/v1/backup/complete-backup"
        assert self.ask("POST", path, complete, token="b").status == 200
        path = "/api/v1/backup/receive-backup"
        problem(self.ask("POST", path, {"videoId": 2}, token="b"), 410)
        problem(self.ask("POST", path, {"videoId": 2}, token="c"), 404)

    def test_anothers_request_is_unknown(self) -> None:
        request_id = self.room("b").json["requestId"]
        path = f"{REQUESTS}/{request_id}"
        assert self.ask("GET", path, token="b").status == 200
        unknown = self.ask("GET", f"{REQUESTS}/{request_id}x", token="c")
        same = problem(self.ask("GET", path, token="c"), 404)
        assert same.json["detail"].replace(request_id, "") == unknown.json["detail"].replace(
            f"{request_id}x", ""
        )
        for query in ("", "?peer=b", "?state=live"):
            assert self.ask("GET", REQUESTS + query, token="c").json["requests"] == []
        problem(self.ask("POST", "/api/v1/backup/receive-backup", {"videoId": 2}, token="c"), 404)
        complete = {"videoId": 2, "success": False}
        problem(self.ask("POST", "/api/v1/backup/complete-backup", complete, token="c"), 404)
        assert self.ask("GET", path, token="b").json["state"] == "PENDING"

    def test_anothers_link_does_not_work_with_ones_own_token(self) -> None:
        """It does without: then it is the link that is the authority."""
        capability = self.capability(self.room("b").json["requestId"])
        link = f"/api/v1/backup/receive-backup/{capability}"
        for method in ("POST", "HEAD"):
            body = {"videoId": 2} if method == "POST" else None
            problem(self.ask(method, link, body, token="c"), 404)
            assert self.ask(method, link, body).status == 200
        done = f"/api/v1/backup/complete-backup/{capability}"
        complete = {"videoId": 2, "success": False}
        problem(self.ask("POST", done, complete, token="c"), 404)
        assert self.ask("POST", done, complete).status == 200

    def test_anothers_backup_is_unknown(self) -> None:
        backup = self.kept("b")
        for method, path in (
            ("GET", f"{BACKUPS}/{backup}"),
            ("GET", f"{BACKUPS}/{backup}/content"),
            ("HEAD", f"{BACKUPS}/{backup}/content"),
            ("DELETE", f"{BACKUPS}/{backup}"),
        ):
            problem(self.ask(method, path, token="c"), 404)
        for query in ("", "?peer=b", "?videoId=2", "?peer=b&videoId=2"):
            assert self.ask("GET", BACKUPS + query, token="c").json["backups"] == []
        assert self.ask("GET", f"{BACKUPS}/{backup}/content", token="b").body == b"video"
        (one,) = self.ask("GET", BACKUPS, token="b").json["backups"]
        assert one["backupId"] == backup

    def test_a_direct_upload_is_its_peers(self) -> None:
        tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Upload-Metadata": "videoId Mg=="}
        problem(self.ask("POST", "/api/v1/uploads", headers=tus), 401)
        assert self.ask("POST", "/api/v1/uploads", token="b", headers=tus).status == 201
        (one,) = self.ask("GET", REQUESTS, token="b").json["requests"]
        assert one["peer"] == "b"
        assert self.ask("GET", REQUESTS, token="c").json["requests"] == []

    def test_a_direct_upload_whose_client_left_is_listed(self) -> None:
        """It is called by nobody, so no time is told when it would be."""
        tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Upload-Metadata": "videoId Mg=="}
        assert self.ask("POST", "/api/v1/uploads", token="b", headers=tus).status == 201
        self.reactor.pump([60.0] * 11)
        (one,) = self.ask("GET", REQUESTS, token="b").json["requests"]
        assert (one["state"], one["nextOfferAt"]) == ("PENDING", None)

    def test_sums_over_all_peers_are_the_operators(self) -> None:
        for path in ("/metrics", "/api/v1/scrub"):
            problem(self.ask("GET", path, token="b"), 403)
            assert self.ask("GET", path, token=CONTROL).status == 200

    def test_no_peer_does_what_the_operator_does(self) -> None:
        request_id = self.room("b").json["requestId"]
        for method, path in (
            ("GET", "/api/v1/outbox"),
            ("POST", "/api/v1/outbox"),
            ("DELETE", f"{REQUESTS}/{request_id}"),
            ("POST", "/api/v1/rebuild"),
            ("POST", "/api/v1/inspection"),
            ("GET", "/api/v1/inspection"),
            ("GET", "/api/v1/peers"),
            ("POST", "/api/v1/peers"),
            ("GET", "/api/v1/peers/c"),
            ("PATCH", "/api/v1/peers/b"),
            ("DELETE", "/api/v1/peers/c"),
            ("POST", "/api/v1/peers/c/rotate"),
            ("POST", "/api/v1/peers/join"),
        ):
            problem(self.ask(method, path, {}, token="b"), 403)

    def test_admin_does_and_sees_everything(self) -> None:
        self.put("x", Right.ADMIN)
        backup = self.kept("b")
        assert len(self.ask("GET", BACKUPS, token="x").json["backups"]) == 1
        assert self.ask("GET", "/metrics", token="x").status == 200
        assert self.ask("DELETE", f"{BACKUPS}/{backup}", token="x").status == 200


class RightTests(ClosedCase):
    """Each right is one thing."""

    def test_what_is_not_given_is_403(self) -> None:
        backup = self.kept("b")
        asks: dict[Right, Callable[[], Said]] = {
            Right.SEND: lambda: self.room("b", 3),
            Right.RESTORE: lambda: self.ask("GET", f"{BACKUPS}/{backup}/content", token="b"),
            Right.DELETE: lambda: self.ask("DELETE", f"{BACKUPS}/{backup}", token="b"),
        }
        for given in (Right.SEND, Right.RESTORE, Right.DELETE):
            self.put("b", given)
            for right, ask in asks.items():
                if right is given:
                    assert ask().status == 200, (given, right)
                else:
                    problem(ask(), 403)

    def test_without_any_it_still_sees_its_own(self) -> None:
        self.room("b")
        self.put("b")
        assert len(self.ask("GET", REQUESTS, token="b").json["requests"]) == 1
        assert self.ask("GET", "/readyz", token="b").status == 200


class CallbackTests(ClosedCase):
    """A peer names its own origins to be called back on, and no others."""

    LINK = "linkForServerAtoNoticeServerBWhenServerAIsReady"

    def test_another_origin_is_403(self) -> None:
        for link in (
            "https://c.example/ready",
            "http://b.example/ready",
            "https://b.example:8443/ready",
            "https://b.example./ready",
            "https://b.example.evil.example/ready",
            "http://localhost:3000/ready",
            "http://127.0.0.1/ready",
            "http://169.254.169.254/latest/meta-data",
            "http://2130706433/ready",
            "http://0x7f.1/ready",
        ):
            said = problem(self.room("b", **{self.LINK: link}), 403)
            assert "origin of peer b" in said.json["detail"]
        for link in ("https://b.example@evil.example/x", "https://bücher.example/x"):
            problem(self.room("b", **{self.LINK: link}), 400)
        for link in ("https://b.example/any/where?x=1", "HTTPS://B.EXAMPLE:443/ready"):
            assert self.room("b", **{self.LINK: link}).status == 200
        problem(self.room("b", **{self.LINK: "https://bücher.example/x"}), 400)

    def test_the_operator_is_called_back_here(self) -> None:
        """Without a peer only this machine is; that is how open mode was used."""
        here = {self.LINK: "http://localhost:3002/ready"}
        assert self.room(CONTROL, **here).status == 200
        problem(self.room(CONTROL, **{self.LINK: "https://b.example/ready"}), 403)


class LimitTests(ClosedCase):
    """What the operator gives a peer is what it gets."""

    def test_the_quota_of_the_invitation_counts(self) -> None:
        self.put("b", Right.SEND, limits=Limits(quota=4))
        said = self.room("b").json
        assert (said["success"], said["reason"]) == (False, "quota-exceeded")
        assert self.room("c").json["success"]
        self.put("b", Right.SEND, limits=Limits(quota=10**6))
        assert self.room("b").json["success"]


class RevokedTests(ClosedCase):
    """Who is out is out at once."""

    def test_its_token_holds_no_more(self) -> None:
        now(self.service.revoke("b"))
        problem(self.ask("GET", BACKUPS, token="b"), 401)
        assert self.ask("GET", BACKUPS, token="c").status == 200

    def test_its_links_do_not_work_any_more(self) -> None:
        request_id = self.room("b").json["requestId"]
        link = f"/api/v1/backup/receive-backup/{self.capability(request_id)}"
        now(self.service.revoke("b"))
        problem(self.ask("POST", link, {"videoId": 2}), 404)
        problem(self.ask("PUT", link, b"video"), 404)
        request = self.ask("GET", f"{REQUESTS}/{request_id}", token=CONTROL).json
        assert (request["state"], request["reason"]) == ("CANCELLED", "Peer b was revoked.")

    def test_what_is_on_its_way_into_the_ledger_has_no_room_either(self) -> None:
        """It waits for the group commit while its peer is put out, and is committed after that."""
        ledger, gate = self.service.ledger, Deferred[None]()
        admit = ledger.admit

        def later(*given: Any, **named: Any) -> Deferred[Any]:
            return gate.addCallback(lambda _: admit(*given, **named))

        link = "https://b.example/ready"
        body = json.dumps({"videoId": 2, "diskEmptySpaceRequire": 5, CALLBACK: link}).encode()
        lines = [
            "POST /api/v1/backup/can-accept-backup HTTP/1.1",
            "Host: a.example",
            "Authorization: Bearer b",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        with mock.patch.object(ledger, "admit", later):
            talk = self.talk()
            talk.say("\r\n".join([*lines, "", ""]).encode() + body)
            now(self.service.revoke("b"))
            gate.callback(None)
        requests = self.ask("GET", REQUESTS, token=CONTROL).json["requests"]
        states = [(one["state"], one["reason"]) for one in requests]
        assert states == [("CANCELLED", "Peer b was revoked.")]
        assert now(ledger.totals()).promised == 0

    def test_its_upload_is_cut_and_its_room_is_free(self) -> None:
        request_id = self.room("b").json["requestId"]
        talk = self.talk()
        path = f"/api/v1/backup/receive-backup/{self.capability(request_id)}"
        head = f"PUT {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nvi"
        talk.say(head.encode())
        assert self.ask("GET", f"{REQUESTS}/{request_id}", token=CONTROL).json["state"] == (
            "RECEIVING"
        )
        now(self.service.revoke("b"))
        assert talk.transport.aborted
        assert now(self.service.ledger.uploads(None)) == []
        assert now(self.service.ledger.totals()).live == 0

    def test_what_it_has_under_way_is_cut(self) -> None:
        """An upload by its token, and whatever else waits for its answer."""
        self.room("b")
        talk, others = self.talk(), self.talk()
        for name, one in (("b", talk), ("c", others)):
            one.say(
                f"POST /api/v1/backup/can-accept-backup HTTP/1.1\r\nHost: a\r\n"
                f"Authorization: Bearer {name}\r\nContent-Type: application/json\r\n"
                "Content-Length: 99\r\n\r\n{".encode()
            )
        now(self.service.revoke("b"))
        assert talk.transport.aborted
        assert not others.transport.aborted

    def test_what_it_asked_before_is_not_granted_after(self) -> None:
        """Its question was let in, and its body came in slowly."""
        now(self.service.revoke("b"))
        home = "https://b.example"
        decision = now(
            self.service.admission.ask(
                peer="b", origin=home, video=2, size=5, callback=f"{home}/ready"
            )
        )
        assert decision.request is None
        assert now(self.service.ledger.totals()).live == 0

    def test_its_backups_stay(self) -> None:
        backup = self.kept("b")
        now(self.service.revoke("b"))
        found = self.ask("GET", f"{BACKUPS}/{backup}", token=CONTROL).json
        assert (found["peer"], found["problem"]) == ("b", None)
