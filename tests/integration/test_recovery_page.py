"""docs/recovery.md: its own commands, run as they stand there, bring everything back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import pytest

from tests.integration.daemons import BACKUPCTL, REPOSITORY, Done, run, wait_until
from tests.integration.pairs import Server, pair
from tests.integration.proxies import needs

VIDEOS = {f"{number}.mp4": bytes([number]) * (number * 10_000) for number in range(1, 7)}


def commands(section: str) -> list[tuple[str, str]]:
    """Who runs what, in the console block of a section."""
    page = (REPOSITORY / "docs" / "recovery.md").read_text()
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    (block,) = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    found = re.findall(r"^(server-[abc])[#$] (.+)$", block, re.MULTILINE)
    assert len(found) == len(block.splitlines()) >= 3
    return found


class Operator:
    """Sits before the servers, and types what the page says."""

    def __init__(self, folder: Path, **servers: Server) -> None:
        self._folder = folder
        self._servers = {f"server-{name}": server for name, server in servers.items()}
        self._invitation = ""
        self.left = {"backupctl doctor", "backupctl doctor --repair"}
        """What may end with 1: there is something left to do. Everything else ends with 0."""

    def follow(self, section: str) -> dict[str, Done]:
        """What each command said."""
        return {command: self.type(name, command) for name, command in commands(section)}

    def type(self, name: str, command: str) -> Done:
        server = self._servers[name]
        if command.startswith("systemctl"):
            return self._systemctl(server, command)
        typed = (
            command.replace("/var/lib/backupd", str(server.root))
            .replace("/mnt/old-disk", str(self._folder / "old-disk"))
            .replace("/srv/videos", str(self._folder / "back"))
            .replace("backupd-invite-…", self._invitation)
        )
        if re.match("backupctl peer (invite|join)", typed):
            typed += " --network loopback"  # where no test could do without
        shell = f'backupctl() {{ "{BACKUPCTL[0]}" -c "{BACKUPCTL[2]}" "$@"; }}; {typed}'
        done = run(["bash", "-c", shell], server.environment, cwd=server.folder)
        right = {0, 1} if command in self.left else {0}
        assert done.code in right, (command, done.out, done.err)
        if "peer invite" in command:
            (self._invitation,) = re.findall(r"backupd-invite-\S+", done.out)
        return done

    def _systemctl(self, server: Server, command: str) -> Done:
        _, what, unit = command.split()
        assert unit == "backupd"
        if what == "stop" and server.process is not None:
            server.stop()
        if what == "start":
            server.start()
        return Done(0, "", "")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    needs("bash")
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, data in VIDEOS.items():
        (folder / name).write_bytes(data)
    return folder


def send(owner: Server, videos: Path) -> None:
    sent = owner.ctl("send", *sorted(videos.iterdir()), "--to", "server-a", seconds=90)
    assert sent.code == 0, sent.err


def kept(keeper: Server) -> list[tuple[str, str | None]]:
    """Each backup that is listed, and its problem: beside a new one the damaged one stays until
    it is deleted."""
    listed = keeper.ctl("list", "--json").json["backups"]
    named = [(one["fileName"], one["problem"]) for one in listed]
    return sorted(named, key=lambda one: (one[0], one[1] or ""))


def digests(paths: Iterable[Path]) -> list[tuple[str, str]]:
    return sorted((path.name, sha256(path.read_bytes()).hexdigest()) for path in paths)


def files(keeper: Server) -> list[tuple[str, str]]:
    return digests(keeper.root.glob("server-b/*/*/*.mp4"))


WELL = [(name, None) for name in VIDEOS]
RIGHT = [(name, sha256(data).hexdigest()) for name, data in VIDEOS.items()]


def test_the_receivers_disk_dies(tmp_path: Path, videos: Path) -> None:
    """Half of it could be saved, one file of that with wrong bytes; the sender brings the rest."""
    with Server(tmp_path, "server-a") as a, Server(tmp_path, "server-b") as b:
        pair(a, b)
        send(b, videos)
        a.kill()
        old = a.root.rename(tmp_path / "old-disk")
        a.root.mkdir()
        for number in (1, 2, 3):
            shutil.rmtree(old / "server-b" / str(number))
        (wrong,) = old.glob("server-b/4/*/4.mp4")
        wrong.write_bytes(b"x" * len(VIDEOS["4.mp4"]))
        operator = Operator(tmp_path, a=a, b=b)
        operator.left.add("backupctl verify")  # unless it is mended before it is asked about
        said = operator.follow("The receiver's disk dies")
        assert said["backupctl doctor"].out.count("Its folder is gone.") == 3
        wait_until(lambda: kept(a) == WELL, "all are there again", 60)
        assert files(a) == RIGHT
        last = a.ctl("doctor")
        assert last.code == 0, last.out


def test_the_disk_dies_and_the_ledger_does_not(tmp_path: Path, videos: Path) -> None:
    """Nothing of it could be saved; once that is said, the sender brings everything."""
    other = tmp_path / "other-disk"
    other.mkdir()
    ledger = f"sqlite:///{other}/ledger.sqlite3"
    with Server(tmp_path, "server-a", ledger=ledger) as a, Server(tmp_path, "server-b") as b:
        pair(a, b)
        send(b, videos)
        a.kill()
        shutil.rmtree(a.root)
        a.root.mkdir()
        with pytest.raises(AssertionError, match="has lost its mark"):
            a.start()
        operator = Operator(tmp_path, a=a, b=b)
        operator.left.add("backupctl verify")  # they are lost
        operator.follow("The receiver's disk dies, and the ledger lies on another")
        wait_until(lambda: kept(a) == WELL, "all are there again", 60)
        assert files(a) == RIGHT
        last = a.ctl("doctor")
        assert last.code == 0, last.out


def test_the_ledger_dies(tmp_path: Path, videos: Path) -> None:
    """What is left of it is no ledger; everything is listed, verified, and can be added to."""
    with Server(tmp_path, "server-a") as a, Server(tmp_path, "server-b") as b:
        pair(a, b)
        send(b, videos)
        a.stop()
        ledger = a.root / ".backupd" / "ledger.sqlite3"
        ledger.write_bytes(b"no ledger at all" * 1000)
        with pytest.raises(AssertionError, match=r"ledger .* could not be opened"):
            a.start()
        said = Operator(tmp_path, a=a, b=b).follow("The ledger dies")
        assert said["backupctl doctor --repair"].code == 0
        assert said["backupctl doctor --repair"].out.count("Repaired:") == len(VIDEOS)
        assert "6 backups are whole" in said["backupctl verify"].out
        assert kept(a) == WELL
        new = tmp_path / "7.mp4"
        new.write_bytes(b"a new one")
        assert b.ctl("send", new, "--to", "server-a").code == 0


def test_the_sender_dies(tmp_path: Path, videos: Path) -> None:
    """A fresh server has every video again, and the old one's token opens nothing any more."""
    with Server(tmp_path, "server-a") as a:
        with Server(tmp_path, "server-b") as b:
            pair(a, b)
            send(b, videos)
        record = (b.root / ".backupd" / "peers" / "server-a.json").read_text()
        (token,) = re.findall(r'"token": "([^"]+)"', record)
        assert a.call("GET", "/api/v1/backups", token=token).status == 200
        shutil.rmtree(b.root)
        shutil.rmtree(videos)
        (tmp_path / "fresh").mkdir()
        with Server(tmp_path / "fresh", "server-b") as fresh:
            said = Operator(tmp_path, a=a, b=fresh).follow("The sender dies")
        assert "6 of 6 files" in list(said.values())[-1].out
        assert digests((tmp_path / "back").iterdir()) == RIGHT
        assert a.call("GET", "/api/v1/backups", token=token).status == 401


def test_the_receiver_dies(tmp_path: Path, videos: Path) -> None:
    """Another one has everything, and the dead one is forgotten."""
    with Server(tmp_path, "server-b") as b, Server(tmp_path, "server-c") as c:
        with Server(tmp_path, "server-a") as a:
            pair(a, b)
            send(b, videos)
        shutil.rmtree(a.root)
        Operator(tmp_path, b=b, c=c).follow("The receiver dies")
        assert kept(c) == WELL
        assert files(c) == RIGHT
        assert b.ctl("queue", "--json").json["entries"] == []
        states = {
            one["name"]: one["state"] for one in b.ctl("peer", "list", "--json").json["peers"]
        }
        assert states == {"server-a": "revoked", "server-c": "active"}
