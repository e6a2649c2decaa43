"""A client that costs little and needs no file: sends so many bytes to each link, in turn.

Run in a process of its own: ``python -m bench.pour SIZE LINK ...`` prints the seconds that all
took, from the first connection to the last answer.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

__all__ = ["pour"]

_PIECE = 64 * 1024**2


def pour(size: int, links: Sequence[str]) -> float:
    """Send ``size`` bytes to each; the seconds. Raises `RuntimeError` if one is not taken."""
    memory = os.memfd_create("bench")
    os.write(memory, os.urandom(min(size, _PIECE)))
    begun = time.perf_counter()
    for link in links:
        _send(memory, size, link)
    return time.perf_counter() - begun


def _send(memory: int, size: int, link: str) -> None:
    parts = urlsplit(link)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", parts.port or 80)) as connection:
        connection.sendall(head.encode())
        left = size
        while left:
            at = (size - left) % _PIECE
            left -= os.sendfile(connection.fileno(), memory, at, min(left, _PIECE - at))
        said = b""
        while data := connection.recv(65536):
            said += data
    head_said, _, body = said.partition(b"\r\n\r\n")
    if b" 200 " not in head_said.splitlines()[0] or json.loads(body)["size"] != size:
        raise RuntimeError(f"the upload failed: {said[:500]!r}")


if __name__ == "__main__":
    print(pour(int(sys.argv[1]), sys.argv[2:]))
