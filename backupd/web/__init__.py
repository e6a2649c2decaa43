"""The HTTP face."""

__all__: list[str] = []
