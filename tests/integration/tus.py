"""tus 1.0.0 by hand: requests as the published text has them, header by header."""

from __future__ import annotations

import base64
import hashlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.integration.contract import path_of
from tests.integration.daemons import Answer, Daemon, call
from tests.integration.plain import PlainSender

__all__ = ["OFFSET", "VERSION", "Tus", "checksum", "direct", "metadata", "on_link"]

VERSION = {"Tus-Resumable": "1.0.0"}
OFFSET = {"Content-Type": "application/offset+octet-stream"}


def metadata(**pairs: str) -> str:
    """An Upload-Metadata header."""
    return ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items()
    )


def checksum(algorithm: str, data: bytes) -> str:
    """An Upload-Checksum header."""
    digest = hashlib.new(algorithm, data).digest()
    return f"{algorithm} {base64.b64encode(digest).decode()}"


@dataclass
class Tus:
    """A place where uploads are created, and ``kept`` that gives back what was stored there.

    ``described`` is what a creation there has to say beside its length.
    """

    daemon: Daemon
    url: str
    described: str
    kept: Callable[[], bytes]
    size: int
    names: dict[str, str] = field(default_factory=dict)

    def ask(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **more: str,
    ) -> Answer:
        """A request with Tus-Resumable; ``more`` are headers with underscores in their names."""
        named = {name.replace("_", "-"): value for name, value in more.items()}
        return call(method, self.whole(url), body, VERSION | dict(headers or {}) | named)

    def whole(self, url: str) -> str:
        """A Location may be relative."""
        return url if "://" in url else f"{self.daemon.url}{url}"

    def post(self, body: bytes = b"", **headers: str) -> Answer:
        """A creation."""
        said = {"Upload-Metadata": self.described} if self.described else {}
        if body:
            said |= OFFSET
        return self.ask("POST", self.url, body, said, **headers)

    def create(self, length: int, **headers: str) -> str:
        """The URL of a new upload."""
        answer = self.post(b"", Upload_Length=str(length), **headers)
        assert answer.status == 201, (answer.status, answer.body)
        return self.whole(answer.headers["Location"])

    def part(self, data: bytes) -> str:
        """A whole partial upload."""
        answer = self.ask(
            "POST", self.url, b"", Upload_Length=str(len(data)), Upload_Concat="partial"
        )
        assert answer.status == 201, (answer.status, answer.body)
        url = self.whole(answer.headers["Location"])
        if data:
            assert self.patch(url, 0, data).status == 204
        return url

    def patch(self, url: str, offset: int, data: bytes, **headers: str) -> Answer:
        return self.ask("PATCH", url, data, OFFSET | {"Upload-Offset": str(offset)}, **headers)

    def head(self, url: str) -> Answer:
        return self.ask("HEAD", url)

    def offset(self, url: str) -> int:
        answer = self.head(url)
        assert answer.status == 200, answer.status
        return int(answer.headers["Upload-Offset"])

    def raw(self, method: str, url: str, *lines: str) -> bytes:
        """The head of a request, to be sent by hand."""
        own = [f"Host: localhost:{self.daemon.port}", "Tus-Resumable: 1.0.0", *lines]
        return "\r\n".join([f"{method} {path_of(self.whole(url))} HTTP/1.1", *own, "", ""]).encode()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.daemon.port), 20)


def direct(daemon: Daemon, video: object, size: int) -> Tus:
    """Direct uploads: the end of the upload stores it."""

    def kept() -> bytes:
        (backup,) = [one for one in daemon.backups() if one["videoId"] == str(video)]
        return call("GET", backup["contentUrl"]).body

    url = f"{daemon.url}/api/v1/uploads"
    return Tus(daemon, url, metadata(videoId=str(video)), kept, size)


def on_link(daemon: Daemon, sender: PlainSender, video: object, size: int) -> Tus:
    """Uploads on an offer's link: complete-backup stores."""
    send, complete = sender.turn(daemon.url, video, size)

    def kept() -> bytes:
        done = call("POST", complete, {"videoId": video, "success": True})
        assert done.status == 200, done.body
        return call("GET", done.json["contentUrl"]).body

    return Tus(daemon, send, "", kept, size)
