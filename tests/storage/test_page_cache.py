"""A kept file is read so that the page cache stays as it was, whatever was in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupd.storage.files import DiskStored
from backupd.storage.page_cache import PAGE, Rooms, absent, present, residence
from backupd.storage.system import SYSTEM

SIZE = 300 * PAGE + 77
DATA = b"".join(number.to_bytes(4, "big") * (PAGE // 4) for number in range(301))[:SIZE]
ALL = b"\1" * 301
TRIES = 20
"""So often pages may be dropped, or kept, for a reason of the system's own."""

SOME = bytes(10 <= page < 20 or page == 63 or page >= 290 for page in range(301))


class File:
    """A file whose pages are brought in and dropped as a test wants."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(DATA)
        self.fd = os.open(path, os.O_RDONLY)
        os.fsync(self.fd)

    def pages(self) -> bytes:
        told = residence(self.fd, 0, SIZE)
        assert told is not None
        return told

    def have(self, pages: bytes) -> None:
        """Have these pages in the page cache and no others."""
        for _ in range(TRIES):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_RANDOM)
            for page, wanted in enumerate(pages):
                if wanted:
                    os.pread(self.fd, 1, page * PAGE)
            if self.pages() == pages:
                return
        pytest.skip("the volume does not keep a page cache as this test needs it")

    def direct(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_DIRECT)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "file")
    yield file
    os.close(file.fd)


def no_direct() -> int:
    raise OSError(errno.EINVAL, "no direct reading here")


@pytest.mark.parametrize("pages", [bytes(301), SOME, ALL], ids=["cold", "some", "warm"])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "not direct"])
def test_reading_leaves_the_page_cache_as_it_was(file: File, pages: bytes, direct: bool) -> None:
    file.have(pages)
    fd = os.open(file.path, os.O_RDONLY)
    stored = DiskStored(SYSTEM, fd, "file", file.direct if direct else no_direct, Rooms())
    for at, length in ((0, SIZE), (5, 3), (PAGE - 1, 2), (11 * PAGE, PAGE), (SIZE - 5, 100)):
        assert stored.read(at, length) == DATA[at : at + length]
    windows = [stored.window(at, 100 * PAGE, 30 * PAGE) for at in (0, 12 * PAGE + 3, SIZE - 9)]
    for at, window in zip((0, 12 * PAGE + 3, SIZE - 9), windows, strict=True):
        assert window.length
        if window.data is not None:
            assert window.length <= 30 * PAGE
            assert bytes(window.data) == DATA[at : at + window.length]
        window.release()
    stored.close()
    assert file.pages() == pages


def test_a_window_of_what_is_in_the_page_cache_needs_no_room(file: File) -> None:
    file.have(ALL)
    stored = DiskStored(SYSTEM, os.open(file.path, os.O_RDONLY), "file", file.direct, Rooms())
    window = stored.window(PAGE + 1, 200 * PAGE, 8 * PAGE)
    assert (window.length, window.data) == (200 * PAGE, None)
    assert stored.window(SIZE, 10, 10).length == 0
    # The cached pages end in the middle: those come by themselves when they are a room's worth.
    file.have(SOME)
    assert stored.window(10 * PAGE, 200 * PAGE, 10 * PAGE).data is None
    window = stored.window(10 * PAGE, 200 * PAGE, 11 * PAGE)
    assert window.data is not None
    assert bytes(window.data) == DATA[10 * PAGE : 21 * PAGE]
    stored.close()


def test_closing_closes_both_descriptors(file: File) -> None:
    file.have(bytes(301))

    def descriptors() -> int:
        return sum(os.readlink(one.path) == str(file.path) for one in os.scandir("/proc/self/fd"))

    before = descriptors()
    stored = DiskStored(SYSTEM, os.open(file.path, os.O_RDONLY), "file", file.direct, Rooms())
    stored.window(0, PAGE, PAGE).release()
    assert descriptors() == before + 2
    stored.close()
    stored.close()
    assert descriptors() == before


def test_runs_of_pages() -> None:
    pages = bytes([1, 1, 0, 0, 1, 0])
    assert present(pages) == 2 * PAGE
    assert present(b"\1") == PAGE
    assert list(absent(pages)) == [(2 * PAGE, 4 * PAGE), (5 * PAGE, 6 * PAGE)]


def test_rooms_are_used_again_and_a_heap_of_them_is_not_kept() -> None:
    rooms = Rooms()
    first = rooms.take(10)
    assert len(first) == PAGE
    rooms.give_back(first)
    assert rooms.take(PAGE) is first
    lent = [rooms.take(3 * 1024 * 1024) for _ in range(4)]
    for room in lent:
        rooms.give_back(room)
    again = [rooms.take(3 * 1024 * 1024) for _ in range(4)]
    assert sum(any(one is room for room in lent) for one in again) == 2
