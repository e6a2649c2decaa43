"""What every `IStorage` does, whatever lies below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import ParamSpec

import pytest
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from backupd.errors import StorageFailed
from backupd.interfaces import Damaged, Found, IStorage, IStored, IUpload, Part
from backupd.requests import Backup, VideoId

__all__ = ["a_backup", "make_storage_tests", "received"]

P = ParamSpec("P")

CONTENT = b"\x00\x01 a video of twenty-eight b\xff"


def a_backup(
    storage: IStorage,
    *,
    peer: str = "http://localhost:3002",
    video: VideoId = 2,
    backup_id: str = "backup-1",
    file_name: str = "holiday.mp4",
    content: bytes = CONTENT,
) -> Backup:
    """A backup of ``content``, with the place that ``storage`` has for it."""
    folder, name = storage.place(peer, video, backup_id, file_name)
    return Backup(
        backup_id=backup_id,
        request_id=f"request-of-{backup_id}",
        peer=peer,
        video=video,
        file_name=file_name,
        content_type="video/mp4",
        size=len(content),
        sha256=sha256(content).hexdigest(),
        stored_at=1795485600.1234567,
        verified_at=1795485601.7654321,
        folder=folder,
        name=name,
    )


def received(storage: IStorage, upload_id: str, content: bytes = CONTENT) -> None:
    """Leave an upload of ``content``, durable, with room to spare."""
    upload = storage.create(upload_id)
    upload.allocate(len(content) + 5000)
    upload.write([content[:7], b"", content[7:]], 0)
    upload.sync()
    upload.close()


def content_of(storage: IStorage, backup: Backup) -> bytes:
    """Every byte of a kept backup, read in small pieces."""
    stored = storage.open(backup)
    content = b""
    while piece := stored.read(len(content), 5):
        content += piece
    stored.close()
    return content


def refused(f: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Calling ``f`` fails with `StorageFailed`."""
    with pytest.raises(StorageFailed):
        f(*args, **kwargs)


def make_storage_tests(
    fixture: Callable[[SynchronousTestCase], IStorage],
) -> type[SynchronousTestCase]:
    """A test case for the storage that ``fixture`` makes: empty, anew for every test."""

    class StorageTests(SynchronousTestCase):
        def setUp(self) -> None:
            self.storage = fixture(self)
            self.storage.prepare()

        def kept(self, upload_id: str = "upload-1", **attributes: str) -> Backup:
            backup = a_backup(self.storage, **attributes)  # type: ignore[arg-type]
            received(self.storage, upload_id)
            self.storage.keep(upload_id, backup)
            return backup

        def test_interfaces(self) -> None:
            """The storage, its uploads and its backups provide what they promise."""
            verifyObject(IStorage, self.storage)
            upload = self.storage.create("upload-0")
            verifyObject(IUpload, upload)
            upload.close()
            stored = self.storage.open(self.kept())
            verifyObject(IStored, stored)
            stored.close()

        def test_prepare_again(self) -> None:
            """Preparing twice harms nothing that is there."""
            backup = self.kept()
            self.storage.prepare()
            assert content_of(self.storage, backup) == CONTENT

        def test_room(self) -> None:
            """There is some room, and never more than the volume has."""
            assert self.storage.free() > 0
            assert self.storage.free() <= self.storage.capacity()

        # uploads

        def test_write_anywhere(self) -> None:
            """Pieces lie behind each other from the offset on; later bytes replace earlier ones."""
            upload = self.storage.create("upload-1")
            upload.write([b"abc", b"", b"def"], 0)
            upload.write([b"XY", b"Z"], 5)
            upload.write([], 3)
            assert upload.read(0, 100) == b"abcdeXYZ"
            assert upload.read(2, 3) == b"cde"
            assert upload.read(8, 1) == b""
            upload.close()

        def test_many_pieces(self) -> None:
            """No number of pieces is too many for one write."""
            upload = self.storage.create("upload-1")
            upload.write([b"%04d" % number for number in range(3000)], 0)
            assert upload.read(11996, 100) == b"2999"
            upload.close()

        def test_reopen(self) -> None:
            """What was synced is there when the upload is opened again, and can be added to."""
            received(self.storage, "upload-1")
            upload = self.storage.reopen("upload-1")
            upload.write([b"more"], len(CONTENT))
            upload.sync()
            assert upload.read(0, len(CONTENT) + 4) == CONTENT + b"more"
            upload.close()

        def test_allocate_keeps_bytes(self) -> None:
            """Allocating changes no byte that was written, and more can be allocated later."""
            upload = self.storage.create("upload-1")
            upload.write([b"abc"], 0)
            for length in (0, 10_000, 20_000, 10_000):
                upload.allocate(length)
            assert upload.read(0, 3) == b"abc"
            upload.close()
            assert self.storage.uploads()["upload-1"] >= 20000

        def test_close_twice(self) -> None:
            """Closing again harms nothing; anything else is refused."""
            upload = self.storage.create("upload-1")
            upload.close()
            upload.close()
            for use in (upload.sync, lambda: upload.write([b"a"], 0), lambda: upload.read(0, 1)):
                refused(use)

        def test_create_twice(self) -> None:
            """An upload that exists is not made anew."""
            received(self.storage, "upload-1")
            refused(self.storage.create, "upload-1")
            assert self.storage.reopen("upload-1").read(0, len(CONTENT)) == CONTENT

        def test_reopen_missing(self) -> None:
            """An upload that is not there cannot be opened."""
            refused(self.storage.reopen, "upload-1")

        def test_discard(self) -> None:
            """A discarded upload is gone; discarding it again harms nothing."""
            received(self.storage, "upload-1")
            received(self.storage, "upload-2")
            self.storage.discard("upload-1")
            self.storage.discard("upload-1")
            assert set(self.storage.uploads()) == {"upload-2"}
            refused(self.storage.reopen, "upload-1")

        def test_ids(self) -> None:
            """Only an id of up to 64 letters, digits, ``-`` and ``_`` comes near a path."""
            for bad in ("", ".", "..", "a/b", "../up", "a\0b", "a" * 65, "é", "a\n", "a.b"):
                refused(self.storage.create, bad)
                refused(self.storage.reopen, bad)
                refused(self.storage.discard, bad)
                refused(self.storage.place, "peer", 2, bad, "a.mp4")

        # places

        def test_place_is_never_shared(self) -> None:
            """Other peers, videos and backups have other folders, however alike the names are."""
            names = [
                "a",
                "A",
                "a/b",
                "a_b",
                "..",
                ".",
                "",
                "a~b",
                "CON",
                "con",
                "\u202ea",
                "\xe9",
                "e\u0301",
            ]
            folders = {self.storage.place(p, v, "b", "f")[0] for p in names for v in names}
            assert len(folders) == len(names) ** 2
            assert (
                self.storage.place("a", 2, "one", "f")[0]
                != self.storage.place("a", 2, "two", "f")[0]
            )

        def test_place_is_stable(self) -> None:
            """``2`` and ``"2"`` are the same video, and a place is the same at every asking."""
            assert self.storage.place("peer", 2, "backup-1", "a.mp4") == self.storage.place(
                "peer", "2", "backup-1", "a.mp4"
            )

        # backups

        def test_keep(self) -> None:
            """A kept backup has exactly its bytes; the upload is no more."""
            backup = self.kept()
            stored = self.storage.open(backup)
            assert stored.size() == len(CONTENT)
            stored.close()
            assert content_of(self.storage, backup) == CONTENT
            assert self.storage.uploads() == {}
            assert list(self.storage.walk()) == [Found(backup=backup)]

        def test_inspect(self) -> None:
            """One place is told of as the walk tells of all; one where nothing is as damaged."""
            backup = self.kept()
            assert self.storage.inspect(backup.folder) == [Found(backup=backup)]
            self.storage.remove(backup)
            [gone] = self.storage.inspect(backup.folder)
            assert isinstance(gone, Damaged)
            assert (gone.path, gone.part) == (backup.folder, Part.FILE)

        def test_keep_nothing(self) -> None:
            """A video of no bytes is a video."""
            backup = a_backup(self.storage, content=b"")
            self.storage.create("upload-1").close()
            self.storage.keep("upload-1", backup)
            assert content_of(self.storage, backup) == b""

        def test_keep_again(self) -> None:
            """Keeping what is kept changes nothing."""
            backup = self.kept()
            self.storage.keep("upload-1", backup)
            assert list(self.storage.walk()) == [Found(backup=backup)]
            assert content_of(self.storage, backup) == CONTENT

        def test_keep_nowhere(self) -> None:
            """Without upload and backup there is nothing to keep, and nothing is left behind."""
            backup = a_backup(self.storage)
            refused(self.storage.keep, "upload-1", backup)
            assert list(self.storage.walk()) == []

        def test_keep_too_short(self) -> None:
            """An upload with fewer bytes than the backup is refused, and stays."""
            backup = replace(a_backup(self.storage), size=1_000_000)
            received(self.storage, "upload-1")
            refused(self.storage.keep, "upload-1", backup)
            assert set(self.storage.uploads()) == {"upload-1"}

        def test_keep_replaces_nothing(self) -> None:
            """Another upload does not take the place of a kept backup."""
            backup = self.kept()
            received(self.storage, "upload-2", b"x" * len(CONTENT))
            refused(self.storage.keep, "upload-2", backup)
            assert content_of(self.storage, backup) == CONTENT
            assert set(self.storage.uploads()) == {"upload-2"}

        def test_places_outside(self) -> None:
            """A backup whose place is not one of ours is neither written, read nor removed."""
            backup = a_backup(self.storage)
            received(self.storage, "upload-1")
            for folder, name in (
                ("../video/backup-1", "a.mp4"),
                ("peer/../backup-1", "a.mp4"),
                ("peer/video/backup-2", "a.mp4"),
                ("/peer/backup-1", "a.mp4"),
                (".backupd/incoming/backup-1", "a.mp4"),
                ("backup-1", "a.mp4"),
                (backup.folder, "../a.mp4"),
                (backup.folder, ".."),
                (backup.folder, ""),
                (backup.folder, "Backup.json"),
            ):
                bad = replace(backup, folder=folder, name=name)
                refused(self.storage.keep, "upload-1", bad)
                refused(self.storage.describe, bad)
                refused(self.storage.open, bad)
                refused(self.storage.remove, bad)
            assert set(self.storage.uploads()) == {"upload-1"}

        def test_describe(self) -> None:
            """What is said of a backup can change; its bytes do not."""
            backup = replace(self.kept(), verified_at=None, problem="It was read as other bytes.")
            self.storage.describe(backup)
            assert list(self.storage.walk()) == [Found(backup=backup)]
            assert content_of(self.storage, backup) == CONTENT

        def test_describe_missing(self) -> None:
            """What is not there cannot be described."""
            refused(self.storage.describe, a_backup(self.storage))
            assert list(self.storage.walk()) == []

        def test_open_missing(self) -> None:
            """A backup whose bytes are gone cannot be opened."""
            refused(self.storage.open, a_backup(self.storage))

        def test_versions(self) -> None:
            """Backups of one video lie beside each other, and one goes without the other."""
            first = self.kept(backup_id="one")
            second = self.kept(backup_id="two")
            other = self.kept(backup_id="three", peer="http://localhost:3003")
            self.storage.remove(first)
            refused(self.storage.open, first)
            assert set(self.storage.walk()) == {Found(backup=second), Found(backup=other)}

        def test_remove_again(self) -> None:
            """Removing what is not there harms nothing, and its place can be used again."""
            backup = self.kept()
            for _ in range(2):
                self.storage.remove(backup)
                assert list(self.storage.walk()) == []
            assert self.kept() == backup
            assert content_of(self.storage, backup) == CONTENT

        def test_walk_tells_all(self) -> None:
            """Whatever the names and ids are, the files alone give back every backup."""
            backups = [
                self.kept(backup_id=f"backup-{number}", video=video, file_name=video)
                for number, video in enumerate(
                    ["..", "a/b", "CON", "\u202egp4.oediv", "backup.json", "\ud800", "é" * 128]
                )
            ]
            assert set(self.storage.walk()) == {Found(backup=backup) for backup in backups}
            for backup in backups:
                assert content_of(self.storage, backup) == CONTENT

    return StorageTests
