"""What was promised and what is kept, durably."""

__all__: list[str] = []
