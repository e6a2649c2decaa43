"""Uploads by tus 1.0.0: parts that are joined, and uploads without a callback."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns, and the indexes that find them."""
    op.add_column(
        "requests", sa.Column("part", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    for name in ("joined_into", "metadata", "concat"):
        op.add_column("requests", sa.Column(name, sa.Text(), nullable=True))
    op.add_column(
        "uploads", sa.Column("partial", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("uploads", sa.Column("parts", sa.Text(), nullable=False, server_default=""))
    for name in ("metadata", "concat", "token_hash"):
        op.add_column("uploads", sa.Column(name, sa.Text(), nullable=True))
    unkept = sa.text("state = 'RECEIVED' AND callback = ''")
    op.create_index(
        "requests_unkept", "requests", ["seq"], sqlite_where=unkept, postgresql_where=unkept
    )
    known = sa.text("token_hash IS NOT NULL")
    op.create_index(
        "uploads_token",
        "uploads",
        ["token_hash"],
        unique=True,
        sqlite_where=known,
        postgresql_where=known,
    )
