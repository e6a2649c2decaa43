"""A sender that is only a script: asks a backupd for room, waits for the offers, and lets
``curl`` send the bytes."""

from __future__ import annotations

import http.client
import json
import queue
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

from bench.server import Server

__all__ = ["Asker", "Offer", "complete", "give_up"]


@dataclass(frozen=True, slots=True)
class Offer:
    """It is the turn of ``video``: where its bytes go to, and where its end is told."""

    video: int
    link: str
    complete: str


class Asker:
    """Takes every offer; to be used as a context."""

    def __init__(self) -> None:
        offers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._offers = offers
        self._next = 0
        self._lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                offers.put(json.loads(self.rfile.read(length)))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        class Listening(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 1024

        self._listening = Listening(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._listening.server_port}/offer"

    def __enter__(self) -> Self:
        threading.Thread(target=self._listening.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown()
        self._listening.server_close()

    def offers(self, server: Server, size: int, count: int = 1) -> list[Offer]:
        """Ask for room for so many new videos, and wait until it is the turn of all."""
        with self._lock:  # or two threads would take each other's offers
            for _ in range(count):
                self._next += 1
                _post(
                    server,
                    "/api/v1/backup/can-accept-backup",
                    videoId=self._next,
                    diskEmptySpaceRequire=str(size),
                    linkForServerAtoNoticeServerBWhenServerAIsReady=self.url,
                )
            return [self._wait() for _ in range(count)]

    def _wait(self) -> Offer:
        try:
            offer = self._offers.get(timeout=60)
        except queue.Empty:
            raise RuntimeError("no offer came") from None
        return Offer(
            video=offer["videoId"],
            link=offer["linkForServerBtoSendBackupToSeverA"],
            complete=offer["linkForServerBtoCompleteBackupToSeverA"],
        )


def give_up(server: Server, offer: Offer) -> None:
    """Tell that it failed: what has arrived is deleted."""
    _post(server, urlsplit(offer.complete).path, videoId=offer.video, success=False)


def complete(server: Server, offer: Offer) -> str:
    """Tell that all has been sent; the path of the content that is kept now."""
    answer = _post(server, urlsplit(offer.complete).path, videoId=offer.video, success=True)
    return str(urlsplit(answer["contentUrl"]).path)


def _post(server: Server, path: str, **body: object) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Content-Type": "application/json", "Host": f"localhost:{server.port}"}
    try:
        connection.request("POST", path, json.dumps(body), headers)
        answer = json.load(connection.getresponse())
    finally:
        connection.close()
    if not answer["success"]:
        raise RuntimeError(f"backupd said no: {answer}")
    return answer
