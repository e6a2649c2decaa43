"""``backupctl resend``: when a receiver is gone, another gets everything that it kept of ours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.daemons import Daemon, wait_until
from tests.integration.pairs import Server, pair

QUICK = {"loop_interval": "0.2"}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.mp4").write_bytes(bytes([number]) * (1000 + number))
    return folder


@pytest.fixture
def servers(tmp_path: Path, videos: Path) -> Iterator[tuple[Daemon, Daemon, Daemon]]:
    """A sender whose videos the first of two receivers has kept; that one is gone by now."""
    first, other = Daemon(tmp_path, "first", **QUICK), Daemon(tmp_path, "other", **QUICK)
    with other, Daemon(tmp_path, "sender", videos=str(videos), **QUICK) as sender:
        with first:
            sent = sender.ctl("send", *sorted(videos.iterdir()), "--to", first.url)
            assert sent.code == 0, sent.err
        yield sender, first, other


def kept(receiver: Daemon) -> dict[str, int]:
    """How many versions of each video."""
    count: dict[str, int] = {}
    for backup in receiver.backups():
        count[str(backup["videoId"])] = count.get(str(backup["videoId"]), 0) + 1
    return count


def resend(sender: Daemon, to: str, *more: str) -> Any:
    return sender.ctl("resend", "--to", to, "--json", *more)


def test_another_receiver_gets_everything_once(
    servers: tuple[Daemon, Daemon, Daemon], videos: Path
) -> None:
    sender, first, other = servers
    done = resend(sender, other.url)
    assert (done.code, len(done.json["entries"])) == (0, 4), done.err
    assert done.json["from"] == first.url
    assert kept(other) == {"0": 1, "1": 1, "2": 1, "3": 1}
    again = resend(sender, other.url, "--from", first.url)
    assert (again.code, again.json["entries"], again.json["before"]) == (0, [], 4)
    told = sender.ctl("resend", "--to", other.url)
    assert (told.code, "there: 4" in told.out) == (0, True)

    # A video that has changed since it was stored there is another one.
    (videos / "0.mp4").write_bytes(b"a new version")
    assert sender.ctl("send", videos / "0.mp4", "--to", other.url).code == 0
    back = resend(sender, first.url, "--from", other.url, "--detach")
    assert [one["videoId"] for one in back.json["entries"]] == [0]


def test_a_file_that_is_gone_is_told_and_one_that_has_moved_is_found(
    servers: tuple[Daemon, Daemon, Daemon], videos: Path
) -> None:
    """By its id, in the folders of videos."""
    sender, _, other = servers
    (videos / "0.mp4").unlink()
    (videos / "1").mkdir()
    shutil.move(videos / "1.mp4", videos / "1" / "film.mp4")
    done = resend(sender, other.url)
    assert done.code == 1
    assert [one["videoId"] for one in done.json["gone"]] == [0]
    assert "0.mp4" in done.json["gone"][0]["why"]
    assert kept(other) == {"1": 1, "2": 1, "3": 1}
    told = sender.ctl("resend", "--to", other.url)
    assert (told.code, "video 0" in told.err) == (1, True)


def test_what_was_on_its_way_goes_too(
    servers: tuple[Daemon, Daemon, Daemon], tmp_path: Path
) -> None:
    """It would be tried at a dead server until its deadline, and be nowhere."""
    sender, first, other = servers
    late = tmp_path / "late.mp4"
    late.write_bytes(b"it came too late")
    assert sender.ctl("send", late, "--to", first.url, "--detach").code == 0
    queued = resend(sender, other.url, "--detach")
    assert (queued.code, len(queued.json["entries"])) == (0, 5)
    wait_until(lambda: len(kept(other)) == 5, "all are kept")


def test_which_receiver_is_meant_must_be_clear(
    servers: tuple[Daemon, Daemon, Daemon], videos: Path, tmp_path: Path
) -> None:
    sender, first, other = servers
    assert sender.ctl("send", videos / "2.mp4", "--to", other.url).code == 0
    third = "http://localhost:9"
    unclear = resend(sender, third)
    assert (unclear.code, "--from" in unclear.err) == (1, True)
    assert first.url in unclear.err
    assert other.url in unclear.err
    wrong = resend(sender, other.url, "--from", third)
    assert (wrong.code, "Nothing was ever stored" in wrong.err) == (1, True)
    assert resend(sender, "nobody").code == 1
    assert resend(other, first.url).code == 1
    done = resend(sender, other.url, "--from", first.url)
    assert (done.code, done.json["before"]) == (0, 1)
    assert kept(other) == {"0": 1, "1": 1, "2": 1, "3": 1}


def test_peers_go_by_their_names(tmp_path: Path, videos: Path) -> None:
    with Server(tmp_path, "owner") as owner, Server(tmp_path, "second") as second:
        pair(second, owner)
        with Server(tmp_path, "first") as first:
            pair(first, owner)
            sent = owner.ctl("send", videos / "1.mp4", "--to", "first", seconds=60)
            assert sent.code == 0, sent.err
        done = resend(owner, "second", "--from", "first")
        assert (done.code, len(done.json["entries"])) == (0, 1), done.err
        [backup] = second.ctl("list", "--json").json["backups"]
        assert (backup["videoId"], backup["peer"]) == (1, "owner")
