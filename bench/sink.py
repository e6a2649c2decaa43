"""Takes what curl uploads and forgets it: how fast loopback is.

Started as ``python -m bench.sink PORT``.
"""

from __future__ import annotations

import re
import socket
import sys

_PIECE = 1024 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)


def _take(connection: socket.socket) -> None:
    buffer = bytearray(_PIECE)
    head = b""
    while b"\r\n\r\n" not in head:
        if not (data := connection.recv(4096)):
            return
        head += data
    head, _, body = head.partition(b"\r\n\r\n")
    length = _LENGTH.search(head + b"\r\n")
    left = (int(length[1]) if length else 0) - len(body)
    while left > 0:
        if not (count := connection.recv_into(buffer)):
            return
        left -= count
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def main(port: int) -> None:
    """Serve one client after the other, until killed."""
    with socket.create_server(("127.0.0.1", port)) as listening:
        while True:
            connection, _ = listening.accept()
            with connection:
                _take(connection)


if __name__ == "__main__":
    main(int(sys.argv[1]))
