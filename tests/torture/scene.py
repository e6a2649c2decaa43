"""Who plays, and what is known of it by all of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.daemons import Daemon
from tests.torture.videos import Video
from tests.torture.wire import Wire

__all__ = ["Scene", "a_scene"]


@dataclass
class Scene:
    """Who plays: a sender, a receiver, and the door between them that reads along.

    ``stored`` has what somebody was told to be stored, by the id of the backup, until it was
    asked to be deleted.
    """

    folder: Path
    sender: Daemon
    receiver: Daemon
    wire: Wire
    rest: float = 0.0
    """Seconds that a client takes between two videos, on average."""
    kept: float = 0.1
    """The share of small videos that are not deleted again at once."""
    may_expire: bool = False
    stored: dict[str, Video] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    ending: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list)
    numbers: int = 0
    videos: dict[int, Video] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def new_video(self, size: int) -> Video:
        with self.lock:
            self.numbers += 1
            video = self.videos[self.numbers] = Video(self.numbers, size)
            return video

    def check(self) -> None:
        """Fails with the first thing that went wrong."""
        assert not self.wire.wrong, "\n".join(self.wire.wrong)
        if self.failures:
            raise AssertionError(str(self.failures[0])) from self.failures[0]


@contextmanager
def a_scene(
    folder: Path,
    receiving: Mapping[str, str],
    sending: Mapping[str, str],
    environment: Mapping[str, str] | None = None,
    **more: Any,
) -> Iterator[Scene]:
    """Both daemons with these settings, and the door between them."""
    wire = Wire()
    receiver = Daemon(folder, "receiver", host=wire.host, **receiving)
    sender = Daemon(folder, "sender", **sending)
    for one in (receiver, sender):
        one.start_seconds = 180.0
        one.extra_environment.update(environment or {})
    wire.target = receiver.port
    try:
        with receiver, sender:
            scene = Scene(folder, sender, receiver, wire, **more)
            try:
                yield scene
            finally:
                # Whatever happened, nobody goes on asking.
                scene.ending.set()
    finally:
        wire.close()
