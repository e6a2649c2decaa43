"""The receiving role: admission, the queue, intake and expiry."""

__all__: list[str] = []
