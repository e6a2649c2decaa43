"""Lines in which nobody waits give nobody up."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Whoever comes into one that failed before has its whole time."""
    op.execute(
        "UPDATE lines SET gives_up_at = NULL WHERE gives_up_at IS NOT NULL AND ready_at IS NULL"
    )
