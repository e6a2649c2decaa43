"""The daemon's own folder under the root: the lock, the control token, and the ledger beside them.

Everything here is short and happens before the reactor runs.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from backupd.errors import SettingsError, StorageFailed
from backupd.settings import Settings

__all__ = ["OwnFolder", "read_token"]


def read_token(path: str) -> str:
    """The control token in the file ``path``. Raises `SettingsError` when others could read it."""
    try:
        with open(path, encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            token = file.read(1024).strip()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(path, f"the control token cannot be read: {error}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise SettingsError(path, "others can read the control token; run chmod 600 on it")
    if len(token) < 32:
        raise SettingsError(path, "holds no control token; delete it to have a new one made")
    return token


def _make(folder: str, root: str) -> None:
    """Make ``folder`` in ``root``, and what is missing around them, durably.

    Whoever is told "yes" next relies on every one of these names.
    """
    # Also where the root was there: a crash may have come between making and syncing.
    around = [os.path.dirname(root)]
    while not os.path.exists(around[-1]):
        around.append(os.path.dirname(around[-1]))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for path in around:
        # We may enter a folder that we may not read; then it was not we who made what is in it.
        with suppress(PermissionError):
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


class OwnFolder:
    """Claims the root for one daemon. ``new_token`` makes a token at the first start.

    ``ledger`` is the path of the ledger's file, None when it has none.
    """

    def __init__(
        self, settings: Settings, new_token: Callable[[], str], ledger: str | None = None
    ) -> None:
        self._settings = settings
        self._new_token = new_token
        self._lock: int | None = None
        self._token = ""
        folder = os.path.dirname(os.path.abspath(ledger)) if ledger else settings.own_folder
        self._ledger_folder = folder

    def claim(self) -> None:
        """Make the folder, lock it and read the token. Raises `SettingsError`."""
        settings, folder = self._settings, self._settings.own_folder
        try:
            _make(folder, os.path.dirname(folder))
            self._lock = os.open(
                os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise SettingsError(
                "root", f"cannot be written ({error.strerror}): {settings.root}"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise SettingsError(
                "root", f"another backupd is running on {settings.root}; stop it first"
            ) from error
        try:
            try:
                self._token = read_token(settings.token_file)
            except FileNotFoundError:
                self._token = self._make_token(settings.token_file)
        except BaseException:
            self.release()
            raise

    def _make_token(self, path: str) -> str:
        token = self._new_token()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        # Renamed when it is whole: a crash must not leave an empty file that stops every start.
        new = f"{path}.new"
        try:
            handle = os.open(new, flags, 0o600)
            try:
                os.fchmod(handle, 0o600)
                os.write(handle, f"{token}\n".encode("ascii"))
                os.fsync(handle)
            finally:
                os.close(handle)
            os.rename(new, path)
        except OSError as error:
            raise SettingsError("root", f"cannot be written ({error.strerror}): {path}") from error
        return token

    def is_token(self, token: str) -> bool:
        """Whether this is the control token; takes the same time for every wrong one."""
        given = token.encode("utf-8", "surrogatepass")
        return bool(self._token) and hmac.compare_digest(given, self._token.encode())

    def free(self) -> int:
        """Bytes free on the volume that the ledger is on; blocks. Raises `StorageFailed`."""
        try:
            volume = os.statvfs(self._ledger_folder)
        except OSError as error:
            raise StorageFailed(
                f"Could not ask for the room on the ledger's volume: {error.strerror}."
            ) from error
        return volume.f_bavail * volume.f_frsize

    def release(self) -> None:
        """Let another daemon have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
