"""The other server, spoken to over HTTP."""

__all__: list[str] = []
