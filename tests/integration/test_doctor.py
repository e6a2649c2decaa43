"""``backupctl doctor``: says what `--repair` would do, does it, and is content only when all is."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.daemons import Daemon, wait_until
from tests.integration.plain import PlainSender

DATA = b"a video of some bytes" * 1000


def test_what_can_be_mended_is_mended_and_the_rest_is_told(tmp_path: Path) -> None:
    with PlainSender() as sender, Daemon(tmp_path, loop_interval="0.2") as daemon:
        for number in range(4):
            sender.back_up(daemon.url, number, DATA, fileName=f"{number}.mp4")
        well = daemon.ctl("doctor", "--repair")
        assert (well.code, "all 4 backups lie" in well.out) == (0, True), well.out + well.err

        folders = [next(daemon.root.glob(f"*/{number}/*")) for number in range(4)]
        cut = folders[0] / "backup.json"
        cut.write_bytes(cut.read_bytes()[:50])
        (folders[1] / "backup.json").unlink()
        sender.answers_with = 410
        (folders[2] / "2.mp4").unlink()
        stray = daemon.root / "stray.txt"
        stray.write_bytes(b"somebody's")

        told = daemon.ctl("doctor", "--json")
        assert told.code == 1
        advice = {one["what"]: one["advice"] for one in told.json if not one["well"]}
        assert len(advice) == 4
        assert "--repair: its bytes are read" in advice[str(cut.relative_to(daemon.root))]
        assert "move it out of the root" in advice["stray.txt"]
        assert len(cut.read_bytes()) == 50

        done = daemon.ctl("doctor", "--repair")
        assert (done.code, done.out.count("Repaired:")) == (1, 2), done.out
        assert json.loads(cut.read_bytes())["fileName"] == "0.mp4"
        assert stray.read_bytes() == b"somebody's"
        [gone] = [one for one in daemon.backups() if one["problem"]]
        assert gone["videoId"] == 2

        # What is left is told until somebody has seen to it.
        assert daemon.ctl("doctor").code == 1
        stray.unlink()
        assert daemon.ctl("delete", gone["backupId"], "--now").code == 0
        last = daemon.ctl("doctor")
        assert last.code == 0, last.out


def test_without_the_token_it_says_so(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        done = daemon.ctl("--token", "wrong", "doctor")
        assert (done.code, "control token" in done.out) == (1, True)


def test_an_audit_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """The daemon goes on, and can take work."""
    own = tmp_path / "daemon" / ".backupd"
    (own / "audit.jsonl").mkdir(parents=True)
    own.chmod(0o700)
    with Daemon(tmp_path) as daemon:
        daemon.incidents_expected = True
        assert daemon.call("GET", "/api/v1/peers").status == 401
        wait_until(lambda: "The audit log" in daemon.text(), "it is in the daemon's log")
        assert daemon.call("GET", "/readyz").status == 200
        done = daemon.ctl("doctor", "--json")
        assert done.code == 1
        told = {one["what"]: one for one in done.json}
        assert (told["audit log"]["well"], told["daemon"]["well"]) == (False, True)
        assert "audit.jsonl cannot be" in told["audit log"]["told"]
