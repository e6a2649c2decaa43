"""Whatever a client calls things, and whatever lies under the root: nothing is written or read
anywhere else, on the real file system."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.integration.daemons import Answer, Daemon, call, exchange, wait_until
from tests.integration.plain import PlainSender, octets
from tests.integration.tus import metadata

DATA = b"a video"
SECRET = b"nobody's business but its owner's"

NAMES = [
    "..",
    ".",
    "../../escaped",
    "../" * 20 + "tmp/escaped",
    "/etc/passwd",
    "//etc/passwd",
    "~/.ssh/authorized_keys",
    "..\\..\\escaped",
    "C:\\escaped",
    "a/../../../escaped",
    ".backupd",
    ".backupd/control-token",
    "backup.json",
    "lost+found",
    "%2e%2e%2fescaped",
    "..%00/escaped",
    "\u2025/\uff0e\uff0e/escaped",
    "\u202etxt.exe",
    "-rf",
    "$(touch escaped)",
    "x" * 128,
    "\U0001f600" * 60,
    "CON",
    " ",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paths")


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Daemon]:
    (folder / "outside").mkdir()
    (folder / "outside" / "secret").write_bytes(SECRET)
    many = {"max_concurrent_transfers": "1000", "max_per_peer": "1000", "loop_interval": "0.2"}
    with Daemon(folder, **many) as one:
        one.incidents_expected = True  # what is planted is told of as a failure of the volume
        yield one


def around(folder: Path, daemon: Daemon) -> set[tuple[str, bytes]]:
    """Every file outside of the root, with its content; its log aside."""
    found = set()
    for path in folder.rglob("*"):
        inside = daemon.root in path.parents or path == daemon.log
        if path.is_file() and not path.is_symlink() and not inside:
            found.add((str(path), path.read_bytes()))
    return found


def kept(daemon: Daemon, backup_id: str) -> Path:
    """The folder of a backup."""
    (found,) = [path for path in daemon.root.rglob(backup_id) if path.is_dir()]
    return found


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out(daemon: Daemon, sender: PlainSender, folder: Path, name: str) -> None:
    """As a video's id, and as a file's name, by each way in; what is kept can be got back."""
    before = around(folder, daemon)
    by_ask = sender.back_up(daemon.url, name, DATA, fileName=name)
    send, done = sender.turn(daemon.url, f"form {name}"[:128], len(DATA))
    disposition = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}"}
    assert call("POST", send, DATA, octets | disposition).status == 200
    message = {"videoId": f"form {name}"[:128], "success": True}
    by_header = call("POST", done, message).json
    for one in (by_ask, by_header):
        place = kept(daemon, one["backupId"])
        assert place.resolve() == place
        assert len(place.relative_to(daemon.root).parts) == 3
        files = {path.name for path in place.iterdir()}
        assert len(files) == 2
        assert "backup.json" in files
        assert call("GET", one["contentUrl"]).body == DATA
    assert around(folder, daemon) == before


@pytest.mark.parametrize("name", NAMES)
def test_no_name_of_a_direct_upload_leads_out(daemon: Daemon, folder: Path, name: str) -> None:
    before = around(folder, daemon)
    said = {"videoId": f"tus {name}"[:128], "filename": name, "filetype": "../../x"}
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Length": str(len(DATA)),
        "Upload-Metadata": metadata(**said),
        "Content-Type": "application/offset+octet-stream",
    }
    answer = daemon.call("POST", "/api/v1/uploads", DATA, headers)
    assert answer.status in (201, 400), answer.body
    assert around(folder, daemon) == before


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/backups/{}",
        "/api/v1/backups/{}/content",
        "/api/v1/backup/requests/{}",
        "/api/v1/uploads/{}",
        "/api/v1/backup/receive-backup/{}",
        "/api/v1/outbox/{}",
        "/api/v1/peers/{}",
    ],
)
def test_no_id_leads_anywhere(daemon: Daemon, path: str) -> None:
    """Ids are looked up, and never made into paths."""
    for name in ("..", "../../outside/secret", ".backupd/control-token", "/etc/passwd", "a\0b"):
        for shown in {quote(name, safe=""), quote(quote(name, safe=""), safe="")}:
            for method in ("GET", "HEAD", "DELETE"):
                target = path.format(shown)
                head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                token = f"Authorization: Bearer {daemon.token}\r\nTus-Resumable: 1.0.0\r\n\r\n"
                answer = exchange(daemon.port, (head + token).encode(), method)
                assert answer.status in (400, 404, 405), (method, target, answer.status)
                assert SECRET not in answer.body
                assert daemon.token.encode() not in answer.body


# -- links that lie under the root -----------------------------------------------------------------


def refused(answer: Answer) -> None:
    assert answer.status >= 400, answer.body
    assert SECRET not in answer.body


def replace_by_link(place: Path, target: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    place.symlink_to(target)


@pytest.mark.parametrize("depth", ["peer", "video", "backup", "file"])
def test_nothing_is_read_through_a_link(
    daemon: Daemon, sender: PlainSender, folder: Path, video: int, depth: str
) -> None:
    """A backup whose place leads elsewhere is not there; nor is it deleted there."""
    mine = {"peer": PlainSender()}.get(depth, sender)
    done = mine.back_up(daemon.url, video, SECRET, fileName="secret")
    place = kept(daemon, done["backupId"])
    elsewhere = folder / f"elsewhere-{depth}"
    levels = {"peer": place.parent.parent, "video": place.parent, "backup": place}
    if depth == "file":
        elsewhere.mkdir()
        shutil.copy(place / "secret", elsewhere / "secret")
        replace_by_link(place / "secret", elsewhere / "secret")
    else:
        shutil.copytree(levels[depth], elsewhere)
        replace_by_link(levels[depth], elsewhere)
    before = around(folder, daemon)
    refused(call("GET", done["contentUrl"]))
    path = f"/api/v1/backups/{done['backupId']}"
    daemon.call("POST", f"{path}/verify", operator=True)
    wait_until(lambda: daemon.call("GET", path).json["problem"], "it is found to be damaged")
    refused(call("GET", done["contentUrl"]))
    daemon.call("DELETE", path, operator=True)
    assert around(folder, daemon) == before


@pytest.mark.parametrize("depth", ["peer", "video"])
def test_nothing_is_written_through_a_link(
    daemon: Daemon, folder: Path, video: int, depth: str
) -> None:
    """Where a new backup would go lies a link: it is not stored, and can be once it is gone."""
    with PlainSender() as mine:
        first = mine.back_up(daemon.url, video, DATA)
        place = kept(daemon, first["backupId"])
        level = place.parent if depth == "video" else place.parent.parent
        target = folder / f"target-{depth}"
        target.mkdir()
        replace_by_link(level, target)
        send, complete = mine.turn(daemon.url, video, len(DATA))
        assert call("POST", send, DATA, octets).status == 200
        message = {"videoId": video, "success": True}
        refused(call("POST", complete, message))
        assert list(target.iterdir()) == []
        level.unlink()
        again = call("POST", complete, message)
        assert again.status == 200, again.body
        assert list(target.iterdir()) == []


def test_an_unfinished_upload_is_not_written_through_a_link(
    daemon: Daemon, sender: PlainSender, folder: Path, video: int
) -> None:
    """What goes on with an upload does not follow a link in its place."""
    send, _ = sender.turn(daemon.url, video, len(DATA))
    before = set(daemon.incoming)
    head = f"PUT {send[len(daemon.url) :]} HTTP/1.1\r\nHost: localhost\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port), 10) as connection:
        connection.sendall(f"{head}Content-Length: {len(DATA)}\r\n\r\n".encode() + DATA[:3])
    wait_until(lambda: call("HEAD", send).headers["Upload-Offset"] == "3", "the cut came through")
    (upload,) = set(daemon.incoming) - before
    victim = folder / "outside" / "victim"
    victim.write_bytes(b"0123456789")
    replace_by_link(daemon.root / ".backupd" / "incoming" / upload, victim)
    patch = {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": "3",
        "Content-Type": "application/offset+octet-stream",
    }
    refused(call("PATCH", send, DATA[3:], patch))
    assert victim.read_bytes() == b"0123456789"


def test_a_description_is_not_read_through_a_link(
    daemon: Daemon, sender: PlainSender, folder: Path, video: int
) -> None:
    """Rebuilding lists nothing that a link describes, and writes no description through one."""
    done = sender.back_up(daemon.url, video, DATA)
    place = kept(daemon, done["backupId"])
    elsewhere = folder / "described.json"
    elsewhere.write_bytes((place / "backup.json").read_bytes())
    replace_by_link(place / "backup.json", elsewhere)
    replace_by_link(place / ".backup.json.new", folder / "outside" / "secret")
    text = elsewhere.read_bytes()
    daemon.call("POST", f"/api/v1/backups/{done['backupId']}/verify", operator=True)
    answer = daemon.call("POST", "/api/v1/rebuild", operator=True)
    assert answer.status == 200
    assert elsewhere.read_bytes() == text
    assert (folder / "outside" / "secret").read_bytes() == SECRET
    assert os.path.islink(elsewhere) is False
