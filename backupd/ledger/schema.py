"""The tables. A change here needs a numbered upgrade in ``versions/``; a test compares the two."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    false,
    text,
)

__all__ = [
    "backups",
    "entries",
    "facts",
    "lines",
    "metadata",
    "repairs",
    "requests",
    "times",
    "uploads",
    "usage",
]

metadata = MetaData()

# SQLite gives out row numbers only for INTEGER PRIMARY KEY.
_Number = BigInteger().with_variant(Integer, "sqlite")

requests = Table(
    "requests",
    metadata,
    Column("seq", _Number, primary_key=True, autoincrement=True),
    Column("request_id", Text, nullable=False),
    Column("peer", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("video", Text, nullable=False),
    Column("video_is_number", Boolean, nullable=False),
    Column("callback", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("capability", Text, nullable=False),
    Column("capability_hash", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("file_name", Text),
    Column("content_type", Text),
    Column("sha256", Text),
    Column("state", Text, nullable=False),
    Column("expires_at", Double),
    Column("tries", Integer, nullable=False),
    Column("last_error", Text),
    Column("due_at", Double),
    Column("attempts", Integer, nullable=False),
    Column("accepted", Boolean, nullable=False),
    Column("lease_until", Double),
    Column("upload_id", Text),
    Column("received_size", BigInteger),
    Column("received_sha256", Text),
    Column("backup_id", Text),
    Column("backup", Text),  # JSON, while STORING
    Column("reason", Text),
    Column("ended_at", Double),
    Column("allocated", BigInteger, nullable=False),
    Column("part", Boolean, nullable=False, server_default=false()),
    Column("joined_into", Text),
    Column("metadata", Text),
    Column("concat", Text),
    sqlite_autoincrement=True,
)

_live = text("ended_at IS NULL")
_pending = text("state = 'PENDING'")
_active = text("state IN ('OFFERED', 'RECEIVING')")


def _partial(name: str, *columns: Column[object], where: object, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


_r = requests.c
Index("requests_request_id", _r.request_id, unique=True)
Index("requests_capability", _r.capability_hash, unique=True)
_partial("requests_live_video", _r.video, _r.peer, where=_live, unique=True)
_partial("requests_live", _r.seq, where=_live)
_partial("requests_live_peer", _r.peer, _r.size, where=_live)
_partial("requests_pending", _r.peer, _r.origin, _r.due_at, _r.seq, where=_pending)
_partial("requests_active", _r.lease_until, _r.peer, where=_active)
_partial("requests_expiring", _r.expires_at, where=_live)
_partial("requests_storing", _r.seq, where=text("state = 'STORING'"))
_partial("requests_unkept", _r.seq, where=text("state = 'RECEIVED' AND callback = ''"))
_partial("requests_ended", _r.ended_at, where=text("ended_at IS NOT NULL"))
_partial("requests_ended_video", _r.video, _r.ended_at, where=text("ended_at IS NOT NULL"))

lines = Table(
    "lines",
    metadata,
    Column("peer", Text, primary_key=True),
    Column("origin", Text, primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("resting_until", Double, nullable=False),
    Column("ready_at", Double),  # None: nothing pending
    Column("gives_up_at", Double),  # None: its last offer did not fail, or nobody waits
    Column("last_turn", BigInteger, nullable=False),
)
_partial("lines_answering", lines.c.ready_at, where=text("failures = 0"))
_partial("lines_failing", lines.c.ready_at, where=text("failures > 0"))
_partial("lines_given_up", lines.c.gives_up_at, where=text("gives_up_at IS NOT NULL"))

uploads = Table(
    "uploads",
    metadata,
    Column("seq", _Number, primary_key=True, autoincrement=True),
    Column("upload_id", Text, nullable=False, unique=True),
    Column("request_id", Text, nullable=False, index=True),
    Column("length", BigInteger),
    Column("offset", BigInteger, nullable=False),
    Column("allocated", BigInteger, nullable=False),
    Column("sha256", Text),
    Column("created_at", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
    Column("file_name", Text),
    Column("content_type", Text),
    Column("partial", Boolean, nullable=False, server_default=false()),
    Column("parts", Text, nullable=False, server_default=""),  # ids, with spaces between
    Column("metadata", Text),
    Column("concat", Text),
    Column("token_hash", Text),
    sqlite_autoincrement=True,
)
_partial("uploads_token", uploads.c.token_hash, where=text("token_hash IS NOT NULL"), unique=True)

backups = Table(
    "backups",
    metadata,
    Column("seq", _Number, primary_key=True, autoincrement=True),
    Column("backup_id", Text, nullable=False, unique=True),
    Column("request_id", Text, nullable=False),
    Column("peer", Text, nullable=False),
    Column("video", Text, nullable=False),
    Column("video_is_number", Boolean, nullable=False),
    Column("file_name", Text, nullable=False),
    Column("content_type", Text),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("stored_at", Double, nullable=False),
    Column("verified_at", Double),
    Column("folder", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("problem", Text),
    Column("read_at", Double, nullable=False, server_default="0"),  # by a verification; 0: never
    # The way back to its sender, if there is one; the link is a secret that only this table has.
    Column("origin", Text),
    Column("callback", Text),
    Column("deleted_at", Double),  # in the trash since then
    Column("deleted_by", Text),
    Column("locked_until", Double),
    sqlite_autoincrement=True,
)
usage = Table(
    "usage",
    metadata,
    Column("peer", Text, primary_key=True),
    Column("kept", BigInteger, nullable=False),  # bytes of its backups
)
_in_trash = text("deleted_at IS NOT NULL")
Index("backups_peer", backups.c.peer, backups.c.seq)
Index("backups_video", backups.c.video, backups.c.seq)
Index("backups_read", backups.c.read_at, backups.c.size)
_well = text("problem IS NULL AND deleted_at IS NULL")
_damaged = text("problem IS NOT NULL AND deleted_at IS NULL")
_partial("backups_well", backups.c.verified_at, where=_well)
_partial("backups_damaged", backups.c.seq, where=_damaged)
_partial(
    "backups_good_versions",
    *(backups.c.peer, backups.c.video, backups.c.stored_at, backups.c.seq),
    where=_well,
)
_partial("backups_trash", backups.c.seq, where=_in_trash)
_partial("backups_trash_due", backups.c.deleted_at, where=_in_trash)

times = Table(
    "times",
    metadata,
    Column("name", Text, primary_key=True),
    Column("at", Double, nullable=False),
)

facts = Table(
    "facts",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

repairs = Table(
    "repairs",
    metadata,
    Column("backup_id", Text, primary_key=True),
    Column("request_id", Text),
    Column("tries", Integer, nullable=False),
    Column("due_at", Double),  # None: its sender does not want to send it again
)
_partial("repairs_due", repairs.c.due_at, where=text("due_at IS NOT NULL"))

entries = Table(
    "entries",
    metadata,
    Column("seq", _Number, primary_key=True, autoincrement=True),
    Column("entry_id", Text, nullable=False, unique=True),
    Column("path", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("modified_ns", BigInteger, nullable=False),
    Column("video", Text, nullable=False),
    Column("video_is_number", Boolean, nullable=False),
    Column("to", Text, nullable=False),
    Column("capability", Text, nullable=False),
    Column("capability_hash", Text, nullable=False, unique=True),
    Column("state", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
    Column("due_at", Double, nullable=False),
    Column("deadline", Double, nullable=False),
    Column("file_name", Text, nullable=False),
    Column("content_type", Text),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text),
    Column("request_id", Text),
    Column("status_url", Text),
    Column("upload_link", Text),
    Column("complete_link", Text),
    Column("sha256", Text),
    Column("backup_id", Text),
    Column("content_url", Text),
    Column("over", Boolean, nullable=False),
    Column("uploads", Text),  # JSON
    sqlite_autoincrement=True,
)
_going = text("NOT over")
_partial("entries_due", entries.c.to, entries.c.state, entries.c.due_at, where=_going)
_partial("entries_going_video", entries.c.video, where=_going)
_partial("entries_over", entries.c.changed_at, where=text("over"))
Index("entries_path", entries.c.path)
