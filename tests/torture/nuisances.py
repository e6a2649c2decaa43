"""What else goes on between two servers: versions, trash, and what never comes to its end."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from typing import Any

from tests.integration.daemons import Answer, call, free_port
from tests.integration.plain import COMPLETE, PlainReceiver, PlainSender, octets
from tests.integration.tus import OFFSET, VERSION, metadata
from tests.torture.clients import CUT, Again, Client, Direct, Over
from tests.torture.scene import Scene
from tests.torture.videos import MIB, Video

__all__ = ["Leaves", "Looks", "Refuses", "Small", "Takes", "Trashed", "Versions"]

REST = 1.0
"""Seconds that a nuisance takes between two, on average."""


class Trashed(Direct):
    """Deletes into the trash, which empties itself."""

    deletions = ("", "", "?now=true")


class Versions(Direct):
    """New versions of a few videos: retention deletes the older ones, not this client."""

    def called(self, video: Video) -> str:
        return f"again-{video.number % 4}"

    def look_after(self, backup_id: str, video: Video) -> None:
        """What retention keeps is its own affair."""


class Small(Direct):
    """Bytes with the creation, in one request: nothing is quicker, so nothing shows more of what
    is lost with each."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lost: set[tuple[int | None, int]] = set()
        """The receiver's process, and how many connections were cut before, at answers lost."""

    def called(self, video: Video) -> str:
        return f"small-{video.number}"

    def bring(self, video: Video) -> tuple[str, str]:
        described = {"Upload-Length": str(video.size), "Upload-Offset": "0"}
        described["Upload-Metadata"] = metadata(videoId=self.called(video))
        url = f"{self.scene.wire.url}/api/v1/uploads"
        data = video.piece(0, video.size)
        self._lost.clear()
        answer = self.keep_on(lambda: self._all_at_once(url, data, VERSION | OFFSET | described))
        if answer.status != 201:
            raise Over
        found = self.keep_on(lambda: self.listed(video))
        return found["backupId"], found["sha256"]

    def _all_at_once(self, url: str, data: bytes, headers: dict[str, str]) -> Answer:
        process, cuts = self.scene.receiver.process, self.scene.wire.cuts
        try:
            answer = call("POST", url, data, headers)
        except CUT:
            self._lost.add((None if process is None else process.pid, cuts))
            raise
        if answer.status in (409, 429, 503):
            raise Again(answer)
        return answer

    def listed(self, video: Video) -> Any:
        """One of its copies, and the only one from now on.

        Whoever lost the answer to a creation with all its bytes cannot know whether it is stored,
        and sends it again: a copy for each end of a process or a connection that took an answer
        with it, never one more.
        """
        first, *others = self.copies(video) or [None]
        assert first is not None, "a direct upload that was acknowledged is not there"
        assert len(others) <= len(self._lost), f"{len(others)} more copies, lost: {self._lost}"
        for one in others:
            self._deleted(f"/api/v1/backups/{one['backupId']}?now=true")
        return first


class _Nuisance(Client):
    """Does something that leaves nothing to be kept."""

    def bring(self, video: Video) -> tuple[str, str]:
        raise NotImplementedError

    def _bring_home(self, video: Video) -> None:
        self.scene.counts["begun"] += 1
        self.keep_on(lambda: self.annoy(video))
        del self.scene.videos[video.number]
        # Without any rest they would fill the line faster than it can run out.
        self.scene.ending.wait(self.chance.uniform(0, 2 * REST))

    def annoy(self, video: Video) -> None:
        raise NotImplementedError


class Leaves(_Nuisance):
    """Begins an upload and never comes back: leases and requests run out."""

    def annoy(self, video: Video) -> None:
        described = {"Upload-Length": str(video.size + 1)}
        described["Upload-Metadata"] = metadata(videoId=f"left-{video.number}")
        url = f"{self.scene.wire.url}/api/v1/uploads"
        answer = call("POST", url, b"", VERSION | described)
        if answer.status != 201:
            raise Again(answer)
        if self.chance.random() < 0.7:
            location: str = answer.headers["Location"]
            where = location if "://" in location else self.scene.wire.url + location
            kind = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
            path = "/" + where.split("/", 3)[3]
            lines = {"Host": self.scene.wire.host, "Content-Length": str(video.size + 1)}
            head = "".join(f"{k}: {v}\r\n" for k, v in (lines | VERSION | kind).items())
            with socket.create_connection(("127.0.0.1", self.scene.wire.port), 10) as connection:
                connection.sendall(f"PATCH {path} HTTP/1.1\r\n{head}\r\n".encode())
                connection.sendall(video.piece(0, min(video.size, MIB)))
            self.scene.wire.forget(where)


class Takes(_Nuisance):
    """Asks, and takes it back: by its operator, by its sender, or by never answering."""

    def __init__(self, scene: Scene, chance: random.Random, size: Callable[..., int]) -> None:
        super().__init__(scene, chance, size)
        self.door = PlainSender()

    def annoy(self, video: Video) -> None:
        kind = self.chance.randrange(3)
        self.door.answers_with = 503 if kind == 0 else 200
        answer = self.door.ask(self.scene.wire.url, video.number, video.size)
        if answer.status != 200 or not answer.json["success"]:
            raise Again(answer)
        if kind == 1:
            path = f"/api/v1/backup/requests/{answer.json['requestId']}"
            ended = self.scene.receiver.call("DELETE", path, operator=True)
            assert ended.status in (200, 409, 410, 503), ended.body
        elif kind == 2:
            links = self.door.notice(video.number, 5.0)
            done = call("POST", links[COMPLETE], {"videoId": video.number, "success": False})
            assert done.status in (200, 410, 503), done.body


class Refuses(_Nuisance):
    """Our sender has a peer that refuses, one that is not there, and one that wants it at last."""

    def __init__(self, scene: Scene, chance: random.Random, size: Callable[..., int]) -> None:
        super().__init__(scene, chance, size)
        self.receiver = PlainReceiver()
        self.nobody = f"http://localhost:{free_port()}"

    def annoy(self, video: Video) -> None:
        path = self.scene.folder / f"refused-{video.number}.mp4"
        video.write(path)
        self.receiver.received.clear()
        self.receiver.refusals = self.chance.randrange(2)
        to = self.chance.choice([self.nobody, self.receiver.url])
        message = {"to": to, "path": str(path), "videoId": video.number}
        answer = self.scene.sender.call("POST", "/api/v1/outbox", message, operator=True)
        if answer.status != 201:
            raise Again(answer)
        self.scene.ending.wait(self.chance.uniform(0, 2))
        entry = f"/api/v1/outbox/{answer.json['entry']['entryId']}"
        self.keep_on(lambda: self._cancelled(entry))
        path.unlink()

    def _cancelled(self, entry: str) -> None:
        answer = self.scene.sender.call("DELETE", entry, operator=True)
        if answer.status not in (200, 409):
            raise Again(answer)


class Looks(_Nuisance):
    """Lists, pages, restores in pieces, and has things read again."""

    def annoy(self, video: Video) -> None:
        receiver, sender = self.scene.receiver, self.scene.sender
        for path in ("/", "/metrics", "/openapi.json", "/api/v1/scrub", "/api/v1/nothing"):
            receiver.call("GET", path)
        for path in ("/api/v1/backups?trash=true", "/api/v1/audit", "/api/v1/peers"):
            receiver.call("GET", path, operator=True)
        sender.call("GET", "/api/v1/outbox?state=over&limit=50", operator=True)
        receiver.call("GET", "/api/v1/backup/requests?limit=50")
        receiver.call("POST", "/api/v1/backup/can-accept-backup", b"{", octets)
        for one in receiver.call("GET", "/api/v1/backups?limit=20").json.get("backups", []):
            path = f"/api/v1/backups/{one['backupId']}"
            kind = self.chance.randrange(4)
            if kind == 0:
                receiver.call("GET", f"{path}/content", headers={"Range": "bytes=0-99,200-299"})
            elif kind == 1:
                receiver.call("POST", f"{path}/verify", operator=True)
            elif kind == 2:
                self._hang_up_early(f"{path}/content")

    def _hang_up_early(self, path: str) -> None:
        with socket.create_connection(("127.0.0.1", self.scene.receiver.port), 10) as connection:
            head = f"GET {path} HTTP/1.1\r\nHost: localhost:{self.scene.receiver.port}\r\n\r\n"
            connection.sendall(head.encode())
            connection.recv(1000)
