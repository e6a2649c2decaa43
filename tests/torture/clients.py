"""Clients that do not give up: whatever happens to the daemons, each brings its video home."""

from __future__ import annotations

import hashlib
import http.client
import json
import queue
import random
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from tests.integration.daemons import Answer, Daemon, answer_on, call
from tests.integration.plain import COMPLETE, SEND, PlainSender, octets
from tests.integration.tus import OFFSET, VERSION, metadata
from tests.torture.scene import Scene
from tests.torture.videos import MIB, Video, pieces

__all__ = [
    "Again",
    "Client",
    "Direct",
    "Ours",
    "Over",
    "Raw",
    "ThroughLink",
    "fetched",
]

T = TypeVar("T")

CUT = (OSError, http.client.HTTPException)
STEP = 256 * 1024
PAUSE = 0.05
PATIENCE = 180.0
"""Seconds in which something must move, kills and waiting in line included."""


class Over(Exception):
    """The request has ended; to be asked anew."""


class Again(Exception):
    """Not yet; the answer that said so."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status, answer.body[:500])


def fetched(daemon: Daemon, path: str) -> str:
    """The SHA-256 of what comes when a backup is restored."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    try:
        host = {"Host": f"localhost:{daemon.port}"}
        connection.request("GET", f"{path}/content", headers=host)
        response = connection.getresponse()
        assert response.status != 404, f"{path} is gone"
        if response.status != 200:
            raise Again(Answer(response.status, response.headers, response.read(1000)))
        digest, length = hashlib.sha256(), 0
        while data := response.read(STEP):
            digest.update(data)
            length += len(data)
        if length != int(response.headers["Content-Length"]):
            raise OSError("cut")
        return digest.hexdigest()
    finally:
        connection.close()


class Client(threading.Thread, ABC):
    """Brings one video after the other, until the scene ends."""

    deletions: tuple[str, ...] = ("?now=true",)
    patience = PATIENCE

    def __init__(
        self, scene: Scene, chance: random.Random, size: Callable[[random.Random], int]
    ) -> None:
        super().__init__(name=type(self).__name__, daemon=True)
        self.scene = scene
        self.chance = chance
        self._size = size
        self._moved_at = 0.0
        self._seen: object = None
        self.doing = ""

    def run(self) -> None:
        try:
            while not self.scene.ending.is_set():
                self.video = self.scene.new_video(self._size(self.chance))
                self._bring_home(self.video)
                self.scene.ending.wait(self.chance.uniform(0, 2 * self.scene.rest))
        except BaseException as error:
            error.add_note(f"{self.name}: {self.doing}")
            self.scene.failures.append(error)

    def _bring_home(self, video: Video) -> None:
        while True:
            self.scene.counts["begun"] += 1
            try:
                backup_id, sha256 = self.bring(video)
                break
            except Over:
                if not self.scene.may_expire:
                    raise
                self.scene.counts["expired"] += 1
        self.scene.counts["stored"] += 1
        assert sha256 == video.sha256(), f"video {video.number} was stored as other bytes"
        self.look_after(backup_id, video)
        del self.scene.videos[video.number]

    @abstractmethod
    def bring(self, video: Video) -> tuple[str, str]:
        """Until somebody was told that it is stored: the backup's id, and its SHA-256."""

    def look_after(self, backup_id: str, video: Video) -> None:
        """It can be fetched, and most are deleted then, so that the disk does not fill up."""
        self.scene.stored[backup_id] = video
        path = f"/api/v1/backups/{backup_id}"
        assert self.keep_on(lambda: fetched(self.scene.receiver, path)) == video.sha256(), (
            "restored as others"
        )
        if self.chance.random() > self.scene.kept or video.size > 16 * MIB:
            del self.scene.stored[backup_id]
            how = self.chance.choice(self.deletions)
            self.keep_on(lambda: self._deleted(path + how))

    def _deleted(self, path: str) -> None:
        answer = self.scene.receiver.call("DELETE", path, operator=True)
        if answer.status not in (200, 404):
            raise Again(answer)

    # -- not giving up ----------------------------------------------------------------------------

    def keep_on(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` comes to; again when it was cut, or the daemon asks for time."""
        self._moved_at = time.monotonic()
        while True:
            try:
                return attempt()
            except (*CUT, Again, queue.Empty) as error:
                if time.monotonic() > self._moved_at + self.patience:
                    raise AssertionError(
                        f"{self.name} tried in vain for {self.patience:.0f} s: {self.doing}"
                    ) from error
                self.doing = f"video {self.video.number}, {self.video.size} bytes: {error!r}"
            self.scene.counts["tries again"] += 1
            time.sleep(PAUSE)

    def saw(self, state: object) -> None:
        """Where it stands; when that is new, there is time again."""
        if state != self._seen:
            self._seen, self._moved_at = state, time.monotonic()

    def send(
        self, method: str, url: str, video: Video, start: int, stop: int, more: dict[str, str]
    ) -> Answer:
        """One request with these bytes, at a pace of its own; the answer."""
        rate = self.chance.choice([4, 12, 40, 400]) * MIB
        path = "/" + url.split("/", 3)[3]
        headers = {"Host": self.scene.wire.host, "Content-Length": str(stop - start)}
        lines = [f"{name}: {value}" for name, value in (headers | more).items()]
        with socket.create_connection(("127.0.0.1", self.scene.wire.port), 20) as connection:
            head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""])
            connection.sendall(head.encode())
            begun = time.monotonic()
            for at, end in pieces(start, stop, STEP):
                connection.sendall(video.piece(at, end))
                time.sleep(max(0.0, begun + (end - start) / rate - time.monotonic()))
            return answer_on(connection, method)

    def go_on(
        self,
        url: str,
        video: Video,
        length: int = 0,
        begin: int = 0,
        more: dict[str, str] | None = None,
    ) -> None:
        """PATCHes of some length, from where the daemon says it is, until all is there."""
        length = length or video.size
        while True:
            stands = self.offset(url)
            if stands is None or stands == length:
                return
            stop = min(length, stands + self._stretch())
            headers = VERSION | OFFSET | {"Upload-Offset": str(stands)} | (more or {})
            answer = self.send("PATCH", url, video, begin + stands, begin + stop, headers)
            if answer.status != 204:
                raise Again(answer)

    def _stretch(self) -> int:
        return self.chance.choice([MIB // 4, 2 * MIB, 16 * MIB, 1024 * MIB])

    def offset(self, url: str) -> int | None:
        """Where it goes on; None once it is stored."""
        answer = call("HEAD", url, headers=VERSION, timeout=20)
        if answer.status == 409:
            return None
        if answer.status in (404, 410):
            raise Over(f"HEAD {url}: {answer.status} {answer.headers}")
        if answer.status != 200 or "Upload-Offset" not in answer.headers:
            raise Again(answer)
        self.saw((url, answer.headers["Upload-Offset"]))
        return int(answer.headers["Upload-Offset"])


class _Asking(Client):
    """Asks for room as the original does, and is called back."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.door = PlainSender()

    def bring(self, video: Video) -> tuple[str, str]:
        send, complete = self.keep_on(lambda: self._turn(video))
        self.keep_on(lambda: self.upload(send, video))
        done = self.keep_on(lambda: self._complete(send, complete, video))
        self.scene.wire.forget(send)
        return done["backupId"], done["sha256"]

    def _turn(self, video: Video) -> tuple[str, str]:
        answer = self.door.ask(self.scene.wire.url, video.number, video.size)
        if answer.status != 200 or not answer.json["success"]:
            raise Again(answer)
        notice = self.door.notice(video.number, 5.0)
        return notice[SEND], notice[COMPLETE]

    @abstractmethod
    def upload(self, link: str, video: Video) -> None:
        """All of it, from wherever it stands; raises what `keep_on` takes."""

    def _complete(self, send: str, complete: str, video: Video) -> Any:
        answer = call(
            "POST",
            complete,
            {
                "videoId": video.number,
                "success": True,
                "size": video.size,
                "sha256": video.sha256(),
            },
        )
        if answer.status == 409 and answer.json.get("receivedBytes") is not None:
            self.upload(send, video)
        if answer.status != 200:
            raise Again(answer)
        return answer.json


class ThroughLink(_Asking):
    """tus on the link of an offer, now and then in parts."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._urls: dict[str, list[tuple[str, int, int]]] = {}
        self._ends: list[int] = []
        self._all_there = False

    def upload(self, link: str, video: Video) -> None:
        if link not in self._urls:
            self._urls, self._all_there = {link: []}, False
            self._ends = self._cut_up(video.size)
        made = self._urls[link]
        ends = self._ends
        while len(made) < len(ends):
            start = ends[len(made) - 1] if made else 0
            length = ends[len(made)] - start
            kind = {"Upload-Concat": "partial"} if len(ends) > 1 else {}
            made.append((self._create(link, {"Upload-Length": str(length)} | kind), start, length))
        # Parts that have been joined are gone; whoever lost that answer asks for it again.
        for url, start, length in made if not self._all_there else ():
            self.go_on(url, video, length, start)
        if len(made) > 1:
            self._all_there = True
            names = " ".join("/" + url.split("/", 3)[3] for url, _, _ in made)
            self._create(link, {"Upload-Concat": f"final;{names}"})

    def _cut_up(self, size: int) -> list[int]:
        if self.chance.random() < 0.7 or size < 3:
            return [size]
        return [*sorted(self.chance.sample(range(1, size), 2)), size]

    def _create(self, link: str, headers: dict[str, str]) -> str:
        answer = call("POST", link, b"", VERSION | headers)
        if answer.status != 201:
            raise Again(answer)
        location: str = answer.headers["Location"]
        return location if "://" in location else self.scene.wire.url + location


class Raw(_Asking):
    """The bytes in one request, as anybody would; after a cut it goes on from where it was."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._begun = ""

    def upload(self, link: str, video: Video) -> None:
        if self._begun == link:
            # Whoever sent it all again would begin anew.
            self.go_on(link, video, more={"Upload-Length": str(video.size)})
            return
        self._begun = link
        answer = self.send("PUT", link, video, 0, video.size, octets)
        if answer.status != 200:
            raise Again(answer)


class Direct(Client):
    """A direct upload: its end stores it."""

    def called(self, video: Video) -> str:
        """What it is called there."""
        return f"direct-{video.number}"

    def bring(self, video: Video) -> tuple[str, str]:
        url = self.keep_on(lambda: self._create(video))
        self.keep_on(lambda: self.go_on(url, video))
        found = self.keep_on(lambda: self.listed(video))
        self.scene.wire.forget(url)
        return found["backupId"], found["sha256"]

    def _create(self, video: Video) -> str:
        described = {"Upload-Length": str(video.size)}
        described["Upload-Metadata"] = metadata(videoId=self.called(video))
        url = f"{self.scene.wire.url}/api/v1/uploads"
        answer = call("POST", url, b"", VERSION | described)
        if answer.status != 201:
            raise Again(answer)
        location: str = answer.headers["Location"]
        return location if "://" in location else self.scene.wire.url + location

    def listed(self, video: Video) -> Any:
        copies = self.copies(video)
        assert len(copies) == 1, f"{len(copies)} copies of a direct upload that was acknowledged"
        return copies[0]

    def copies(self, video: Video) -> list[Any]:
        query = f"/api/v1/backups?videoId={self.called(video)}&limit=500"
        answer = self.scene.receiver.call("GET", query)
        if answer.status != 200:
            raise Again(answer)
        sha256 = video.sha256()
        return [one for one in answer.json["backups"] if one["sha256"] == sha256]


class Ours(Client):
    """Has our own sender bring it, from a file."""

    # It waits for a minute after some failures, and each of its tries may end in a kill.
    patience = 10 * PATIENCE

    def bring(self, video: Video) -> tuple[str, str]:
        path = self.scene.folder / f"video-{video.number}.mp4"
        video.write(path)
        message = {"to": self.scene.wire.url, "path": str(path), "videoId": video.number}
        entry_id = self.keep_on(lambda: self._queued(message))
        done = self.keep_on(lambda: self._arrived(entry_id))
        path.unlink()
        return done["backupId"], done["sha256"]

    def _queued(self, message: dict[str, object]) -> str:
        answer = self.scene.sender.call("POST", "/api/v1/outbox", message, operator=True)
        if answer.status != 201:
            raise Again(answer)
        entry_id: str = answer.json["entry"]["entryId"]
        return entry_id

    def _arrived(self, entry_id: str) -> Any:
        answer = self.scene.sender.call("GET", f"/api/v1/outbox/{entry_id}", operator=True)
        assert answer.status != 404, f"entry {entry_id} was acknowledged, and is gone"
        if answer.status != 200:
            raise Again(answer)
        entry = answer.json
        self.saw((entry["state"], entry["sentBytes"]))
        assert entry["state"] not in ("FAILED", "CANCELLED", "UNVERIFIED"), json.dumps(entry)
        if entry["state"] != "VERIFIED":
            time.sleep(0.2)
            raise Again(answer)
        return entry
