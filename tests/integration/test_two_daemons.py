"""A sender and a receiver, each a real daemon, driven by ``backupctl`` as a person does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.daemons import CLIP, Daemon, call, free_port, wait_until
from tests.integration.gate import Gate
from tests.integration.plain import PlainSender

SHA = hashlib.sha256(CLIP.read_bytes()).hexdigest()
QUICK = {"loop_interval": "0.2"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    """Sender and receiver."""
    folder = tmp_path_factory.mktemp("pair")
    with Daemon(folder, "receiver", **QUICK) as a, Daemon(folder, "sender", **QUICK) as b:
        yield b, a


def stored(receiver: Daemon, video: object) -> Any:
    """What is kept of a video; exactly one."""
    (backup,) = receiver.call("GET", f"/api/v1/backups?videoId={video}").json["backups"]
    return backup


def entry(sender: Daemon, entry_id: str) -> Any:
    return sender.call("GET", f"/api/v1/outbox/{entry_id}", operator=True).json


# -- what a person does ----------------------------------------------------------------------------


def test_a_video_is_kept_and_given_back(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    sender, receiver = pair
    sent = sender.ctl("send", CLIP, "--to", receiver.url, "--video-id", "2")
    assert sent.code == 0, sent.err
    assert "stored and verified" in sent.out
    assert SHA in sent.out

    (kept,) = receiver.ctl("list", "--json").json["backups"]
    assert (kept["videoId"], kept["fileName"], kept["sha256"]) == (2, "clip.mp4", SHA)
    assert kept["contentType"] == "video/mp4"
    assert kept["peer"] == sender.url
    assert kept["backupId"] in receiver.ctl("list", "--video-id", "2").out
    (file,) = receiver.root.glob(f"*/2/{kept['backupId']}/clip.mp4")
    assert file.read_bytes() == CLIP.read_bytes()

    target = tmp_path / "back.mp4"
    restored = receiver.ctl("restore", kept["backupId"], "-o", target, "--json")
    assert (restored.code, restored.json["sha256"]) == (0, SHA)
    assert target.read_bytes() == CLIP.read_bytes()
    again = receiver.ctl("restore", kept["backupId"], "-o", target)
    assert (again.code, "--force" in again.err) == (1, True)
    assert receiver.ctl("restore", kept["backupId"], "-o", target, "--force").code == 0


def test_a_restore_goes_on_where_it_was_cut(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    sender, receiver = pair
    assert sender.ctl("send", CLIP, "--to", receiver.url, "--video-id", "cut").code == 0
    backup_id = stored(receiver, "cut")["backupId"]
    partial, target = tmp_path / "clip.mp4.part", tmp_path / "clip.mp4"
    partial.write_bytes(CLIP.read_bytes()[:1_000_000])
    assert receiver.ctl("restore", backup_id, "-o", tmp_path).code == 0
    assert (target.read_bytes(), partial.exists()) == (CLIP.read_bytes(), False)
    target.unlink()
    partial.write_bytes(bytes(1_000_000))
    wrong = receiver.ctl("restore", backup_id, "-o", tmp_path)
    assert (wrong.code, SHA in wrong.err) == (1, True)
    assert (target.exists(), partial.exists()) == (False, False)
    assert receiver.ctl("restore", backup_id, "-o", tmp_path).code == 0


def test_verify_tells_what_is_damaged(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    sender, receiver = pair
    source = tmp_path / "clip.mp4"
    shutil.copy(CLIP, source)
    assert sender.ctl("send", source, "--to", receiver.url, "--video-id", "bad").code == 0
    source.unlink()  # or it would be sent again
    backup_id = stored(receiver, "bad")["backupId"]
    assert receiver.ctl("verify", backup_id).code == 0
    assert receiver.ctl("verify", "--json").json["backups"]
    (file,) = receiver.root.glob(f"*/bad/{backup_id}/clip.mp4")
    with file.open("r+b") as damaged:
        damaged.write(b"\0\0\0\0damaged")
    verified = receiver.ctl("verify", backup_id)
    assert verified.code == 1
    assert backup_id in verified.err
    assert stored(receiver, "bad")["problem"]
    damaged_list = receiver.ctl("verify", "--json")
    assert damaged_list.code == 1
    assert any(one["problem"] for one in damaged_list.json["backups"])


def test_five_files_at_once(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    sender, receiver = pair
    files = [tmp_path / f"{number}.mp4" for number in range(501, 506)]
    for number, file in enumerate(files):
        file.write_bytes(CLIP.read_bytes() + bytes(number))
    sent = sender.ctl("send", *files, "--to", receiver.url, "--json")
    assert (sent.code, len(sent.json["entries"])) == (0, 5)
    for file in files:
        kept = stored(receiver, file.stem)
        assert kept["videoId"] == int(file.stem)
        assert kept["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_does_not_wait_is_seen_in_the_queue_and_cancelled(
    pair: tuple[Daemon, Daemon],
) -> None:
    sender, receiver = pair
    nobody = f"http://localhost:{free_port()}"
    queued = sender.ctl("send", CLIP, "--to", nobody, "--detach", "--video-id", "7", "--json")
    assert queued.code == 0
    (queued_entry,) = queued.json["entries"]
    entry_id = queued_entry["entryId"]
    wait_until(lambda: entry(sender, entry_id)["lastError"], "the failure is told")
    assert entry_id in sender.ctl("queue").out
    (shown,) = sender.ctl("queue", "--json").json["entries"]
    assert (shown["state"], shown["entryId"]) == ("ASKING", entry_id)
    assert sender.ctl("cancel", entry_id, "--json").json["state"] == "CANCELLED"
    assert sender.ctl("cancel", entry_id).code == 0
    assert sender.ctl("queue", "--json").json["entries"] == []
    assert "Nothing waits" in receiver.ctl("queue").out
    assert sender.ctl("cancel", "nothing").code == 1
    detached = sender.ctl("send", CLIP, "--to", receiver.url, "--detach", "--video-id", "8")
    assert (detached.code, "queued clip.mp4" in detached.out) == (0, True)
    wait_until(lambda: receiver.call("GET", "/api/v1/backups?videoId=8").json["backups"], "kept")


def test_a_request_is_cancelled_by_the_receiver(pair: tuple[Daemon, Daemon]) -> None:
    _, receiver = pair
    with PlainSender() as other:
        other.answers_with = 503
        request_id = other.ask(receiver.url, 70, "1 MB").json["requestId"]
        (request,) = receiver.ctl("queue", "--json").json["requests"]
        assert (request["requestId"], request["state"]) == (request_id, "PENDING")
        assert receiver.ctl("cancel", request_id, "--json").json["state"] == "CANCELLED"
        assert receiver.requests() == []


def test_status_and_doctor(pair: tuple[Daemon, Daemon]) -> None:
    sender, receiver = pair
    assert "is ok" in receiver.ctl("status").out
    assert receiver.ctl("status", "--json").json["status"] == "ok"
    examined = sender.ctl("doctor", "--to", receiver.url)
    assert examined.code == 0, examined.out + examined.err
    assert all(one["well"] for one in sender.ctl("doctor", "--json").json)
    assert sender.ctl("doctor", "--to", f"http://localhost:{free_port()}").code == 1


def test_backupctl_says_what_is_wrong(pair: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    sender, receiver = pair
    stopped = Daemon(tmp_path)
    for command in (["list"], ["send", str(CLIP), "--to", receiver.url], ["status"]):
        done = stopped.ctl(*command)
        assert done.code == 1
        assert "is it running?" in " ".join(done.err.split())
        assert "Traceback" not in done.err
    backup = str(stored(receiver, 2)["backupId"])
    assert receiver.ctl("--token", "wrong", "verify", backup).code == 1
    assert "control token" in receiver.ctl("--token", "wrong", "verify", backup).err
    assert sender.ctl("send", tmp_path / "none.mp4", "--to", receiver.url).code == 2
    assert sender.ctl("send", CLIP, CLIP, "--to", receiver.url, "--video-id", "1").code == 2
    assert sender.ctl("send", CLIP, "--to", "nonsense").code == 1
    assert sender.ctl("send", CLIP).code == 2
    assert receiver.ctl("restore", "nothing").code == 1
    assert receiver.ctl("verify", "nothing").code == 1


# -- what goes wrong on the way --------------------------------------------------------------------


@contextmanager
def with_gate(folder: Path, allowed: int) -> Iterator[tuple[Daemon, Daemon, Gate]]:
    """Sender and receiver with a door between them."""
    receiver = Daemon(folder, "receiver", shutdown_grace="0.2", **QUICK)
    gate = Gate(receiver.port, allowed)
    receiver.settings["host"] = f"localhost:{gate.port}"
    try:
        with receiver, Daemon(folder, "sender", **QUICK) as sender:
            yield sender, receiver, gate
    finally:
        gate.close()


def send_through(sender: Daemon, gate: Gate) -> str:
    """Begin to send, until the door holds in the middle of the video; the entry's id."""
    to = f"http://localhost:{gate.port}"
    queued = sender.ctl("send", CLIP, "--to", to, "--video-id", "3", "--detach", "--json")
    assert queued.code == 0, queued.err
    assert gate.held.wait(20)
    entry_id: str = queued.json["entries"][0]["entryId"]
    return entry_id


def arrives(sender: Daemon, receiver: Daemon, entry_id: str) -> None:
    """The video is stored and verified in the end, once."""

    def verified() -> bool:
        state = entry(sender, entry_id)["state"]
        assert state not in ("FAILED", "CANCELLED", "UNVERIFIED")
        return bool(state == "VERIFIED")

    wait_until(verified, "the video has arrived", 40)
    assert stored(receiver, 3)["sha256"] == SHA
    assert receiver.incoming == []
    assert receiver.requests() == []


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_receiver_that_ends_in_the_middle_gets_the_rest(tmp_path: Path, end: str) -> None:
    with with_gate(tmp_path, 1_500_000) as (sender, receiver, gate):
        entry_id = send_through(sender, gate)
        receiver.stop() if end == "stop" else receiver.kill()
        gate.open()
        receiver.start()
        arrives(sender, receiver, entry_id)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_sender_that_ends_in_the_middle_goes_on(tmp_path: Path, end: str) -> None:
    with with_gate(tmp_path, 1_500_000) as (sender, receiver, gate):
        entry_id = send_through(sender, gate)
        sender.stop() if end == "stop" else sender.kill()
        gate.open()
        sender.start()
        arrives(sender, receiver, entry_id)


def test_a_sender_that_is_killed_before_its_turn_goes_on(tmp_path: Path) -> None:
    with with_gate(tmp_path, 0) as (sender, receiver, gate):
        entry_id = send_through(sender, gate)
        sender.kill()
        gate.open()
        sender.start()
        arrives(sender, receiver, entry_id)


def test_cancelling_in_the_middle_frees_the_room_there(tmp_path: Path) -> None:
    with with_gate(tmp_path, 1_500_000) as (sender, receiver, gate):
        entry_id = send_through(sender, gate)
        assert sender.ctl("cancel", entry_id).code == 0
        gate.open()
        wait_until(lambda: receiver.requests() == [], "the request has ended")
        assert receiver.incoming == []
        assert receiver.backups() == []


def test_a_lost_ledger_is_rebuilt(tmp_path: Path) -> None:
    with Daemon(tmp_path) as receiver, PlainSender() as other:
        done = other.back_up(receiver.url, "lost", CLIP.read_bytes(), fileName="lost.mp4")
        before = receiver.backups()
        receiver.stop()
        for file in (receiver.root / ".backupd").glob("ledger.sqlite3*"):
            file.unlink()
        damaged = receiver.root / "someone" / "7" / "0123456789abcdef0123456789abcdef"
        damaged.mkdir(parents=True)
        (damaged / "backup.json").write_text("{")
        receiver.start()
        assert receiver.backups() == []
        rebuilt = receiver.ctl("rebuild", "--json")
        assert (rebuilt.code, rebuilt.json["added"]) == (1, 1)
        assert len(rebuilt.json["damaged"]) == 1
        shutil.rmtree(receiver.root / "someone")
        again = receiver.ctl("rebuild")
        assert (again.code, "1 were known" in again.out) == (0, True)
        after = receiver.backups()
        assert [one | {"verifiedAt": None} for one in after] == [
            one | {"verifiedAt": None} for one in before
        ]
        assert receiver.ctl("verify").code == 0
        assert call("GET", done["contentUrl"]).body == CLIP.read_bytes()
        sidecar = json.loads(next(receiver.root.glob("*/lost/*/backup.json")).read_text())
        assert sidecar["sha256"] == SHA
