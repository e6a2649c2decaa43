"""Names on the disk: readable, safe on any system, and never two things under one."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backupd.storage.names import MAX_BYTES, SIDECAR, file_name, folder_name, is_component

NASTY = [
    "",
    ".",
    "..",
    "/",
    "a/b",
    "a\\b",
    "a\0b",
    "a\x1bb",
    "CON",
    "con.mp4",
    "COM1 .mp4",
    "lpt²",
    "CON" + " " * 300 + "x.mp4",
    "x.",
    "x ",
    "x. . .",
    ".hidden",
    "a~b",
    "backup.json",
    "BACKUP.JSON",
    "bac\u212aup.json",
    "backup.j\u017fon",
    "\u202egp4.exe",
    "\u2028",
    "\ud800",
    "\ue000",
    "e\u0301",
    "🎬" * 200,
    "x" * 300 + ".mp4",
    "x." + "y" * 300,
    "." * 300,
    "lost+found",
]
names = st.one_of(
    st.text(max_size=300),
    st.text(alphabet=st.characters(), max_size=20),
    st.text(alphabet="aA./\\ ~_:\0CONcon1é\u0301\u202e", max_size=12),
    st.sampled_from(NASTY),
)


def assert_safe(name: str) -> None:
    assert is_component(name)
    assert len(name.encode()) <= MAX_BYTES
    assert not set('/\\<>:"|?*') & set(name)
    assert not {unicodedata.category(char) for char in name} & {
        "Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp",
    }  # fmt: skip
    assert unicodedata.is_normalized("NFC", name)
    assert not name.endswith((".", " "))
    assert name.split(".")[0].strip().upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT²"}


@given(names)
def test_folder_is_safe(raw: str) -> None:
    """Whatever a peer or a video is called, its folder is one harmless part of a path."""
    assert_safe(folder_name(raw))


@given(names, names)
@example("a/b", "a_b")
@example("a/b", folder_name("a/b"))
@example("", "_")
@example("é", "e\u0301")
@example("x" * 187, "x" * 188)
def test_folder_is_not_shared(one: str, other: str) -> None:
    """Different names have different folders."""
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_nasty_folders_are_not_shared() -> None:
    """Nor do the names that one could think of, or the folders that they have, meet."""
    all_names = {*NASTY, *map(folder_name, NASTY), *(name.replace("/", "_") for name in NASTY)}
    assert len({folder_name(name) for name in all_names}) == len(all_names)


@given(names)
def test_clean_folders_stay(raw: str) -> None:
    """A folder is called as its peer or video, or carries the mark of a changed name."""
    folder = folder_name(raw)
    if folder != raw:
        assert folder[-13] == "~"
        assert int(folder[-12:], 16) >= 0
    else:
        assert "~" not in folder


@pytest.mark.parametrize("name", ["2", "holiday", "Ferien 2026", "日本", "é", "a.b", "-", "🎬"])
def test_clean_names(name: str) -> None:
    """What is clean stays as it is, in any script."""
    assert folder_name(name) == name
    assert file_name(f"{name}.mp4", 2, None) == f"{name}.mp4"


@pytest.mark.parametrize(
    ("raw", "start"),
    [
        ("http://localhost:3002", "http___localhost_3002~"),
        ("..", "__~"),
        ("CON", "_CON~"),
        ("", "_~"),
        ("lost+found", "lost+found~"),
        ("\u202eabc", "_abc~"),
    ],
)
def test_changed_folders(raw: str, start: str) -> None:
    """What is left of a name can still be read."""
    assert folder_name(raw).startswith(start)
    assert len(folder_name(raw)) == len(start) + 12


@given(names)
def test_file_is_safe(raw: str) -> None:
    """Whatever a file is called, its name is one harmless part of a path, and not the sidecar's."""
    name = file_name(raw, 2, None)
    assert_safe(name)
    assert name.casefold() != SIDECAR


@given(names)
def test_file_is_made_safe_once(raw: str) -> None:
    """A name made safe stays as it is."""
    name = file_name(raw, 2, None)
    assert file_name(name, 2, None) == name


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("../../etc/passwd", "_._.._etc_passwd"),
        ("C:\\video.mp4", "C__video.mp4"),
        ("con.mp4", "_con.mp4"),
        (" CON", "_ CON"),
        ("backup.json", "_backup.json"),
        ("Backup.JSON", "_Backup.JSON"),
        (".mp4", "_mp4"),
        ("\u202egp4.mp4", "_gp4.mp4"),
        ("e\u0301.mp4", "é.mp4"),
        ("x" * 300 + ".mp4", "x" * 196 + ".mp4"),
        ("é" * 300 + ".mp4", "é" * 98 + ".mp4"),
        ("x" * 300, "x" * 200),
    ],
)
def test_changed_files(raw: str, name: str) -> None:
    """What is left of a name can still be read, and its extension stays."""
    assert file_name(raw, 2, None) == name


@pytest.mark.parametrize(
    ("video", "content_type", "name"),
    [
        (2, None, "video-2"),
        (2, "video/mp4", "video-2.mp4"),
        (2, "Video/MP4; codecs=avc1", "video-2.mp4"),
        (2, "video/x-matroska", "video-2.mkv"),
        (2, "video/webm", "video-2.webm"),
        (2, "video/quicktime", "video-2.mov"),
        (2, "application/octet-stream", "video-2"),
        (2, "nonsense", "video-2"),
        ("a/b", "video/mp4", "video-a_b.mp4"),
        ("x" * 300, "video/mp4", "video-" + "x" * 190 + ".mp4"),
    ],
)
def test_file_without_name(video: int | str, content_type: str | None, name: str) -> None:
    """A file that came without a name is called after its video."""
    assert file_name(None, video, content_type) == name
    assert file_name("", video, content_type) == name
