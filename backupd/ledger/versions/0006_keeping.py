"""The trash, locks, and the latest time that was seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns, the table and the indexes; what is in the trash counts as neither well
    nor damaged.
    """
    op.add_column("backups", sa.Column("deleted_at", sa.Double(), nullable=True))
    op.add_column("backups", sa.Column("deleted_by", sa.Text(), nullable=True))
    op.add_column("backups", sa.Column("locked_until", sa.Double(), nullable=True))
    op.create_table(
        "times",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    for name in ("backups_well", "backups_damaged"):
        op.drop_index(name, "backups")
    well = "problem IS NULL AND deleted_at IS NULL"
    for name, columns, where in (
        ("backups_well", ["verified_at"], well),
        ("backups_damaged", ["seq"], "problem IS NOT NULL AND deleted_at IS NULL"),
        ("backups_good_versions", ["peer", "video", "stored_at", "seq"], well),
        ("backups_trash", ["seq"], "deleted_at IS NOT NULL"),
        ("backups_trash_due", ["deleted_at"], "deleted_at IS NOT NULL"),
    ):
        op.create_index(
            name, "backups", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
        )
