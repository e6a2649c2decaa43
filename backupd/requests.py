"""The backup request: one frozen value per state, and pure steps from one to the next.

The states are those of PROTOCOL.md; `Storing` is the moment between ``complete-backup`` and
STORED, which the wire shows as RECEIVED. Times are seconds since the epoch by the receiver's
clock, sizes are bytes. A step raises `WrongState`, `AlreadyStored` or `Over` when the request is
in a state that it does not leave.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeAlias, TypeVar

from backupd.errors import AlreadyStored, Locked, NoSuchBackup, Over, WrongState

__all__ = [
    "MAX_TRIES",
    "NEVER",
    "Ask",
    "Backup",
    "BackupRequest",
    "Cancelled",
    "Expired",
    "Failed",
    "Live",
    "Offered",
    "Pending",
    "Received",
    "Receiving",
    "Stored",
    "Storing",
    "VideoId",
    "abandoned",
    "asked_again",
    "deletable",
    "ended",
    "expired",
    "joined",
    "lapsed",
    "live",
    "locked",
    "offer_failed",
    "progressed",
    "received",
    "receiving",
    "rejected",
    "same_video",
    "state_name",
    "stored",
    "storing",
    "taken",
    "trashed",
    "undeleted",
    "video_key",
    "wanted",
]

NEVER = 2.0**62
"""When nobody is to be called: not before its client comes back."""

MAX_TRIES = 5
"""How often a request may deliver wrong bytes before it has failed."""

VideoId: TypeAlias = int | str
"""``2`` and ``"2"`` are the same video; what the sender wrote goes back to it as it was."""


def video_key(video: VideoId) -> str:
    """What a video is compared by."""
    return str(video)


def same_video(one: VideoId, other: VideoId) -> bool:
    """Whether both name one video."""
    return video_key(one) == video_key(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a sender asked for, and what it was given to call back with.

    A direct upload has no ``callback``: its client is there, and is not called. ``part`` is a
    piece of a direct upload that will be joined with others; ``metadata`` and ``concat`` are what
    its client said at creation (tus 1.0.0, Upload-Metadata and Upload-Concat).
    """

    request_id: str
    peer: str
    origin: str
    video: VideoId
    callback: str
    size: int
    capability: str
    created_at: float
    file_name: str | None = None
    content_type: str | None = None
    sha256: str | None = None
    part: bool = False
    metadata: str | None = None
    concat: str | None = None

    @property
    def direct(self) -> bool:
        """Whether the upload's end stores it, without a ``complete-backup``."""
        return not self.callback

    @property
    def turn(self) -> str:
        """What a turn is counted for: all parts that one peer sends at once share one."""
        return f"parts of {self.peer}" if self.part else self.request_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A copy that is durable, verified and listed.

    ``folder`` is relative to the root, ``name`` the file's safe name in it; ``file_name`` is
    what the sender called it. One that was deleted lies in the trash, since ``deleted_at`` and
    because of ``deleted_by``, and is removed later; until ``locked_until`` it cannot be deleted.
    """

    backup_id: str
    request_id: str
    peer: str
    video: VideoId
    file_name: str
    content_type: str | None
    size: int
    sha256: str
    stored_at: float
    verified_at: float | None
    folder: str
    name: str
    problem: str | None = None
    deleted_at: float | None = None
    deleted_by: str | None = None
    locked_until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alive:
    """What every state before the end has.

    ``expires_at`` is None until the first offer went out; ``tries`` counts wrong deliveries.
    """

    ask: Ask
    expires_at: float | None = None
    tries: int = 0
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending(_Alive):
    """Waiting for its turn. ``attempts`` counts the offers that failed in a row."""

    due_at: float
    attempts: int = 0
    accepted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered(_Alive):
    """The sender knows that it is its turn."""

    lease_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiving(_Alive):
    """Bytes are on their way, or announced."""

    lease_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Received(_Alive):
    """Every byte is on the disk; ``complete-backup`` is awaited. Holds no turn."""

    upload_id: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Storing(_Alive):
    """On its way to its final name; goes forward from here whatever happens."""

    upload_id: str
    backup: Backup


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Kept for good."""

    ask: Ask
    backup_id: str
    size: int
    sha256: str
    ended_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    ask: Ask
    reason: str
    ended_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired(_Ended):
    """Nobody came for it in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(_Ended):
    """Somebody took it back; or its bytes went ``into`` another request."""

    into: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(_Ended):
    """The sender gave up, or delivered wrong bytes too often."""


Live: TypeAlias = Pending | Offered | Receiving | Received | Storing
BackupRequest: TypeAlias = Live | Stored | Expired | Cancelled | Failed
E = TypeVar("E", Expired, Cancelled, Failed)


def state_name(request: BackupRequest) -> str:
    """The state as the wire and the ledger spell it, e.g. ``PENDING``."""
    return type(request).__name__.upper()


def live(request: BackupRequest, step: str) -> Live:
    """``request`` if it is still alive; raises `AlreadyStored` or `Over` otherwise."""
    if isinstance(request, Stored):
        raise AlreadyStored("The backup is stored already.")
    if isinstance(request, Expired | Cancelled | Failed):
        raise Over(f"The backup request is {state_name(request)}: {request.reason}")
    return request


# -- steps: what leads from one state to the next -------------------------------------------------


def asked_again(request: BackupRequest, *, ask: Ask, now: float) -> Live:
    """The same sender asks for the same video: link, size and hints change, the request stays."""
    alive = live(request, "asked for again")
    if isinstance(alive, Storing):
        return alive
    old = alive.ask
    ask = replace(
        ask,
        request_id=old.request_id,
        capability=old.capability,
        created_at=old.created_at,
        file_name=ask.file_name or old.file_name,
        content_type=ask.content_type or old.content_type,
        # A digest that was announced holds until the video is another one, or is sent by another
        # who asks: what is wanted again of a damaged version says nothing about the next.
        sha256=ask.sha256
        or (old.sha256 if (ask.size, ask.callback) == (old.size, old.callback) else None),
    )
    if isinstance(alive, Pending):
        # Who asks is there: offers begin anew, and so does the time for them.
        expires_at = alive.expires_at if alive.accepted else None
        return replace(
            alive, ask=ask, due_at=min(alive.due_at, now), attempts=0, expires_at=expires_at
        )
    return replace(alive, ask=ask)


def offer_failed(request: BackupRequest, *, due_at: float, expires_at: float, why: str) -> Live:
    """The sender did not take its turn: again at ``due_at``, EXPIRED at ``expires_at``."""
    alive = live(request, "offered")
    if not isinstance(alive, Pending):
        return alive
    return replace(
        alive,
        attempts=alive.attempts + 1,
        due_at=due_at,
        last_error=why,
        expires_at=expires_at if alive.expires_at is None else alive.expires_at,
    )


def taken(request: BackupRequest, *, lease_until: float, expires_at: float) -> Live:
    """The sender answered the offer with 2xx, or used its capability: PENDING -> OFFERED."""
    alive = live(request, "offered")
    if not isinstance(alive, Pending):
        return alive
    return Offered(
        ask=alive.ask,
        lease_until=lease_until,
        expires_at=alive.expires_at if alive.accepted else expires_at,
        tries=alive.tries,
        last_error=alive.last_error,
    )


def wanted(request: BackupRequest, *, now: float) -> Live:
    """The client of a direct upload is there and waits: PENDING is due."""
    alive = live(request, "continued")
    if not isinstance(alive, Pending) or alive.due_at <= now:
        return alive
    return replace(alive, due_at=now)


def receiving(request: BackupRequest, *, lease_until: float) -> Receiving:
    """The first byte, or the JSON that announces it: OFFERED, RECEIVING, RECEIVED -> RECEIVING."""
    alive = live(request, "received")
    if isinstance(alive, Pending | Storing):
        raise WrongState("received", state_name(alive))
    return Receiving(
        ask=alive.ask,
        lease_until=lease_until,
        expires_at=alive.expires_at,
        tries=alive.tries,
        last_error=alive.last_error,
    )


def progressed(request: BackupRequest, *, lease_until: float, expires_at: float) -> Live:
    """Bytes became durable; of an upload beside the one that is RECEIVED, perhaps."""
    alive = live(request, "continued")
    if isinstance(alive, Offered | Receiving):
        return replace(alive, lease_until=lease_until, expires_at=expires_at)
    if isinstance(alive, Received):
        return replace(alive, expires_at=max(alive.expires_at or 0.0, expires_at))
    return alive


def received(
    request: BackupRequest, *, upload_id: str, size: int, sha256: str, expires_at: float
) -> Received:
    """Every byte is in, durable, and its digest agreed: RECEIVING -> RECEIVED.

    Of several uploads under one link another may have been whole before: the newest counts.
    """
    alive = live(request, "received in full")
    if not isinstance(alive, Receiving | Received):
        raise WrongState("received in full", state_name(alive))
    return Received(
        ask=alive.ask,
        upload_id=upload_id,
        size=size,
        sha256=sha256,
        expires_at=expires_at,
        tries=alive.tries,
    )


def rejected(request: BackupRequest, *, why: str, now: float) -> Receiving | Pending | Failed:
    """The bytes are not the ones that were meant: once more, and FAILED after `MAX_TRIES`.

    An upload found wrong as it ends keeps its turn (RECEIVING); one that ``complete-backup``
    complains of goes back in line (RECEIVED -> PENDING).
    """
    alive = live(request, "rejected")
    if not isinstance(alive, Receiving | Received):
        raise WrongState("rejected", state_name(alive))
    if alive.tries + 1 >= MAX_TRIES:
        return Failed(ask=alive.ask, reason=why, ended_at=now)
    if isinstance(alive, Receiving):
        return replace(alive, tries=alive.tries + 1, last_error=why)
    return Pending(
        ask=alive.ask,
        due_at=now,
        accepted=True,
        expires_at=alive.expires_at,
        tries=alive.tries + 1,
        last_error=why,
    )


def lapsed(request: BackupRequest, *, now: float) -> Live:
    """OFFERED or RECEIVING without a byte for a whole lease gives its turn to another."""
    alive = live(request, "put back in line")
    if not isinstance(alive, Offered | Receiving) or alive.lease_until > now:
        return alive
    return Pending(
        ask=alive.ask,
        due_at=NEVER if alive.ask.direct else now,
        accepted=True,
        expires_at=alive.expires_at,
        tries=alive.tries,
        last_error="No byte came for a whole lease.",
    )


def storing(request: BackupRequest, *, backup: Backup) -> Storing:
    """The sender says that this is it: RECEIVED -> STORING, with the final name."""
    alive = live(request, "stored")
    if isinstance(alive, Storing):
        return alive
    if not isinstance(alive, Received):
        raise WrongState("stored", state_name(alive))
    return Storing(
        ask=alive.ask,
        upload_id=alive.upload_id,
        backup=backup,
        expires_at=alive.expires_at,
        tries=alive.tries,
    )


def stored(request: BackupRequest, *, now: float) -> Stored:
    """File and folder are synced under their final name: STORING -> STORED."""
    if isinstance(request, Stored):
        return request
    alive = live(request, "stored")
    if not isinstance(alive, Storing):
        raise WrongState("stored", state_name(alive))
    return Stored(
        ask=alive.ask,
        backup_id=alive.backup.backup_id,
        size=alive.backup.size,
        sha256=alive.backup.sha256,
        ended_at=now,
    )


def ended(request: BackupRequest, kind: type[E], *, reason: str, now: float) -> E:
    """The way out of every live state but STORING, with its reason."""
    alive = live(request, kind.__name__.lower())
    if isinstance(alive, Storing):
        raise WrongState(kind.__name__.lower(), state_name(alive))
    return kind(ask=alive.ask, reason=reason, ended_at=now)


def joined(request: BackupRequest, *, into: str, now: float) -> Cancelled:
    """The bytes of a part belong to another request from now on."""
    alive = live(request, "joined with others")
    if not alive.ask.part:
        raise WrongState("joined with others", state_name(alive))
    reason = f"It became a part of request {into}."
    return Cancelled(ask=alive.ask, reason=reason, ended_at=now, into=into)


def abandoned(request: BackupRequest, *, reason: str, now: float) -> Failed:
    """The only way out of STORING but forward: its bytes are gone, or its time is up."""
    alive = live(request, "abandoned")
    if not isinstance(alive, Storing):
        raise WrongState("abandoned", state_name(alive))
    return Failed(ask=alive.ask, reason=reason, ended_at=now)


def expired(
    request: BackupRequest,
    *,
    now: float,
    line_until: float | None = None,
    lease: float = 0.0,
    expiry: float = 0.0,
) -> BackupRequest:
    """EXPIRED if its time is up, ``expiry`` after its last byte or first offer; else as it was.

    Who was given a turn since then has it for its lease, but not for more than ``lease`` seconds
    beyond that time: until then bytes may come, and more time with them.
    ``line_until`` is when the time of everything in its line is up, for a request that was never
    offered because the offers to others in that line fail.
    """
    alive = live(request, "expired")
    if isinstance(alive, Storing):
        return alive
    until = alive.expires_at
    if until is None and isinstance(alive, Pending):
        until = line_until
    if until is None or until > now:
        return alive
    if isinstance(alive, Offered | Receiving):
        # Two that began at one moment may differ by rounding.
        turn_since = alive.lease_until - lease > until - expiry + 1.0
        if turn_since and now < min(alive.lease_until, until + lease):
            return alive
    return ended(
        alive,
        Expired,
        reason=alive.last_error or "The sender did not come for it in time.",
        now=now,
    )


# -- what is kept ----------------------------------------------------------------------------------


def deletable(backup: Backup, *, now: float) -> None:
    """Raises `Locked` while it is."""
    if backup.locked_until is not None and now < backup.locked_until:
        until = datetime.fromtimestamp(backup.locked_until, UTC).isoformat(timespec="seconds")
        raise Locked(f"Backup {backup.backup_id} is locked until {until}; nobody can delete it.")


def trashed(backup: Backup, *, by: str, at: float, now: float) -> Backup:
    """It lies in the trash; again is harmless. Raises `Locked`."""
    deletable(backup, now=now)
    if backup.deleted_at is not None:
        return backup
    return replace(backup, deleted_at=at, deleted_by=by)


def undeleted(backup: Backup) -> Backup:
    """It is out of the trash; again is harmless."""
    return replace(backup, deleted_at=None, deleted_by=None)


def locked(backup: Backup, *, until: float) -> Backup:
    """It is locked until then. Raises `Locked` when that would shorten its lock, `NoSuchBackup`
    when it lies in the trash: what is about to be removed cannot be promised.
    """
    if backup.deleted_at is not None:
        raise NoSuchBackup(f"Backup {backup.backup_id} is in the trash; undelete it first.")
    if backup.locked_until is not None and until < backup.locked_until:
        since = datetime.fromtimestamp(backup.locked_until, UTC).isoformat(timespec="seconds")
        raise Locked(f"Backup {backup.backup_id} is locked until {since}; that is only extended.")
    return replace(backup, locked_until=until)
