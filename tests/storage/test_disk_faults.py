"""Backups as plain files when calls fail, the process ends or the power goes."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from backupd.errors import NoRoom, StorageFailed
from backupd.interfaces import Found
from backupd.storage.disk import DiskStorage
from tests.conformance.storage import CONTENT, a_backup, received
from tests.storage.faulty import Crash, FaultyFileSystem, crashing_at, failing, faulty, kept, tree

# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("function", ["posix_fallocate", "pwritev", "fdatasync"])
def test_upload_finds_no_room(root: Path, storage: DiskStorage, function: str, number: int) -> None:
    """A full volume and a used-up quota are `NoRoom`, and say what there was no room for."""
    fs = FaultyFileSystem(str(root), failing(number, function))
    upload = faulty(root, fs).create("upload-1")

    def use() -> None:
        upload.allocate(100)
        upload.write([b"abc"], 0)
        upload.sync()

    with pytest.raises(NoRoom, match=r"upload upload-1.*: ") as caught:
        use()
    assert isinstance(caught.value.__cause__, OSError)
    upload.close()


def test_full_in_the_middle(root: Path, storage: DiskStorage) -> None:
    """When only some of the bytes find room, the write fails."""
    fs = FaultyFileSystem(str(root), short=2)
    upload = faulty(root, fs).create("upload-1")

    def full(number: int, function: str, path: str) -> None:
        if function == "pwritev" and os.path.getsize(root / path) >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    fs.fault = full
    with pytest.raises(NoRoom):
        upload.write([b"abc", b"def"], 0)
    assert upload.read(0, 10) == b"abcde"
    upload.close()


def test_short_writes(root: Path, storage: DiskStorage) -> None:
    """A system call that takes only some of the bytes is gone on with."""
    fs = FaultyFileSystem(str(root), short=3)
    upload = faulty(root, fs).create("upload-1")
    upload.write([b"a", b"bcdefgh", b"", b"ij"], 5)
    assert upload.read(5, 100) == b"abcdefghij"
    upload.close()


def large(pages: int, begins_at: int = 0) -> memoryview:
    """Bytes that begin ``begins_at`` in a page of memory, as direct writes want them."""
    view = memoryview(mmap.mmap(-1, (pages + 1) * 4096))[begins_at:]
    for page in range(pages):
        view[page * 4096 : page * 4096 + 4] = page.to_bytes(4, "big")
    return view[: pages * 4096]


def direct_writes(fs: FaultyFileSystem) -> list[tuple[int, int]]:
    """Where, and how many bytes, was written around the page cache from now on."""
    found: list[tuple[int, int]] = []
    write = fs._pwritev

    def pwritev(fd: int, pieces: Sequence[bytes], offset: int) -> int:
        written = write(fd, pieces, offset)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            found.append((offset, written))
        return written

    fs._pwritev = pwritev  # type: ignore[method-assign]
    return found


def takes_direct_writes(root: Path) -> bool:
    """Whether the file system below ``root`` does."""
    try:
        os.close(os.open(root / "probe", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("at", [0, 8192, 1, 4095, 5000])
def test_large_pieces_go_around_the_page_cache(root: Path, storage: DiskStorage, at: int) -> None:
    """The whole pages of a large piece are written directly, what is around them as usual."""
    if not takes_direct_writes(root):
        pytest.skip("this file system takes no direct writes")
    fs = FaultyFileSystem(str(root))
    direct = direct_writes(fs)
    upload = faulty(root, fs).create("upload-1")
    content = bytes(at) + bytes(large(100, at % 4096)) + b"the end"
    upload.allocate(len(content))
    upload.write([bytes(at)], 0)
    upload.write([large(100, at % 4096), b"the end"], at)
    upload.sync()
    assert upload.read(0, len(content) + 1) == content
    begins = -(-at // 4096) * 4096
    assert direct == [(begins, (at + 100 * 4096) // 4096 * 4096 - begins)]
    upload.close()
    assert fs.fds == {}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
@pytest.mark.parametrize("function", ["open", "pwritev"])
def test_direct_writes_are_not_everywhere(
    root: Path, storage: DiskStorage, function: str, number: int
) -> None:
    """Where they cannot be, all goes the usual way, and it is tried once."""
    fs = FaultyFileSystem(str(root))
    upload = faulty(root, fs).create("upload-1")
    tries: list[str] = []

    def fault(_: int, called: str, path: str) -> None:
        # The first write of the upload is the direct one; nothing else is opened here.
        if called == function and not tries:
            tries.append(called)
            raise OSError(number, os.strerror(number))

    fs.fault = fault
    direct = direct_writes(fs)
    for at in (0, 100 * 4096):
        upload.write([large(100)], at)
    assert upload.read(0, 300 * 4096) == bytes(large(100)) * 2
    assert (tries, direct) == ([function], [])
    upload.close()
    assert fs.fds == {}


def test_direct_write_fails(root: Path, storage: DiskStorage) -> None:
    """A disk that fails is not mistaken for one that cannot."""
    fs = FaultyFileSystem(str(root), failing(errno.EIO, "pwritev"))
    upload = faulty(root, fs).create("upload-1")
    with pytest.raises(StorageFailed, match="Input/output error"):
        upload.write([large(100)], 0)
    upload.close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_allocation_is_not_everywhere(root: Path, storage: DiskStorage, number: int) -> None:
    """A file system that cannot allocate ahead is not an error."""
    fs = FaultyFileSystem(str(root), failing(number, "posix_fallocate"))
    upload = faulty(root, fs).create("upload-1")
    upload.allocate(100)
    upload.close()


def test_failed_sync_is_final(root: Path, storage: DiskStorage) -> None:
    """After a failed sync the same descriptor is never synced again."""
    fs = FaultyFileSystem(str(root), failing(errno.EIO, "fdatasync"))
    upload = faulty(root, fs).create("upload-1")
    upload.write([b"abc"], 0)
    with pytest.raises(StorageFailed, match="Input/output error"):
        upload.sync()
    fs.fault = lambda number, function, path: None
    with pytest.raises(StorageFailed, match="open it anew"):
        upload.sync()
    upload.close()
    again = faulty(root, fs).reopen("upload-1")
    again.sync()
    again.close()


def test_a_name_that_was_not_synced(root: Path, storage: DiskStorage) -> None:
    """Bytes whose name could not be made durable are not, and nobody tries again behind them."""
    fs = FaultyFileSystem(str(root), failing(errno.EIO, "fsync", "incoming"))
    upload = faulty(root, fs).create("upload-1")
    upload.write([b"abc"], 0)
    with pytest.raises(StorageFailed, match="Input/output error"):
        upload.sync()
    fs.fault = lambda number, function, path: None
    with pytest.raises(StorageFailed, match="open it anew"):
        upload.sync()
    upload.close()
    assert fs.fds == {}


def test_bytes_and_their_name_are_durable(root: Path, storage: DiskStorage) -> None:
    """Bytes that were synced survive a power cut under their name; once for each new upload."""
    fs = FaultyFileSystem(str(root))
    upload = faulty(root, fs).create("upload-1")
    upload.allocate(100)
    upload.write([b"abc"], 0)
    upload.sync()
    assert fs.unsynced == set()
    upload.write([b"def"], 3)
    upload.sync()
    name = ".backupd/incoming"
    assert fs.trace == [f"sync {name}/upload-1", f"sync {name}", f"sync {name}/upload-1"]
    upload.close()


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, NoRoom), (errno.EIO, StorageFailed)])
def test_keep_fails_at_every_call(
    root: Path, storage: DiskStorage, number: int, error: type[Exception]
) -> None:
    """Whichever call fails, `keep` says so, leaks nothing, and can be done again."""
    backup = a_backup(storage)
    for failing_call in range(1000):
        received(storage, "upload-1")

        def fault(call: int, function: str, path: str, at: int = failing_call) -> None:
            if call == at:
                raise OSError(number, os.strerror(number))

        fs = FaultyFileSystem(str(root), fault, short=50)
        try:
            faulty(root, fs).keep("upload-1", backup)
        except error:
            assert len(fs.fds) <= 1  # the one whose close failed
            fs.close_all()
            storage.keep("upload-1", backup)
        else:
            break
        assert list(storage.walk()) == [Found(backup=backup)]
        storage.remove(backup)
    assert failing_call > 20


# -- crashes and power cuts -----------------------------------------------------------------------


def test_order_of_keep(root: Path, storage: DiskStorage) -> None:
    """Everything is synced before it gets its name, new folders before anything moves there."""
    backup = a_backup(storage)
    received(storage, "upload-1")
    fs = FaultyFileSystem(str(root))
    faulty(root, fs).keep("upload-1", backup)
    folder = backup.folder
    peer, video, _ = folder.split("/")
    assert fs.trace == [
        "sync .",
        f"sync {peer}",
        f"sync {peer}/{video}",
        "sync .backupd/incoming/upload-1",
        f"sync {folder}/.backup.json.new",
        f"rename {folder}/.backup.json.new {folder}/backup.json",
        f"rename .backupd/incoming/upload-1 {folder}/holiday.mp4",
        f"sync {folder}",
        "sync .backupd/incoming",
    ]


def test_keep_rolls_forward(root: Path, storage: DiskStorage) -> None:
    """A crash before any call of `keep`: nothing half-made is found, and a second go ends the same.

    Also nothing that either go changed is left for a power cut to undo.
    """
    backup = a_backup(storage)
    received(storage, "upload-1")
    storage.keep("upload-1", backup)
    whole = tree(root)
    for crash in range(1000):
        storage.remove(backup)
        received(storage, "upload-1")
        first = FaultyFileSystem(str(root), crashing_at(crash), short=50)
        try:
            faulty(root, first).keep("upload-1", backup)
        except Crash:
            first.close_all()
        else:
            break
        found = [each for each in storage.walk() if isinstance(each, Found)]
        if found:
            assert found == [Found(backup=backup)]
            assert (root / backup.folder / backup.name).read_bytes() == CONTENT
            assert storage.uploads() == {}
        second = FaultyFileSystem(str(root), unsynced=first.unsynced, short=50)
        faulty(root, second).keep("upload-1", backup)
        assert tree(root) == whole
        assert second.unsynced == set()
        assert second.fds == {}
    assert crash > 20


def test_remove_rolls_forward(root: Path, storage: DiskStorage) -> None:
    """A crash before any call of `remove`: never found but whole, and a second go ends the same."""
    empty = tree(root)
    for crash in range(1000):
        backup = kept(storage)
        first = FaultyFileSystem(str(root), crashing_at(crash))
        try:
            faulty(root, first).remove(backup)
        except Crash:
            first.close_all()
        else:
            break
        for each in storage.walk():
            if isinstance(each, Found):
                assert (root / backup.folder / backup.name).read_bytes() == CONTENT
        second = FaultyFileSystem(str(root), unsynced=first.unsynced)
        faulty(root, second).remove(backup)
        assert tree(root) == empty
        assert second.unsynced == set()
    assert crash > 5


def test_describe_is_whole_or_not(root: Path, storage: DiskStorage) -> None:
    """A crash before any call of `describe` leaves the old description or the new one, whole."""
    backup = kept(storage)
    for crash in range(1000):
        changed = replace(backup, problem=f"Problem {crash}.")
        first = FaultyFileSystem(str(root), crashing_at(crash), short=50)
        try:
            faulty(root, first).describe(changed)
        except Crash:
            first.close_all()
        else:
            assert first.unsynced == set()
            break
        (found,) = storage.walk()
        assert found in (Found(backup=backup), Found(backup=changed))
        storage.describe(backup)
    assert crash > 10


def test_keep_refuses_a_file_of_another_size(root: Path, storage: DiskStorage) -> None:
    """Going on after a crash, a kept file that is not the backup is an error, and stays."""
    backup = kept(storage)
    file = root / backup.folder / backup.name
    file.write_bytes(CONTENT + b"x")
    with pytest.raises(StorageFailed, match="bytes, not"):
        storage.keep("upload-1", backup)
    assert file.read_bytes() == CONTENT + b"x"


def test_threads(root: Path, storage: DiskStorage) -> None:
    """Backups of one video come and go in several threads, and none pulls another's folder away."""
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for _ in range(40):
                backup = a_backup(storage, backup_id=f"backup-{number}")
                received(storage, f"upload-{number}")
                storage.keep(f"upload-{number}", backup)
                storage.open(backup).close()
                storage.remove(backup)
        except Exception as error:  # shown by the assertion below
            errors.append(error)

    threads = [Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(storage.walk()) == []
