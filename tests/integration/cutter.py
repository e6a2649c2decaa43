"""A door between clients and a daemon that counts, cuts, and loses answers, when it is told to."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

__all__ = ["Cutter"]

PIECE = 65536
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER by which a close is a reset: what a network that breaks looks like."""


class Cutter:
    """Passes connections on to the daemon at `target`; ``sent`` counts what clients said.

    A cut is a reset, unless it is not to be ``abruptly``.
    """

    def __init__(self) -> None:
        self.target = 0
        self.sent = 0
        self.cuts = 0
        self.abruptly = True
        self._at: list[tuple[int, Callable[[], object] | None]] = []
        self._losing: bytes | None = None
        self._lock = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.host = f"localhost:{self.port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_at(self, *totals: int) -> None:
        """Cut the connection at which clients will have said so many bytes in all."""
        with self._lock:
            self._at = sorted([*self._at, *((total, None) for total in totals)], key=_total)

    def call_at(self, total: int, action: Callable[[], object]) -> None:
        """Call ``action`` then, while that connection waits; then cut it."""
        with self._lock:
            self._at = sorted([*self._at, (total, action)], key=_total)

    def lose_answer(self, beginning: bytes) -> None:
        """Cut the next connection on which an answer with this in it comes back."""
        self._losing = beginning

    def close(self) -> None:
        self._server.close()

    def said(self, client: socket.socket, data: bytes) -> None:
        """For those who read along: this is about to be passed on to the daemon."""

    def answered(self, client: socket.socket, data: bytes) -> None:
        """For those who read along: this is about to be passed back."""

    # -- within -----------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target), 10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for pump in (self._from_client, self._from_server):
                threading.Thread(target=pump, args=(client, server), daemon=True).start()

    def _from_client(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(PIECE):
                with self._lock:
                    due = (
                        self._at[0]
                        if self._at and self._at[0][0] <= self.sent + len(data)
                        else None
                    )
                    if due is not None:
                        del self._at[0]
                        data = data[: max(0, due[0] - self.sent)]
                    self.sent += len(data)
                self.said(client, data)
                server.sendall(data)
                if due is not None:
                    if due[1] is not None:
                        due[1]()
                    self._cut(client, server)
                    return
        _end(client, server)

    def _from_server(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(PIECE):
                if self._losing is not None and self._losing in data:
                    self._losing = None
                    self._cut(client, server)
                    return
                self.answered(client, data)
                client.sendall(data)
        _end(client, server)

    def _cut(self, *ends: socket.socket) -> None:
        self.cuts += 1
        for end in ends if self.abruptly else ():
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        _end(*ends)


def _total(one: tuple[int, object]) -> int:
    return one[0]


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
