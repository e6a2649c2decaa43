"""The audit log: who was refused, let in or put out, and what became of what is kept."""

from __future__ import annotations

from typing import Any

from backupd.trust.peers import Right
from tests.web.closed import CONTROL, ClosedCase

BACKUPS = "/api/v1/backups"
PEERS = "/api/v1/peers"
HERE = "192.0.2.9"


class AuditTests(ClosedCase):
    def written(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.server.events.written if one["event"] == event]

    def one(self, event: str, **more: Any) -> dict[str, Any]:
        """The only event of this kind, with these members."""
        (found,) = self.written(event)
        assert more.items() <= found.items(), found
        return found

    def test_the_start(self) -> None:
        """With the settings that guard."""
        why = self.one("started")["why"]
        for part in ("'closed': True", "'trash_period': 604800.0", "'allowed_origins': ()"):
            assert part in why

    def test_refused(self) -> None:
        """Whoever comes without a token, or with a wrong one; wherever, once a minute."""
        for token in (None, "guessed", "x" * 64):
            self.ask("GET", BACKUPS, token=token)
            self.ask("GET", "/nothing", token=token)
        found = self.one("refused", peer="stranger", address=HERE, what=f"GET {BACKUPS}")
        assert "token" in found["why"]
        self.reactor.advance(60)
        assert self.written("refused")[1]["count"] == 5

    def test_refused_a_right(self) -> None:
        self.put("d", Right.SEND)
        backup = self.kept("b")
        self.ask("GET", f"{BACKUPS}/{backup}/content", token="d")
        self.one("refused", peer="d", what=f"GET {BACKUPS}/{backup}/content")

    def test_a_page_of_another_site(self) -> None:
        self.ask("POST", PEERS, {"name": "x"}, CONTROL, {"Origin": "https://evil.example"})
        assert "evil.example" in self.one("refused", peer="operator")["why"]

    def test_a_callback_to_elsewhere(self) -> None:
        link = "linkForServerAtoNoticeServerBWhenServerAIsReady"
        assert self.room("b", 2, **{link: "https://c.example/x"}).status == 403
        assert "c.example" in self.one("refused", peer="b")["why"]

    def test_a_call_to_where_nobody_may_be_called(self) -> None:
        """By the guard where connections are made; each try of a minute is not a line."""
        origin = "https://10.0.0.1"
        self.put("b", Right.SEND, origins=(origin,))
        link = "linkForServerAtoNoticeServerBWhenServerAIsReady"
        assert self.room("b", 2, **{link: f"{origin}/ready"}).status == 200
        self.reactor.pump([5.0] * 10)
        assert "networks" in self.one("call-refused", peer="b", what=origin)["why"]
        assert self.reactor.tcpClients == self.reactor.sslClients == []

    def test_a_notice_that_nobody_has_signed(self) -> None:
        notice = {
            "videoId": 2,
            "linkForServerBtoSendBackupToSeverA": "https://b.example/x",
            "linkForServerBtoCompleteBackupToSeverA": "https://b.example/y",
        }
        path = "/api/v1/backup/serverAisReadyForBackup"
        assert self.ask("POST", f"{path}/guessed-by-somebody", notice).status == 404
        assert self.ask("POST", path, notice).status == 401
        self.one("refused", peer="stranger", what=f"POST {path}")

    def test_peers(self) -> None:
        """Each change of who is trusted, by whom, from where."""
        limits = {"rights": ["send"], "networks": ["loopback"]}
        self.ask("POST", PEERS, {"name": "new", "direct": True} | limits, CONTROL)
        self.one("peer-added", peer="operator", address=HERE, what="new")
        self.ask("PATCH", f"{PEERS}/new", {"rights": ["send", "delete"]}, CONTROL)
        assert "delete" in self.one("peer-set", what="new")["why"]
        self.ask("POST", f"{PEERS}/new/rotate", token=CONTROL)
        self.one("peer-rotated", what="new")
        self.ask("DELETE", f"{PEERS}/new", token=CONTROL)
        self.one("peer-revoked", what="new")
        self.ask("DELETE", f"{PEERS}/nobody", token=CONTROL)
        self.one("peer-revoked", what="new")

    def test_an_invitation_that_is_not_known(self) -> None:
        body = {"secret": "x" * 32, "url": "https://x", "token": "y" * 32, "signingSecret": "z"}
        assert self.ask("POST", f"{PEERS}/enrol", body).status == 401
        self.one("refused", peer="stranger", what=f"POST {PEERS}/enrol")

    def test_backups(self) -> None:
        """Deleted, brought back, locked, removed: each by whom, and nothing that was refused."""
        backup = self.kept("b")
        path = f"{BACKUPS}/{backup}"
        self.ask("DELETE", path, token="b")
        self.one("deleted", peer="b", what=backup)
        self.ask("POST", f"{path}/undelete", token=CONTROL)
        self.one("undeleted", peer="operator", what=backup)
        self.ask("POST", f"{path}/lock", {"until": "2027-02-01"}, CONTROL)
        self.one("locked", what=backup, why="until 2027-02-01T00:00:00.000Z")
        self.ask("DELETE", f"{path}?now=true", token=CONTROL)
        assert self.written("removed") == []
        self.reactor.advance(30 * 86400)
        self.ask("DELETE", f"{path}?now=true", token=CONTROL)
        self.one("removed", peer="operator", what=backup)

    def test_restores(self) -> None:
        """By whom; ranges of one backup in a minute are one event and a number."""
        backup = self.kept("b")
        for start in range(4):
            span = {"Range": f"bytes={start}-"}
            self.ask("GET", f"{BACKUPS}/{backup}/content", token="b", headers=span)
        self.ask("HEAD", f"{BACKUPS}/{backup}/content", token="b")
        self.one("restored", peer="b", address=HERE, what=backup)
        self.reactor.advance(60)
        assert self.written("restored")[1]["count"] == 3

    def test_no_secrets(self) -> None:
        """Neither tokens nor links nor what a pairing exchanges, whatever was done."""
        self.ask("POST", PEERS, {"name": "new", "direct": True}, CONTROL)
        self.ask("POST", f"{PEERS}/new/rotate", token=CONTROL)
        request = self.room("b").json["requestId"]
        capability = self.capability(request)
        self.ask("POST", f"/api/v1/backup/receive-backup/{capability}", {"videoId": 3}, "c")
        self.ask("GET", "/api/v1/peers", token="guessed-token-of-somebody")
        for place in ("receive", "complete"):
            link = f"/api/v1/backup/{place}-backup/{capability}"
            said = self.ask("POST", link, {}, None, {"Origin": "https://evil.example"})
            assert said.status == 403
            self.reactor.advance(60)
        assert len(self.written("refused")) == 3
        self.service.audit.tick()
        text = str(self.server.events.written)
        for secret in ("secret-of-a-", "whsec_", CONTROL, "guessed-token", capability):
            assert secret not in text

    def test_the_operator_reads_it(self) -> None:
        """The last ones, or those after a number; nobody else does."""
        for number in range(5):
            self.service.audit.note(f"e{number}")
        said = self.ask("GET", "/api/v1/audit?limit=2", token=CONTROL).json
        assert [one["event"] for one in said["events"]] == ["e3", "e4"]
        path = f"/api/v1/audit?after={said['next']}"
        assert self.ask("GET", path, token=CONTROL).json == said | {"events": []}
        self.service.audit.note("e5")
        (event,) = self.ask("GET", path, token=CONTROL).json["events"]
        assert event["event"] == "e5"
        assert self.ask("GET", path, token="b").status == 403

    def test_it_fails_and_the_service_goes_on(self) -> None:
        """And says so."""
        self.server.events.fails = "The audit log cannot be written: EIO."
        backup = self.kept("b")
        assert self.ask("DELETE", f"{BACKUPS}/{backup}", token="b").status == 200
        said = self.ask("GET", "/api/v1/audit", token=CONTROL).json
        assert said["trouble"] == "The audit log cannot be written: EIO."
        assert self.metric("backupd_audit_failing") == 1
        assert self.metric("backupd_audit_events_waiting") > 0
        assert self.ask("GET", "/readyz", token=CONTROL).status == 200
        self.server.events.fails = None
        self.reactor.advance(5)
        self.one("deleted", what=backup)
        assert self.metric("backupd_audit_failing") == 0
        assert self.metric("backupd_audit_events_waiting") == 0

    def metric(self, name: str) -> float:
        told = self.ask("GET", "/metrics", token=CONTROL).body.decode()
        (line,) = [one for one in told.splitlines() if one.startswith(f"{name} ")]
        return float(line.split()[1])
