"""Where the bytes of an outbox entry are on their way to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; an entry without it starts its upload anew."""
    op.add_column("entries", sa.Column("uploads", sa.Text(), nullable=True))
