"""The room within one reservation, which several uploads may share."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred, succeed

from backupd.errors import Invalid, OffsetMismatch, TooLarge
from backupd.interfaces import Source, Upload

__all__ = ["Begun", "NotBegun", "going", "in_the_way", "in_use", "occupied", "placed"]


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


class NotBegun(Exception):
    """What is whole would have to give way to bytes of which none is here yet."""


def occupied(uploads: Iterable[Upload]) -> int:
    """Bytes of the reservation that these uploads take."""
    return sum(max(one.allocated, one.offset) for one in uploads)


def in_use(uploads: Iterable[Upload], busy: Container[str]) -> set[str]:
    """The uploads in ``busy``, which are being sent or joined, and the parts of the latter."""
    sent = [one for one in uploads if one.upload_id in busy]
    return {one.upload_id for one in sent}.union(*(one.parts for one in sent))


def going(uploads: Sequence[Upload], drop: Iterable[str]) -> list[str]:
    """``drop``, and what is of no use without it.

    That is what was to join one of them; and with what has begun to join its parts, the part that
    has given it bytes: the rest of it would be taken for a whole part.
    """
    gone = dict.fromkeys(drop)
    known = {one.upload_id: one for one in uploads}
    unjoined = [one for one in uploads if one.parts and not one.whole]
    gone |= dict.fromkeys(
        one.upload_id for one in unjoined if not gone.keys().isdisjoint(one.parts)
    )
    for final in unjoined:
        if final.upload_id in gone and final.offset:
            left = [known[part] for part in final.parts if part in known]
            gone |= dict.fromkeys(one.upload_id for one in left[:1] if one.allocated < one.offset)
    return list(gone)


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
