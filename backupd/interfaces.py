"""Every interface: what one room may expect of another, and what a test may put in its place.

Times are seconds since the epoch, sizes and offsets are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

from twisted.internet.defer import Deferred
from zope.interface import Interface

from backupd.requests import Ask, Backup, BackupRequest, Live, Pending, VideoId

__all__ = [
    "NO_LIMITS",
    "NO_RETENTION",
    "Allowance",
    "Condition",
    "Damaged",
    "Entry",
    "Found",
    "IFileSystem",
    "ILedger",
    "IStorage",
    "IStored",
    "IUpload",
    "IVolume",
    "IWindowed",
    "Line",
    "OffThread",
    "Outgoing",
    "Part",
    "Pick",
    "Remembered",
    "Repair",
    "Retention",
    "Room",
    "Source",
    "StraightSource",
    "Totals",
    "Upload",
    "Usage",
    "Window",
]

T = TypeVar("T")
P = ParamSpec("P")


class OffThread(Protocol):
    """Run something that blocks, off the reactor thread.

    Cancelling the Deferred gives up the result; the function runs on to its end.
    """

    def __call__(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]: ...


class Source(Protocol):
    """A stream of bytes that can be made to wait: a request's body."""

    def read(self) -> Deferred[bytes]:
        """The next piece, ``b""`` at the end; fails with `UploadCut` when the client is gone.

        Nothing more is taken from the network until the next call, but for one bounded buffer.
        """

    def abort(self) -> None:
        """End it: the connection is closed, a waiting `read` fails with `UploadCut`."""

    def silent_for(self) -> float:
        """Seconds since the last byte, 0 while it is we who do not read."""


@runtime_checkable
class StraightSource(Protocol):
    """A `Source` that can also put its bytes where the reader wants them."""

    def read(self) -> Deferred[bytes]: ...
    def abort(self) -> None: ...
    def silent_for(self) -> float: ...

    def read_into(self, buffer: memoryview) -> Deferred[int]:
        """Fill ``buffer``; fires with the number of bytes, 0 at the end, and fails as `read` does.

        It fires when the buffer is full or nothing follows, or with less after a while. Until
        then the buffer belongs to the source.
        """

    def filling(self) -> int:
        """How many bytes are in the buffer that is being filled at the moment."""


# -- storage --------------------------------------------------------------------------------------


class IFileSystem(Protocol):
    """The part of the module `os` that storage and sender stand on; `os` itself provides it."""

    def open(self, path: str, flags: int, mode: int = 0o777) -> int: ...
    def close(self, fd: int) -> None: ...
    def pwritev(self, fd: int, buffers: Sequence[bytes | memoryview], offset: int, /) -> int: ...
    def pread(self, fd: int, length: int, offset: int, /) -> bytes: ...
    def fsync(self, fd: int) -> None: ...
    def fdatasync(self, fd: int) -> None: ...
    def ftruncate(self, fd: int, length: int, /) -> None: ...
    def posix_fallocate(self, fd: int, offset: int, length: int, /) -> None: ...
    def fstat(self, fd: int) -> Any: ...
    def stat(self, path: str) -> Any: ...
    def lstat(self, path: str) -> Any: ...
    def access(self, path: str, mode: int) -> bool: ...
    def statvfs(self, path: str) -> Any: ...
    def mkdir(self, path: str, mode: int = 0o777) -> None: ...
    def rmdir(self, path: str) -> None: ...
    def rename(self, src: str, dst: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def scandir(self, path: str) -> Any: ...


class IVolume(IFileSystem, Protocol):
    """What the disk storage stands on: `backupd.storage.system.SYSTEM` provides it."""

    def punch_hole(self, fd: int, offset: int, length: int, /) -> None:
        """Free the blocks that lie whole within; raises `OSError` where that cannot be."""

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int, /) -> int: ...
    def posix_fadvise(self, fd: int, offset: int, length: int, advice: int, /) -> None: ...

    def residence(self, fd: int, offset: int, length: int, /) -> bytes | None:
        """A byte for each page from ``offset``, which begins one: 1 if it is in the page cache.

        All of them must lie in the file. None when nothing is known of it.
        """


class IUpload(Interface):
    """The bytes of one unfinished upload. Every method blocks; call them off the reactor thread.

    All raise `NoRoom` when the volume is full and `StorageFailed` when it fails otherwise. After
    a failed `sync` the object must only be closed: what it wrote may be lost although a second
    sync would say otherwise.
    """

    def allocate(length: int) -> None:
        """Turn ``length`` bytes from the start into blocks that can no longer be refused."""

    def occupied() -> int:
        """Bytes that the volume counts as used by it."""

    def write(pieces: Sequence[bytes | memoryview], offset: int) -> None:
        """Put all of ``pieces``, one behind the other, at ``offset``."""

    def read(offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``; ``b""`` at the end."""

    def sync() -> None:
        """Return once everything written, and its name, survives a power cut (``fdatasync``)."""

    def give_back(length: int) -> None:
        """Free the blocks of the first ``length`` bytes, which read as zeros from then on.

        Where the file system cannot, nothing happens until the whole upload is discarded.
        """

    def close() -> None:
        """Let go of it; what was synced stays."""


class IStored(Interface):
    """The bytes of one kept backup, open for reading. Every method blocks.

    Reading brings nothing into the page cache that was not there, and takes nothing out of it.
    """

    def size() -> int:
        """How many bytes there are."""

    def read(offset: int, length: int) -> bytes:
        """At most ``length`` bytes from ``offset``; ``b""`` at the end."""

    def forget(offset: int, length: int) -> None:
        """Let these bytes, all from ``offset`` on if ``length`` is 0, go from the memory.

        The next `read` of them asks the disk. Where that cannot be, nothing happens.
        """

    def close() -> None:
        """Let go of it."""


@dataclass(frozen=True, slots=True)
class Window:
    """Some bytes of a file, ready to go out without waiting for the disk.

    They are in ``data``, which is lent until ``release`` is called; or, where that is None, in
    the page cache, for `os.sendfile` to take ``length`` bytes from ``descriptor``.
    """

    length: int
    descriptor: int
    data: memoryview | None = None
    release: Callable[[], None] = lambda: None


class IWindowed(IStored):
    """One whose bytes need not become Python's on their way out."""

    def window(offset: int, length: int, room: int) -> Window:
        """At most ``length`` bytes from ``offset``; blocks until they are ready.

        At most ``room`` bytes when they have to be read into memory; none only at the end of the
        file. Several windows may be open at once; all are over when the file is closed.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A kept backup as its files tell it, and when its file was changed last."""

    backup: Backup
    changed_at: float = field(default=0.0, compare=False)


class Part(Enum):
    """What is damaged."""

    FOREIGN = "something that is no part of a backup"
    FOLDER = "a folder that cannot be read"
    DESCRIPTION = "the description of a backup"
    FILE = "the file of a backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """Something under the root that is not a whole backup, and why."""

    path: str
    why: str
    part: Part = Part.FOREIGN


class IStorage(Interface):
    """Where the bytes lie. Every method blocks but `place`; call them off the reactor thread.

    All raise `NoRoom` when the volume is full and `StorageFailed` when it fails otherwise.
    """

    def prepare() -> None:
        """Make what is needed before the first use; again is harmless."""

    def free() -> int:
        """Bytes of the volume that can still be written by this process."""

    def capacity() -> int:
        """Bytes of the whole volume."""

    def create(upload_id: str) -> IUpload:
        """A new, empty upload; `StorageFailed` when it exists. Until its first `IUpload.sync` a
        power cut may take it away."""

    def reopen(upload_id: str) -> IUpload:
        """An unfinished upload again; `BytesGone` when it is not there."""

    def rename(upload_id: str, new_id: str) -> None:
        """Give an unfinished upload another id, durably; again is harmless.

        `BytesGone` when neither is there, `StorageFailed` when both are.
        """

    def discard(upload_id: str) -> None:
        """Free the bytes of an unfinished upload; nothing happens when there are none."""

    def uploads() -> dict[str, int]:
        """Every unfinished upload there is, with the bytes allocated to it."""

    def place(peer: str, video: VideoId, backup_id: str, file_name: str) -> tuple[str, str]:
        """``(folder, name)`` for a backup: pure, safe whatever the names are, never shared."""

    def keep(upload_id: str, backup: Backup) -> None:
        """Give an upload its final name, cut to ``backup.size``, with a sidecar beside it.

        Returns once file, sidecar and every new folder are synced. Doing it again from any step
        on leads to the same end; `BytesGone` when neither upload nor backup is there, or too short.
        """

    def describe(backup: Backup) -> None:
        """Write the sidecar of a kept backup again, durably."""

    def open(backup: Backup) -> IStored:
        """The bytes of a kept backup; `StorageFailed` when they are gone."""

    def remove(backup: Backup) -> None:
        """Delete a kept backup, its sidecar and folders that are empty then, durably."""

    def walk() -> Iterator[Found | Damaged]:
        """Everything under the root that is, or should be, a kept backup."""

    def inspect(folder: str) -> list[Found | Damaged]:
        """The same of the one place ``folder``, where a backup is, or should be."""


# -- ledger ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One attempt to deliver a request's bytes, as the ledger knows it.

    ``offset`` is durable; ``length`` is None while unknown; ``allocated`` are the bytes that the
    volume already counts as used; ``sha256`` is there once an upload that can be stored is whole.

    ``parts`` are the uploads that this one joins, in their order: it has none of its own bytes
    until all of them are whole. ``partial`` is one of those. ``metadata`` and ``concat`` are
    what the client said at creation (tus 1.0.0, Upload-Metadata and Upload-Concat). ``token`` is
    what a part that may move to another request is found by: the capability in its URL.
    """

    upload_id: str
    request_id: str
    length: int | None
    offset: int = 0
    allocated: int = 0
    sha256: str | None = None
    created_at: float
    changed_at: float
    file_name: str | None = None
    content_type: str | None = None
    partial: bool = False
    parts: tuple[str, ...] = ()
    metadata: str | None = None
    concat: str | None = None
    token: str | None = None

    @property
    def whole(self) -> bool:
        """Whether every byte is there."""
        return self.offset == self.length if self.partial else self.sha256 is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One video to be sent: a line of the outbox.

    ``state`` is ASKING, WAITING, READY, SENT, or at the end VERIFIED, UNVERIFIED, FAILED or
    CANCELLED. ``due_at`` says when to look at it again, ``deadline`` when to give up.
    ``capability`` belongs to the link that the receiver calls back on; ``uploads`` is JSON that
    the sender alone reads: where its bytes are on their way to.
    """

    entry_id: str
    path: str
    size: int
    modified_ns: int
    video: VideoId
    to: str
    capability: str
    state: str
    created_at: float
    changed_at: float
    due_at: float
    deadline: float
    file_name: str
    content_type: str | None = None
    attempts: int = 0
    last_error: str | None = None
    request_id: str | None = None
    status_url: str | None = None
    upload_link: str | None = None
    complete_link: str | None = None
    sha256: str | None = None
    backup_id: str | None = None
    content_url: str | None = None
    uploads: str | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What goes to one server: in each state that entries are in, when the first of them is due."""

    to: str
    due: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Pick:
    """So many entries at most, in one state, that go to one server."""

    to: str
    state: str
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What admission found: bytes that a newcomer could still be promised, and whether it fits."""

    available: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What one peer may have at once; None is no limit of its own.

    ``quota`` are bytes that are kept and reserved together, ``max_size`` those of one backup.
    """

    quota: int | None = None
    max_pending: int | None = None
    max_size: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one peer has: bytes of its backups, bytes reserved for it, requests that wait."""

    kept: int = 0
    reserved: int = 0
    pending: int = 0

    def obstacle(self, allowance: Allowance, growth: int, *, new: bool) -> str | None:
        """Why ``growth`` more bytes are not within the allowance."""
        quota, most = allowance.quota, allowance.max_pending
        if quota is not None and growth > 0 and self.kept + self.reserved + growth > quota:
            return "quota-exceeded"
        return "queue-full" if new and most is not None and self.pending >= most else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One peer's requests to one origin, waiting for their turn: what a tick chooses from.

    ``failures`` offers in a row have failed at that origin; ``ready_at`` says since when there
    is something to do, ``last_turn`` grows with every turn given; ``heads`` are the requests
    that are due first.
    """

    peer: str
    origin: str
    failures: int
    ready_at: float
    last_turn: int
    heads: tuple[Pending, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The sums over all live requests: bytes ``promised`` are reserved and not yet allocated."""

    promised: int
    pending: int
    active: int
    live: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How well everything that is kept is.

    ``damaged`` backups have a problem. ``verified_at`` is when the one of the others that was
    verified longest ago was verified, or stored if it never was; None when there are none.
    """

    damaged: int
    verified_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A damaged backup that its sender is asked to send again.

    ``callback``, on ``origin``, is the link that its request came with: a secret. ``request_id``
    is the request that was made last to get it again, ``tries`` counts these.
    """

    backup: Backup
    origin: str
    callback: str = field(repr=False)
    request_id: str | None
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long versions of a video are kept; None is not said, 0 is no such rule.

    A version falls out once the ``keep_last`` newest good ones came after it and it is older than
    ``keep_for`` seconds, whichever of the two are said; never before ``minimum_keep``, and never
    as long as no good one came after it.
    """

    keep_last: int | None = None
    keep_for: float | None = None
    minimum_keep: float | None = None

    @property
    def ends(self) -> bool:
        """Whether anything ever falls out."""
        return bool(self.keep_last or self.keep_for)

    @property
    def after(self) -> int:
        """How many newer good versions make one of no use."""
        return self.keep_last or 1

    @property
    def age(self) -> float:
        """Seconds for which a version is kept however many came after it."""
        return max(self.keep_for or 0.0, self.minimum_keep or 0.0)

    def over(self, other: Retention) -> Retention:
        """This, and what it does not say from ``other``."""
        mine = {name: getattr(self, name) for name in self.__slots__}
        return replace(other, **{name: one for name, one in mine.items() if one is not None})


NO_LIMITS = Allowance()
NO_RETENTION = Retention()


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a ledger that is not open knows of the root that it is about.

    ``root`` is its mark. Only where it knows none: ``folders`` of backups and ids of ``uploads``
    with bytes that it lists, some of each.
    """

    root: str | None = None
    folders: tuple[str, ...] = ()
    uploads: tuple[str, ...] = ()


class ILedger(Interface):
    """What was promised and what is kept, durably.

    Every method but `remembered`, `open` and `watch` returns a Deferred that fires once the step
    is committed, and fails with `LedgerFailed` when it could not be: then nothing of it has
    happened. Steps commit in the order of the calls. What a step raises reaches its caller alone.
    """

    def remembered() -> Remembered:
        """What it knows of the root, before it is opened; blocks. It makes no ledger, and changes
        nothing of what one holds.

        Raises `LedgerFailed`.
        """

    def open(root: str | None = None) -> None:
        """Open it and bring its schema up to date; blocks. Raises `LedgerTooNew`, `LedgerFailed`.

        The sums are counted anew. From now on it is about the root with this mark; None: about
        the one that it knows.
        """

    def close() -> Deferred[None]:
        """Commit what waits, then let go; what is asked from now on fails."""

    def watch(observer: Callable[[BackupRequest], None]) -> None:
        """Call ``observer``, on the reactor thread, with every request that a commit changed."""

    # the life of requests

    def admit(
        ask: Ask,
        room: Callable[[int, int], Room],
        *,
        now: float,
        max_pending: int,
        expires_at: float | None = None,
        fresh: bool = False,
        allowance: Allowance = NO_LIMITS,
    ) -> Deferred[tuple[Live | None, Room]]:
        """Record ``ask`` and its reservation in one step, if it fits.

        ``room(promised, growth)`` is called under the ledger's write lock with the bytes that
        are promised and not yet allocated, and the bytes that this ask adds; it looks at the
        volume *after* that, so that no race with an allocation promises a byte twice. An ask
        for a video that the same peer has a live request for changes that request, or nothing
        if it is to be a ``fresh`` one. The result is the request, None when refused, and the
        room there was. ``expires_at`` is for those that nobody will be called for. Within its
        ``allowance`` the peer's backups and reservations are counted in the same step, so that
        no number of asks at once passes it.
        """

    def change(
        request_id: str,
        step: Callable[[BackupRequest], BackupRequest],
        *,
        put: Upload | Sequence[Upload] | None = None,
        drop: Sequence[str] = (),
    ) -> Deferred[BackupRequest]:
        """Replace a request by ``step(request)``, and with it its uploads, and forget others.

        What ``step`` raises leaves all as it was. A request that ends releases its reservation
        and forgets its uploads: their bytes are the caller's to discard afterwards; one that
        becomes STORED puts its backup on the list. Raises `NoSuchRequest`.
        """

    def join(ask: Ask, final: Upload, *, now: float, expires_at: float) -> Deferred[Live]:
        """Record a direct upload that joins the parts of others, whose requests end with it.

        Their uploads, and the room that was reserved for them, are the new request's; a live one
        of the same peer for the same video is taken, if nothing has come for it. Raises
        `NoSuchRequest` when a part is unknown, `WrongState` when one is none.
        """

    def request(request_id: str) -> Deferred[BackupRequest]:
        """The request, alive or ended. Raises `NoSuchRequest`."""

    def by_capability(capability: str) -> Deferred[BackupRequest]:
        """The request that this capability was made for. Raises `NoSuchRequest`."""

    def live_for(video: VideoId, peer: str | None, limit: int) -> Deferred[list[Live]]:
        """Live requests for a video, of one peer or (None) of any."""

    def last_ended(video: VideoId, peer: str | None) -> Deferred[BackupRequest]:
        """The request for a video that ended last, of one peer or (None) of any.

        Raises `NoSuchRequest`.
        """

    def requests(
        *, live: bool | None, peer: str | None, after: int, limit: int
    ) -> Deferred[list[tuple[int, BackupRequest]]]:
        """A page of requests, oldest first, each with its number to go on after."""

    def position(request: Pending) -> Deferred[int]:
        """1 for the request that is first in its own peer's line."""

    def all_live() -> Deferred[list[Live]]:
        """Every live request, oldest first."""

    def in_progress() -> Deferred[list[Live]]:
        """Every live request beyond PENDING, oldest first, however many are PENDING."""

    def lines(*, now: float, limit: int, heads: int) -> Deferred[list[Line]]:
        """The lines with something due: at most ``limit`` that answer, and as many that fail.

        Those that answer come in the order of their last turn, those that fail by how long they
        have been ready. The cost does not depend on how many requests are waiting.
        """

    def overdue(*, now: float, limit: int) -> Deferred[list[Live]]:
        """Live requests whose lease or time is up, and those that stand in STORING."""

    def given_up(*, now: float, limit: int) -> Deferred[list[Pending]]:
        """Requests in lines whose offers have failed until nobody is expected any more.

        Each has that moment in ``expires_at`` if it has none of its own.
        """

    def totals() -> Deferred[Totals]:
        """The sums as they stand."""

    def trouble() -> Deferred[str | None]:
        """Why nothing can be committed, in a sentence; None when the last commit succeeded.

        After one that failed it tries to write something first.
        """

    def uploads(request_id: str | None) -> Deferred[list[Upload]]:
        """The uploads of a request, or all there are; oldest first."""

    def upload_by_token(token: str) -> Deferred[Upload]:
        """The part that this token was made for. Raises `NoSuchRequest`."""

    def unkept(*, limit: int) -> Deferred[list[Live]]:
        """Direct uploads that are RECEIVED: nobody will say ``complete-backup`` for them."""

    def purge(*, before: float, limit: int) -> Deferred[int]:
        """Forget requests and entries that ended before then; how many went."""

    # what is kept

    def backup(backup_id: str) -> Deferred[Backup]:
        """Raises `NoSuchBackup`."""

    def backups(
        *, peer: str | None, video: VideoId | None, after: int, limit: int, trash: bool = False
    ) -> Deferred[list[tuple[int, Backup]]]:
        """A page of kept backups, oldest first, each with its number to go on after.

        Of those in the ``trash``, or of the others.
        """

    def list_backup(backup: Backup) -> Deferred[bool]:
        """Put a backup on the list; False, and nothing changes, when it is there already."""

    def put_backup(backup: Backup) -> Deferred[bool]:
        """List a backup, or replace what the list says of it; True when it was new."""

    def usage(peer: str) -> Deferred[Usage]:
        """What a peer has here."""

    def drop_backup(backup_id: str) -> Deferred[Backup]:
        """Take it off the list. Raises `NoSuchBackup`."""

    def copy_of(backup: Backup) -> Deferred[Backup | None]:
        """Another backup without a problem that has the same bytes of the same peer's video.

        It does not lie in the trash.
        """

    # how long it is kept

    def change_backup(backup_id: str, step: Callable[[Backup], Backup]) -> Deferred[Backup]:
        """Note whether it is in the trash, and locked, as ``step(backup)`` says.

        What ``step`` raises leaves all as it was. What lies in the trash is not repaired. Raises
        `NoSuchBackup`.
        """

    def outdated(
        rule: Callable[[str], Retention], *, now: float, after: int, limit: int
    ) -> Deferred[tuple[list[Backup], int | None]]:
        """Which of the next ``limit`` backups fall out of the ``rule`` of their peer, and the
        number to go on after; None at the end. A lock holds.
        """

    def retire(
        backup_id: str, rule: Retention, *, by: str, at: float, now: float
    ) -> Deferred[Backup | None]:
        """Put it into the trash if it falls out of ``rule`` still; None, and nothing changes, if
        it does not.
        """

    def has_version(backup: Backup) -> Deferred[bool]:
        """Whether another good backup of the same peer's video is kept, outside of the trash."""

    def trash_due(*, before: float, limit: int) -> Deferred[list[Backup]]:
        """What was put into the trash before then, longest ago first."""

    def latest_seen() -> Deferred[float | None]:
        """The latest time that `see` was told; None before the first."""

    def own_time() -> Deferred[float | None]:
        """The daemon's own time, as it was noted last; None before the first."""

    def see(now: float, own: float) -> Deferred[None]:
        """Remember a time that has been, if it is the latest, and the daemon's ``own`` time."""

    def set_back(by: float, *, own: float) -> Deferred[None]:
        """Set back by so many seconds all that is waited for, and note ``own``, in one step.

        These are the times of live requests, their lines, entries that are not over and repairs;
        not what is kept, nor when something was. What waits for ever still does. For a start:
        `watch`ers are not told.
        """

    # whether it is still right

    def longest_unread(*, before: float) -> Deferred[Backup | None]:
        """The backup that was read again longest ago; None unless that was before then."""

    def begin_reading(backup_id: str, *, now: float) -> Deferred[None]:
        """It is being read: all others come before it from now on."""

    def verified(backup_id: str, *, problem: str | None, now: float) -> Deferred[Backup]:
        """Every byte was read, and this was found. Raises `NoSuchBackup`.

        A damaged backup whose sender can be called is due for `repairs` at once.
        """

    def kept() -> Deferred[tuple[int, int]]:
        """How many backups there are, and the sum of their sizes. Reads a whole index."""

    def condition() -> Deferred[Condition]:
        """How well they are; the cost depends on the number of damaged ones only."""

    def repairs(*, now: float, limit: int) -> Deferred[list[Repair]]:
        """Damaged backups whose sender is to be told now, longest due first.

        One becomes due again when a copy of the same video is stored.
        """

    def put_repair(
        backup_id: str, *, request_id: str | None, tries: int, due_at: float | None
    ) -> Deferred[None]:
        """Note what was done about a damaged backup, and when (None: never) to look again."""

    # the outbox

    def enqueue(entry: Entry) -> Deferred[Entry]:
        """Add an entry, or return the one that is already sending the same file to the same.

        One that is SENT, and of which the file has changed since, is not the same any more.
        """

    def entry(entry_id: str) -> Deferred[Entry]:
        """Raises `NoSuchEntry`."""

    def entry_by_capability(capability: str) -> Deferred[Entry]:
        """The entry whose callback link this is, alive or ended. Raises `NoSuchEntry`."""

    def entries_for(video: VideoId, limit: int) -> Deferred[list[Entry]]:
        """Entries for this video that are not over."""

    def change_entry(entry_id: str, step: Callable[[Entry], Entry]) -> Deferred[Entry]:
        """Replace an entry by ``step(entry)``; what ``step`` raises leaves it as it was."""

    def entries(*, over: bool | None, after: int, limit: int) -> Deferred[list[tuple[int, Entry]]]:
        """A page of entries, oldest first, each with its number to go on after."""

    def outgoing() -> Deferred[list[Outgoing]]:
        """Each server that entries go to which are not over.

        The cost depends on the number of servers only.
        """

    def entries_due(
        picks: Sequence[Pick], *, now: float, without: Sequence[str]
    ) -> Deferred[list[Entry]]:
        """Entries to look at now: of each of ``picks`` those longest due first."""
