"""The two servers of the original system, written without a line of ours."""

from __future__ import annotations

import base64
import hashlib
import json
import queue
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.integration.daemons import Answer, call

__all__ = ["Listener", "PlainReceiver", "PlainSender", "octets"]

octets = {"Content-Type": "application/octet-stream"}
LINK = "linkForServerAtoNoticeServerBWhenServerAIsReady"
SEND = "linkForServerBtoSendBackupToSeverA"
COMPLETE = "linkForServerBtoCompleteBackupToSeverA"


class _Quiet(ThreadingHTTPServer):
    """A client that is gone is nothing to write about."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Server:
    """An HTTP server in a thread of its own; ``answer`` gets path and body."""

    def __init__(self) -> None:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                status, answer = owner.answer(self.path, self._body())
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_PUT = _serve  # noqa: N815

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def log_message(self, *_: object) -> None:
                pass

        self.server = _Quiet(("127.0.0.1", 0), Handler)
        self.port: int = self.server.server_address[1]
        self.url = f"http://localhost:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=[0.05], daemon=True).start()

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()


class PlainSender(_Server):
    """Server B: asks, is called back, and sends when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.answers_with = 200
        self.asked: list[str] = []
        self.notices: queue.Queue[Any] = queue.Queue()
        self._kept: dict[str, Any] = {}
        self._lock = threading.Lock()

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path.endswith("can-accept-backup"):
            # Ours asks a server that is no receiver; what it was given is a secret all the same.
            self.asked.append(json.loads(body)[LINK])
            return 200, {"success": False, "message": "This is no receiver"}
        if self.answers_with < 300:
            self.notices.put(json.loads(body))
        return self.answers_with, {"success": True}

    def ask(self, receiver: str, video: object, size: object, **more: object) -> Answer:
        body = {"videoId": video, "diskEmptySpaceRequire": size, LINK: f"{self.url}/ready"}
        return call("POST", f"{receiver}/api/v1/backup/can-accept-backup", body | more)

    def notice(self, video: object, seconds: float = 15.0) -> Any:
        """The offer for this video, when it comes."""
        with self._lock:
            while str(video) not in self._kept:
                notice = self.notices.get(timeout=seconds)
                self._kept[str(notice["videoId"])] = notice
            return self._kept.pop(str(video))

    def turn(self, receiver: str, video: object, size: object, **more: object) -> tuple[str, str]:
        """Ask, wait for the turn; the links to send to and to complete at."""
        answer = self.ask(receiver, video, size, **more).json
        assert answer["success"], answer
        notice = self.notice(video)
        return notice[SEND], notice[COMPLETE]

    def back_up(self, receiver: str, video: object, data: bytes, **more: object) -> Any:
        """The whole walk; the answer to complete-backup."""
        send, complete = self.turn(receiver, video, len(data), **more)
        assert call("POST", send, data, octets).status == 200
        done = call("POST", complete, {"videoId": video, "success": True})
        assert done.status == 200, done.body
        return done.json


class PlainReceiver(_Server):
    """Server A as the original had it: no digest in its answers, unless ``digest`` makes one."""

    def __init__(self, digest: Callable[[bytes], str] | None = None) -> None:
        super().__init__()
        self.digest = digest
        self.received: dict[str, bytes] = {}
        self.completed: list[Any] = []
        self.asks: list[Any] = []
        self.refusals = 0
        self.calls_back = True

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        what, _, video = path.removeprefix("/api/v1/backup/").partition("/")
        if what == "can-accept-backup":
            return 200, self._asked(json.loads(body))
        if what == "receive-backup":
            self.received[video] = body
            return 200, {"success": True, "message": "received"}
        if what == "complete-backup":
            self.completed.append(json.loads(body))
            answer = {"success": True, "message": "Backup completed"}
            if self.digest is not None:
                kept = self.received[video]
                answer |= {"sha256": self.digest(kept), "size": len(kept)}
            return 200, answer
        return 404, {"success": False}

    def _asked(self, message: Any) -> Any:
        self.asks.append(message)
        if self.refusals:
            self.refusals -= 1
            return {"success": False, "message": "no room", "availableSpace": "0 B"}
        name = base64.urlsafe_b64encode(str(message["videoId"]).encode()).decode()
        base = f"{self.url}/api/v1/backup"
        notice = {
            "videoId": message["videoId"],
            SEND: f"{base}/receive-backup/{name}",
            COMPLETE: f"{base}/complete-backup/{name}",
        }
        if self.calls_back:
            threading.Timer(0.1, call, ["POST", message[LINK], notice]).start()
        return {"success": True, "message": "Server A can accept backup", "availableSpace": "9 GB"}

    def video(self, video: object) -> bytes:
        return self.received[base64.urlsafe_b64encode(str(video).encode()).decode()]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Listener:
    """Counts connections, and answers none."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://localhost:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._socket.close()
