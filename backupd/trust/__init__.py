"""Who the other servers are, what each may do, and the secrets that are shared with each."""

__all__: list[str] = []
