"""A disk that fails under a real daemon: docs/durability.md, "When the disk says no"."""

from __future__ import annotations

import hashlib
import random
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.contract import PATCH, head, is_problem
from tests.integration.daemons import Answer, Daemon, answer_on, call, wait_until
from tests.integration.faults import WRITES, Strace
from tests.integration.plain import PlainSender
from tests.integration.traces import SYNCS, Trace
from tests.integration.tus import direct

MIB = 1024**2
SIZE = 160 * MIB
"""More than is ever synced in one go: a sync comes while the client still sends."""

FIRST = 3 * MIB + 99


class Upload:
    """An upload of which `FIRST` bytes have been acknowledged."""

    def __init__(self, daemon: Daemon, sender: PlainSender, video: object) -> None:
        self.daemon, self.video = daemon, video
        self.data = random.Random(7).randbytes(MIB) * (SIZE // MIB)
        self.send, self.complete = sender.turn(daemon.url, video, SIZE)
        before = set(daemon.incoming)
        # A raw body that is cut tells the whole length; what came before the cut is kept.
        with socket.create_connection(("127.0.0.1", daemon.port), 10) as connection:
            start = head(daemon, "PUT", self.send, f"Content-Length: {SIZE}")
            connection.sendall(start + self.data[:MIB])
        wait_until(lambda: self.offset() == MIB, "what came before the cut is durable")
        assert self.patch(MIB, FIRST).status == 204
        (name,) = set(daemon.incoming) - before
        self.path = daemon.root / ".backupd" / "incoming" / name

    def offset(self) -> int:
        """What HEAD says."""
        return int(call("HEAD", self.send).headers["Upload-Offset"])

    def patch(self, start: int, stop: int) -> Answer:
        headers = PATCH | {"Upload-Offset": str(start)}
        return call("PATCH", self.send, self.data[start:stop], headers, 60.0)

    def finish(self) -> None:
        """Go on from where the server stands, to the end; the whole is right."""
        assert self.patch(self.offset(), SIZE).status == 204
        done = call("POST", self.complete, {"videoId": self.video, "success": True})
        assert done.status == 200
        assert done.json["sha256"] == hashlib.sha256(self.data).hexdigest()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    turns = {"max_concurrent_transfers": "100", "max_per_peer": "100"}
    running = Daemon(tmp_path_factory.mktemp("errors"), loop_interval="0.2", **turns)
    running.incidents_expected = True
    with running:
        yield running


@pytest.fixture
def upload(daemon: Daemon, sender: PlainSender, video: int) -> Upload:
    return Upload(daemon, sender, video)


def still_sending(upload: Upload) -> Answer:
    """The answer to all the rest, while it is being sent."""
    lines = [f"{name}: {value}" for name, value in PATCH.items()]
    lines += [f"Upload-Offset: {FIRST}", f"Content-Length: {SIZE - FIRST}"]
    with socket.create_connection(("127.0.0.1", upload.daemon.port), 30) as connection:
        connection.sendall(head(upload.daemon, "PATCH", upload.send, *lines))
        try:
            for at in range(FIRST, SIZE, MIB):
                connection.sendall(upload.data[at : at + MIB])
        except ConnectionError:
            pass  # it need not have read on for ever
        return answer_on(connection, "PATCH")


# -- syncs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("much", [False, True], ids=["at the end", "in the middle"])
def test_a_sync_that_fails(upload: Upload, tmp_path: Path, much: bool) -> None:
    """5xx, the last durable offset stands, no descriptor is synced twice, and it goes on."""
    pid = upload.daemon.pid
    with Strace(
        tmp_path, pid, [*SYNCS, "openat", "close"], fail=(SYNCS, "EIO"), path=upload.path
    ) as strace:
        answer = still_sending(upload) if much else upload.patch(FIRST, 2 * FIRST)
        problem = is_problem(answer, 500)
        assert "Input/output error" in problem["detail"]
        assert upload.offset() == FIRST
        # Once more, while the disk still fails: again nothing is claimed.
        is_problem(upload.patch(FIRST, FIRST + 5), 500)
        assert upload.offset() == FIRST
    trace = Trace(strace.lines, "")
    assert trace.check_no_second_sync(str(upload.path)) == 2
    upload.finish()


def test_a_ledger_that_cannot_be_synced(upload: Upload, tmp_path: Path) -> None:
    """503, and the offset stays where the ledger has it, however safe the bytes may be."""
    wal = upload.daemon.root / ".backupd" / "ledger.sqlite3-wal"
    with Strace(tmp_path, upload.daemon.pid, SYNCS, fail=(SYNCS, "EIO"), path=wal):
        problem = is_problem(upload.patch(FIRST, 2 * FIRST), 503)
        assert "ledger" in problem["detail"]
        ready = upload.daemon.call("GET", "/readyz")
        assert ready.status == 503
    assert upload.offset() == FIRST
    upload.finish()
    assert upload.daemon.call("GET", "/readyz").status == 200


def test_a_stop_after_a_failed_sync_loses_nothing_that_was_acknowledged(
    upload: Upload, tmp_path: Path
) -> None:
    with Strace(tmp_path, upload.daemon.pid, SYNCS, fail=(SYNCS, "EIO"), path=upload.path):
        is_problem(upload.patch(FIRST, 2 * FIRST), 500)
    upload.daemon.kill()
    upload.daemon.start()
    assert upload.offset() == FIRST
    upload.finish()


def test_names_that_cannot_be_synced(upload: Upload, tmp_path: Path) -> None:
    """Nothing is called stored; asked again when the disk is well, it is."""
    assert upload.patch(FIRST, SIZE).status == 204
    incoming = upload.path.parent
    complete = {"videoId": upload.video, "success": True}
    with Strace(tmp_path, upload.daemon.pid, ["fsync"], fail=(["fsync"], "EIO"), path=incoming):
        is_problem(call("POST", upload.complete, complete), 500)
        shown = [one["videoId"] for one in upload.daemon.backups()]
        assert upload.video not in shown
    done = call("POST", upload.complete, complete)
    assert done.json["sha256"] == hashlib.sha256(upload.data).hexdigest()


def test_a_direct_upload_is_whole_once_it_is_stored(daemon: Daemon, tmp_path: Path) -> None:
    """While its file cannot get its name, nobody is told that every byte is there: whoever hears
    that asks no more, and would never learn that nothing came of it.
    """
    data = b"a video"
    tus = direct(daemon, "unnamed", len(data))
    url = tus.create(len(data))
    renames = ["rename", "renameat", "renameat2"]
    with Strace(tmp_path, daemon.pid, renames, fail=(renames, "EIO")):
        is_problem(tus.patch(url, 0, data), 500)
        assert tus.head(url).status == 423
        assert tus.head(url).status == 423
    assert tus.offset(url) == len(data)
    assert tus.kept() == data


# -- writes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"), [("ENOSPC", 507), ("EDQUOT", 507), ("EIO", 500), ("EFBIG", 500)]
)
def test_a_write_that_fails(upload: Upload, tmp_path: Path, error: str, status: int) -> None:
    """The upload fails while the client still sends; what was acknowledged stands."""
    with Strace(tmp_path, upload.daemon.pid, WRITES, fail=(WRITES, error), path=upload.path):
        is_problem(still_sending(upload), status)
        assert upload.offset() == FIRST
        assert upload.daemon.call("GET", "/healthz").status == 200
    upload.finish()


def test_no_room_for_the_ledger(upload: Upload, tmp_path: Path) -> None:
    """The message says what to do; with room it goes on by itself."""
    wal = upload.daemon.root / ".backupd" / "ledger.sqlite3-wal"
    with Strace(tmp_path, upload.daemon.pid, WRITES, fail=(WRITES, "ENOSPC"), path=wal):
        problem = is_problem(upload.patch(FIRST, 2 * FIRST), 503)
        assert re.search("Free some space", problem["detail"])
    assert upload.offset() == FIRST
    upload.finish()
