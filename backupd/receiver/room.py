"""The room within one reservation, which several uploads may share."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred, succeed

from backupd.errors import Invalid, OffsetMismatch, TooLarge
from backupd.interfaces import Source, Upload

__all__ = ["Begun", "in_the_way", "occupied", "placed"]


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


def placed(
    upload: Upload, reserved: int, offset: int, length: int | None, total: int | None
) -> tuple[Upload, int]:
    """An upload that ``length`` bytes are to follow at ``offset``, and how long it may become.

    ``total`` is what it is announced to have, where that was not known before. Raises
    `OffsetMismatch`, and `TooLarge` for more bytes than were announced or reserved.
    """
    if upload.offset != offset:
        raise OffsetMismatch(upload.offset)
    if upload.whole:
        raise TooLarge("Every byte is here already; nothing can follow.", upload.offset)
    if total is not None and upload.length not in (None, total):
        raise Invalid("Upload-Length", f"was {upload.length}, and cannot be changed")
    if upload.length is None and total is not None:
        if total < upload.offset:
            raise TooLarge(f"{total} bytes are not what can follow {upload.offset}.", reserved)
        upload = replace(upload, length=total)
    most = reserved if upload.length is None else upload.length
    if most > reserved:
        raise TooLarge(f"{most} bytes are more than the {reserved} that were reserved.", reserved)
    if length is not None and upload.offset + length > most:
        raise TooLarge(f"{upload.offset + length} bytes are more than the {most} announced.", most)
    return upload, most
