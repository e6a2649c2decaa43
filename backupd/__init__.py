"""Servers that own videos keep each other's backups."""

__all__: list[str] = []
