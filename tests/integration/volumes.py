"""Small volumes of a test's own, which it can fill, and take the last inode of."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["KINDS", "Ext4", "Volume", "ext4", "tmpfs"]

KINDS = ("tmpfs", "ext4")
MIB = 1024**2


class Volume:
    """A mounted file system. What others put there is in files that no daemon knows of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._foreign = path / "foreign"

    def free(self) -> int:
        """Bytes that can be had."""
        volume = os.statvfs(self.path)
        return volume.f_bavail * volume.f_frsize

    def take(self, size: int) -> int:
        """Others take so many bytes, or what there is of them; how many they got."""
        got = 0
        with self._foreign.open("ab") as file:
            while size - got >= 4096:
                step = min(size - got, MIB)
                while step >= 4096:
                    end = file.seek(0, os.SEEK_END)
                    try:
                        os.posix_fallocate(file.fileno(), end, step)
                    except OSError as error:
                        if error.errno != errno.ENOSPC:
                            raise
                        step //= 2
                        continue
                    got += step
                    break
                else:
                    break
        return got

    def fill(self) -> None:
        """Nothing is left, not one block."""
        while self.take(self.free() + MIB):
            pass

    def take_inodes(self) -> None:
        """No file can be made any more."""
        folder = self.path / "many"
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            for number in range(10**6):
                (folder / str(number)).touch()

    def give_back(self) -> None:
        """Others take nothing any more."""
        self._foreign.unlink(missing_ok=True)
        shutil.rmtree(self.path / "many", ignore_errors=True)


def _tool(name: str) -> str:
    """The path of a program; skips where it is missing, unless everything is to be tried."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        assert not os.environ.get("BACKUPD_TEST_ALL"), f"{name} is not here"
        pytest.skip(f"{name} is not here")
    return found


def _able() -> None:
    """Skips where we may not mount anything."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")


def _mount(words: list[str], path: Path) -> None:
    done = subprocess.run(
        [_tool("mount"), *words, str(path)], capture_output=True, text=True, check=False
    )
    cannot = ("permission denied", "must be superuser", "unknown filesystem type")
    if any(one in done.stderr.lower() for one in cannot):
        pytest.skip(f"this cannot be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def _unmount(path: Path) -> None:
    subprocess.run([_tool("umount"), "--lazy", str(path)], check=True)


@contextmanager
def tmpfs(path: Path, size: int, *, inodes: int = 0) -> Iterator[Volume]:
    """One in memory."""
    _able()
    options = f"size={size}" + (f",nr_inodes={inodes}" if inodes else "")
    path.mkdir(parents=True)
    _mount(["-t", "tmpfs", "-o", options, "tmpfs"], path)
    try:
        yield Volume(path)
    finally:
        _unmount(path)


class Ext4(Volume):
    """One that can have an error, upon which the kernel takes no write any more."""

    def __init__(self, path: Path, device: str) -> None:
        super().__init__(path)
        self.device = device

    def mount(self) -> None:
        _mount(["-t", "ext4", "-o", "errors=remount-ro", self.device], self.path)

    def unmount(self) -> None:
        _unmount(self.path)

    def fail(self) -> None:
        """Read-only from now on; skips where the kernel cannot be asked for an error."""
        trigger = Path("/sys/fs/ext4") / Path(self.device).name / "trigger_fs_error"
        if not trigger.exists():
            pytest.skip(f"this kernel has no {trigger}")
        trigger.write_text("an error that was asked for")

    def mend(self) -> None:
        """What the operator does then. Nobody may have anything open there."""
        self.unmount()
        done = subprocess.run([_tool("fsck.ext4"), "-f", "-y", self.device], capture_output=True)
        assert done.returncode in (0, 1), done.stdout
        self.mount()


@contextmanager
def ext4(path: Path, size: int, *, inodes: int = 0) -> Iterator[Ext4]:
    """One in a file beside ``path``, through a loop device."""
    _able()
    image = path.with_name(f"{path.name}.image")
    with image.open("wb") as file:
        file.truncate(size)
    # Blocks as all but the smallest volumes have. With smaller ones a full disk kills SQLite, and
    # us with it: it allocates the index of its log by one byte in each 4 KiB.
    words = [_tool("mkfs.ext4"), "-q", "-F", "-m", "0", "-b", "4096"]
    words += ["-N", str(inodes)] if inodes else []
    subprocess.run([*words, str(image)], check=True, capture_output=True)
    device = subprocess.run(
        [_tool("losetup"), "--find", "--show", str(image)],
        capture_output=True,
        text=True,
        check=False,
    )
    if device.returncode != 0:
        pytest.skip(f"there is no loop device: {device.stderr.strip()}")
    volume = Ext4(path, device.stdout.strip())
    try:
        path.mkdir(parents=True)
        volume.mount()
        try:
            yield volume
        finally:
            volume.unmount()
    finally:
        subprocess.run([_tool("losetup"), "--detach", volume.device], check=True)
        image.unlink()
