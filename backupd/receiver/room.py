"""The room within one reservation, which several uploads may share."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from twisted.internet.defer import Deferred, succeed

from backupd.interfaces import Source, Upload

__all__ = ["Begun", "in_the_way", "occupied"]


class Begun:
    """A source whose first piece has been read already (`interfaces.Source`)."""

    def __init__(self, first: bytes, rest: Source) -> None:
        self._first: bytes | None = first
        self._rest = rest

    def read(self) -> Deferred[bytes]:
        first, self._first = self._first, None
        return self._rest.read() if first is None else succeed(first)

    def abort(self) -> None:
        self._rest.abort()

    def silent_for(self) -> float:
        return self._rest.silent_for()


def occupied(uploads: Iterable[Upload]) -> int:
    """Bytes of the reservation that these uploads take."""
    return sum(max(one.allocated, one.offset) for one in uploads)


def in_the_way(
    uploads: Sequence[Upload], spare: int, busy: Container[str] = ()
) -> list[str] | None:
    """Uploads that must go so that the others take at most ``spare`` bytes.

    Unfinished ones go first, the oldest of them first; those in ``busy`` are being sent and
    stay. None when that is not enough.
    """
    taken = occupied(uploads)
    drop: list[str] = []
    for upload in sorted(uploads, key=lambda upload: upload.sha256 is not None):
        if taken <= spare:
            break
        size = occupied([upload])
        if upload.upload_id not in busy and size:
            drop.append(upload.upload_id)
            taken -= size
    return drop if taken <= spare else None
