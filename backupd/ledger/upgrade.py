"""Brings a ledger's schema up to date, by the numbered upgrades in ``versions/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection

from backupd.errors import LedgerTooNew

__all__ = ["upgrade"]


def upgrade(connection: Connection, to: str = "head") -> None:
    """Run the upgrades that this ledger has not seen, up to ``to``. Raises `LedgerTooNew`."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    try:
        if current is not None:
            script.get_revision(current)
    except CommandError as error:
        raise LedgerTooNew(
            f"The ledger is of version {current}, which this backupd does not know; "
            "run the backupd that wrote it, or a newer one."
        ) from error
    if current == script.get_current_head():
        return

    def steps(revision: Any, context: Any) -> Any:
        return script._upgrade_revs(to, revision)

    with EnvironmentContext(config, script, fn=steps, destination_rev=to) as environment:
        environment.configure(connection=connection)
        environment.run_migrations()
