"""The sending role: the outbox, the courier and the catalogue."""

__all__: list[str] = []
