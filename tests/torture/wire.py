"""A door between senders and the receiver that reads along: what was acknowledged, and resent."""

from __future__ import annotations

import re
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from tests.integration.cutter import Cutter

__all__ = ["Wire"]

HEAD = re.compile(
    rb"(PATCH|HEAD|POST|PUT) (?:http://[^/ ]+)?"
    rb"(/api/v1/(?:backup/receive-backup|uploads)/[^ ?]+)[^ ]* HTTP/1\.1\r\n"
)
LINK = re.compile("/api/v1/(?:backup/receive-backup|uploads)/[^/]+")
OFFSET = re.compile(rb"\r\nupload-offset: *([0-9]+)\r\n", re.IGNORECASE)
STATUS = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) ")
CREATES = re.compile(rb"\r\n(?:tus-resumable|upload-length|content-type: *application/json)", re.I)
GONE = (b"403", b"404", b"410")
"""The statuses that say that an upload is not there, or not any more."""
LONGEST = 64 * 1024
"""Bytes that the head of a message may have."""


@dataclass
class _Upload:
    """The bytes of one upload, as the daemon was told and tells."""

    acknowledged: int = 0
    sent: int = 0
    """Where the bytes end that were passed on to the daemon since it last named an offset."""
    begun: int = 0
    """How often it was begun anew."""


@dataclass
class _Exchange:
    """One request, and its answer so far."""

    head: bytes = b""
    back: bytes = b""
    path: str = ""
    at: int | None = None
    """Where in the upload the next byte of its body lies; None when it has no such body."""
    whole: bool = False
    """It begins the upload anew."""
    floor: int = 0
    """What had been acknowledged when it was asked: no answer may fall behind that."""
    begun: int = 0
    answered: bool = False


@dataclass
class Wire(Cutter):
    """`wrong` tells where an offset went back; `resent` has the bytes of every resumption.

    It understands the first request of each connection; its clients make no second one.
    """

    acknowledged: int = 0
    """Bytes, of all uploads together."""
    resent: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reading = threading.Lock()
        self._uploads: dict[str, _Upload] = {}
        self._gone: Counter[str] = Counter()
        """Bytes of uploads that are gone, by their link: whoever begins anew there sends these."""
        self._exchanges: WeakKeyDictionary[socket.socket, _Exchange] = WeakKeyDictionary()
        super().__init__()

    def offsets(self) -> dict[str, int]:
        """What was acknowledged of each upload, by its path."""
        with self._reading:
            return {
                path: upload.acknowledged
                for path, upload in self._uploads.items()
                if upload.acknowledged
            }

    def forget(self, url: str) -> None:
        """Nobody sends to this link, or to an upload below it, any more."""
        path = "/" + url.split("/", 3)[3]
        with self._reading:
            for one in [one for one in self._uploads if one.startswith(path)]:
                del self._uploads[one]
            self._gone.pop(_link_of(path), None)

    # -- what passes by ---------------------------------------------------------------------------

    def said(self, client: socket.socket, data: bytes) -> None:
        with self._reading:
            exchange = self._exchanges.setdefault(client, _Exchange())
            if exchange.path:
                self._body(exchange, len(data))
                return
            if b"\r\n\r\n" in exchange.head or len(exchange.head) > LONGEST:
                return
            exchange.head += data
            if b"\r\n\r\n" in exchange.head:
                self._begin(exchange)

    def _begin(self, exchange: _Exchange) -> None:
        head, _, body = exchange.head.partition(b"\r\n\r\n")
        head += b"\r\n"
        asked = HEAD.match(head)
        if asked is None:
            return
        method, path = asked[1], asked[2].decode()
        if method in (b"POST", b"PUT"):
            if CREATES.search(head):
                return
            exchange.at, exchange.whole = 0, True
        elif method == b"PATCH":
            offset = OFFSET.search(head)
            exchange.at = int(offset[1]) if offset else None
        exchange.path = path
        upload = self._uploads.setdefault(path, _Upload())
        if exchange.at is not None:
            again = max(0, upload.sent - exchange.at) + self._gone.pop(_link_of(path), 0)
            if again:
                self.resent.append(again)
            upload.sent = exchange.at
            if exchange.whole:
                upload.acknowledged = 0
                upload.begun += 1
        exchange.floor, exchange.begun = upload.acknowledged, upload.begun
        self._body(exchange, len(body))

    def _body(self, exchange: _Exchange, count: int) -> None:
        if exchange.at is not None and not exchange.answered:
            exchange.at += count
            upload = self._uploads.get(exchange.path)
            if upload is not None:
                upload.sent = max(upload.sent, exchange.at)

    def answered(self, client: socket.socket, data: bytes) -> None:
        with self._reading:
            exchange = self._exchanges.get(client)
            if exchange is None or not exchange.path or exchange.answered:
                return
            exchange.back += data
            while exchange.back.startswith(b"HTTP/1.1 1") and b"\r\n\r\n" in exchange.back:
                exchange.back = exchange.back.partition(b"\r\n\r\n")[2]
            if b"\r\n\r\n" in exchange.back:
                exchange.answered = True
                head = exchange.back.partition(b"\r\n\r\n")[0] + b"\r\n"
                self._end(exchange, head)

    def _end(self, exchange: _Exchange, head: bytes) -> None:
        upload, status = self._uploads.get(exchange.path), STATUS.match(head)
        if upload is None or status is None or upload.begun != exchange.begun:
            return
        if status[1] in GONE:
            self._gone[_link_of(exchange.path)] += upload.sent
            upload.sent = 0
            return
        offset = OFFSET.search(head)
        if offset is not None:
            now = int(offset[1])
        elif exchange.whole and status[1] == b"200":
            now = exchange.at or 0
        else:
            return
        if now < exchange.floor:
            method = exchange.head.partition(b" ")[0].decode()
            self.wrong.append(
                f"{method} {exchange.path}: {exchange.floor} bytes were acknowledged, "
                f"and now it is at {now}"
            )
        self.acknowledged += max(0, now - upload.acknowledged)
        upload.acknowledged = max(upload.acknowledged, now)


def _link_of(path: str) -> str:
    """The link that an upload was made at: the path up to the capability."""
    found = LINK.match(path)
    return path if found is None else found[0]
