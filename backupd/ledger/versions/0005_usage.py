"""What every peer has, for its quota."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the table, filled from what is kept, and the index that sums what is reserved."""
    op.create_table(
        "usage",
        sa.Column("peer", sa.Text(), nullable=False),
        sa.Column("kept", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("peer"),
    )
    op.execute("INSERT INTO usage (peer, kept) SELECT peer, sum(size) FROM backups GROUP BY peer")
    live = sa.text("ended_at IS NULL")
    op.create_index(
        "requests_live_peer",
        "requests",
        ["peer", "size"],
        sqlite_where=live,
        postgresql_where=live,
    )
