"""The daemon's own folder under the root: the lock, the control token, and the root's mark.

A ledger that lies elsewhere outlives a volume that is not mounted, and would take all that it
lists for gone. By the mark, a random id that is no secret, it knows the root that it is about.

Everything here is short and happens before the reactor runs.
"""

from __future__ import annotations

import errno
import fcntl
import hmac
import os
import pwd
import stat
from collections.abc import Callable
from contextlib import suppress

from twisted.logger import Logger

from backupd.errors import SettingsError, StorageFailed, WrongRoot
from backupd.interfaces import Remembered
from backupd.settings import Settings
from backupd.storage.names import INCOMING
from backupd.trust.files import sync_folder, write_private

__all__ = ["OwnFolder", "accept_root", "check_root", "read_token"]


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
            sync_folder(path)


# -- the mark of the root -------------------------------------------------------------------------


def _read_mark(settings: Settings) -> list[str]:
    """The mark, and after it that of the root which this one was said to replace."""
    path = settings.mark_file
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1024).split()[:2]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise SettingsError("root", f"cannot be read ({error.strerror}): {path}") from error


def _write_mark(settings: Settings, *marks: str) -> None:
    """Durably: the ledger is told next, and would not know a root that has forgotten."""
    write_private(settings.mark_file, "".join(f"{mark}\n" for mark in marks).encode())
    sync_folder(os.path.dirname(settings.own_folder))


def check_root(settings: Settings, known: Remembered) -> list[str]:
    """The marks of the root, if it is what the ledger is about. Raises `WrongRoot`.

    Nothing is made or changed.
    """
    marks, root = _read_mark(settings), os.path.dirname(settings.own_folder)
    listed = [os.path.join(root, one) for one in known.folders]
    listed += [os.path.join(root, *INCOMING, one) for one in known.uploads]
    if known.root in marks:
        return marks
    if known.root is not None:
        why = "has another mark than the ledger knows" if marks else "has lost its mark"
    elif marks or not listed or any(os.path.lexists(one) for one in listed):
        return marks
    else:
        why = "has nothing of what the ledger lists"
    raise WrongRoot(
        f"{why} (is the right volume mounted at {root}?)",
        "mount it and start again; or, if that disk is lost or was replaced on purpose, say so "
        "by `backupctl accept-root`, and start then",
    )


def accept_root(
    settings: Settings, known: Remembered, new_mark: Callable[[], str], user: int
) -> bool:
    """Say that what lies at ``root`` is meant from now on, although the ledger knows another.

    False where a start would go on anyway. Raises `SettingsError`, also where ``user``, who says
    so, is root and the daemon's user is another: he could not read the mark.
    """
    try:
        check_root(settings, known)
    except WrongRoot:
        folder = settings.own_folder
        root = os.path.dirname(folder)
    else:
        return False
    try:
        if user == 0:
            _check_owner(settings)
        os.listdir(root)  # it is not made here: who says this has looked at what is mounted
        _make(folder, root)
        # A new mark: should the old disk come back, it is another root. The one that it replaces
        # is told to the next start, which tells the ledger, and to any older copy of the ledger.
        _write_mark(settings, new_mark(), *([known.root] if known.root else []))
    except OSError as error:
        raise SettingsError("root", f"cannot be written ({error.strerror}): {root}") from error
    return True


def _check_owner(settings: Settings) -> None:
    """Raises `SettingsError` where the ledger is not root's, and so the daemon is not either."""
    root = os.path.dirname(settings.own_folder)
    there = (settings.ledger_file, settings.own_folder, root)
    path = next(filter(os.path.exists, there), root)
    owner = os.stat(path).st_uid
    if owner != 0:
        try:
            name = pwd.getpwuid(owner).pw_name
            by = f"runuser -u {name} --"
        except KeyError:
            name = f"the user {owner}"
            by = f"setpriv --reuid {owner} --clear-groups"
        raise SettingsError(
            "root",
            "must be accepted as the user that backupd runs as, who could not read a mark that the "
            f"user root has made; {path} belongs to {name}: `{by} backupctl accept-root`",
        )


class OwnFolder:
    """Claims the root for one daemon. ``new_token`` makes a token at the first start, and a mark.

    ``mark`` is that of the root, once it is claimed; None where there is no room for one.
    ``ledger`` is the path of the ledger's file, None when it has none.
    """

    _log = Logger()

    def __init__(
        self, settings: Settings, new_token: Callable[[], str], ledger: str | None = None
    ) -> None:
        self._settings = settings
        self._new_token = new_token
        self._lock: int | None = None
        self._token = ""
        self.mark: str | None = None
        folder = os.path.dirname(os.path.abspath(ledger)) if ledger else settings.own_folder
        self._ledger_folder = folder

    def claim(self, known: Remembered = Remembered()) -> None:  # noqa: B008 - frozen
        """Make the folder, lock it, read token and mark. Raises `SettingsError`.

        Before that: `WrongRoot` where the root is not what the ledger is about.
        """
        settings, folder = self._settings, self._settings.own_folder
        check_root(settings, known)
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
            # Once more: it may have been unmounted meanwhile.
            marks = check_root(settings, known)
            self.mark = marks[0] if marks else self._make_mark()
        except BaseException:
            self.release()
            raise

    def _make_token(self, path: str) -> str:
        token = self._new_token()
        try:
            write_private(path, f"{token}\n".encode())
        except OSError as error:
            raise SettingsError("root", f"cannot be written ({error.strerror}): {path}") from error
        return token

    def _make_mark(self) -> str | None:
        mark, path = self._new_token(), self._settings.mark_file
        try:
            _write_mark(self._settings, mark)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                why = f"cannot be written ({error.strerror}): {path}"
                raise SettingsError("root", why) from error
            # Only who runs can free room.
            self._log.warn("no room for {path}; the next start tries again", path=path)
            return None
        return mark

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
