"""Bringing the bytes of a backup into a local file, from where a partial one stands."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from backupd.control import Api, ApiFailed, part
from backupd.storage.names import file_name

__all__ = ["Unfit", "fetch", "listed", "name_of", "target_of", "told_of"]

_AGAIN = "Run the same again to go on from there."
_ADVICE = {
    errno.ENOSPC: f"Free some space there. {_AGAIN}",
    errno.EDQUOT: f"Free some space there. {_AGAIN}",
    errno.ENOENT: "Make its folder first, or give another -o.",
    errno.ENOTDIR: "Make its folder first, or give another -o.",
    errno.EACCES: "See to it that you may write there, or give another -o.",
    errno.EROFS: "See to it that you may write there, or give another -o.",
}
"""What to do when it is the place that we write to."""


class Unfit(ApiFailed):
    """What a server says of a backup, or sends as it, can never be that backup."""


_MEMBERS: dict[str, Any] = {
    "backupId": str,
    "peer": str,
    "videoId": int | str,
    "fileName": str,
    "contentType": str | None,
    "size": int,
    "sha256": str,
    "storedAt": str,
    "verifiedAt": str | None,
    "problem": str | None,
}


def listed(api: Api, query: Mapping[str, object]) -> list[Any]:
    """The backups that a server lists. Raises `ApiFailed`."""
    return [_checked(one) for one in api.pages("/api/v1/backups", "backups", query)]


def told_of(api: Api, backup_id: str) -> Any:
    """One backup as a server tells of it. Raises `ApiFailed`."""
    return _checked(api.call("GET", f"/api/v1/backups/{part(backup_id)}"))


def _checked(told: Any) -> Any:
    """A backup as a server tells of it. Raises `Unfit` where that cannot be one."""
    if (
        isinstance(told, dict)
        and all(name in told and isinstance(told[name], of) for name, of in _MEMBERS.items())
        and told["size"] >= 0
        and re.fullmatch("[0-9a-f]{64}", told["sha256"])
    ):
        return told
    raise Unfit(
        f"The server tells of a backup what cannot be ({str(told)[:400]}). "
        "See to it that it is the right server, and that both run the same backupd."
    )


def name_of(backup: Any) -> str:
    """The name of its file here: readable, never hidden, and harmless whatever the server says."""
    return file_name(backup["fileName"], backup["videoId"], backup["contentType"])


def target_of(output: str | None, backup: Any) -> Path:
    """Where to write: under its own name, unless ``output`` is another."""
    if output is None:
        return Path(name_of(backup))
    return Path(output) / name_of(backup) if os.path.isdir(output) else Path(output)


def fetch(api: Api, backup: Any, partial: Path, done: Callable[[int], None]) -> str:
    """Bring ``partial`` to its full size, on the disk; the digest of the whole of it.

    No more than that is ever taken. Raises `ApiFailed`; `Unfit` leaves nothing to go on from.
    """
    hasher = hashlib.sha256()
    size = backup["size"]
    try:
        with partial.open("a+b") as file:
            if file.tell() > size:
                file.truncate(0)
            file.seek(0)
            while block := file.read(1024 * 1024):
                hasher.update(block)
            at = file.tell()
            done(at)
            if at < size:
                headers = {"Range": f"bytes={at}-", "If-Range": f'"{backup["sha256"]}"'}
                path = f"/api/v1/backups/{part(backup['backupId'])}/content"
                response = api.open("GET", path, headers=headers if at else {})
                if at and response.status != 206:
                    file.truncate(0)
                    at, hasher = 0, hashlib.sha256()
                while block := response.read(1024 * 1024):
                    if at + len(block) > size:
                        partial.unlink()
                        raise Unfit(
                            f"More than the {size} bytes of backup {backup['backupId']} came; "
                            "all were thrown away. Try again, and "
                            f"`backupctl verify {backup['backupId']}` there."
                        )
                    file.write(block)
                    hasher.update(block)
                    at += len(block)
                    done(at)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, http.client.HTTPException) as error:
        why, advice = _told(error)
        raise ApiFailed(f"{partial} could not be completed: {why}. {advice}") from error
    if at < size:
        raise ApiFailed(f"Only {at} of {size} bytes came. {_AGAIN}")
    return hasher.hexdigest()


def _told(error: Exception) -> tuple[str, str]:
    """What went wrong, and what to do."""
    # The numbers of TLS errors are others than the system's.
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
        advice = _ADVICE.get(error.errno or 0, _AGAIN)
        return error.strerror or str(error), advice
    return str(error), _AGAIN
