"""What ledger and disk of a receiver say, read past it: while it is dead, and beside its own word.

Whatever is wrong raises `AssertionError` with an account.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from backupd.tap import FOOTPRINT
from tests.integration.daemons import Daemon
from tests.torture.videos import MIB, Video

__all__ = ["Books", "Unreadable", "dead", "figure", "living", "promises_add_up"]

Unreadable = sqlite3.Error
"""What reading a ledger raises while it is not there, or is being made."""

LINK = re.compile("^/api/v1/(?:backup/receive-backup|uploads)/")
"""Behind it are the request's capability and, below a link, the upload's id."""

WINDOW = 2 * MIB
"""Bytes that are compared before each offset; the digests compare all of them in the end."""

DISAGREE = 20.0
"""Seconds within which the daemon's sum and its ledger's must have been seen to agree."""


class Books:
    """One state of the ledger, and the disk that belongs to it."""

    def __init__(self, root: Path, connection: sqlite3.Connection) -> None:
        self._root = root
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        requests = connection.execute("SELECT * FROM requests").fetchall()
        self.live = [one for one in requests if one["ended_at"] is None]
        self._by_capability = {one["capability"]: one for one in requests}
        self.uploads = connection.execute(
            "SELECT u.*, r.video, r.state FROM uploads u JOIN requests r USING (request_id)"
            " ORDER BY u.seq"
        ).fetchall()
        self.backups = connection.execute("SELECT * FROM backups").fetchall()
        self.entries = connection.execute("SELECT state, over FROM entries").fetchall()
        connection.execute("ROLLBACK")

    @property
    def promised(self) -> int:
        """What the reservations of all live requests have, and the disk has not set aside yet."""
        owed = (max(0, one["size"] - one["allocated"]) for one in self.live)
        return int(sum(owed)) + len(self.live) * FOOTPRINT

    def states(self) -> Counter[str]:
        """In what states the requests are that are alive."""
        found: Counter[str] = Counter()
        begun = {one["request_id"] for one in self.uploads if one["offset"]}
        for one in self.live:
            state = one["state"]
            if state == "RECEIVING":
                state += ", some bytes in" if one["request_id"] in begun else ", none in"
            found[state] += 1
        return found

    def check_acknowledged(self, acknowledged: dict[str, int]) -> None:
        """All that was acknowledged, by the path of the upload, is there or stored.

        For uploads that nobody ends, gives up or lets run out.
        """
        for path, offset in acknowledged.items():
            there, says = self._reached(path)
            told = f"{offset} bytes were acknowledged at {path}, and the ledger has"
            assert there is not None, f"{told} no such upload ({says})"
            assert there >= offset, f"{told} {there} ({says})"

    def _reached(self, path: str) -> tuple[int | None, str]:
        """How far the upload at a path has come, None if it is not there; its request's state."""
        capability, _, upload_id = LINK.sub("", path).partition("/")
        request = self._by_capability.get(capability)
        if request is None:
            return None, "no such request"
        state = f"request {request['request_id']} is {request['state']}"
        if request["state"] in ("STORING", "STORED"):
            return request["size"], state
        if request["state"] == "RECEIVED" and not upload_id:
            return request["received_size"], state
        own = [one for one in self.uploads if one["request_id"] == request["request_id"]]
        if upload_id:
            found = [one["offset"] for one in own if one["upload_id"] == upload_id]
            found += [one["length"] for one in own if _has_joined(one, upload_id, own)]
        else:
            # What the link itself tells of.
            found = [one["offset"] for one in own if not (one["partial"] or one["parts"])][-1:]
        return max(found, default=None), state

    def check_bytes(self, videos: dict[int, Video]) -> None:
        """The bytes before each offset are those that were sent."""
        for one in self.uploads:
            if one["partial"] or one["state"] == "STORING" or not one["offset"]:
                continue  # of a part nobody here knows where in its video it begins
            number = re.sub("^direct-", "", one["video"])
            video = videos.get(int(number)) if number.isdigit() else None
            if video is not None:
                self._compare(one["upload_id"], one["offset"], video)

    def _compare(self, upload_id: str, offset: int, video: Video) -> None:
        path = self._root / ".backupd" / "incoming" / upload_id
        assert path.exists(), f"the ledger has {offset} bytes of {upload_id}, and the disk none"
        with path.open("rb") as file:
            for stop in {offset, offset // 2}:
                start = max(0, stop - WINDOW)
                file.seek(start)
                assert file.read(stop - start) == video.piece(start, stop), (
                    f"the bytes of video {video.number} before {stop} are others on the disk; "
                    f"{offset} of {video.size} are durable, upload {upload_id}"
                )

    def check_backups(self, stored: dict[str, Video]) -> None:
        """Everything that was said to be stored is listed and there, and nothing lies beside it."""
        listed = {one["backup_id"]: one for one in self.backups}
        for backup_id, video in stored.items():
            one = listed.get(backup_id)
            assert one is not None, f"video {video.number} was stored as {backup_id}; it is gone"
            path = self._root / one["folder"] / one["name"]
            assert path.exists(), f"{path} was stored, and is gone"
            assert path.stat().st_size == one["size"] == video.size, f"{path} has another size"

    def check_parts(self) -> None:
        """Each request has as much set aside as its uploads together."""
        of: Counter[str] = Counter()
        for one in self.uploads:
            of[one["request_id"]] += one["allocated"]
        for one in self.live:
            if one["state"] != "STORING":
                assert one["allocated"] == of[one["request_id"]], (
                    f"request {one['request_id']} ({one['state']}) is told to have "
                    f"{one['allocated']} bytes set aside; its uploads have {of[one['request_id']]}"
                )

    def orphans(self) -> list[str]:
        """Files under the root that belong to nothing that the ledger knows."""
        known = {f".backupd/incoming/{one['upload_id']}" for one in self.uploads}
        known |= {f"{one['folder']}/{one['name']}" for one in self.backups}
        known |= {f"{one['folder']}/backup.json" for one in self.backups}
        places = {one["folder"] for one in self.backups}
        above = {str(parent) for place in places for parent in Path(place).parents}
        found = []
        for folder, names, files in os.walk(self._root):
            here = os.path.relpath(folder, self._root)
            if here == ".backupd":
                names[:] = ["incoming"]
                continue
            told = [os.path.normpath(os.path.join(here, name)) for name in files]
            found += [one for one in told if one not in known]
            if not (names or files) and here not in places | above | {".backupd/incoming"}:
                found.append(f"{here}/")
        return found


def _has_joined(final: sqlite3.Row, part_id: str, uploads: Sequence[sqlite3.Row]) -> bool:
    """Whether ``final`` has the bytes of this part, or some of them and the part the others."""
    parts = final["parts"].split()
    if part_id not in parts:
        return False
    left = sum(one["offset"] for one in uploads if one["upload_id"] in parts)
    return bool(final["offset"] + left >= final["length"])


@contextmanager
def _copied(root: Path) -> Iterator[sqlite3.Connection]:
    """The ledger of a daemon that is dead; its own files stay as they are."""
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        for path in (root / ".backupd").glob("ledger.sqlite3*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, folder)
        with closing(sqlite3.connect(f"{folder}/ledger.sqlite3")) as connection:
            yield connection


def dead(daemon: Daemon) -> Books:
    """What a daemon that was killed left behind."""
    with _copied(daemon.root) as connection:
        return Books(daemon.root, connection)


def living(daemon: Daemon) -> Books:
    """One moment of a daemon that runs."""
    path = daemon.root / ".backupd" / "ledger.sqlite3"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
        return Books(daemon.root, connection)


def figure(daemon: Daemon, name: str) -> int:
    """One of its metrics."""
    text = daemon.call("GET", "/metrics").body.decode()
    found: Any = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return int(float(found[1]))


def promises_add_up(daemon: Daemon) -> None:
    """What the daemon says to have promised is what its live requests come to."""
    deadline = time.monotonic() + DISAGREE
    while True:
        # Requests come and go meanwhile: it counts only when nothing has changed.
        before = figure(daemon, "backupd_promised_bytes")
        books = living(daemon)
        if before == books.promised:
            books.check_parts()
            return
        after = figure(daemon, "backupd_promised_bytes")
        assert before != after or time.monotonic() < deadline, (
            f"{after} bytes are promised, says the daemon; its live requests come to "
            f"{books.promised} (states {dict(books.states())})"
        )
