"""Sending windows of a file on a plain TCP connection, without making their bytes Python's.

A `Window` goes out when the connection is ready to be written to, as everything else does: in the
transport's ``doWrite``, which is replaced for that time. What was written to the transport before
leaves first, what is written meanwhile leaves after it, and a connection that is closed or cut
takes no more of it. This is the only file that stands on a transport's inner hooks.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.tcp import Connection

from backupd.interfaces import Window

__all__ = ["send_window", "takes_windows"]

TURN = 2 * 1024 * 1024
"""At most so many bytes leave in one turn of the reactor, so that others have theirs."""


def takes_windows(transport: object) -> bool:
    """Whether it is a plain connection of the reactor's: no TLS, no proxy's wrapper."""
    return isinstance(transport, Connection) and not transport.TLS


def send_window(
    transport: Any, window: Window, offset: int, progress: Callable[[int], object]
) -> Deferred[int]:
    """Send ``window``, which begins at ``offset`` of its file; one at a time on a transport.

    Fires with how many bytes have left: fewer than the window has when `os.sendfile` gets no more
    of the file, be it that it has become shorter, or cannot be read or sent like that.
    ``progress`` is called with how many whenever some have. When the connection is lost it does
    not fire: cancel it then, and the transport is as it was.
    """
    sending = _Sending(transport, window, offset, progress)
    sending.begin()
    return sending.done


class _Sending:
    def __init__(
        self, transport: Any, window: Window, offset: int, progress: Callable[[int], object]
    ) -> None:
        self.done: Deferred[int] = Deferred(lambda _: self._restore())
        self._transport = transport
        self._window = window
        self._offset = offset
        self._progress = progress
        self._sent = 0
        self._alone = False
        self._hook = self._do_write  # one object, to know it again

    def begin(self) -> None:
        # A transport that is being aborted has a hook of its own, and takes nothing more.
        if "doWrite" not in vars(self._transport):
            self._transport.doWrite = self._hook
            self._transport.startWriting()

    def _do_write(self) -> Any:
        """The connection takes bytes; what is returned is for the reactor."""
        if not self._alone:
            if self._buffered():
                result = type(self._transport).doWrite(self._transport)
                if result is not None or self._buffered():
                    return result
                self._transport.startWriting()
            # What is written from here on has to wait.
            self._alone = True
        try:
            moved = self._some()
        except BlockingIOError:
            return None
        except OSError as error:
            return None if error.errno == errno.ENOBUFS else CONNECTION_LOST
        self._sent += moved
        if moved:
            self._progress(moved)
        if moved == 0 or self._sent == self._window.length:
            self._restore()
            self.done.callback(self._sent)
        return None

    def _some(self) -> int:
        """Send what the connection takes at once; 0 when there is no more. Raises `OSError`."""
        window, socket, at = self._window, self._transport.socket, self._sent
        count = min(TURN, window.length - at)
        if window.data is not None:
            return int(socket.send(window.data[at : at + count]))
        try:
            return os.sendfile(socket.fileno(), window.descriptor, self._offset + at, count)
        except BlockingIOError:
            raise
        except OSError:
            # Whether that was the file's fault or the connection's will show when the bytes are
            # read and sent instead.
            return 0

    def _buffered(self) -> bool:
        return bool(self._transport.dataBuffer or self._transport._tempDataLen)

    def _restore(self) -> None:
        """Let the transport write as usual."""
        transport = self._transport
        if vars(transport).get("doWrite") is self._hook:
            del transport.doWrite
            if not (self._buffered() or transport.disconnecting):
                transport.stopWriting()
