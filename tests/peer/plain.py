"""A server of a few lines over a raw socket, in a thread; it knows nothing of ours."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["Connection", "Plain", "answer"]


def answer(status: str, body: bytes = b"", *more: str) -> bytes:
    """An HTTP answer."""
    head = [
        f"HTTP/1.1 {status}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *more,
        "",
        "",
    ]
    return "\r\n".join(head).encode() + body


class Connection:
    """One request as it comes in."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._file = sock.makefile("rb")
        self.line = self._file.readline().decode().strip()
        self.headers: dict[str, str] = {}
        while text := self._file.readline().decode().strip():
            name, _, value = text.partition(":")
            self.headers[name.lower()] = value.strip()

    def read(self, length: int | None = None) -> bytes:
        """So many bytes of the body; all of it without ``length``."""
        if length is None:
            length = int(self.headers.get("content-length", 0))
        return self._file.read(length)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)


class Plain:
    """Serves one connection after the other by ``serve``, until the block ends."""

    def __init__(
        self, serve: Callable[[Connection], object], tls: ssl.SSLContext | None = None
    ) -> None:
        self.lines: list[str] = []
        self._serve = serve
        self._tls = tls
        self._stopping = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            sock, _ = self._listening.accept()
            if self._stopping:
                sock.close()
                return
            # What is no TLS, or no text, is nothing to be served.
            with (
                sock,
                contextlib.suppress(OSError, UnicodeDecodeError),
                self._encrypted(sock) as safe,
                Connection(safe) as connection,
            ):
                self.lines.append(connection.line)
                self._serve(connection)

    def _encrypted(self, sock: socket.socket) -> socket.socket:
        if self._tls is None:
            return sock
        sock.settimeout(10)
        return self._tls.wrap_socket(sock, server_side=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping = True
        with socket.create_connection(self._listening.getsockname()):
            self._thread.join()
        self._listening.close()
