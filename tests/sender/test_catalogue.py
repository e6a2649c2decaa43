"""Which file is which video."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.errors import Invalid
from backupd.peer.open_file import FileGone
from backupd.sender.catalogue import (
    STILL,
    Catalogue,
    VideoFile,
    Watcher,
    content_type_of,
    examine,
    stem_of,
    video_of,
)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


def make(path: Path, size: int = 1) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return str(path)


def test_a_file_is_found_by_its_stem(videos: Path) -> None:
    two = make(videos / "2.mp4")
    make(videos / "22.mp4")
    holiday = make(videos / "holiday.in.may.mkv")
    catalogue = Catalogue([str(videos)])
    assert catalogue.find(2) == catalogue.find("2") == two
    assert catalogue.find("holiday.in.may") == holiday


def test_a_name_is_an_id_too(videos: Path) -> None:
    make(videos / "2.mp4.mkv", 9)
    path = make(videos / "2.mp4")
    assert Catalogue([str(videos)]).find("2.mp4") == path


def test_a_folder_stands_for_its_largest_file(videos: Path) -> None:
    make(videos / "2" / "poster.jpg", 2)
    path = make(videos / "2" / "original.mov", 3)
    make(videos / "2" / ".hidden", 9)
    make(videos / "2" / "deeper" / "larger.mov", 9)
    assert Catalogue([str(videos)]).find(2) == path


def test_of_files_that_differ_in_their_extension_the_largest_counts(videos: Path) -> None:
    make(videos / "2.jpg", 2)
    path = make(videos / "2.mp4", 3)
    assert Catalogue([str(videos)]).find(2) == path


def test_folders_are_searched_in_order(videos: Path, tmp_path: Path) -> None:
    path = make(videos / "2.mp4")
    make(tmp_path / "more" / "2.mp4", 9)
    three = make(tmp_path / "more" / "3.mp4")
    catalogue = Catalogue([str(videos), str(tmp_path / "more")])
    assert (catalogue.find(2), catalogue.find(3)) == (path, three)


@pytest.mark.parametrize(
    "video",
    [
        "../outside",
        "../outside.mp4",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/b",
        "a/b.mp4",
        "2\0",
        ".hidden",
        "x" * 300,
        "\udcff",
        "*",
        3,
    ],
)
def test_what_is_not_in_the_folders_is_not_found(videos: Path, video: int | str) -> None:
    make(videos.parent / "outside.mp4")
    make(videos / "a" / "deep" / "b.mp4")
    make(videos / ".hidden.mp4")
    make(videos / ".hidden" / "x.mp4")
    (videos / "empty").mkdir()
    with pytest.raises(Invalid, match=r"videoId: .* is not in .*videos"):
        Catalogue([str(videos)]).find(video)


@given(st.text(max_size=40))
def test_no_id_leads_out_of_the_folders(
    tmp_path_factory: pytest.TempPathFactory, video: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    make(folder / "videos" / "2.mp4")
    try:
        found = Catalogue([str(folder / "videos")]).find(video)
    except Invalid:
        return
    assert os.path.dirname(found) == str(folder / "videos")


def test_without_folders_it_says_which_setting_is_missing() -> None:
    with pytest.raises(Invalid, match="they name no `videos` folder"):
        Catalogue([]).find(2)


def test_everything_is_every_visible_video(videos: Path) -> None:
    make(videos / "2.mp4", 2)
    make(videos / "3" / "a.mp4", 3)
    make(videos / "3" / "b.mp4", 4)
    make(videos / ".part")
    make(videos / "empty.mp4", 0)
    (videos / "none").mkdir()
    os.mkfifo(videos / "fifo")
    found = {(file.path, file.video, file.size) for file in Catalogue([str(videos)]).everything()}
    assert found == {(str(videos / "2.mp4"), 2, 2), (str(videos / "3" / "b.mp4"), 3, 4)}


def test_what_cannot_be_read_hides_nothing_else(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the lost+found of a volume, or a folder that is away."""
    two = make(videos / "2.mp4")
    make(videos / "lost+found" / "x")
    scandir = os.scandir

    def guarded(path: str) -> Any:
        if path.endswith("lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    catalogue = Catalogue([str(tmp_path / "away"), str(videos)])
    assert [file.path for file in catalogue.everything()] == [two]
    assert catalogue.unreadable == {
        str(tmp_path / "away"): "No such file or directory",
        str(videos / "lost+found"): "Permission denied",
    }


def test_a_file_that_vanishes_meanwhile_is_none(videos: Path) -> None:
    paths = {make(videos / "2.mp4"), make(videos / "3.mp4")}
    catalogue = Catalogue([str(videos)])
    walk = catalogue.everything()
    paths.remove(next(walk).path)
    os.unlink(paths.pop())
    assert list(walk) == []
    assert catalogue.unreadable == {}


@pytest.mark.parametrize(
    ("name", "video"),
    [
        ("2", 2),
        ("0", 0),
        ("02", "02"),
        ("٢", "٢"),
        ("-2", "-2"),
        (str(2**53 - 1), 2**53 - 1),
        (str(2**53), str(2**53)),
        ("holiday", "holiday"),
        ("a\nb\x7f", "a_b_"),
        ("\udcff", "_"),
    ],
)
def test_an_id_is_a_number_where_it_looks_like_one(name: str, video: int | str) -> None:
    assert video_of(name) == video


@given(st.text(min_size=1, max_size=300))
def test_every_name_makes_an_id_that_the_contract_allows(name: str) -> None:
    video = video_of(name)
    if isinstance(video, int):
        assert 0 <= video < 2**53
    else:
        assert 1 <= len(video) <= 128
        assert video.isprintable()


@pytest.mark.parametrize("start", ["x" * 200, "1" * 200])
def test_long_names_do_not_become_one_id(start: str) -> None:
    assert video_of(f"{start}1") != video_of(f"{start}2")


def test_names_tell_stem_and_type() -> None:
    assert (stem_of("/a/b.c.mp4"), stem_of("/a/.mp4"), stem_of("x")) == ("b.c", ".mp4", "x")
    assert content_type_of("/a/b.MP4") == "video/mp4"
    assert content_type_of("b.mkv") == "video/x-matroska"
    assert content_type_of("/a.mp4/b") is None


def test_only_a_readable_file_with_bytes_can_be_sent(videos: Path) -> None:
    path = make(videos / "2.mp4", 3)
    assert examine(path) == (3, os.stat(path).st_mtime_ns)
    for gone in (str(videos), f"{path}/x", str(videos / "none")):
        with pytest.raises(FileGone):
            examine(gone)
    with pytest.raises(OSError, match="it is empty"):
        examine(make(videos / "empty", 0))


# -- watching -------------------------------------------------------------------------------------

FILE = VideoFile("/v/2.mp4", 2, 5, 1)
GROWN = VideoFile("/v/2.mp4", 2, 6, 2)


def test_a_file_is_told_of_once_when_it_has_been_still_for_a_minute() -> None:
    watcher = Watcher()
    assert watcher.look([FILE], 0) == []
    assert watcher.look([FILE], STILL - 1) == []
    assert watcher.look([FILE], STILL) == [FILE]
    assert watcher.look([FILE], 2 * STILL) == []


def test_a_change_starts_the_minute_again() -> None:
    watcher = Watcher()
    watcher.look([FILE], 0)
    assert watcher.look([GROWN], STILL) == []
    assert watcher.look([GROWN], 2 * STILL) == [GROWN]
    assert watcher.look([FILE], 3 * STILL) == []
    assert watcher.look([FILE], 4 * STILL) == [FILE]


def test_what_is_known_is_not_told() -> None:
    watcher = Watcher()
    watcher.know(FILE.path, FILE.size, FILE.modified_ns)
    watcher.look([FILE], 0)
    assert watcher.look([FILE], STILL) == []
    watcher.look([GROWN], STILL)
    assert watcher.look([GROWN], 2 * STILL) == [GROWN]


def test_what_could_not_be_taken_is_told_of_again() -> None:
    watcher = Watcher()
    watcher.look([FILE], 0)
    watcher.look([FILE], STILL)
    watcher.forget(FILE.path)
    assert watcher.look([FILE], STILL + 1) == []
    assert watcher.look([FILE], 2 * STILL + 1) == [FILE]
