"""A door between two servers that closes after so many bytes."""

from __future__ import annotations

import contextlib
import socket
import threading

__all__ = ["Gate"]


class Gate:
    """Passes connections on to ``port``; after ``allowed`` bytes of what clients say it holds.

    ``held`` is set then, and everything goes on once `open` is called.
    """

    def __init__(self, port: int, allowed: int) -> None:
        self._target = port
        self._left = allowed
        self._lock = threading.Lock()
        self._open = threading.Event()
        self.held = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def open(self) -> None:
        """Let everything through from now on."""
        self._open.set()

    def close(self) -> None:
        self.open()
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), 10)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for pump in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=pump, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(16384):
                if counted:
                    self._pass(len(data))
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _pass(self, count: int) -> None:
        with self._lock:
            self._left -= count
            closed = self._left < 0
        if closed and not self._open.is_set():
            self.held.set()
            self._open.wait(60)
