"""Names on the disk for whatever a sender sends: readable, and harmless on any system."""

from __future__ import annotations

import mimetypes
import os
import unicodedata
from hashlib import sha256

from backupd.requests import VideoId, video_key

__all__ = [
    "INCOMING",
    "MAX_BYTES",
    "PRIVATE",
    "SIDECAR",
    "file_name",
    "folder_name",
    "is_component",
]

MAX_BYTES = 200
"""The longest name made here, in bytes of UTF-8; file systems take 255."""

SIDECAR = "backup.json"
"""The name of the description that lies beside a backup's file."""

PRIVATE = ".backupd"
"""The folder under the root that holds no backups."""

INCOMING = (PRIVATE, "incoming")
"""Where unfinished uploads lie, each under its id."""

_MARK = "~"
_MARK_DIGITS = 12
_MAX_EXTENSION = 32
_FORBIDDEN = frozenset('/\\<>:"|?*')
_INVISIBLE = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
_DEVICES = frozenset(
    {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
    | {f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"}
)
_RESERVED_FOLDERS = frozenset({"lost+found"})
"""A peer's folder stands at the top of the volume, where file systems keep their own."""

# The standard library's own table only: the same name on every machine.
_TYPES = mimetypes.MimeTypes()
for _type, _extension in {
    "video/3gpp": ".3gp",
    "video/mp2t": ".ts",
    "video/ogg": ".ogv",
    "video/x-flv": ".flv",
    "video/x-m4v": ".m4v",
    "video/x-matroska": ".mkv",
}.items():
    _TYPES.add_type(_type, _extension)


def folder_name(raw: str) -> str:
    """A folder's name for a peer or a video: ``raw`` itself when that is a clean name.

    Otherwise what can be kept of it, ``~`` and 12 hex digits of its SHA-256; a clean name never
    contains ``~``. So two peers or videos share a folder only if 48 bits of SHA-256 do, and
    even then not their backups, which lie in folders of their own below.
    """
    safe = _safe(raw, MAX_BYTES - len(_MARK) - _MARK_DIGITS)
    if safe == raw and _MARK not in raw and raw not in _RESERVED_FOLDERS:
        return raw
    digest = sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{safe}{_MARK}{digest[:_MARK_DIGITS]}"


def file_name(raw: str | None, video: VideoId, content_type: str | None) -> str:
    """The name that a backup's file is kept under: ``raw`` itself when that is a clean name.

    Without ``raw`` it is ``video-<id>``, with the extension of ``content_type`` (a media type,
    parameters allowed) if that has one. Never the sidecar's name; applied to its own result it
    changes nothing.
    """
    name = _safe(raw or f"video-{video_key(video)}{_extension_of(content_type)}", MAX_BYTES)
    return f"_{name}" if name.casefold() == SIDECAR else name


def is_component(name: str) -> bool:
    """Whether ``name`` can only be a visible entry of the folder that it is joined to."""
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return False
    return 0 < size <= 255 and not name.startswith(".") and not {"/", "\0"} & set(name)


def _extension_of(content_type: str | None) -> str:
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type == "application/octet-stream":  # it means "some bytes"
        return ""
    return _TYPES.guess_extension(media_type) or ""


def _safe(name: str, limit: int) -> str:
    """``name`` made safe, at most ``limit`` bytes of UTF-8.

    One repair can call for another (what is cut may end in a dot), hence the loop: it ends when
    nothing is left to repair.
    """
    while (repaired := _repaired(name, limit)) != name:
        name = repaired
    return name


def _repaired(name: str, limit: int) -> str:
    name = "".join(
        "_" if char in _FORBIDDEN or unicodedata.category(char) in _INVISIBLE else char
        for char in unicodedata.normalize("NFC", name)
    )
    if not name or name.startswith("."):
        name = f"_{name[1:]}"
    if name.endswith((".", " ")):
        name = f"{name[:-1]}_"
    if name.partition(".")[0].strip(" ").upper() in _DEVICES:
        name = f"_{name}"
    if len(name.encode()) <= limit:
        return name
    stem, extension = os.path.splitext(name)
    if len(extension.encode()) > _MAX_EXTENSION:
        stem, extension = name, ""
    return stem.encode()[: limit - len(extension.encode())].decode(errors="ignore") + extension
