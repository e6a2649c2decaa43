"""What rots is found, told and sent again: a sender and a receiver, each a real daemon."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.daemons import CLIP, Daemon, wait_until

SHA = hashlib.sha256(CLIP.read_bytes()).hexdigest()
QUICK = {"loop_interval": "0.2"}


@contextmanager
def pair(folder: Path, **settings: str) -> Iterator[tuple[Daemon, Daemon]]:
    """Sender and receiver; the settings are the receiver's."""
    told = QUICK | {"scrub_period": "off"} | settings
    with Daemon(folder, "receiver", **told) as a, Daemon(folder, "sender", **QUICK) as b:
        yield b, a


def send(sender: Daemon, receiver: Daemon, file: Path, video: str) -> Any:
    """The backup that the receiver lists of a video of the sender."""
    sent = sender.ctl("send", file, "--to", receiver.url, "--video-id", video)
    assert sent.code == 0, sent.err
    return stored(receiver, video)[0]


def stored(receiver: Daemon, video: str) -> list[Any]:
    found: list[Any] = receiver.call("GET", f"/api/v1/backups?videoId={video}").json["backups"]
    return found


def flip(receiver: Daemon, backup: Any) -> None:
    """One bit of the kept file turns over."""
    (file,) = receiver.root.glob(f"*/*/{backup['backupId']}/{backup['fileName']}")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    with file.open("r+b") as opened:
        opened.write(data)
        os.fsync(opened.fileno())


def mended(receiver: Daemon, damaged: Any) -> Any:
    """The one copy that has taken the damaged one's place."""

    def other() -> Any:
        listed = stored(receiver, damaged["videoId"])
        return len(listed) == 1 and listed[0]["backupId"] != damaged["backupId"] and listed[0]

    found = wait_until(other, "a whole copy has taken its place", 40)
    assert (found["sha256"], found["problem"], found["peer"]) == (SHA, None, damaged["peer"])
    return found


def metric(daemon: Daemon, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", daemon.call("GET", "/metrics").body.decode(), re.M)
    assert found is not None, name
    return float(found[1])


def test_rot_is_told_everywhere_and_mended_by_the_sender(tmp_path: Path) -> None:
    """Also when the sender was away as it was found; then the copy is restored."""
    with pair(tmp_path) as (sender, receiver):
        kept = send(sender, receiver, CLIP, "rot")
        assert receiver.ctl("verify", kept["backupId"]).code == 0
        assert metric(receiver, "backupd_verified_bytes_total") == kept["size"]
        sender.stop()
        flip(receiver, kept)
        verified = receiver.ctl("verify")
        assert (verified.code, kept["backupId"] in verified.err) == (1, True)

        (damaged,) = stored(receiver, "rot")
        assert "SHA-256" in damaged["problem"]
        assert "SHA-256" in receiver.ctl("list").out
        assert metric(receiver, "backupd_backups_damaged") == 1
        assert receiver.call("GET", "/readyz").status == 200
        told = receiver.ctl("status")
        assert "1 backup is damaged" in told.out
        doctor = receiver.ctl("doctor")
        assert (doctor.code, "1 damaged" in doctor.out) == (1, True)
        wait_until(receiver.requests, "the sender is called")

        sender.start()
        copy = mended(receiver, damaged)
        assert not list(receiver.root.glob(f"*/*/{kept['backupId']}"))
        assert receiver.ctl("restore", copy["backupId"], "-o", tmp_path / "back.mp4").code == 0
        assert (tmp_path / "back.mp4").read_bytes() == CLIP.read_bytes()
        (entry,) = sender.call("GET", "/api/v1/outbox", operator=True).json["entries"]
        wait_until(
            lambda: (
                sender.call("GET", f"/api/v1/outbox/{entry['entryId']}", operator=True).json[
                    "backupId"
                ]
                == copy["backupId"]
            ),
            "the sender knows the new backup",
        )
        assert metric(receiver, "backupd_backups_damaged") == 0
        assert "is damaged" not in receiver.ctl("status").out
        secret = re.compile(r"serverAisReadyForBackup/[\w-]{20,}")
        assert not secret.search(receiver.text())
        for sidecar in receiver.root.glob("*/*/*/backup.json"):
            assert not secret.search(sidecar.read_text())


def test_a_sender_that_has_it_no_more_says_so(tmp_path: Path) -> None:
    """The request is cancelled, what is left stays, and it is not asked for again."""
    file = tmp_path / "changing.mp4"
    shutil.copy(CLIP, file)
    with pair(tmp_path) as (sender, receiver):
        kept = send(sender, receiver, file, "gone")
        file.write_bytes(b"another video")
        flip(receiver, kept)
        assert receiver.ctl("verify", kept["backupId"]).code == 1
        ended = "/api/v1/backup/requests?state=ended"

        def cancelled() -> Any:
            found = receiver.call("GET", ended).json["requests"]
            return [one for one in found if one["state"] == "CANCELLED"]

        wait_until(cancelled, "the sender has said no")
        (listed,) = stored(receiver, "gone")
        assert (listed["backupId"], listed["problem"] is None) == (kept["backupId"], False)
        (entry,) = sender.call("GET", "/api/v1/outbox", operator=True).json["entries"]
        assert (entry["state"], entry["backupId"]) == ("VERIFIED", kept["backupId"])


def test_the_scrub_finds_it_by_itself(tmp_path: Path) -> None:
    with pair(tmp_path, scrub_period="3 s", scrub_rate="1 GB") as (sender, receiver):
        kept = send(sender, receiver, CLIP, "alone")
        later = wait_until(
            lambda: (
                stored(receiver, "alone")[0]["verifiedAt"] > kept["verifiedAt"]
                and stored(receiver, "alone")[0]
            ),
            "it was read again",
        )
        assert later["problem"] is None
        flip(receiver, kept)
        mended(receiver, kept)
        scrub = receiver.call("GET", "/api/v1/scrub").json
        assert (scrub["periodSeconds"], scrub["keepsPeriod"], scrub["damaged"]) == (3, True, 0)
        assert receiver.ctl("status", "--json").json["scrub"]["state"] in ("resting", "reading")


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_restart_in_the_middle_goes_on(tmp_path: Path, end: str) -> None:
    """Within a reading it stops at once, without a verdict; then all are read, in their turn."""
    settings = {"scrub_period": "8 s", "scrub_rate": "2 MB"}
    with pair(tmp_path, **settings) as (sender, receiver):
        kept = [send(sender, receiver, CLIP, str(number)) for number in (1, 2, 3)]

        def reading() -> bool:
            return bool(receiver.call("GET", "/api/v1/scrub").json["state"] == "reading")

        wait_until(reading, "it reads")
        getattr(receiver, end)()
        receiver.start()
        before = {one["backupId"]: one["verifiedAt"] for one in receiver.backups()}
        assert before.keys() == {one["backupId"] for one in kept}

        def all_read() -> bool:
            now = receiver.backups()
            return all(one["verifiedAt"] > before[one["backupId"]] for one in now)

        wait_until(all_read, "all were read again", 40)
        assert [one["problem"] for one in receiver.backups()] == [None] * 3


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    """By the status and the doctor, with the rate that it would take."""
    with pair(tmp_path, scrub_period="2 s", scrub_rate="100 KB") as (sender, receiver):
        send(sender, receiver, CLIP, "much")
        wait_until(
            lambda: not receiver.call("GET", "/api/v1/scrub").json["keepsPeriod"], "it is known"
        )
        assert "scrub_rate would have to be" in receiver.ctl("status").out
        doctor = receiver.ctl("doctor")
        assert (doctor.code, "raise scrub_rate to" in doctor.out) == (1, True)
