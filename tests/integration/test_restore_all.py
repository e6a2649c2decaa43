"""``backupctl restore --all``: every video is back, checked, or it is said what is missing."""

from __future__ import annotations

import hashlib
import math
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.integration.cutter import Cutter
from tests.integration.daemons import BACKUPCTL, CLIP, Daemon, Done, wait_until
from tests.integration.pairs import Server, pair
from tests.integration.plain import PlainSender

QUICK = {"loop_interval": "0.2"}
MIB = 1024 * 1024
DOOR = b"the connection breaks when this comes by"
HEADS = 16 * 1024
"""Bytes that the answers to one run may have besides the videos': their heads, and the list."""


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path, "keeper", **QUICK) as daemon:
        yield daemon


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "back"


def restore(server: Daemon, into: Path, *more: str, url: str = "") -> Done:
    address = ("--url", url) if url else ()
    return server.ctl(*address, "restore", "--all", "--into", into, "--json", *more)


def states(done: Done) -> dict[str, str]:
    return {str(one["videoId"]): one["state"] for one in done.json["files"]}


def damage(server: Daemon, backup_id: str) -> None:
    """Turn a byte over, and let it be found."""
    [file] = [one for one in server.root.glob(f"*/*/{backup_id}/*") if one.name != "backup.json"]
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(data)
    assert server.ctl("verify", backup_id).code == 1


def test_all_come_back_and_a_second_time_nothing_moves(
    keeper: Daemon, sender: PlainSender, into: Path
) -> None:
    videos = {number: bytes([number]) * (number * 1000) for number in range(1, 8)}
    for number, data in videos.items():
        sender.back_up(keeper.url, number, data, fileName="video.mp4")
    sender.back_up(keeper.url, "8", b"first", fileName="8.mp4")
    sender.back_up(keeper.url, "8", b"second", fileName="8.mp4")
    done = restore(keeper, into, "--peer", sender.url, "--at-once", "3")
    assert (done.code, done.json["restored"]) == (0, 8), done.err
    for number, data in videos.items():
        assert (into / str(number) / "video.mp4").read_bytes() == data
    assert (into / "8.mp4").read_bytes() == b"second"
    assert not list(into.rglob("*.part"))
    before = {path: path.stat().st_mtime_ns for path in into.rglob("*")}
    again = restore(keeper, into)
    assert (again.code, again.json["there"], again.json["restored"]) == (0, 8, 0)
    assert {path: path.stat().st_mtime_ns for path in into.rglob("*")} == before

    every = restore(keeper, into / "all", "--versions", "all")
    assert (every.code, every.json["restored"]) == (0, 9)
    old = sorted(path.read_bytes() for path in (into / "all" / "8").glob("*/8.mp4"))
    assert old == [b"first", b"second"]


def test_it_goes_on_where_it_was_cut(keeper: Daemon, sender: PlainSender, into: Path) -> None:
    """Within one run when the connection breaks: what has come does not come again."""
    data = bytes(range(256)) * 4 * 8192
    data = data[: 5 * MIB] + DOOR + data[5 * MIB :]
    sender.back_up(keeper.url, 1, data, fileName="1.mp4")
    for abruptly in (True, False):
        with _Counting(keeper.port) as door:
            door.abruptly = abruptly
            door.lose_answer(DOOR)
            assert restore(keeper, into, url=door.url).code == 0
            assert door.cuts == 1
        assert (into / "1.mp4").read_bytes() == data
        (into / "1.mp4").unlink()
    # A reset takes with it what lies in the sockets; an end does not.
    assert door.back <= len(data) + HEADS


def test_bytes_that_are_there_do_not_come_again_unless_they_are_wrong(
    keeper: Daemon, sender: PlainSender, into: Path
) -> None:
    data = bytes(range(256)) * 4 * 8192
    done = sender.back_up(keeper.url, 1, data, fileName="1.mp4")
    into.mkdir()
    partial = into / f".{done['backupId']}.part"
    rest = len(data) - 3 * MIB
    for left, still in ((data[: 3 * MIB], rest), (bytes(3 * MIB), rest + len(data))):
        partial.write_bytes(left)
        with _Counting(keeper.port) as door:
            assert restore(keeper, into, url=door.url).code == 0
        assert still <= door.back <= still + HEADS
        assert (into / "1.mp4").read_bytes() == data
        (into / "1.mp4").unlink()


def test_a_run_that_was_killed_is_gone_on_with_by_the_next(
    keeper: Daemon, sender: PlainSender, into: Path
) -> None:
    """Some videos back, some partly there, some not begun: only the rest of them comes."""
    videos = {number: random.Random(number).randbytes(6 * MIB) for number in range(1, 6)}
    for number, data in videos.items():
        sender.back_up(keeper.url, number, data, fileName=f"{number}.mp4")

    def back() -> list[Path]:
        return list(into.glob("*.mp4"))

    def partly() -> list[Path]:
        return [one for one in into.glob(".*.part") if size(one)]

    def size(path: Path) -> int:
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0  # it has got its name meanwhile

    def there() -> int:
        return sum(map(size, (*back(), *partly())))

    with _Counting(keeper.port, most=15 * MIB) as door:
        words = ["--url", door.url, "restore", "--all", "--into", str(into)]
        words += ["--at-once", "2"]
        killed = subprocess.Popen([*BACKUPCTL, *words], env=keeper.environment)
        try:
            # One at least of two at a time is whole then, and of the others a block has come.
            wait_until(lambda: door.holds and back() and partly(), "it is in the middle")
            # What it has read, and not written yet, is a block for each of the two.
            wait_until(lambda: there() >= door.back - 2 * MIB - HEADS, "it has written what came")
        finally:
            killed.kill()
            killed.wait()
    whole, kept = len(back()), there()
    assert 0 < whole < len(videos)
    assert partly()

    with _Counting(keeper.port) as door:
        done = restore(keeper, into, "--at-once", "2", url=door.url)
    assert (done.code, done.json["there"]) == (0, whole), done.err
    assert done.json["restored"] == len(videos) - whole
    rest = sum(map(len, videos.values())) - kept
    assert rest <= door.back <= rest + HEADS
    for number, data in videos.items():
        assert (into / f"{number}.mp4").read_bytes() == data
    assert not partly()


class _Counting(Cutter):
    """A door that counts what it passes back to clients, and passes ``most`` bytes of it.

    Then it `holds`: clients hear no more, and wait, until it is closed.
    """

    def __init__(self, port: int, most: float = math.inf) -> None:
        super().__init__()
        self.target, self.back, self.holds = port, 0, False
        self._most, self._closed = most, threading.Event()
        self._counting = threading.Lock()

    def answered(self, client: Any, data: bytes) -> None:
        with self._counting:
            self.holds = self.holds or self.back + len(data) > self._most
            if not self.holds:
                self.back += len(data)
                return
        self._closed.wait()
        raise OSError("closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self.close()


def test_what_is_damaged_is_told_and_an_older_version_taken(keeper: Daemon, into: Path) -> None:
    with PlainSender() as other:
        named = {"fileName": "1.mp4"}
        other.back_up(keeper.url, 1, b"an older version", **named)
        newest = other.back_up(keeper.url, 1, b"the newest one", **named)
        only = other.back_up(keeper.url, 2, b"the only one", fileName="2.mp4")
        gone = other.back_up(keeper.url, 3, b"it will be gone", fileName="3.mp4")
        other.back_up(keeper.url, 4, b"a good one", fileName="4.mp4")
        other.answers_with = 410  # nobody sends again what is damaged
        for one in (newest, only):
            damage(keeper, one["backupId"])
    [file] = keeper.root.glob(f"*/3/{gone['backupId']}/3.mp4")
    file.unlink()
    keeper.incidents_expected = True
    done = restore(keeper, into)
    assert done.code == 1
    assert states(done) == {"1": "older", "2": "missing", "3": "missing", "4": "restored"}
    why = {str(one["videoId"]): one["why"] for one in done.json["files"]}
    assert "damaged" in why["1"]
    assert "damaged" in why["2"]
    assert why["3"]
    assert (into / "1.mp4").read_bytes() == b"an older version"
    assert sorted(path.name for path in into.iterdir()) == ["1.mp4", "4.mp4"]
    told = keeper.ctl("restore", "--all", "--into", into)
    assert (told.code, "video 3" in told.err, "1 of 4 files" in told.out) == (1, True, True)


def test_another_file_in_its_place_stays(keeper: Daemon, sender: PlainSender, into: Path) -> None:
    sender.back_up(keeper.url, 1, b"a video", fileName="1.mp4")
    into.mkdir()
    (into / "1.mp4").write_bytes(b"somebody's")
    done = restore(keeper, into)
    assert (done.code, states(done)) == (1, {"1": "missing"})
    assert (into / "1.mp4").read_bytes() == b"somebody's"
    assert restore(keeper, into, "--force").code == 0
    assert (into / "1.mp4").read_bytes() == b"a video"


def test_whose_videos_must_be_clear(keeper: Daemon, sender: PlainSender, into: Path) -> None:
    assert "keeps no backups" in restore(keeper, into).err
    sender.back_up(keeper.url, 1, b"a video", fileName="1.mp4")
    with PlainSender() as other:
        other.back_up(keeper.url, 1, b"another's", fileName="1.mp4")
        assert "--peer" in restore(keeper, into).err
        assert restore(keeper, into, "--peer", other.url).code == 0
    assert (into / "1.mp4").read_bytes() == b"another's"
    for wrong in (["--all"], ["--into", str(into)], ["x", "--all", "--into", str(into)], []):
        assert keeper.ctl("restore", *wrong).code == 2


def test_many_at_once_are_bounded(keeper: Daemon, sender: PlainSender, into: Path) -> None:
    """``--at-once 2`` has two connections with bytes open at most."""
    for number in range(6):
        sender.back_up(keeper.url, number, bytes(MIB), fileName=f"{number}.mp4")
    seen = _Open(keeper.port)
    assert restore(keeper, into, "--at-once", "2", url=seen.url).code == 0
    seen.close()
    assert seen.most == 2


class _Open(Cutter):
    """A door that knows how many went through it at once."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.target, self.most, self._now = port, 0, 0
        self._counting = threading.Lock()

    def _from_server(self, client: Any, server: Any) -> None:
        with self._counting:
            self._now += 1
            self.most = max(self.most, self._now)
        super()._from_server(client, server)
        with self._counting:
            self._now -= 1


def test_a_fresh_server_gets_its_own_back_from_its_peer(tmp_path: Path) -> None:
    """The sender and all it had is gone; a new one joins in its name, and says one command."""
    with Server(tmp_path, "keeper") as keeper:
        with Server(tmp_path, "owner") as owner:
            pair(keeper, owner)
            sent = owner.ctl("send", CLIP, "--to", "keeper", "--video-id", "2", seconds=60)
            assert sent.code == 0, sent.err
        fresh = tmp_path / "fresh"
        fresh.mkdir()
        with Server(fresh, "owner") as owner:
            none = owner.ctl("restore", "--all", "--at", "keeper", "--into", fresh / "videos")
            assert (none.code, "no peer" in none.err) == (1, True)
            pair(keeper, owner)
            done = restore(owner, fresh / "videos", "--peer", "keeper")
            assert (done.code, done.json["restored"]) == (0, 1), done.err
            assert done.json["from"] == keeper.url
            file = fresh / "videos" / "2" / "clip.mp4"
            assert (
                hashlib.sha256(file.read_bytes()).digest()
                == hashlib.sha256(CLIP.read_bytes()).digest()
            )
            again = restore(owner, fresh / "videos", "--at", "keeper")
            assert (again.code, again.json["there"]) == (0, 1)

            # Who has another key than the one we were paired with gets not even our token.
            record = owner.root / ".backupd" / "peers" / "keeper.json"
            known = record.read_text()
            pin = known.split('"pin": "sha256//')[1].split('"')[0]
            record.write_text(known.replace(pin, "A" * 43 + "="))
            wrong = restore(owner, fresh / "more", "--at", "keeper")
            assert (wrong.code, "another public key" in wrong.err) == (1, True)
            record.write_text(known)

            assert keeper.ctl("peer", "set", "owner", "--may", "send").code == 0
            refused = restore(owner, fresh / "more", "--at", "keeper")
            assert refused.code == 1


def test_whose_is_meant_is_said_where_two_keep_each_others(tmp_path: Path, into: Path) -> None:
    """The other's videos in the place of ours, and an exit code of 0, would be the worst of all."""
    with Server(tmp_path, "keeper") as keeper, Server(tmp_path, "owner") as owner:
        pair(keeper, owner)
        assert owner.ctl("peer", "set", "keeper", "--may", "send,restore").code == 0
        ours, theirs = tmp_path / "ours.mp4", tmp_path / "theirs.mp4"
        ours.write_bytes(b"ours")
        theirs.write_bytes(b"theirs")
        assert keeper.ctl("send", theirs, "--to", "owner", seconds=60).code == 0
        # Only theirs are kept: then there is nothing that could be meant besides.
        assert states(restore(owner, into / "1", "--peer", "keeper")) == {"theirs": "restored"}
        assert owner.ctl("send", ours, "--to", "keeper", seconds=60).code == 0
        unclear = restore(owner, into / "2", "--peer", "keeper")
        assert unclear.code == 1
        assert "--at keeper" in unclear.err
        assert "--here" in unclear.err
        assert states(restore(owner, into / "2", "--at", "keeper")) == {"ours": "restored"}
        there = restore(owner, into / "3", "--peer", "keeper", "--here")
        assert states(there) == {"theirs": "restored"}
        keeper.stop()
        assert restore(owner, into / "4", "--peer", "keeper").code == 1
        assert owner.ctl("restore", "x", "--here").code == 2
