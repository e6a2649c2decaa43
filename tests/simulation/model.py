"""The protocol as a sender may rely on it, in plain Python: the specification of one request.

Every method says what the answer to a message must be in the state at hand, and moves on. What a
crash, or a connection that broke, left open is asked of the receiver, and it may only
be what those who know the last answer can expect.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Model"]

MAX_TRIES = 5
READY = ("OFFERED", "RECEIVING", "RECEIVED")
OVER = ("EXPIRED", "CANCELLED", "FAILED")


@dataclass
class Model:
    """What the receiver must do for one request of ``size`` bytes."""

    size: int
    state: str = "PENDING"
    offset: int = 0
    """Where the newest upload stands."""

    length: int | None = None
    """What the newest upload was announced to have."""

    tries: int = 0
    whole: bytes | None = None
    """The newest upload that is whole."""

    notices: int = 0

    def told(self, notices: int) -> None:
        """So many offers have come, and were taken."""
        if notices > self.notices and self.state == "PENDING":
            self.state = "OFFERED"
        self.notices = notices

    def closed(self) -> int | None:
        """How anything but ``complete`` is answered once it is over."""
        if self.state == "STORED":
            return 409
        return 410 if self.state in OVER else None

    def announce(self) -> int:
        if (status := self.closed()) is not None:
            return status
        if self.state in ("PENDING", "OFFERED"):
            self.state = "RECEIVING"
        return 200

    def post(self, content: bytes, *, right: bool = True, sent: int | None = None) -> int | None:
        """A new upload; None when it breaks off and no answer is due."""
        if (status := self.closed()) is not None:
            return status
        if not content:
            return 400
        if len(content) > self.size:
            return 413
        if sent is not None and sent < len(content):
            self.state, self.offset, self.length = "RECEIVING", sent, len(content)
            if self.size < 2 * len(content) and sent:
                self.whole = None
            return None
        if not right:
            self.state, self.offset, self.length = "RECEIVING", 0, None
            self.tries += 1
            self.whole = None
            if self.tries >= MAX_TRIES:
                self.state = "FAILED"
            return 422
        self.state, self.offset, self.length, self.whole = (
            "RECEIVED",
            len(content),
            len(content),
            content,
        )
        return 200

    def complete(self, *, success: bool = True, size: int | None = None) -> int:
        if self.state == "STORED":
            return 200 if success else 409
        if self.state in OVER:
            return 200 if self.state == "FAILED" and not success else 410
        if not success:
            self.state = "FAILED"
            return 200
        if self.whole is None:
            return 409
        if size is not None and size != len(self.whole):
            self.state, self.whole, self.offset, self.length = "PENDING", None, 0, None
            self.tries += 1
            if self.tries >= MAX_TRIES:
                self.state = "FAILED"
            return 422
        self.state = "STORED"
        return 200

    def head(self) -> tuple[int, int | None]:
        """Status and offset."""
        status = self.closed()
        return (200, self.offset) if status is None else (status, None)

    def patch(self, offset: int, data: bytes, *, sent: int | None = None) -> int | None:
        """Going on; what was sent before is what the newest upload has."""
        if (status := self.closed()) is not None:
            return status
        if offset != self.offset or self.length is None or self.offset == self.length:
            return 409
        if offset + len(data) > self.length:
            return 413
        arrived = len(data) if sent is None else sent
        self.offset += arrived
        self.state = "RECEIVING"
        if arrived < len(data):
            return None
        if self.offset == self.length:
            self.state = "RECEIVED"
        return 204
