"""Whole daemons in one thread, on one clock: one seed is one history, bit for bit."""

__all__: list[str] = []
