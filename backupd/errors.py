"""What can go wrong, in the words of the domain. Status codes belong to ``web/``.

Every message is a sentence for the person who has to act on it.
"""

from __future__ import annotations

__all__ = [
    "AlreadyStored",
    "Ambiguous",
    "BackupdError",
    "Busy",
    "BytesGone",
    "CallForbidden",
    "ChecksumMismatch",
    "DigestMismatch",
    "Forbidden",
    "Incomplete",
    "Invalid",
    "LedgerFailed",
    "LedgerTooNew",
    "Locked",
    "Misdirected",
    "NoRoom",
    "NoSuchBackup",
    "NoSuchEntry",
    "NoSuchPeer",
    "NoSuchRequest",
    "NoSuchUpload",
    "NotYourTurn",
    "OffsetMismatch",
    "Over",
    "PeerFailed",
    "PeerRefused",
    "PeerSilent",
    "SettingsError",
    "ShuttingDown",
    "StorageFailed",
    "TooLarge",
    "TooManyRequests",
    "TooSlow",
    "Unauthorized",
    "UnsupportedMedia",
    "UploadCut",
    "UploadHeld",
    "WrongRoot",
    "WrongState",
]


class BackupdError(Exception):
    """The base of all that is foreseen; ``str()`` is a sentence for the user."""


# -- what a client sent --------------------------------------------------------------------------


class Invalid(BackupdError):
    """A message or a header is malformed; ``member`` names the part."""

    def __init__(self, member: str, why: str) -> None:
        super().__init__(f"{member}: {why}")
        self.member = member


class UnsupportedMedia(BackupdError):
    """The media type or content coding is not one that this place takes."""


class Unauthorized(BackupdError):
    """No token, or not the right one."""


class Forbidden(BackupdError):
    """The caller is known, or irrelevant, and must not do this."""


class Misdirected(BackupdError):
    """The ``Host`` header names a host that is not this server (RFC 9110, 15.5.20)."""


class NoSuchRequest(BackupdError):
    """No backup request answers to this id, capability or video."""


class NoSuchBackup(BackupdError):
    """No kept backup has this id."""


class NoSuchUpload(BackupdError):
    """No upload answers to this link; it was ended, or never there."""


class NoSuchEntry(BackupdError):
    """No entry of the outbox has this id."""


class NoSuchPeer(BackupdError):
    """No peer has this name."""


class Ambiguous(BackupdError):
    """Several live requests match; the capability link says which."""


# -- the life of a request -----------------------------------------------------------------------


class WrongState(BackupdError):
    """A step was tried from a state that it does not leave."""

    def __init__(self, step: str, state: str) -> None:
        shown = "being stored" if state == "STORING" else state
        super().__init__(f"A backup request that is {shown} cannot be {step}.")
        self.step = step
        self.state = state


class AlreadyStored(BackupdError):
    """The backup is stored; nothing can be added to it or taken back."""


class Locked(BackupdError):
    """The backup is locked: until then nobody can delete it, nor shorten the lock."""


class Over(BackupdError):
    """The request ended without a backup: expired, cancelled or failed."""


class NotYourTurn(BackupdError):
    """All turns are taken; ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UploadHeld(BackupdError):
    """Another upload of this request is alive; ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Incomplete(BackupdError):
    """Bytes are missing; nothing that arrived is lost."""

    def __init__(self, received: int, expected: int | None) -> None:
        of = "" if expected is None else f" of {expected}"
        super().__init__(f"Only {received}{of} bytes have arrived; the upload may go on.")
        self.received = received
        self.expected = expected


class OffsetMismatch(BackupdError):
    """The client goes on at another offset than the durable one."""

    def __init__(self, offset: int) -> None:
        super().__init__(f"The upload stands at offset {offset}.")
        self.offset = offset


class TooLarge(BackupdError):
    """More bytes than were reserved, or than may ever be."""

    def __init__(self, message: str, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class DigestMismatch(BackupdError):
    """The bytes are not the ones that the client meant."""


class ChecksumMismatch(BackupdError):
    """The bytes of one body are not the ones that its checksum is of (tus 1.0.0, Checksum)."""


class TooSlow(BackupdError):
    """A small body took longer than any should."""


class UploadCut(BackupdError):
    """The client's connection ended before its body did."""


# -- the machine ---------------------------------------------------------------------------------


class NoRoom(BackupdError):
    """The volume has no room left (ENOSPC, EDQUOT)."""


class StorageFailed(BackupdError):
    """The volume failed; the upload fell back to its last durable offset."""


class BytesGone(StorageFailed):
    """What should be on the volume is not there: it did not fail, it was taken away.

    ``upload_id`` is the upload whose bytes they were.
    """

    def __init__(self, message: str, upload_id: str) -> None:
        super().__init__(message)
        self.upload_id = upload_id


class LedgerFailed(BackupdError):
    """The ledger could not commit; nothing of the step has happened."""


class LedgerTooNew(BackupdError):
    """The ledger was written by a newer backupd."""


class Busy(BackupdError):
    """More is waiting than is good; ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooManyRequests(Busy):
    """This peer asks more often than it may; ``retry_after`` is in seconds."""


class ShuttingDown(Busy):
    """The daemon is starting or stopping."""


class SettingsError(BackupdError):
    """A setting is wrong; ``name`` is its key."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name = name


class WrongRoot(SettingsError):
    """What lies at ``root`` is not what the ledger is about: why, and what to do."""

    def __init__(self, why: str, advice: str) -> None:
        super().__init__("root", f"{why}. Nothing was changed: {advice}")
        self.why = why
        self.advice = advice


# -- the other server ----------------------------------------------------------------------------


class PeerFailed(BackupdError):
    """The other server could not be reached, or its answer made no sense; try again later."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class PeerSilent(PeerFailed):
    """Nothing came from the other server, not even a no: it was not found, or we waited in vain."""


class CallForbidden(PeerFailed):
    """The other server is at an address that may not be called."""


class PeerRefused(PeerFailed):
    """The other server answered, and its answer is not yes.

    ``status`` is the status code, ``answer`` the decoded JSON object, or ``{}``.
    """

    def __init__(
        self,
        message: str,
        status: int,
        answer: dict[str, object],
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, retry_after)
        self.status = status
        self.answer = answer
