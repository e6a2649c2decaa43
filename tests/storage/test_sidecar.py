"""What is said of a backup beside it is read back as it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backupd.requests import Backup
from backupd.storage.names import file_name
from backupd.storage.sidecar import decode, encode

# From May 1970, where a float has no finer steps than the nanoseconds written, to the year 2286.
times = st.floats(1e7, 1e10)
texts = st.text(alphabet=st.characters(), max_size=50)
backups = st.builds(
    Backup,
    backup_id=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    request_id=texts,
    peer=texts,
    video=st.integers(0, 2**53 - 1) | texts,
    file_name=texts,
    content_type=st.none() | texts,
    size=st.integers(0, 2**60),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    stored_at=times,
    verified_at=st.none() | times,
    folder=st.just(""),
    name=texts.map(lambda name: file_name(name, 2, None)),
    problem=st.none() | texts,
)


@given(backups)
def test_round_trip(backup: Backup) -> None:
    """Every member comes back exactly, times to the last bit, a number as a number."""
    again = decode(encode(backup), f"peer/video/{backup.backup_id}")
    for member in Backup.__dataclass_fields__:
        if member != "folder":
            assert getattr(again, member) == getattr(backup, member)
            assert type(getattr(again, member)) is type(getattr(backup, member))
    assert again.folder == f"peer/video/{backup.backup_id}"
