"""A strict tus 1.0.0 server in memory: it takes nothing that the standard does not allow."""

from __future__ import annotations

import re
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["Serving", "Told", "TusServer", "Upload"]

EXTENSIONS = "creation,concatenation,termination,expiration"
Read = Callable[[int], bytes]


@dataclass
class Upload:
    """One upload, whole, part or joined."""

    length: int
    metadata: dict[str, str]
    partial: bool = False
    data: bytearray = field(default_factory=bytearray)
    most_at_once: int = 0


@dataclass(frozen=True)
class Told:
    """An answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class TusServer:
    """Uploads are made at ``link``; `refuse` lets a test stand in the way.

    `seen` are the requests: method, path, and the offset or what else distinguishes them.
    """

    def __init__(self, link: str = "/receive", extensions: str = EXTENSIONS) -> None:
        self.link = link
        self.extensions = extensions
        self.uploads: dict[str, Upload] = {}
        self.made = 0
        self.seen: list[tuple[str, str, str]] = []
        self.received = 0
        self.most_body: int | None = None
        self.refuse: Callable[[str, str, Mapping[str, str]], Told | None] = lambda *_: None
        self.lock = threading.Lock()

    # -- what a test asks -------------------------------------------------------------------------

    @property
    def whole(self) -> Upload:
        """The newest upload that is no part."""
        return [one for one in self.uploads.values() if not one.partial][-1]

    def methods(self) -> list[str]:
        return [method for method, _, _ in self.seen]

    # -- the standard -----------------------------------------------------------------------------

    def answer(self, method: str, path: str, headers: Mapping[str, str], read: Read) -> Told:
        """What one request comes to; ``headers`` by small names."""
        with self.lock:
            what = headers.get("upload-offset") or headers.get("upload-concat", "")
            self.seen.append((method, path, what))
            refusal = self.refuse(method, path, headers)
            if refusal is not None:
                return refusal
            if method == "OPTIONS":
                told = {"Tus-Version": "1.0.0,0.2.2", "Tus-Extension": self.extensions}
                return Told(204, {"Tus-Resumable": "1.0.0"} | told)
            if headers.get("tus-resumable") != "1.0.0":
                return Told(412, {"Tus-Version": "1.0.0"})
            if method == "POST" and path == self.link:
                return self._create(headers)
            if path not in self.uploads:
                return Told(404)
            upload = self.uploads[path]
            if method == "HEAD":
                return Told(200, self._stands(upload) | {"Cache-Control": "no-store"})
        if method != "PATCH":
            return Told(405)
        return self._patch(upload, headers, read)

    def _stands(self, upload: Upload) -> dict[str, str]:
        told = {"Upload-Offset": str(len(upload.data)), "Upload-Length": str(upload.length)}
        return {"Tus-Resumable": "1.0.0"} | told

    def _create(self, headers: Mapping[str, str]) -> Told:
        concat = headers.get("upload-concat", "")
        metadata = {}
        for pair in filter(None, headers.get("upload-metadata", "").split(",")):
            key, _, value = pair.partition(" ")
            metadata[key] = b64decode(value, validate=True).decode()
        length = headers.get("upload-length")
        if concat.startswith("final;"):
            if length is not None:
                return Told(400)
            paths = [urlsplit(url).path for url in concat.removeprefix("final;").split(" ")]
            parts = [self.uploads.get(path) for path in paths]
            if any(one is None or len(one.data) != one.length for one in parts):
                return Told(400)
            data = bytearray(b"".join(one.data for one in parts if one is not None))
            upload = Upload(len(data), metadata, data=data)
            for path in paths:
                del self.uploads[path]
        elif not re.fullmatch("[0-9]+", length or "") or concat not in self._kinds():
            return Told(400)
        else:
            upload = Upload(int(str(length)), metadata, partial=concat == "partial")
        self.made += 1
        path = f"{self.link}/{self.made}"
        self.uploads[path] = upload
        return Told(201, {"Location": path, "Tus-Resumable": "1.0.0"})

    def _kinds(self) -> tuple[str, ...]:
        return ("", "partial") if "concatenation" in self.extensions else ("",)

    def _patch(self, upload: Upload, headers: Mapping[str, str], read: Read) -> Told:
        if headers.get("content-type") != "application/offset+octet-stream":
            return Told(415)
        length = int(headers["content-length"])
        if self.most_body is not None and length > self.most_body:
            return Told(413)  # as a proxy says it, who knows nothing of tus
        if headers.get("upload-offset") != str(len(upload.data)):
            return Told(409, self._stands(upload))
        if len(upload.data) + length > upload.length:
            return Told(413, self._stands(upload))
        upload.most_at_once = max(upload.most_at_once, length)
        while length and (data := read(min(length, 65536))):
            upload.data += data
            length -= len(data)
            with self.lock:
                self.received += len(data)
        return Told(204, self._stands(upload))


class Serving:
    """A `TusServer`, and ``more`` for what is not its own, on a socket; a thread a connection."""

    def __init__(self, server: TusServer, more: Callable[[str, str, bytes], bytes]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                if self.path.startswith(server.link):
                    told = server.answer(self.command, self.path, headers, self.rfile.read)
                else:
                    body = self.rfile.read(int(headers.get("content-length", 0)))
                    told = Told(200, {}, more(self.command, self.path, body))
                self.send_response(told.status)
                for name, value in told.headers.items():
                    self.send_header(name, value)
                if told.status != 204:
                    self.send_header("Content-Length", str(len(told.body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(told.body)

            def log_message(self, *_: Any) -> None: ...

        for method in ("OPTIONS", "POST", "HEAD", "PATCH", "GET"):
            setattr(Handler, f"do_{method}", Handler.handle_any)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
