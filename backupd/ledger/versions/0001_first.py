"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "backups",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("backup_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("video", sa.Text(), nullable=False),
        sa.Column("video_is_number", sa.Boolean(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.Column("verified_at", sa.Double(), nullable=True),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("backup_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("backups_peer", "backups", ["peer", "seq"], unique=False)
    op.create_index("backups_video", "backups", ["video", "seq"], unique=False)
    op.create_table(
        "entries",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("entry_id", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("modified_ns", sa.BigInteger(), nullable=False),
        sa.Column("video", sa.Text(), nullable=False),
        sa.Column("video_is_number", sa.Boolean(), nullable=False),
        sa.Column("to", sa.Text(), nullable=False),
        sa.Column("capability", sa.Text(), nullable=False),
        sa.Column("capability_hash", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("deadline", sa.Double(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("status_url", sa.Text(), nullable=True),
        sa.Column("upload_link", sa.Text(), nullable=True),
        sa.Column("complete_link", sa.Text(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("backup_id", sa.Text(), nullable=True),
        sa.Column("content_url", sa.Text(), nullable=True),
        sa.Column("over", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("capability_hash"),
        sa.UniqueConstraint("entry_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "entries_due",
        "entries",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("NOT over"),
        postgresql_where=sa.text("NOT over"),
    )
    op.create_index(
        "entries_going_video",
        "entries",
        ["video"],
        unique=False,
        sqlite_where=sa.text("NOT over"),
        postgresql_where=sa.text("NOT over"),
    )
    op.create_index(
        "entries_over",
        "entries",
        ["changed_at"],
        unique=False,
        sqlite_where=sa.text("over"),
        postgresql_where=sa.text("over"),
    )
    op.create_index("entries_path", "entries", ["path"], unique=False)
    op.create_table(
        "lines",
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("resting_until", sa.Double(), nullable=False),
        sa.Column("ready_at", sa.Double(), nullable=True),
        sa.Column("gives_up_at", sa.Double(), nullable=True),
        sa.Column("last_turn", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("peer", "origin"),
    )
    op.create_index(
        "lines_answering",
        "lines",
        ["ready_at"],
        unique=False,
        sqlite_where=sa.text("failures = 0"),
        postgresql_where=sa.text("failures = 0"),
    )
    op.create_index(
        "lines_failing",
        "lines",
        ["ready_at"],
        unique=False,
        sqlite_where=sa.text("failures > 0"),
        postgresql_where=sa.text("failures > 0"),
    )
    op.create_index(
        "lines_given_up",
        "lines",
        ["gives_up_at"],
        unique=False,
        sqlite_where=sa.text("gives_up_at IS NOT NULL"),
        postgresql_where=sa.text("gives_up_at IS NOT NULL"),
    )
    op.create_table(
        "requests",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("video", sa.Text(), nullable=False),
        sa.Column("video_is_number", sa.Boolean(), nullable=False),
        sa.Column("callback", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("capability", sa.Text(), nullable=False),
        sa.Column("capability_hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=True),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("due_at", sa.Double(), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("upload_id", sa.Text(), nullable=True),
        sa.Column("received_size", sa.BigInteger(), nullable=True),
        sa.Column("received_sha256", sa.Text(), nullable=True),
        sa.Column("backup_id", sa.Text(), nullable=True),
        sa.Column("backup", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.Column("allocated", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "requests_active",
        "requests",
        ["lease_until", "peer"],
        unique=False,
        sqlite_where=sa.text("state IN ('OFFERED', 'RECEIVING')"),
        postgresql_where=sa.text("state IN ('OFFERED', 'RECEIVING')"),
    )
    op.create_index("requests_capability", "requests", ["capability_hash"], unique=True)
    op.create_index(
        "requests_ended",
        "requests",
        ["ended_at"],
        unique=False,
        sqlite_where=sa.text("ended_at IS NOT NULL"),
        postgresql_where=sa.text("ended_at IS NOT NULL"),
    )
    op.create_index(
        "requests_ended_video",
        "requests",
        ["video", "ended_at"],
        unique=False,
        sqlite_where=sa.text("ended_at IS NOT NULL"),
        postgresql_where=sa.text("ended_at IS NOT NULL"),
    )
    op.create_index(
        "requests_expiring",
        "requests",
        ["expires_at"],
        unique=False,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "requests_live",
        "requests",
        ["seq"],
        unique=False,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "requests_live_video",
        "requests",
        ["video", "peer"],
        unique=True,
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "requests_pending",
        "requests",
        ["peer", "origin", "due_at", "seq"],
        unique=False,
        sqlite_where=sa.text("state = 'PENDING'"),
        postgresql_where=sa.text("state = 'PENDING'"),
    )
    op.create_index("requests_request_id", "requests", ["request_id"], unique=True)
    op.create_index(
        "requests_storing",
        "requests",
        ["seq"],
        unique=False,
        sqlite_where=sa.text("state = 'STORING'"),
        postgresql_where=sa.text("state = 'STORING'"),
    )
    op.create_table(
        "uploads",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("upload_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=True),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("allocated", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=True),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("upload_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_uploads_request_id"), "uploads", ["request_id"], unique=False)
