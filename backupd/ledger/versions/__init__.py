"""Numbered upgrades of the schema; Alembic runs them at start."""

__all__: list[str] = []
