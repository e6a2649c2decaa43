"""Where a client uploads to, and what must have come of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tests.integration.daemons import Daemon, call
from tests.integration.plain import PlainSender

__all__ = ["SIZE", "Place"]

MIB = 1024**2
SIZE = 12 * MIB + 4711
"""Bytes of the video that clients upload."""


class Place:
    """An offer's link of ``sender``, or ``/api/v1/uploads`` where there is none.

    ``url`` is where the daemon is reached: itself, or a door before it.
    """

    def __init__(self, daemon: Daemon, url: str, sender: PlainSender | None, file: Path) -> None:
        self.daemon, self.file = daemon, file
        self._complete: str | None = None
        self.endpoint = f"{url}/api/v1/uploads"
        self.metadata = {"filename": file.name, "filetype": "video/mp4"}
        if sender is None:
            self.metadata["videoId"] = "7"
        else:
            self.endpoint, self._complete = sender.turn(daemon.url, 7, SIZE)

    @property
    def direct(self) -> bool:
        return self._complete is None

    def options(self, **more: Any) -> dict[str, Any]:
        """What tus-js-client is told."""
        return {"file": self.file, "endpoint": self.endpoint, "metadata": self.metadata} | more

    def check(self) -> None:
        """It is stored, under its name, whole and right; and nothing else is left."""
        if self._complete is not None:
            path = "/" + self._complete.split("/", 3)[3]
            done = self.daemon.call("POST", path, {"videoId": 7, "success": True})
            assert done.status == 200, done.body
        (kept,) = self.daemon.backups()
        data = self.file.read_bytes()
        assert (kept["size"], kept["sha256"]) == (SIZE, hashlib.sha256(data).hexdigest())
        assert (kept["fileName"], kept["contentType"]) == (self.file.name, "video/mp4")
        content = f"{self.daemon.url}/api/v1/backups/{kept['backupId']}/content"
        assert call("GET", content).body == data
        assert self.daemon.incoming == []
        assert self.daemon.requests() == []
