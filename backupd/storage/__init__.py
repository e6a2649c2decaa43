"""Where the bytes lie."""

__all__: list[str] = []
