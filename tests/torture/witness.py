"""What a daemon told its clients, and whether that is still so after all that befell it."""

from __future__ import annotations

import hashlib
import http.client
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from tests.integration.contract import PATCH
from tests.integration.daemons import Answer, Daemon, call, wait_until
from tests.integration.plain import COMPLETE, SEND, PlainSender, octets
from tests.integration.tus import VERSION, metadata

__all__ = ["KINDS", "POLITE", "Cut", "NoAnswer", "Refused", "Video", "Witness"]

KINDS = ("post", "tus", "parts", "direct")
"""One body after the other on an offer's link; by tus there; by tus in parts; without an offer."""

POLITE = frozenset({409, 423, 429, 503, 507})
"""What may be answered when the daemon cannot at the moment; a disk that fails is 500 besides."""

ALIVE = ("PENDING", "OFFERED", "RECEIVING", "RECEIVED")
SECONDS = 30.0
PATIENCE = 3.0
"""Seconds that a video waits for its turn at a time."""

SLACK = 1024**2
"""Bytes by which a volume may look fuller or emptier than it should: the ledger writes too."""


class NoAnswer(Exception):
    """Nothing came of a try; what was acknowledged before stands."""


class Refused(NoAnswer):
    """The daemon said no, in a way that is allowed."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(f"{status}: {why}")
        self.status = status
        self.why = why


class Cut(NoAnswer):
    """The connection broke."""


class Gate:
    """Many pass at once, or one who wants to be alone."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._inside = 0
        self._closed = False

    def __enter__(self) -> None:
        with self._free:
            self._free.wait_for(lambda: not self._closed)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._free:
            self._inside -= 1
            self._free.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While nobody is inside, and nobody comes in."""
        with self._free:
            self._closed = True
            self._free.wait_for(lambda: not self._inside)
            try:
                yield
            finally:
                self._closed = False
                self._free.notify_all()


class Video:
    """One video on its way to a daemon, by one of `KINDS`.

    `go` takes it as far as it comes from wherever it stands; whatever the daemon acknowledges
    meanwhile is remembered, and never may be taken back.
    """

    def __init__(
        self, daemon: Daemon, kind: str, video: str, data: bytes, rng: random.Random
    ) -> None:
        self.daemon, self.kind, self.video, self.data, self.rng = daemon, kind, video, data, rng
        self.allowed = POLITE
        self.most = len(data)
        """Bytes that are sent in one piece at most."""
        self.stop_before_end = False
        """Whether the last step, which stores it, is left out for now."""
        self.gate = Gate()
        self.sender = PlainSender()
        self.status_url: str | None = None
        self.acknowledged: dict[str, int] = {}
        self.stored: Any = None
        self.doomed = False
        """Whether somebody has asked for it to be removed."""
        self.deleted = False
        self.told = 0
        """How often something was acknowledged."""
        self._send = self._complete = ""
        self._begun = False
        self._uploads: dict[int, str] = {}
        self._joining = False
        self._final: str | None = None

    def close(self) -> None:
        self.sender.__exit__(None, None, None)

    # -- on its way -------------------------------------------------------------------------------

    def go(self) -> None:
        """As far as to STORED. Raises `NoAnswer` where it stopped."""
        if self.stored is not None:
            return
        if self.kind == "direct":
            self._go_direct()
            return
        self._take_turn()
        {"post": self._go_post, "tus": self._go_tus, "parts": self._go_parts}[self.kind]()
        self._pause_before_end()
        body = {"videoId": self.video, "success": True}
        answer = self._ask("POST", self._complete, body, ok={200})
        assert answer.json["sha256"] == self.sha256, "other bytes were stored"
        self.stored = answer.json

    def ask(self) -> None:
        """Ask for room, unless it was promised already."""
        if self.status_url is None:
            answer = self._promised(
                lambda: self.sender.ask(self.daemon.url, self.video, len(self.data))
            )
            self.status_url = answer["statusUrl"]

    def _promised(self, ask: Callable[[], Answer]) -> Any:
        answer = self._checked(self._heard(ask), {200})
        if not answer.json["success"]:
            assert answer.json["reason"] == "insufficient-space", answer.json
            raise Refused(200, answer.json["message"])
        return answer.json

    def _take_turn(self) -> None:
        self.ask()
        if not self._send:
            try:
                notice = self.sender.notice(self.video, PATIENCE)
            except queue.Empty:
                raise NoAnswer("no turn came") from None
            self._send, self._complete = notice[SEND], notice[COMPLETE]

    def _go_post(self) -> None:
        if self.acknowledged.get(self._send) == len(self.data):
            return
        offset = self.offset(self._send) if self._begun else 0
        if offset == 0:
            self._begun = True
            answer = self._ask("PUT", self._send, self.data, octets, ok={200})
            assert answer.json["sha256"] == self.sha256
            self._acknowledge(self._send, answer.json["size"])
        elif offset < len(self.data):
            self._patch(self._send, offset, self.data)

    def _go_tus(self) -> None:
        self._upload(0, self.data, Upload_Length=str(len(self.data)))

    def _go_parts(self) -> None:
        middle = len(self.data) // 3
        pieces = [self.data[:middle], self.data[middle:]]
        if not self._joining:
            for number, piece in enumerate(pieces):
                self._upload(number, piece, Upload_Length=str(len(piece)), Upload_Concat="partial")
        if self._final is None:
            self._joining = True
            urls = " ".join(self._uploads[number] for number in range(len(pieces)))
            answer = self._creation(Upload_Concat=f"final;{urls}")
            # What was joined has no parts any more.
            self.acknowledged.clear()
            self._final = answer.headers["Location"]
            self._acknowledge(self._final, len(self.data))

    def _go_direct(self) -> None:
        self._send = f"{self.daemon.url}/api/v1/uploads"
        said = metadata(videoId=self.video)
        self._upload(0, self.data, Upload_Length=str(len(self.data)), Upload_Metadata=said)
        kept = [one for one in self._backups() if one["videoId"] == self.video]
        assert len(kept) == 1, "a direct upload whose end was acknowledged is stored"
        self.stored = kept[0]

    def _upload(self, number: int, data: bytes, **headers: str) -> None:
        """A tus upload to its end."""
        if number not in self._uploads:
            url = self._creation(**headers).headers["Location"]
            self._uploads[number] = url
            self._acknowledge(url, 0)
        url = self._uploads[number]
        if self.acknowledged[url] == len(data) and self.kind != "direct":
            return
        while (offset := self.offset(url)) < len(data):
            if self.kind == "direct" and offset + self.most >= len(data):
                self._pause_before_end()
            self._patch(url, offset, data)

    def _pause_before_end(self) -> None:
        if self.stop_before_end:
            raise NoAnswer("its end is left out")

    def _creation(self, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._ask("POST", self._send, b"", VERSION | named, ok={201})

    def _patch(self, url: str, offset: int, data: bytes) -> None:
        length = len(data) if self.kind == "post" else self.rng.randrange(1, self.most + 1)
        piece = data[offset : offset + length]
        sent = PATCH | {"Upload-Offset": str(offset)}
        answer = self._ask("PATCH", url, piece, sent, ok={204})
        now = int(answer.headers["Upload-Offset"])
        assert now == offset + len(piece)
        self._acknowledge(url, now)

    # -- what was said ----------------------------------------------------------------------------

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def offset(self, url: str) -> int:
        """What HEAD says; it never decreases."""
        now = int(self._ask("HEAD", url, headers=VERSION, ok={200}).headers["Upload-Offset"])
        self._acknowledge(url, now)
        return now

    def _acknowledge(self, url: str, offset: int) -> None:
        before = self.acknowledged.get(url, 0)
        assert offset >= before, f"{self}: {before} bytes were acknowledged, {offset} are there"
        self.acknowledged[url] = offset
        self.told += 1

    def _ask(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        ok: set[int],
    ) -> Answer:
        answer = self._heard(lambda: call(method, url, body, headers, SECONDS))
        return self._checked(answer, ok, f"{method} {url}")

    def _heard(self, ask: Callable[[], Answer]) -> Answer:
        try:
            with self.gate:
                return ask()
        except (OSError, http.client.HTTPException) as error:
            raise Cut(f"{type(error).__name__}: {error}") from error

    def _checked(self, answer: Answer, ok: set[int], what: str = "") -> Answer:
        if answer.status in ok:
            return answer
        assert answer.status in self.allowed, f"{self}: {what}: {answer.status} {answer.body!r}"
        if not answer.body:
            raise Refused(answer.status, "")
        problem = answer.json
        assert answer.headers["Content-Type"] == "application/problem+json", problem
        assert problem["success"] is False
        assert problem["type"] != "urn:backupd:problem:defect", problem
        assert problem["detail"]
        raise Refused(answer.status, problem["detail"])

    def _backups(self) -> list[Any]:
        url = f"{self.daemon.url}/api/v1/backups?videoId={self.video}"
        found: list[Any] = self._ask("GET", url, ok={200}).json["backups"]
        return found

    def check(self) -> None:
        """Everything that was ever acknowledged is there. For a daemon that is well."""
        if self.status_url is not None:
            state = self._ask("GET", self.status_url, ok={200}).json["state"]
            assert state in (*ALIVE, "STORED"), f"{self}: what was promised is {state}"
        if self.deleted:
            path = f"{self.daemon.url}/api/v1/backups/{self.stored['backupId']}"
            assert call("GET", path).status == 404, f"{self}: what was deleted is back"
        elif self.stored is not None:
            content = f"{self.daemon.url}/api/v1/backups/{self.stored['backupId']}/content"
            answer = self._ask("GET", content, ok={200})
            assert answer.body == self.data, f"{self}: other bytes are kept"
            assert len(self._backups()) == 1
        elif not self._joining:
            for url, offset in list(self.acknowledged.items()):
                # What was whole may be on its way to its place, where nobody asks for it.
                if offset < len(self.data):
                    self.offset(url)

    def __str__(self) -> str:
        return f"{self.kind} {self.video}"


class Witness:
    """The clients of one daemon, and what they were told."""

    def __init__(self, daemon: Daemon, chance: random.Random) -> None:
        self.daemon = daemon
        self.videos: list[Video] = []
        self.gate = Gate()
        """Every request goes through it."""
        self._chance = chance
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for video in self.videos:
            video.close()

    def video(self, kind: str, size: int) -> Video:
        """A new one, that nobody has asked for yet."""
        self._count += 1
        name = f"{self._count} of {kind}".replace(" ", "-")
        data = self._chance.randbytes(size)
        made = Video(self.daemon, kind, name, data, random.Random(self._chance.random()))
        made.gate = self.gate
        self.videos.append(made)
        return made

    def try_each(self, videos: Iterable[Video]) -> list[NoAnswer | None]:
        """Each goes as far as it comes, all at the same time; what stopped them."""

        def go(video: Video) -> NoAnswer | None:
            try:
                video.go()
            except NoAnswer as stopped:
                return stopped
            return None

        listed = list(videos)
        with ThreadPoolExecutor(max(1, len(listed))) as threads:
            return list(threads.map(go, listed))

    def check(self) -> None:
        """Nothing that anybody was told is lost."""
        for video in self.videos:
            if video.doomed and not video.deleted:
                self.delete(video)
            video.check()

    def finish(self, videos: Iterable[Video] | None = None, seconds: float = 60.0) -> None:
        """All come to their end, by themselves, now that nothing is in their way."""
        listed = list(self.videos if videos is None else videos)
        deadline = time.monotonic() + seconds
        while stopped := [one for one in self.try_each(listed) if one is not None]:
            assert time.monotonic() < deadline, f"it does not go on: {stopped}"
            time.sleep(0.2)
        for video in listed:
            video.check()

    def forget(self, videos: Iterable[Video]) -> None:
        """They are of no more interest, and are removed."""
        for video in list(videos):
            if video.stored is not None and not video.deleted:
                self.delete(video)
            video.close()
            self.videos.remove(video)

    def delete(self, video: Video) -> None:
        """Remove what is kept; it may be gone already, and only the answer was lost."""
        path = f"/api/v1/backups/{video.stored['backupId']}?now=true"
        answer = self.daemon.call("DELETE", path, operator=True)
        assert answer.status in (200, 404), answer.body
        video.deleted = True

    def try_to_delete(self, video: Video) -> None:
        """Remove it, if the daemon lives; without an answer it is asked once more by `check`."""
        video.doomed = True
        try:
            self.delete(video)
        except (OSError, http.client.HTTPException):
            return

    @property
    def told(self) -> int:
        """How often something was acknowledged."""
        return sum(one.told for one in self.videos)

    def accounted(self) -> None:
        """Nothing is promised to anybody any more, and nothing is left of what was."""
        daemon = self.daemon
        wait_until(lambda: daemon.requests() == [], "no request is alive")
        wait_until(lambda: daemon.incoming == [], "no unfinished upload is left")
        ready = daemon.ready()
        assert (ready["pending"], ready["inProgress"]) == (0, 0)

        def released() -> bool:
            volume = os.statvfs(daemon.root)
            free = volume.f_bavail * volume.f_frsize - int(daemon.settings["reserved_space"])
            return bool(abs(daemon.ready()["availableBytes"] - max(0, free)) < SLACK)

        wait_until(released, "all that is free can be promised again")
