"""The trash, locks and the audit log of a real daemon, by ``backupctl``, through ``kill -9``."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from tests.integration.daemons import Daemon
from tests.integration.plain import PlainSender

DATA = b"a video" * 1000


def test_deleted_locked_and_brought_back(tmp_path: Path) -> None:
    """What was said of a backup is so after a crash, and for a ledger that is made anew."""
    with Daemon(tmp_path) as daemon, PlainSender() as sender:
        one, other = (
            sender.back_up(daemon.url, video, DATA)["backupId"] for video in ("one", "other")
        )

        def listed(*more: str) -> list[str]:
            done = daemon.ctl("list", "--json", *more)
            assert done.code == 0, done.err
            return [backup["backupId"] for backup in done.json["backups"]]

        done = daemon.ctl("delete", one)
        assert done.code == 0, done.err
        assert "backupctl undelete" in done.out
        assert daemon.ctl("lock", other, "--until", "2999-01-01").code == 1
        done = daemon.ctl("lock", other, "--until", "2090-01-01")
        assert done.code == 0, done.err
        daemon.kill()
        daemon.start()
        assert (listed(), listed("--trash")) == ([other], [one])
        refused = daemon.ctl("delete", other, "--now")
        assert refused.code == 1
        assert "locked until 2090-01-01" in refused.err

        daemon.kill()
        for file in (daemon.root / ".backupd").glob("ledger.sqlite3*"):
            file.unlink()
        daemon.start()
        assert daemon.ctl("rebuild").code == 0
        assert (listed(), listed("--trash")) == ([other], [one])
        assert daemon.ctl("delete", other).code == 1
        assert daemon.ctl("undelete", one).code == 0
        assert sorted(listed()) == sorted([one, other])
        assert daemon.call("GET", f"/api/v1/backups/{one}/content").body == DATA
        assert daemon.ctl("delete", one, "--now").code == 0
        assert (listed(), listed("--trash")) == ([other], [])
        assert list(daemon.root.glob(f"*/*/{one}")) == []

        log = daemon.root / ".backupd" / "audit.jsonl"
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        events = [json.loads(line) for line in log.read_text().splitlines()]
        assert [one["n"] for one in events] == list(range(1, len(events) + 1))
        told = [one["event"] for one in events if one["event"] != "refused"]
        assert told == [
            *("started", "deleted", "locked", "started", "started"),
            *("rebuilt", "undeleted", "restored", "removed"),
        ]
        shown = daemon.ctl("audit", "--limit", "3").out.splitlines()
        assert len(shown) == 3
        assert f"removed operator 127.0.0.1 {one}" in shown[-1]


def test_how_long_a_peers_versions_are_kept(tmp_path: Path) -> None:
    """Said in words, kept in its record; what is not said stays."""
    with Daemon(tmp_path) as daemon:
        assert daemon.ctl("peer", "add", "b", "--may", "send").code == 0

        def retention(*words: str) -> dict[str, object]:
            done = daemon.ctl("peer", "set", "b", *words, "--json")
            assert done.code == 0, done.err
            told: dict[str, object] = done.json["retention"]
            return told

        day = 86400
        said = retention("--keep-last", "3", "--keep-for", "90d", "--minimum-keep", "30 d")
        assert said == {"keepLast": 3, "keepFor": 90 * day, "minimumKeep": 30 * day}
        said = retention("--keep-last", "all", "--keep-for", "none")
        assert said == {"keepLast": 0, "keepFor": None, "minimumKeep": 30 * day}
        daemon.kill()
        daemon.start()
        assert daemon.ctl("peer", "show", "b", "--json").json["retention"] == said
        assert "all versions, none shorter than 30 days" in daemon.ctl("peer", "show", "b").out
        for words in (("--keep-last", "-1"), ("--keep-last", "few"), ("--keep-for", "long")):
            assert daemon.ctl("peer", "set", "b", *words).code == 2
