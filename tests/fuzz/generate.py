"""Requests that nobody should send: over every route, from one seed, the same each time."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Conversation", "Generator"]

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get")
NASTY = (
    "", "0", "-1", "+5", "1e3", "0x10", "9" * 30, "2", "null", "NaN", " ", "\t", "a" * 300,
    "..", "../../etc/passwd", "%2e%2e%2f", "%00", "\u00e9", "\u202e", "\ud83c\udfac", "'\"<>&;",
    "true", "[]", "{}", "1;2", "a,b", "=", "video 2", "${jndi:x}", "\x7f", "\r", "\x0b",
)  # fmt: skip
TYPES = (
    "application/json", "application/octet-stream", "application/offset+octet-stream",
    "multipart/form-data; boundary=b", "multipart/form-data", "text/plain", "video/mp4", "",
    "application/json; charset=utf-16", "APPLICATION/JSON", "a" * 200,
    "multipart/form-data; boundary=",
)  # fmt: skip
HEADERS = (
    "Accept", "Accept-Encoding", "Authorization", "Connection", "Content-Digest",
    "Content-Disposition", "Content-Encoding", "Content-Length", "Content-Range", "Content-Type",
    "Cookie", "Expect", "Host", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range",
    "If-Unmodified-Since", "Origin", "Range", "Repr-Digest", "Sec-Fetch-Site", "TE", "Trailer",
    "Transfer-Encoding", "Tus-Resumable", "Upgrade", "Upload-Checksum", "Upload-Concat",
    "Upload-Defer-Length", "Upload-Length", "Upload-Metadata", "Upload-Offset", "Want-Repr-Digest",
    "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-HTTP-Method-Override",
)  # fmt: skip
LIKELY = {
    "Tus-Resumable": ("1.0.0", "0.2.2"),
    "Upload-Length": ("1", "1000", "0", "99999999999999999999"),
    "Upload-Offset": ("0", "1", "5"),
    "Upload-Defer-Length": ("1", "2"),
    "Upload-Concat": ("partial", "final;", "final;/api/v1/uploads/x", "final;a a"),
    "Upload-Metadata": ("videoId Mg==", "videoId", "a b,c d", ",", "filename !!!"),
    "Upload-Checksum": ("sha1 AAAA", "crc32 AAAA", "md5", "sha256 ="),
    "Range": ("bytes=0-0", "bytes=-1", "bytes=5-1", "bytes=0-,1-,2-", "bytes=" + "0-1," * 500),
    "Content-Encoding": ("identity", "gzip", "gzip, br"),
    "Transfer-Encoding": ("chunked", "gzip, chunked", "identity", "chunked, chunked", " chunked"),
    "Content-Digest": ("sha-256=:AAAA:", "sha-256=x", "md5=:AAAA:", "sha-256=:" + "A" * 44 + ":"),
    "Want-Repr-Digest": ("sha-256=1", "sha-512=10", "x"),
    "Expect": ("100-continue", "200-ok"),
    "Connection": ("close", "keep-alive", "upgrade"),
    "X-HTTP-Method-Override": ("PATCH", "DELETE", "HEAD", "TRACE"),
    "If-None-Match": ("*", '"x"', "W/x", '"' + "a" * 5000),
    "Authorization": ("Bearer x", "Basic eDp4", "Bearer", "bearer \u00e9"),
    "Trailer": ("Upload-Checksum", "X"),
    "Sec-Fetch-Site": ("cross-site", "same-origin"),
    "Origin": ("null", "http://evil.example", "http://localhost"),
}  # fmt: skip


UPLOAD = (
    "Upload-Length",
    "Upload-Offset",
    "Upload-Defer-Length",
    "Upload-Concat",
    "Upload-Metadata",
    "Upload-Checksum",
)


@dataclass(frozen=True)
class Conversation:
    """What is said on one connection: bytes in segments.

    ``cut`` ends it without waiting. ``whole`` is a single request whose end everybody agrees on:
    an answer is owed.
    """

    segments: tuple[bytes, ...]
    requests: int
    cut: bool
    whole: bool


class Generator:
    """Makes conversations; ``routes`` are the paths and methods of the OpenAPI document."""

    def __init__(
        self, seed: int, host: str, routes: Mapping[str, Sequence[str]], known: Sequence[str]
    ) -> None:
        self._random = random.Random(seed)
        self._host = host
        self._routes = {path: [one.upper() for one in methods] for path, methods in routes.items()}
        # What only the operator may do ends at the door: it gets a smaller part of the requests.
        self._often = [
            path for path in routes for _ in range(1 if path.startswith("/api/v1/peers") else 4)
        ]
        self._known = list(known)
        self._framed = True

    def conversation(self) -> Conversation:
        """A few requests behind each other, in segments as the network might make them."""
        chance = self._random
        count = chance.choice((1, 1, 1, 1, 2, 4))
        self._framed = True
        data = b"".join(self._request() for _ in range(count))
        cut = chance.random() < 0.1
        if cut:
            data = data[: chance.randrange(len(data) + 1)]
        whole = count == 1 and not cut and self._framed
        return Conversation(tuple(self._segments(data)), count, cut, whole)

    def _segments(self, data: bytes) -> list[bytes]:
        chance = self._random
        if chance.random() < 0.6 or len(data) < 2:
            return [data]
        cuts = sorted(chance.randrange(1, len(data)) for _ in range(chance.randrange(1, 4)))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]

    # -- one request ------------------------------------------------------------------------------

    def _request(self) -> bytes:
        chance = self._random
        if chance.random() < 0.03:
            self._framed = False
            return self._noise()
        if self._known and chance.random() < 0.03:
            return self._fitting()
        body, headers = self._body()
        path = chance.choice(self._often)
        method = chance.choice(self._routes[path] if chance.random() < 0.85 else METHODS)
        lines = [
            f"{method} {self._target(path)} {self._version()}".encode("utf-8", "surrogatepass")
        ]
        if chance.random() < 0.97:
            lines.append(f"Host: {self._host}".encode())
        lines += headers + self._identity()
        if chance.random() < 0.2:
            lines.append(b"Tus-Resumable: 1.0.0")
            for name in chance.sample(UPLOAD, chance.randrange(1, 4)):
                lines.append(f"{name}: {chance.choice(LIKELY[name])}".encode())
        for _ in range(chance.choice((0, 0, 0, 1, 2, 4))):
            lines.append(self._header())
        if chance.random() < 0.01:
            lines += [b"X-%d: y" % n for n in range(chance.choice((50, 600)))]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body

    def _identity(self) -> list[bytes]:
        """Lines that say who asks."""
        return []

    def _fitting(self) -> bytes:
        """What makes sense in itself, and comes at the wrong time."""
        body = b'{"videoId": 2, "success": true}'
        path = f"/api/v1/backup/complete-backup/{self._known[0]}"
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json"
        return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def _version(self) -> str:
        if self._random.random() < 0.95:
            return "HTTP/1.1"
        self._framed = False
        return self._random.choice(("HTTP/1.0", "HTTP/2.0", "HTTP/1.1 x", ""))

    def _noise(self) -> bytes:
        size = self._random.choice((1, 20, 500, 20_000))
        return self._random.randbytes(size) + self._random.choice((b"", b"\r\n\r\n"))

    def _target(self, path: str) -> str:
        chance = self._random
        while "{" in path:
            before, _, rest = path.partition("{")
            name, _, behind = rest.partition("}")
            path = before + self._segment(name) + behind
        if chance.random() < 0.1:
            path = chance.choice(
                (path.upper(), path + "/", "/" + path, path + "/x", "*", path[:-1])
            )
        if chance.random() < 0.3:
            names = ("after", "limit", "peer", "state", "videoId", "x", "")
            path += "?" + "&".join(
                f"{chance.choice(names)}={self._nasty()}" for _ in range(chance.randrange(1, 4))
            )
        return path.replace(" ", "%20") if chance.random() < 0.95 else path

    def _segment(self, name: str) -> str:
        if name == "capability" and self._known and self._random.random() < 0.6:
            return self._known[0]  # the one link that there is: what lies behind it is tried too
        if self._known and self._random.random() < 0.6:
            return self._random.choice(self._known)
        return self._nasty().replace("/", "%2F") or "x"

    def _nasty(self) -> str:
        return self._random.choice(NASTY)

    def _header(self) -> bytes:
        chance = self._random
        name = chance.choice(HEADERS)
        if name in ("Content-Length", "Transfer-Encoding", "Expect", "Upgrade", "Connection"):
            self._framed = False
        value = chance.choice(LIKELY.get(name, NASTY)) if chance.random() < 0.7 else self._nasty()
        line = f"{name}: {value}".encode("utf-8", "surrogatepass")
        if chance.random() < 0.02:
            self._framed = False
            line = chance.choice(
                (line + b"\r\n folded", line.replace(b":", b" :", 1), b": " + line, line + b"\x00")
            )
        return line

    # -- bodies -----------------------------------------------------------------------------------

    def _body(self) -> tuple[bytes, list[bytes]]:
        chance = self._random
        content = chance.choice((self._no_content, self._json, self._json, self._form, self._raw))()
        headers = [b"Content-Type: " + chance.choice(TYPES).encode()] if content else []
        if content.startswith((b"{", b"[")) and chance.random() < 0.8:
            headers = [b"Content-Type: application/json"]
        how = chance.random()
        self._framed = self._framed and how >= 0.26 and (how < 0.7 or not content)
        if how < 0.15:
            return self._chunked(content), [*headers, b"Transfer-Encoding: chunked"]
        if how < 0.2:
            wrong = chance.choice((b"+5", b"-1", b"1, 1", b"0x5", b"5 ", b"", b"9" * 25))
            return content, [*headers, b"Content-Length: " + wrong]
        if how < 0.23:
            both = [b"Content-Length: %d" % len(content), b"Transfer-Encoding: chunked"]
            return content, [*headers, *both]
        if how < 0.26:
            twice = [
                b"Content-Length: %d" % len(content),
                b"Content-Length: %d" % (len(content) + 1),
            ]
            return content, [*headers, *twice]
        # A body that nobody announced is taken for the next request.
        length = [b"Content-Length: %d" % len(content)] if content and how < 0.7 else []
        return content, [*headers, *length]

    def _no_content(self) -> bytes:
        return b""

    def _raw(self) -> bytes:
        return self._random.randbytes(self._random.choice((1, 5, 100, 5000)))

    def _chunked(self, content: bytes) -> bytes:
        chance = self._random
        size = chance.choice(
            (b"%x" % len(content), b"%X;x=y" % len(content), b"-1", b"", b"f" * 20)
        )
        trailer = chance.choice((b"", b"", b"Upload-Checksum: sha1 AAAA\r\n", b"x\r\n"))
        return size + b"\r\n" + content + b"\r\n0\r\n" + trailer + b"\r\n"

    def _form(self) -> bytes:
        name = base64.b64encode(self._random.randbytes(6))
        return (
            b'--b\r\nContent-Disposition: form-data; name="videoId"\r\n\r\n2\r\n'
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n\r\n'
            b"%b\r\n--b--\r\n" % (name, self._raw())
        )[: self._random.choice((10, 100, 100_000))]

    def _json(self) -> bytes:
        chance = self._random
        message = {
            "videoId": self._value(),
            "diskEmptySpaceRequire": chance.choice(("50MB", "1B", 1, self._value())),
            "linkForServerAtoNoticeServerBWhenServerAIsReady": self._link(),
            "linkForServerBtoSendBackupToSeverA": self._link(),
            "linkForServerBtoCompleteBackupToSeverA": self._link(),
            "success": chance.choice((True, False, self._value())),
            "sha256": chance.choice(("0" * 64, self._value())),
            "path": chance.choice(("/etc/passwd", self._value())),
            "to": self._link(),
        }
        for name in list(message):
            if chance.random() < 0.2:
                del message[name]
        data = json.dumps(message, ensure_ascii=chance.random() < 0.5).encode("utf-8", "replace")
        damage = chance.random()
        if damage < 0.1:
            return data[: chance.randrange(len(data))]
        if damage < 0.15:
            return b'{"videoId": 1, "videoId": 2}'
        if damage < 0.2:
            return b"[" * chance.choice((20, 5000)) + data
        if damage < 0.23:
            return data.replace(b'"', b"\xff", 1)
        if damage < 0.26:
            return b'{"videoId": 1' + b"0" * chance.choice((400, 70_000)) + b"}"
        return data

    def _value(self) -> object:
        return self._random.choice(
            (*NASTY, 1, -1, 2**53, 2**63, 1.5, 1e308, None, True, [], {}, [[]], {"a": {"b": []}})
        )

    def _link(self) -> object:
        return self._random.choice(
            (
                "http://localhost:1/x",
                "http://127.0.0.1:1/",
                "http://[::1]:1/",
                "http://10.0.0.1/",
                "http://localhost:1@evil.example/",
                "http://2130706433/",
                "ftp://localhost/",
                "http://localhost:99999/",
                f"http://{self._host}/api/v1/backup/receive-backup/x",
                self._value(),
            )
        )
