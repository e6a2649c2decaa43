"""Reading backups again, and the way back to the sender of one that is damaged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns, the table and the indexes, and fill in what is known."""
    op.add_column("backups", sa.Column("read_at", sa.Double(), nullable=False, server_default="0"))
    for name in ("origin", "callback"):
        op.add_column("backups", sa.Column(name, sa.Text(), nullable=True))
    op.create_table(
        "repairs",
        sa.Column("backup_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("backup_id"),
    )
    op.execute("UPDATE backups SET read_at = coalesce(verified_at, 0)")
    for name in ("origin", "callback"):
        op.execute(
            f"UPDATE backups SET {name} = (SELECT nullif(r.{name}, '') FROM requests AS r "  # noqa: S608
            "WHERE r.request_id = backups.request_id)"
        )
    op.execute(
        "INSERT INTO repairs (backup_id, tries, due_at) "
        "SELECT backup_id, 0, 0 FROM backups WHERE problem IS NOT NULL AND callback IS NOT NULL"
    )
    op.create_index("backups_read", "backups", ["read_at", "size"])
    for name, table, column, where in (
        ("backups_well", "backups", "verified_at", "problem IS NULL"),
        ("backups_damaged", "backups", "seq", "problem IS NOT NULL"),
        ("repairs_due", "repairs", "due_at", "due_at IS NOT NULL"),
    ):
        op.create_index(
            name, table, [column], sqlite_where=sa.text(where), postgresql_where=sa.text(where)
        )
