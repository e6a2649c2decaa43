"""Digests: of what an upload has, of what one body brings, and whether they are the right ones."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn, Protocol, TypeAlias

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import BackupdError, BytesGone, ChecksumMismatch, DigestMismatch, UploadCut
from backupd.interfaces import ILedger, IUpload, OffThread, Upload
from backupd.receiver.blocks import Hasher
from backupd.requests import BackupRequest, Failed, received, rejected
from backupd.settings import Settings

__all__ = ["Check", "Digests", "Discard", "Judge", "Known", "digest_of"]

REREAD = 8 * 1024 * 1024
"""Bytes of a kept prefix that are read again at a time."""

Discard: TypeAlias = Callable[[Sequence[str]], Awaitable[None]]
"""Frees the bytes of uploads that the ledger has forgotten; later if the disk fails now."""

_log = Logger()


class Known(Hasher, Protocol):
    """A digest that can be gone on with from two places, as of `hashlib`."""

    def copy(self) -> Known: ...


class Digests:
    """Running digests of unfinished uploads, so that most resumptions need not read again."""

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._known: dict[str, tuple[int, Known]] = {}

    def remember(self, upload_id: str, offset: int, hasher: Known) -> None:
        self._known[upload_id] = (offset, hasher)
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]

    def take(self, upload_id: str, offset: int) -> Known | None:
        """The digest of the first ``offset`` bytes, if it is known; it is forgotten here."""
        known = self._known.pop(upload_id, None)
        return known[1] if known is not None and known[0] == offset else None


async def digest_of(
    upload: Upload,
    handle: IUpload,
    remembered: Digests,
    off: OffThread,
    aborted: Callable[[], bool] = lambda: False,
) -> Known:
    """The digest of what an upload has: remembered, or read again from the disk.

    Raises `BytesGone` when some are not there any more, `UploadCut` once ``aborted``.
    """
    known = remembered.take(upload.upload_id, upload.offset)
    if known is not None:
        return known
    hasher, at = hashlib.sha256(), 0

    def read_on() -> int:
        data = handle.read(at, min(REREAD, upload.offset - at))
        hasher.update(data)
        return len(data)

    while at < upload.offset:
        if aborted():
            raise UploadCut("The upload was ended before it went on.")
        count = await off(read_on)
        if not count:
            raise BytesGone(
                f"Of the {upload.offset} bytes kept of upload {upload.upload_id}, only {at} "
                "can be read.",
                upload.upload_id,
            )
        at += count
    return hasher


class Check:
    """What one body must have: nothing of it counts before its checksum has agreed.

    ``expected`` gives algorithm and digest once the body has ended, for they may come in a
    trailer; it is one of ``algorithms``. A mismatch is an error of ``kind``.
    """

    def __init__(
        self,
        algorithms: Iterable[str],
        expected: Callable[[], tuple[str, bytes]],
        kind: type[BackupdError] = ChecksumMismatch,
    ) -> None:
        self._hashers: dict[str, Hasher] = {
            name: hashlib.new(name, usedforsecurity=False) for name in algorithms
        }
        self._expected = expected
        self._kind = kind
        self.beside: Check | None = None
        """Another that the same body must pass."""

    @property
    def hashers(self) -> list[Hasher]:
        """What is to be fed with the body."""
        others = [] if self.beside is None else self.beside.hashers
        return [*self._hashers.values(), *others]

    def agree(self) -> None:
        """Raises `ChecksumMismatch` or its like; `Invalid` when no checksum has come."""
        if self.beside is not None:
            self.beside.agree()
        algorithm, expected = self._expected()
        got = self._hashers[algorithm].digest()
        if expected != got:
            raise self._kind(
                f"The bytes have {algorithm} {base64.b64encode(got).decode()}, announced was "
                f"{base64.b64encode(expected).decode()}. None of them is kept; send them again."
            )


class Judge:
    """Says whether a whole upload is what was meant, and commits that it is RECEIVED."""

    def __init__(
        self,
        *,
        ledger: ILedger,
        discard: Discard,
        clock: IReactorTime,
        settings: Settings,
    ) -> None:
        self._ledger = ledger
        self._discard = discard
        self._clock = clock
        self._settings = settings

    async def accept(
        self,
        upload: Upload,
        size: int,
        hasher: Hasher,
        digests: Mapping[str, bytes],
    ) -> BackupRequest:
        """RECEIVED, if the digest is the one that was announced.

        Raises `DigestMismatch`, and the bytes are gone then.
        """
        now, sha256 = self._clock.seconds(), hasher.hexdigest()

        def step(request: BackupRequest) -> BackupRequest:
            if request.ask.sha256 is not None and request.ask.sha256 != sha256:
                raise DigestMismatch(
                    f"The bytes have SHA-256 {sha256}, announced was {request.ask.sha256}."
                )
            return received(
                request,
                upload_id=upload.upload_id,
                size=size,
                sha256=sha256,
                expires_at=now + self._settings.upload_expiry,
            )

        if digests.get("sha-256", hasher.digest()) != hasher.digest():
            said = base64.b64encode(digests["sha-256"]).decode()
            await self._reject(
                upload, f"The bytes have SHA-256 {sha256}; the digest sent with them is {said}."
            )
        whole = replace(upload, length=size, offset=size, sha256=sha256, changed_at=now)
        try:
            changed = await self._ledger.change(upload.request_id, step, put=whole)
        except DigestMismatch as error:
            await self._reject(upload, str(error))
        _log.info(
            "request {request_id} received: {size} bytes, sha256 {sha256}",
            request_id=upload.request_id,
            size=size,
            sha256=sha256,
        )
        return changed

    async def _reject(self, upload: Upload, wrong: str) -> NoReturn:
        """Drop the bytes; with the last try the request has failed, and all its bytes go."""
        now = self._clock.seconds()
        drop = [upload.upload_id]
        others = await self._ledger.uploads(upload.request_id)
        changed = await self._ledger.change(
            upload.request_id, lambda r: rejected(r, why=wrong, now=now), drop=drop
        )
        if isinstance(changed, Failed):
            drop = [one.upload_id for one in others]
        await self._discard(drop)
        raise DigestMismatch(wrong)
