"""Backups as plain files: what lies where, and what is made of what others put there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from backupd.errors import StorageFailed
from backupd.interfaces import Damaged, Found, Part
from backupd.storage.disk import DiskStorage
from backupd.storage.sidecar import encode
from tests.conformance.storage import CONTENT, a_backup, make_storage_tests, received
from tests.storage.faulty import FaultyFileSystem, failing, faulty, kept, tree


def _fixture(test: SynchronousTestCase) -> DiskStorage:
    root = tempfile.mkdtemp()
    test.addCleanup(shutil.rmtree, root)
    return DiskStorage(root)


class DiskStorageTests(make_storage_tests(_fixture)):  # type: ignore[misc]
    """`DiskStorage` is an `IStorage`."""


# -- what lies where ------------------------------------------------------------------------------


def test_layout(root: Path, storage: DiskStorage) -> None:
    """The file lies under its own name with a readable description beside it; nobody else reads."""
    backup = kept(storage)
    folder = root / backup.folder
    assert {path.name for path in folder.iterdir()} == {"holiday.mp4", "backup.json"}
    assert (folder / "holiday.mp4").read_bytes() == CONTENT
    text = (folder / "backup.json").read_text("utf-8")
    assert json.loads(text) == {
        "format": 1,
        "backupId": "backup-1",
        "requestId": "request-of-backup-1",
        "peer": "http://localhost:3002",
        "videoId": 2,
        "fileName": "holiday.mp4",
        "name": "holiday.mp4",
        "contentType": "video/mp4",
        "size": len(CONTENT),
        "sha256": backup.sha256,
        "storedAt": "2026-11-24T02:00:00.123456717Z",
        "verifiedAt": "2026-11-24T02:00:01.765432119Z",
        "problem": None,
        "deletedAt": None,
        "deletedBy": None,
        "lockedUntil": None,
    }
    assert text.count("\n") == 18
    for path in root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0, path


def test_empty_folders_go(root: Path, storage: DiskStorage) -> None:
    """With its last backup a video's folder goes, with its last video a peer's."""
    before = tree(root)
    first, second = kept(storage, "one"), kept(storage, "two")
    storage.remove(first)
    assert (root / second.folder).is_dir()
    storage.remove(second)
    assert tree(root) == before


def test_remove_leaves_what_is_not_ours(root: Path, storage: DiskStorage) -> None:
    """A file that somebody put beside a backup stays, and is told of."""
    backup = kept(storage)
    (root / backup.folder / "notes.txt").write_text("mine")
    storage.remove(backup)
    assert (root / backup.folder / "notes.txt").read_text() == "mine"
    assert [type(each) for each in storage.walk()] == [Damaged]


def test_root_is_made(root: Path) -> None:
    """`prepare` makes the root with every folder above it."""
    storage = DiskStorage(str(root / "a" / "b" / "c"))
    storage.prepare()
    received(storage, "upload-1")
    assert storage.uploads().keys() == {"upload-1"}


def test_room_is_the_volumes(root: Path, storage: DiskStorage) -> None:
    """Room is what an unprivileged process can still write, not what root keeps for itself."""
    volume = os.statvfs(root)
    assert storage.capacity() == volume.f_blocks * volume.f_frsize
    assert storage.free() <= volume.f_bavail * volume.f_frsize + 64 * 1024 * 1024


def test_uploads_count_blocks(root: Path, storage: DiskStorage) -> None:
    """An upload takes what is allocated to it, not what was written to it."""
    upload = storage.create("upload-1")
    upload.allocate(1_000_000)
    upload.close()
    incoming = root / ".backupd" / "incoming"
    (incoming / "not.an.id").write_text("")
    (incoming / "folder").mkdir()
    (incoming / "link").symlink_to("/etc/passwd")
    (allocated,) = storage.uploads().values()
    assert 1_000_000 <= allocated < 1_100_000


# -- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_folder_is_a_link(root: Path, storage: DiskStorage, depth: int) -> None:
    """A link in the place of a backup's folder leads nothing outside."""
    backup = a_backup(storage)
    received(storage, "upload-1")
    link = root.joinpath(*backup.folder.split("/")[:depth])
    with tempfile.TemporaryDirectory() as outside:
        target = Path(outside, *backup.folder.split("/")[depth:])
        target.mkdir(parents=True, exist_ok=True)
        (target / backup.name).write_bytes(CONTENT)
        before = tree(Path(outside))
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(outside)
        with pytest.raises(StorageFailed, match="is not a folder"):
            storage.keep("upload-1", backup)
        for use in (storage.describe, storage.open, storage.remove):
            with pytest.raises(StorageFailed, match="is not a folder"):
                use(backup)
        (damaged,) = storage.walk()
        assert damaged == Damaged(
            path=str(link.relative_to(root)), why="It is not a folder, and not part of a backup."
        )
        assert tree(Path(outside)) == before


def test_no_file_is_a_link(root: Path, storage: DiskStorage) -> None:
    """A link in the place of a file is neither read, written nor taken for a backup."""
    backup = kept(storage)
    file = root / backup.folder / backup.name
    with tempfile.TemporaryDirectory() as outside:
        file.rename(Path(outside, "holiday.mp4"))
        file.symlink_to(Path(outside, "holiday.mp4"))
        (root / ".backupd/incoming/upload-2").symlink_to(Path(outside, "holiday.mp4"))
        for use in (storage.describe, storage.open):
            with pytest.raises(StorageFailed, match="not a plain file"):
                use(backup)
        with pytest.raises(StorageFailed, match="not a plain file"):
            storage.keep("upload-2", replace(backup, backup_id="b", folder="peer/2/b"))
        with pytest.raises(StorageFailed, match="not a plain file"):
            storage.reopen("upload-2")
        with pytest.raises(StorageFailed, match="File exists"):
            storage.create("upload-2")
        (damaged,) = storage.walk()
        assert isinstance(damaged, Damaged)
        storage.remove(backup)
        storage.discard("upload-2")
        assert Path(outside, "holiday.mp4").read_bytes() == CONTENT


def test_incoming_is_no_link(root: Path, storage: DiskStorage) -> None:
    """Uploads do not go where a link leads."""
    with tempfile.TemporaryDirectory() as outside:
        (root / ".backupd" / "incoming").rmdir()
        (root / ".backupd" / "incoming").symlink_to(outside)
        for use in (storage.create, storage.reopen, storage.discard):
            with pytest.raises(StorageFailed, match="is not a folder"):
                use("upload-1")
        assert os.listdir(outside) == []


def test_root_may_be_a_link(root: Path) -> None:
    """Where the root itself leads is its owner's choice."""
    (root / "volume").mkdir()
    (root / "link").symlink_to(root / "volume")
    storage = DiskStorage(str(root / "link"))
    storage.prepare()
    assert list(storage.walk()) == []
    backup = kept(storage)
    assert (root / "volume" / backup.folder).is_dir()


# -- walking --------------------------------------------------------------------------------------


def test_walk_finds_damage(root: Path, storage: DiskStorage) -> None:
    """Each thing that is not a whole backup is told of with its path, and the rest is found."""
    ids = ["whole", "cut", "missing", "short", "foreign"]
    backups = {backup_id: kept(storage, backup_id) for backup_id in ids}
    paths = {name: root / backup.folder for name, backup in backups.items()}
    description = paths["cut"] / "backup.json"
    description.write_bytes(description.read_bytes()[:-100])
    (paths["missing"] / "holiday.mp4").unlink()
    (paths["short"] / "holiday.mp4").write_bytes(CONTENT[:-1])
    (paths["foreign"] / "notes.txt").write_text("mine")
    (paths["whole"].parent / "bare").mkdir()
    (root / "stray").write_text("")
    (root / "peer").mkdir()
    (root / "peer" / "stray").write_text("")
    (root / "peer" / "2").mkdir()
    shutil.copytree(paths["whole"], root / "peer" / "2" / "copied")
    (root / "lost+found" / "2" / "3").mkdir(parents=True)

    found, damaged = set(), {}
    for each in storage.walk():
        if isinstance(each, Found):
            found.add(each.backup.backup_id)
        else:
            damaged[each.path] = each.why
    assert found == {"whole", "foreign"}
    folder = backups["whole"].folder.removesuffix("/whole")
    size = len(CONTENT)
    assert damaged.pop(f"{folder}/cut/backup.json").startswith("It is not a backup's description:")
    assert damaged == {
        f"{folder}/missing/holiday.mp4": "It is missing.",
        f"{folder}/short/holiday.mp4": f"It has {size - 1} bytes, its description says {size}.",
        f"{folder}/foreign/notes.txt": "It is not part of the backup.",
        f"{folder}/bare": "There is no backup.json in it.",
        "stray": "It is not a folder, and not part of a backup.",
        "peer/stray": "It is not a folder, and not part of a backup.",
        "peer/2/copied/backup.json": "It describes another backup, 'whole'.",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"size": -1},
        {"size": "28"},
        {"size": True},
        {"sha256": "abc"},
        {"name": "../holiday.mp4"},
        {"name": "backup.json"},
        {"name": ""},
        {"videoId": None},
        {"videoId": 1.5},
        {"storedAt": 1795485600},
        {"storedAt": "yesterday"},
        {"storedAt": "2026-13-24T02:00:00Z"},
        {"verifiedAt": ""},
        {"peer": None},
        {"backupId": "../x"},
    ],
    ids=str,
)
def test_sidecar_is_checked(root: Path, storage: DiskStorage, change: dict[str, object]) -> None:
    """A description with a wrong member is damaged, not believed."""
    backup = kept(storage)
    path = root / backup.folder / "backup.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert not [each for each in storage.walk() if isinstance(each, Found)]


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"size": ' + b"9" * 9000, b" " * 2**21],
    ids=lambda data: repr(data[:12]),
)
def test_sidecar_of_nonsense(root: Path, storage: DiskStorage, data: bytes) -> None:
    """Whatever bytes the description holds, walking goes on."""
    backup = kept(storage)
    (root / backup.folder / "backup.json").write_bytes(data)
    (damaged,) = storage.walk()
    assert isinstance(damaged, Damaged)
    assert damaged.path == f"{backup.folder}/backup.json"


def test_sidecar_is_a_file(root: Path, storage: DiskStorage) -> None:
    """A pipe, a folder or a link in the place of the description is damage, and no obstacle."""
    backup = kept(storage)
    path = root / backup.folder / "backup.json"
    path.unlink()
    os.mkfifo(path)
    assert [type(each) for each in storage.walk()] == [Damaged]
    path.unlink()
    path.mkdir()
    assert [type(each) for each in storage.walk()] == [Damaged]
    path.rmdir()
    elsewhere = root / ".backupd" / "backup.json"
    elsewhere.write_bytes(encode(backup))
    path.symlink_to(elsewhere)
    assert [type(each) for each in storage.walk()] == [Damaged]


def test_walk_shows_bytes(root: Path, storage: DiskStorage) -> None:
    """A name that is not UTF-8 is told of in text that can be printed."""
    (root / os.fsdecode(b"\xff")).write_text("")
    (damaged,) = storage.walk()
    assert isinstance(damaged, Damaged)
    assert damaged.path.encode() == b"\\xff"


def test_walk_goes_on_past_errors(root: Path, storage: DiskStorage) -> None:
    """A folder that cannot be listed is damaged; the others are found."""
    backup = kept(storage)
    (root / "sick").mkdir()
    fs = FaultyFileSystem(str(root), failing(errno.EIO, "scandir", "sick"))
    found = list(faulty(root, fs).walk())
    assert Found(backup=backup) in found
    why = "It cannot be listed: Input/output error."
    assert Damaged(path="sick", why=why, part=Part.FOLDER) in found


def test_walk_needs_a_root(root: Path) -> None:
    """A volume that is not mounted is an error, not an empty list."""
    with pytest.raises(StorageFailed):
        list(DiskStorage(str(root / "gone")).walk())
