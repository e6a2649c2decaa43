"""Where every video goes when all are got back, and what is taken when the newest is damaged."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.control import Api
from backupd.fetch_all import AllFetched, Outcome, plan
from backupd.sender.catalogue import Catalogue
from backupd.storage.names import is_component


def backup(number: int, video: object, name: str, **more: Any) -> Any:
    """One of a list, as it is told; stored at the minute ``number``."""
    told = {
        "backupId": f"id{number:04}",
        "peer": "someone",
        "videoId": video,
        "fileName": name,
        "contentType": "video/mp4",
        "size": 1,
        "sha256": f"{number:064}",
        "storedAt": f"2026-11-24T{number // 60:02}:{number % 60:02}:00.000Z",
        "verifiedAt": None,
        "problem": None,
    }
    return told | more


def paths(*backups: Any, every: bool = False) -> list[str]:
    return ["/".join(one.path) for one in plan(backups, every=every)]


def test_a_file_whose_name_tells_its_id_keeps_it() -> None:
    assert paths(backup(1, 2, "2.mp4"), backup(2, "holiday", "holiday.mkv")) == [
        "2.mp4",
        "holiday.mkv",
    ]


def test_names_that_are_the_same_lie_in_folders_called_by_the_id() -> None:
    assert paths(backup(1, 2, "video.mp4"), backup(2, 3, "video.mp4")) == [
        "2/video.mp4",
        "3/video.mp4",
    ]


def test_the_newest_version_is_the_one() -> None:
    [one] = plan([backup(1, 2, "2.mp4"), backup(3, 2, "2.mp4"), backup(2, 2, "2.mp4")])
    assert [choice["backupId"] for choice in one.choices] == ["id0003", "id0002", "id0001"]


def test_whole_versions_come_before_damaged_ones() -> None:
    [one] = plan([backup(1, 2, "2.mp4"), backup(2, 2, "2.mp4", problem="bits turned over")])
    assert one.newest["backupId"] == "id0002"
    assert [choice["backupId"] for choice in one.choices] == ["id0001", "id0002"]


def test_of_all_versions_each_has_its_own_place() -> None:
    assert paths(backup(1, 2, "2.mp4"), backup(2, 2, "2.mp4"), every=True) == [
        "2/2026-11-24T00-02-00-id0002/2.mp4",
        "2/2026-11-24T00-01-00-id0001/2.mp4",
    ]


def test_a_file_and_a_folder_of_one_name_do_not_meet() -> None:
    assert paths(backup(1, "x", "x.mp4"), backup(2, "x.mp4", "other.mkv")) == [
        "x/x.mp4",
        "x.mp4/other.mkv",
    ]


def test_names_that_differ_by_case_only_do_not_meet() -> None:
    """The disk that they go to may not know a difference."""
    one, other = paths(backup(1, "a", "a.mp4"), backup(2, "A", "A.mp4"))
    assert one.casefold() != other.casefold()


def test_a_name_is_never_a_path() -> None:
    [path] = paths(backup(1, "../x", "../../etc/passwd"))
    assert ".." not in path.split("/")
    assert len(path.split("/")) == 2


FOREIGN = [
    {"storedAt": "/elsewhere/x"},
    {"storedAt": "../../../../x"},
    {"storedAt": ""},
    {"backupId": "../../../x"},
    {"backupId": "/x"},
    {"backupId": "\0"},
    {"videoId": ".."},
    {"fileName": "../../x"},
]
"""What a server may say where it says something harmless otherwise."""


@pytest.mark.parametrize("more", FOREIGN)
@pytest.mark.parametrize("every", [False, True])
def test_nothing_that_a_server_says_is_a_path(more: dict[str, Any], every: bool) -> None:
    """Also where it lies in a folder of its own, since others have its name and its folder."""
    listed = [backup(1, "a", "x.mp4"), backup(2, "A", "x.mp4"), backup(3, 3, "3.mp4")]
    for number in range(3):
        told = [one | more if one is listed[number] else one for one in listed]
        for one in plan(told, every=every):
            assert all(is_component(part) for part in one.path)


class Gives:
    """A server whose backups all have this content."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def open(self, method: str, path: str, headers: dict[str, str]) -> Any:
        return io.BytesIO(self.content)


def brought(into: Path, content: bytes, *backups: Any, every: bool = False) -> list[Outcome]:
    """What becomes of what this server has."""
    work = AllFetched(cast(Api, Gives(content)), into, wait_unit=0.0)
    return list(work.run(plan(backups, every=every), 1))


@pytest.mark.parametrize("more", FOREIGN)
@pytest.mark.parametrize("every", [False, True])
def test_nothing_is_written_beside_the_folder(
    tmp_path: Path, more: dict[str, Any], every: bool
) -> None:
    """The bytes are right, and where they go is not what the server has chosen."""
    told = backup(1, 2, "2.mp4", sha256=hashlib.sha256(b"x").hexdigest()) | more
    assert [one.state for one in brought(tmp_path / "into", b"x", told, every=every)] == [
        "restored"
    ]
    files = [one for one in tmp_path.rglob("*") if one.is_file()]
    assert [one.read_bytes() for one in files] == [b"x"]
    assert os.listdir(tmp_path) == ["into"]


def test_more_bytes_than_were_told_are_that_copys_fault_alone(tmp_path: Path) -> None:
    """Nothing of them stays, and all others come all the same."""
    right = hashlib.sha256(b"xy").hexdigest()
    outcomes = brought(
        tmp_path,
        b"xy",
        backup(1, 1, "1.mp4", size=1),
        backup(2, 2, "2.mp4", size=2, sha256=right),
    )
    assert {one.wanted.path: one.state for one in outcomes} == {
        ("1.mp4",): "missing",
        ("2.mp4",): "restored",
    }
    assert "More than the 1 bytes" in next(one.why for one in outcomes if one.state == "missing")
    assert os.listdir(tmp_path) == ["2.mp4"]


texts = st.text(alphabet="aA2.~/ é", min_size=1, max_size=4)


@given(st.lists(st.tuples(st.integers(0, 3) | texts, texts), max_size=8), st.booleans())
def test_no_two_ever_meet(videos: list[tuple[Any, str]], every: bool) -> None:
    """Whatever they are called: none is another's file, or lies where a file must be."""
    backups = [backup(number, *video) for number, video in enumerate(videos)]
    taken = [path.casefold() for path in paths(*backups, every=every)]
    assert len(set(taken)) == len(taken)
    assert not any(one.startswith(f"{other}/") for one in taken for other in taken)
    assert not any(part in ("", ".", "..") for path in taken for part in path.split("/"))


def test_the_sender_finds_each_by_its_id(tmp_path: Path) -> None:
    """A fresh server's catalogue has every video again."""
    backups = [backup(1, 2, "2.mp4"), backup(2, "b", "film.mp4"), backup(3, 7, "film.mp4")]
    for path, listed in zip(paths(*backups), backups, strict=True):
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(listed["backupId"])
    catalogue = Catalogue([os.fspath(tmp_path)])
    for listed in backups:
        assert Path(catalogue.find(listed["videoId"])).read_text() == listed["backupId"]


def test_no_answer_ends_it_for_all_at_once(tmp_path: Path) -> None:
    """A server that is gone is waited for once, not for every file."""
    waits: list[int] = []
    work = AllFetched(Api("http://127.0.0.1:1", None), tmp_path, wait_unit=0.0)
    wanted = plan([backup(number, number, f"{number}.mp4") for number in range(100)])
    outcomes: list[Outcome] = list(work.run(wanted, 2))
    waits += [1 for one in outcomes if "does not answer" in one.why]
    assert [one.state for one in outcomes] == ["missing"] * 100
    assert len(waits) == 100


def test_what_is_partly_there_needs_no_room(tmp_path: Path) -> None:
    work = AllFetched(Api("http://127.0.0.1:1", None), tmp_path)
    wanted = plan([backup(1, 1, "1.mp4", size=100), backup(2, 2, "2.mp4", size=50)])
    assert work.room_needed(wanted) == 150
    (tmp_path / ".id0001.part").write_bytes(bytes(30))
    (tmp_path / "2.mp4").write_bytes(bytes(50))
    assert work.room_needed(wanted) == 70


def test_what_is_in_the_way_is_named_with_what_to_do(tmp_path: Path) -> None:
    """A file may be replaced; a folder with all that is in it is moved away by people."""
    (tmp_path / "1.mp4").mkdir()
    (tmp_path / "2.mp4").write_text("another")
    wanted = plan([backup(1, 1, "1.mp4"), backup(2, 2, "2.mp4")])
    whys = {}
    for force in (False, True):
        work = AllFetched(Api("http://127.0.0.1:1", None), tmp_path, force=force, wait_unit=0.0)
        whys[force] = {one.wanted.path[0]: one.why for one in work.run(wanted, 1)}
    assert "a folder is there" in whys[False]["1.mp4"]
    assert "move it away" in whys[True]["1.mp4"]
    assert "--force replaces it" in whys[False]["2.mp4"]
    assert "--force" not in whys[True]["2.mp4"]
