"""What is to be sent is found by where it goes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Put the server and the state in front of the time in the index of what is due."""
    op.drop_index("entries_due", "entries")
    op.create_index(
        "entries_due",
        "entries",
        ["to", "state", "due_at"],
        sqlite_where=sa.text("NOT over"),
        postgresql_where=sa.text("NOT over"),
    )
