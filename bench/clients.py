"""Clients that only ask ``can-accept-backup``: cheap, so that the server is what is measured.

Run in a process of its own: ``python -m bench.clients PORT CLIENTS COUNT FIRST_VIDEO`` prints, as
JSON, how many were told yes, in how many seconds, and the seconds that each waited.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

_END = b"\r\n\r\n"
# Nothing listens there: an offer is refused at once, and tried again after 5 s, 10 s, 20 s ...
_CALLBACK = "http://127.0.0.1:9/offer"


def _request(port: int, video: int) -> bytes:
    body = json.dumps(
        {
            "videoId": video,
            "diskEmptySpaceRequire": "1 KB",
            "linkForServerAtoNoticeServerBWhenServerAIsReady": _CALLBACK,
        }
    ).encode()
    return (
        b"POST /api/v1/backup/can-accept-backup HTTP/1.1\r\nHost: localhost:%d\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (port, len(body), body)
    )


@dataclass(slots=True)
class _Client:
    """One kept connection, with one question at a time."""

    connection: socket.socket
    asked: float = 0.0
    received: bytes = b""

    def ask(self, request: bytes) -> None:
        self.received = b""
        self.asked = time.perf_counter()
        self.connection.sendall(request)

    def answer(self) -> bytes | None:
        """The answer's body, None while it is not whole."""
        data = self.connection.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.received += data
        head, end, body = self.received.partition(_END)
        if not end:
            return None
        length = int(head.lower().partition(b"content-length:")[2].split(None, 1)[0])
        return body if len(body) >= length else None


def run(port: int, clients: int, count: int, first: int) -> dict[str, object]:
    """Ask ``count`` times by ``clients`` connections, each time for another video."""
    requests: Iterator[bytes] = iter([_request(port, first + n) for n in range(count)])
    waits: list[float] = []
    yes = 0
    with selectors.DefaultSelector() as ready:
        for _ in range(clients):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ready.register(connection, selectors.EVENT_READ, _Client(connection))
        begun = time.perf_counter()
        for key in list(ready.get_map().values()):
            key.data.ask(next(requests))
        while len(waits) < count:
            for key, _ in ready.select():
                client: _Client = key.data
                answer = client.answer()
                if answer is None:
                    continue
                waits.append(time.perf_counter() - client.asked)
                yes += b'"success":true' in answer.replace(b" ", b"")
                request = next(requests, None)
                if request is not None:
                    client.ask(request)
        seconds = time.perf_counter() - begun
        for key in list(ready.get_map().values()):
            key.data.connection.close()
    return {"yes": yes, "seconds": seconds, "waits": sorted(waits)}


if __name__ == "__main__":
    print(json.dumps(run(*map(int, sys.argv[1:]))))
