"""What the tests of the contract have in common."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from tests.integration.daemons import Answer, Daemon

__all__ = [
    "ASK",
    "BYTES",
    "COMPLETE",
    "PATCH",
    "RECEIVE",
    "SHA",
    "digest",
    "form",
    "head",
    "is_problem",
    "path_of",
]

BYTES = bytes(range(256)) * 40
SHA = hashlib.sha256(BYTES).hexdigest()
ASK = "/api/v1/backup/can-accept-backup"
RECEIVE = "/api/v1/backup/receive-backup"
COMPLETE = "/api/v1/backup/complete-backup"
PATCH = {"Content-Type": "application/offset+octet-stream", "Tus-Resumable": "1.0.0"}


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def form(*parts: tuple[str, str | None, bytes]) -> tuple[bytes, dict[str, str]]:
    """A form of (name, file name, content)."""
    body = b""
    for name, file_name, content in parts:
        file = "" if file_name is None else f'; filename="{file_name}"'
        body += f'--b0\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        body += content + b"\r\n"
    return body + b"--b0--\r\n", {"Content-Type": "multipart/form-data; boundary=b0"}


def path_of(link: str) -> str:
    return "/" + link.split("/", 3)[3]


def head(receiver: Daemon, method: str, link: str, *lines: str) -> bytes:
    """The head of a request, as bytes."""
    own = [f"Host: localhost:{receiver.port}", *lines]
    return "\r\n".join([f"{method} {path_of(link)} HTTP/1.1", *own, "", ""]).encode()


def is_problem(answer: Answer, status: int, member: str | None = None) -> Any:
    """The answer is a problem document of this status; its members."""
    assert answer.status == status, (answer.status, answer.body)
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert problem["status"] == status
    assert problem["success"] is False
    assert problem["message"] == problem["detail"] != ""
    assert problem["type"]
    assert problem["title"]
    if member is not None:
        assert problem["member"] == member
    return problem
