"""Requests that two programs might read differently, each with a second one hidden in it."""

from __future__ import annotations

__all__ = ["AMBIGUOUS", "hidden"]

INSIDE = "GET /api/v1/backups/{mark} HTTP/1.1\r\nHost: {host}\r\nX-End: 1\r\n\r\n"

_CHUNK = "0\r\n\r\n"

AMBIGUOUS: dict[str, str] = {
    "length and chunks": "Content-Length: {all}\r\nTransfer-Encoding: chunked\r\n\r\n" + _CHUNK,
    "chunks and length": "Transfer-Encoding: chunked\r\nContent-Length: {all}\r\n\r\n" + _CHUNK,
    "length 0 and chunks": "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n" + _CHUNK,
    "two lengths": "Content-Length: {all}\r\nContent-Length: 0\r\n\r\n",
    "two equal lengths": "Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "lengths in a list": "Content-Length: 0, 0\r\n\r\n",
    "a signed length": "Content-Length: +0\r\n\r\n",
    "a negative length": "Content-Length: -1\r\n\r\n",
    "a length in hexadecimal": "Content-Length: 0x0\r\n\r\n",
    "a length with a space in it": "Content-Length: 0 0\r\n\r\n",
    "an empty length": "Content-Length:\r\n\r\n",
    "a length of Arabic digits": "Content-Length: \u0660\r\n\r\n",
    "a folded line": "Content-Length: 0\r\nX-A: b\r\n c: d\r\n\r\n",
    "a folded length": "Content-Length:\r\n 0\r\n\r\n",
    "a folded coding": "Transfer-Encoding:\r\n chunked\r\n\r\n" + _CHUNK,
    "a first line that is folded": " X-A: b\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": "Content-Length : 0\r\n\r\n",
    "a coding with a space before the colon": (
        "Content-Length: {all}\r\nTransfer-Encoding : chunked\r\n\r\n" + _CHUNK
    ),
    "a tab before the colon": "Content-Length\t: 0\r\n\r\n",
    "no colon": "Content-Length 0\r\n\r\n",
    "no name": ": 0\r\nContent-Length: 0\r\n\r\n",
    "a bare line feed between lines": "X-A: b\nContent-Length: 0\r\n\r\n",
    "a bare line feed before the end": "Content-Length: {all}\r\nX-A: b\n\n",
    "a bare carriage return": "X-A: b\rContent-Length: 0\r\n\r\n",
    "a carriage return in a name": "X-\rA: b\r\nContent-Length: 0\r\n\r\n",
    "NUL in a value": "X-A: b\0\r\nContent-Length: 0\r\n\r\n",
    "NUL in a name": "X-\0A: b\r\nContent-Length: 0\r\n\r\n",
    "NUL in a length": "Content-Length: 0\0\r\n\r\n",
    "coding identity": "Content-Length: {all}\r\nTransfer-Encoding: identity\r\n\r\n",
    "only coding identity": "Transfer-Encoding: identity\r\n\r\n",
    "two codings": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + _CHUNK,
    "codings in a list": "Transfer-Encoding: chunked, identity\r\n\r\n" + _CHUNK,
    "chunked twice": "Transfer-Encoding: chunked, chunked\r\n\r\n" + _CHUNK,
    "an unknown coding": "Transfer-Encoding: xchunked\r\n\r\n" + _CHUNK,
    "a quoted coding": 'Transfer-Encoding: "chunked"\r\n\r\n' + _CHUNK,
    "a coding with a vertical tab": "Transfer-Encoding: \x0bchunked\r\n\r\n" + _CHUNK,
    "an empty coding": "Transfer-Encoding:\r\n\r\n",
    "a size with a sign": "Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n",
    "a size with a prefix": "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "a size with an underscore": "Transfer-Encoding: chunked\r\n\r\n0_0\r\n\r\n",
    "a size with a space": "Transfer-Encoding: chunked\r\n\r\n 0\r\n\r\n",
    "a size behind a line feed": "Transfer-Encoding: chunked\r\n\r\n0\n\r\n",
    "an extension with a line feed": "Transfer-Encoding: chunked\r\n\r\n0;a=\nb\r\n\r\n",
    "a chunk without its end": "Transfer-Encoding: chunked\r\n\r\n2\r\nabcd0\r\n\r\n",
    "a chunk that ends with a line feed": "Transfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n",
}
"""What follows ``POST … HTTP/1.1`` and ``Host``; none of it may be served."""


def hidden(lines: str, path: str, host: str, mark: str, version: str = "HTTP/1.1") -> bytes:
    """A request with these lines, and another one for ``mark`` behind it."""
    inside = INSIDE.format(mark=mark, host=host)
    head = f"POST {path} {version}\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    body = lines.partition("\r\n\r\n")[2]
    said = lines.replace("{all}", str(len(body + inside)))
    return (head + said + inside).encode()
