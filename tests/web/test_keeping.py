"""Keeping at the HTTP face: a sender's token can only add, and what the operator can undo."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from backupd.interfaces import Retention
from backupd.trust.peers import Right
from tests.receiver.world import now
from tests.web.closed import CONTROL, START, ClosedCase, Said

BACKUPS = "/api/v1/backups"
DAY = 86400.0
OCTETS = {"Content-Type": "application/octet-stream"}
TUS = {"Tus-Resumable": "1.0.0"}


class KeptCase(ClosedCase):
    def setUp(self) -> None:
        super().setUp()
        self.put("thief", Right.SEND, Right.RESTORE)

    def files(self) -> dict[str, bytes]:
        """Every file of every backup, sidecars too."""
        root = Path(self.service.settings.root)
        return {
            str(path.relative_to(root)): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file() and ".backupd" not in path.parts
        }

    def listed(self, token: str = CONTROL, query: str = "") -> list[Any]:
        said = self.ask("GET", f"{BACKUPS}{query}", token=token)
        assert said.status == 200, said.body
        backups: list[Any] = said.json["backups"]
        return backups

    def ids(self, token: str = CONTROL, query: str = "") -> list[str]:
        return [backup["backupId"] for backup in self.listed(token, query)]

    def passes(self, seconds: float) -> None:
        self.reactor.advance(seconds)


class WriteOnceTests(KeptCase):
    """A stolen token of a sender: it may send and restore, which is what a sender needs."""

    def test_over_every_route_it_only_adds(self) -> None:
        """Whatever route there is, by whatever method and with whatever body: what was kept is
        listed as before, and every file is there, byte for byte.
        """
        kept = [self.kept("thief", 2), self.kept("thief", 3), self.kept("c", 2)]
        request_id = self.room("thief", 9).json["requestId"]
        done = now(self.service.ledger.backup(kept[0])).request_id
        used, fresh = self.capability(done), self.capability(request_id)
        before, files = self.listed(), self.files()
        names = {
            "backup_id": kept,
            "request_id": [done, request_id],
            "capability": [used, fresh],
            "token": ["x"],
            "upload_id": ["x"],
            "entry_id": ["x"],
            "name": ["thief", "c"],
        }
        bodies: list[tuple[Any, dict[str, str]]] = [
            (None, {}),
            ({}, {}),
            ({"videoId": 2, "success": False}, {}),
            ({"videoId": 2, "until": "2020-01-01"}, {}),
            ({"rights": ["delete", "admin"], "retention": {"keepLast": 1}}, {}),
            (b"other", OCTETS),
            (b"", TUS | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}),
        ]
        document = self.ask("GET", "/openapi.json", token=CONTROL).json
        tried = 0
        for path in document["paths"]:
            paths = [path]
            for part in re.findall(r"\{(\w+)\}", path):
                paths = [
                    one.replace(f"{{{part}}}", value) for one in paths for value in names[part]
                ]
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                for one in paths:
                    for body, headers in bodies:
                        for query in ("", "?now=true&videoId=2"):
                            self.ask(method, one + query, body, "thief", headers)
                            tried += 1
        assert tried > 1000
        after = self.listed()
        assert after[: len(before)] == before
        assert files.items() <= self.files().items()
        assert self.ids(query="?trash=true") == []
        assert self.service.peers.get("thief").rights == {Right.SEND, Right.RESTORE}

    def test_to_delete_takes_a_right_of_its_own(self) -> None:
        backup = self.kept("thief")
        for query in ("", "?now=true"):
            for headers in ({}, {"X-HTTP-Method-Override": "DELETE"}):
                method = "POST" if headers else "DELETE"
                said = self.ask(method, f"{BACKUPS}/{backup}{query}", None, "thief", headers)
                assert said.status == 403
        assert self.ids("thief") == [backup]

    def test_a_link_that_was_used_adds_nothing(self) -> None:
        """Not by any way of uploading, nor by giving up what is stored."""
        backup = self.kept("thief")
        files = self.files()
        capability = self.capability(now(self.service.ledger.backup(backup)).request_id)
        link = f"/api/v1/backup/receive-backup/{capability}"
        for method, body, headers in (
            ("POST", b"other", OCTETS),
            ("PUT", b"other", OCTETS),
            ("POST", {"videoId": 2}, {}),
            ("POST", b"", TUS | {"Upload-Length": "5"}),
            ("DELETE", None, TUS),
        ):
            said = self.ask(method, link, body, "thief", headers)
            assert said.status in (404, 405, 409, 410), (method, said)
        said = self.ask(
            "POST",
            f"/api/v1/backup/complete-backup/{capability}",
            {"videoId": 2, "success": False},
            "thief",
        )
        assert said.status == 409
        assert (self.ids(), self.files()) == ([backup], files)

    def test_a_new_version_lies_beside_the_old_one(self) -> None:
        """Under the same video, name and all."""
        old = self.kept("thief", 2)
        files = self.files()
        new = self.kept("thief", "2")
        assert self.ids() == [old, new]
        assert files.items() <= self.files().items()
        assert len(self.files()) == 2 * len(files)

    def test_flooding_takes_no_version_before_its_time(self) -> None:
        """The newest versions being all that is kept, a thief would only have to send some:
        `minimum_keep` is time to notice, and the trash is some more.
        """
        good = self.kept("thief")
        retention = {"keepLast": 1, "minimumKeep": 30 * DAY}
        said = self.ask("PATCH", "/api/v1/peers/thief", {"retention": retention}, CONTROL)
        assert said.json["retention"] == retention | {"keepFor": None}
        for _ in range(3):
            self.kept("thief")
        self.passes(29 * DAY)
        assert good in self.ids()
        self.passes(1 * DAY + 3600)
        assert good not in self.ids()
        assert good in self.ids(query="?trash=true")


class TrashTests(KeptCase):
    def delete(self, backup: str, token: str = CONTROL, query: str = "") -> Said:
        return self.ask("DELETE", f"{BACKUPS}/{backup}{query}", token=token)

    def test_deleted_is_hidden_from_peers(self) -> None:
        """It is in no list, and cannot be seen, read, deleted or brought back by it; the
        operator sees it, and until when.
        """
        backup = self.kept("b")
        said = self.delete(backup, "b")
        assert (said.status, said.json["deletedBy"]) == (200, "b")
        assert (self.ids("b"), self.ids()) == ([], [])
        for method, path, status in (
            ("GET", "", 404),
            ("GET", "/content", 404),
            ("HEAD", "/content", 404),
            ("DELETE", "", 404),
            ("POST", "/undelete", 403),
            ("POST", "/lock", 403),
        ):
            said = self.ask(
                method, f"{BACKUPS}/{backup}{path}", {} if method == "POST" else None, "b"
            )
            assert said.status == status, (method, path, said)
        assert self.ask("GET", f"{BACKUPS}?trash=true", token="b").status == 403
        (shown,) = self.listed(query="?trash=true")
        assert (shown["backupId"], shown["deletedBy"]) == (backup, "b")
        assert (shown["deletedAt"][:10], shown["removedAt"][:10]) == ("2027-01-15", "2027-01-22")
        assert self.ask("GET", f"{BACKUPS}/{backup}", token=CONTROL).status == 200

    def test_undelete(self) -> None:
        backup = self.kept("b")
        (before,) = self.listed("b")
        self.delete(backup, "b")
        assert self.ask("POST", f"{BACKUPS}/{backup}/undelete", token=CONTROL).json == before
        assert self.listed("b") == [before]
        assert self.ask("GET", f"{BACKUPS}/{backup}/content", token="b").body == b"video"

    def test_the_period_ends_by_the_loop(self) -> None:
        backup = self.kept("b")
        self.delete(backup, "b")
        self.passes(7 * DAY - 1)
        assert self.ids(query="?trash=true") == [backup]
        self.passes(1 + 3600)
        self.passes(5)
        assert self.ids(query="?trash=true") == []
        assert self.files() == {}

    def test_at_once_is_the_operators(self) -> None:
        backup = self.kept("b")
        assert self.delete(backup, "b", "?now=true").status == 403
        assert self.ids() == [backup]
        assert self.delete(backup, CONTROL, "?now=true").status == 200
        assert self.files() == {}
        assert self.delete(backup).status == 404
        assert self.delete("x", query="?now=perhaps").status == 400

    def test_before_the_minimum_it_is_the_operators(self) -> None:
        """Whatever right a peer has, but to administer."""
        self.put("b", Right.DELETE, Right.SEND, retention=Retention(minimum_keep=DAY))
        backup = self.kept("b")
        assert self.delete(backup, "b").status == 403
        self.passes(DAY)
        assert self.delete(backup, "b").status == 200
        assert self.delete(self.kept("b")).status == 200


class LockTests(KeptCase):
    def lock(self, backup: str, until: object, token: str = CONTROL) -> Said:
        return self.ask("POST", f"{BACKUPS}/{backup}/lock", {"until": until}, token)

    def test_no_token_deletes_it(self) -> None:
        """Neither the peer's nor the control token, in no way; and nobody shortens it."""
        self.put("root", Right.ADMIN)
        backup = self.kept("b")
        said = self.lock(backup, "2030-01-01")
        assert (said.status, said.json["lockedUntil"]) == (200, "2030-01-01T00:00:00.000Z")
        for token in ("b", "root", CONTROL):
            for query in ("", "?now=true"):
                said = self.ask("DELETE", f"{BACKUPS}/{backup}{query}", token=token)
                assert said.status in ((423,) if token != "b" or not query else (403,))
            said = self.lock(backup, "2029-12-31", token)
            assert said.status == (403 if token == "b" else 423)
        assert self.ids() == [backup]
        assert self.lock(backup, "2031-01-01T00:00+01:00").status == 200
        assert self.listed()[0]["lockedUntil"] == "2030-12-31T23:00:00.000Z"

    def test_what_makes_no_sense(self) -> None:
        backup = self.kept("b")
        for until in (
            "",
            "soon",
            "2020-01-01",
            "9999-12-31",
            "0001-01-01",
            5,
            None,
            "\u0662030-01-01",
        ):
            said = self.lock(backup, until)
            assert said.status == 400, (until, said)
            assert said.json["member"] == "until"
        assert self.lock("x", "2030-01-01").status == 404
        assert START < 1_893_456_000

    def test_revoking_its_peer_keeps_it(self) -> None:
        backup = self.kept("b")
        now(self.service.revoke("b"))
        assert self.ids() == [backup]
        assert os.path.isdir(self.service.settings.root)
