"""docs/durability.md, held against the system calls of a real daemon."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.integration.contract import PATCH, head
from tests.integration.daemons import Answer, Daemon, answer_on, call, wait_until
from tests.integration.faults import Strace
from tests.integration.plain import PlainSender, octets
from tests.integration.traces import NEW, TRACED, Trace
from tests.integration.tus import Tus, checksum, direct, on_link

MIB = 1024**2
LONG = 160 * MIB
"""More than is ever synced in one go."""

DIRECT = 5 * MIB + 1234
"""Bytes of the one direct upload; the answer to its last byte says that it is stored."""


@dataclass
class Seen:
    """What clients were told while the daemon was traced."""

    lines: list[str] = field(default_factory=list)
    ledger: str = ""
    root: str = ""
    told: list[tuple[int, int]] = field(default_factory=list)
    """Status, and the offset or size that it acknowledged."""

    def trace(self, keep: Callable[[str], bool] = lambda line: True) -> Trace:
        """The trace of the lines that ``keep`` leaves in."""
        return Trace([line if keep(line) else "" for line in self.lines], self.ledger)

    def offset(self, answer: Answer) -> int:
        offset = int(answer.headers["Upload-Offset"])
        self.told.append((answer.status, offset))
        return offset

    def size(self, answer: Answer) -> None:
        assert answer.json["success"] is True
        self.told.append((answer.status, answer.json["size"]))


def hang_up(daemon: Daemon, link: str, length: int, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", daemon.port), 10) as connection:
        connection.sendall(head(daemon, "PUT", link, f"Content-Length: {length}") + data)


def whole_walk(
    daemon: Daemon, sender: PlainSender, seen: Seen, video: int, rng: random.Random
) -> None:
    """Every way by which bytes come in and are acknowledged, one upload after the other."""
    data = rng.randbytes(5 * MIB + 4711)
    send, complete = sender.turn(daemon.url, video, len(data))
    seen.size(call("POST", send, data, octets))
    seen.size(call("POST", complete, {"videoId": video, "success": True}))

    send, complete = sender.turn(daemon.url, f"cut {video}", len(data))
    hang_up(daemon, send, len(data), data[: 3 * MIB + 17])
    wait_until(lambda: call("HEAD", send).headers["Upload-Offset"] != "0", "the cut is noted")
    at = seen.offset(call("HEAD", send))
    while at < len(data):
        piece = data[at : at + rng.randrange(1, MIB)]
        at = seen.offset(call("PATCH", send, piece, PATCH | {"Upload-Offset": str(at)}))
    seen.offset(call("HEAD", send))
    seen.size(call("POST", complete, {"videoId": f"cut {video}", "success": True}))

    send, _ = sender.turn(daemon.url, f"chunked {video}", len(data))
    with socket.create_connection(("127.0.0.1", daemon.port), 10) as connection:
        connection.sendall(head(daemon, "PUT", send, "Transfer-Encoding: chunked"))
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
        seen.size(answer_on(connection, "PUT"))

    by_tus(direct(daemon, f"direct {video}", DIRECT), seen, data[:DIRECT])
    by_tus(on_link(daemon, sender, f"link {video}", len(data)), seen, data)

    send, _ = sender.turn(daemon.url, f"long {video}", LONG)
    seen.size(call("PUT", send, rng.randbytes(MIB) * (LONG // MIB), octets))


def by_tus(tus: Tus, seen: Seen, data: bytes) -> None:
    """Some of it with the creation, some verified, the rest at once."""
    created = tus.post(data[:MIB], Upload_Length=str(len(data)))
    url, at = created.headers["Location"], seen.offset(created)
    piece = data[at : at + 99_999]
    at = seen.offset(tus.patch(url, at, piece, Upload_Checksum=checksum("sha1", piece)))
    seen.offset(tus.patch(url, at, data[at:]))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A daemon that is traced while clients upload and complete."""
    folder = tmp_path_factory.mktemp("durable")
    told = Seen()
    turns = {"max_concurrent_transfers": "100", "max_per_peer": "100"}
    with Daemon(folder, loop_interval="0.2", **turns) as daemon, PlainSender() as sender:
        with Strace(folder, daemon.pid, TRACED) as strace:
            whole_walk(daemon, sender, told, 1, random.Random(3))
        told.lines, told.root = strace.lines, str(daemon.root)
        told.ledger = str(daemon.root / ".backupd" / "ledger.sqlite3")
    return told


def acknowledgements(seen: Seen, trace: Trace) -> int:
    """Check everything that was acknowledged; how many bytes' worth of answers there were."""
    uploads, checked = trace.uploads(), 0
    for answer in trace.answers():
        if answer.offset is None and answer.size is None:
            continue
        (path,) = [path for made, path in uploads if made < answer.sent][-1:]
        trace.check_bytes(answer, path)
        checked += 1
    return checked


def stored(seen: Seen, trace: Trace) -> int:
    """Check everything that was said to be stored; how many that were."""
    uploads, checked = trace.uploads(), 0
    names = [
        (one.strings, one.began)
        for one in trace.calls
        if one.name.startswith("rename") and "/incoming/" in one.strings[0]
    ]
    for answer in trace.answers():
        if "has stored" not in answer.text and (answer.status, answer.offset) != (204, DIRECT):
            continue
        (upload, content), _ = [pair for pair in names if pair[1] < answer.sent][-1]
        assert upload in [path for _, path in uploads]
        sidecar = f"{content.rpartition('/')[0]}/backup.json"
        trace.check_kept(answer, upload, content, sidecar)
        checked += 1
    return checked


# -- what is acknowledged is on the disk -----------------------------------------------------------


def test_every_acknowledged_byte_was_synced_and_recorded_before(seen: Seen) -> None:
    """200 with ``size`` or ``Upload-Offset``, 204 with ``Upload-Offset``: all of them."""
    trace = seen.trace()
    said = [
        (answer.status, answer.offset if answer.offset is not None else answer.size)
        for answer in trace.answers()
    ]
    for told in seen.told:
        assert told in said, "an answer was overlooked in the trace"
    assert acknowledgements(seen, trace) >= len(seen.told) > 8


def test_stored_is_said_when_names_are_durable(seen: Seen) -> None:
    """File and description synced, renamed, every folder synced, STORED committed; then 200."""
    assert stored(seen, seen.trace()) == 3


def test_yes_is_said_when_the_promise_is_recorded(seen: Seen) -> None:
    trace = seen.trace()
    asked = trace.asked("POST /api/v1/backup/can-accept-backup")
    yes = [one for one in trace.answers() if "can accept" in one.text]
    assert len(yes) == len(asked) == 5
    for when, answer in zip(asked, yes, strict=True):
        recorded = trace.recorded(when)
        assert recorded is not None
        assert recorded < answer.sent


def test_a_long_upload_is_synced_as_it_comes(seen: Seen) -> None:
    """Not only at its end: a crash costs at most what came since the last sync."""
    trace = seen.trace()
    _, path = trace.uploads()[-1]
    (end,) = [one.sent for one in trace.answers() if one.size == LONG]
    half = trace.durable(path, LONG // 3)
    whole = trace.durable(path, LONG)
    assert half is not None
    assert whole is not None
    assert half < whole < end


def test_nothing_is_written_outside_of_the_root(seen: Seen) -> None:
    """No spool, no temporary file of the database: only the root, and the log."""
    files = {one.file for one in seen.trace().calls if "write" in one.name and one.file}
    assert {path for path in files if not path.startswith(f"{seen.root}/")} <= {f"{seen.root}.log"}


# -- and these tests would notice ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("without", "complaint"),
    [
        (r"(fdatasync|fsync)\(\d+<.*/incoming/", "and never synced|before they were synced"),
        (r"fsync\(\d+<.*/incoming>", "their name never synced"),
        (r"fdatasync\(\d+<.*-wal>", "never recorded|before the record was"),
    ],
)
def test_a_missing_sync_of_bytes_or_ledger_is_noticed(
    seen: Seen, without: str, complaint: str
) -> None:
    trace = seen.trace(lambda line: re.search(without, line) is None)
    with pytest.raises(AssertionError, match=complaint):
        acknowledgements(seen, trace)


@pytest.mark.parametrize(
    ("without", "complaint"),
    [
        (r"fsync\(\d+<.*/incoming>", "incoming was not synced"),
        (r"fsync\(\d+<[^>]*/[0-9a-f]{32}>", "was not synced after the rename"),
        (rf"fsync\(\d+<.*{NEW}>", "a description of nothing"),
        (r"fsync\(\d+<[^>]*/daemon>", "was not synced for its new folder"),
    ],
)
def test_a_missing_sync_of_names_is_noticed(seen: Seen, without: str, complaint: str) -> None:
    trace = seen.trace(lambda line: re.search(without, line) is None)
    with pytest.raises(AssertionError, match=complaint):
        stored(seen, trace)
