"""Peers on the disk: one small JSON file each, readable to this user only.

Files, and not the ledger, because they hold secrets that must be at hand in the clear (what we
show to others, and what offers are signed with), because rights and secrets of a peer then
change together, and because who is trusted must outlive a ledger that is lost and rebuilt.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

import msgspec

from backupd.errors import Invalid, SettingsError, StorageFailed
from backupd.trust.peers import Peer

__all__ = ["PeerFiles", "read_private", "sync_folder", "write_private"]

_LONGEST = 64 * 1024


def read_private(path: str) -> bytes:
    """What a file holds that only we may read. Raises `SettingsError`, `FileNotFoundError`."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        why = "is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise SettingsError(path, f"cannot be read: {why}") from error
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise SettingsError(path, "is no file")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise SettingsError(path, "others can read its secrets; run chmod 600 on it")
        if found.st_uid not in (os.geteuid(), 0):
            raise SettingsError(path, "belongs to another user, who can read its secrets")
        return file.read(_LONGEST + 1)


def write_private(path: str, data: bytes) -> None:
    """Replace a file that only we may read, durably: whole, or not at all. Raises `OSError`."""
    new = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(new, flags, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(new, path)
    sync_folder(os.path.dirname(path))


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """What was made or renamed in it is there after a power cut. Raises `OSError`."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class PeerFiles:
    """The folder of peers. Every method blocks."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def read(self) -> list[Peer]:
        """Every peer. Raises `SettingsError` for a file that is damaged, or that others can read:
        who could read it once may know its secrets.
        """
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise SettingsError(self._folder, f"cannot be read: {error.strerror}") from error
        return [self._read(name) for name in names if name.endswith(".json")]

    def _read(self, name: str) -> Peer:
        path = os.path.join(self._folder, name)
        try:
            peer = msgspec.json.decode(read_private(path), type=Peer)
        except msgspec.DecodeError as error:
            why = "is no record of a peer; restore it, or delete it and invite the peer again"
            raise SettingsError(path, why) from error
        if name != f"{peer.name}.json":
            raise SettingsError(path, "is not called by the name of its peer")
        return peer

    def write(self, peer: Peer) -> None:
        """Record a peer, durably. Raises `StorageFailed`, `Invalid` for what is too long."""
        record = msgspec.json.format(msgspec.json.encode(peer), indent=2)
        if len(record) > _LONGEST:
            why = "has a record of more than 64 KiB; say its networks and bandwidths in fewer words"
            raise Invalid("peer", why)
        try:
            if not os.path.isdir(self._folder):
                os.makedirs(self._folder, mode=0o700)
                sync_folder(os.path.dirname(self._folder))
            path = os.path.join(self._folder, f"{peer.name}.json")
            write_private(path, record)
        except OSError as error:
            raise StorageFailed(
                f"The record of peer {peer.name} could not be written: {error.strerror}."
            ) from error
