"""What every measurement must find alike: a quiet machine, warm memory, files in the cache."""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import subprocess
import time
from pathlib import Path

__all__ = ["GIB", "MIB", "conditions", "flush", "make_file", "read", "settle"]

MIB = 1024**2
GIB = 1024**3


def make_file(path: Path, size: int) -> str:
    """A file that does not compress to nothing, and its SHA-256."""
    block, sha256 = os.urandom(min(size, 64 * MIB)), hashlib.sha256()
    with path.open("xb") as file:
        for at in range(0, size, len(block)):
            part = block[: size - at]
            file.write(part)
            sha256.update(part)
    return sha256.hexdigest()


def flush(path: Path) -> float:
    """Have everything of the file's volume on the disk; the CPU seconds that it took."""
    process = subprocess.Popen(["sync", "-f", str(path)])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"sync -f {path} failed")
    return used.ru_utime + used.ru_stime


def read(*paths: Path) -> None:
    """Have the files in the page cache."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(8 * MIB):
                pass


def settle(size: int, *files: Path) -> None:
    """Write back what others left, wait for quiet, warm as much memory as ``size`` bytes need
    in files, and read ``files``."""
    os.sync()
    _wait_for_quiet()
    _warm(size)
    read(*files)


def _busy() -> float:
    """CPU seconds that this machine has been busy since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, waiting = fields[3:5]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def _wait_for_quiet() -> None:
    """Wait for half a second in which there is little else to do, for half a minute at most."""
    for _ in range(60):
        before = _busy()
        time.sleep(0.5)
        if _busy() - before < 0.05 * (os.cpu_count() or 1):
            return


def _warm(size: int) -> None:
    """Touch memory that the page cache will use, so that no run pays for the first touch.

    In a virtual machine a page that was never touched, or that the host has taken back, costs
    several times more than one in use.
    """
    free = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemFree")
    )
    length = min(2 * size + GIB, free * 3 // 4) // mmap.PAGESIZE * mmap.PAGESIZE
    with mmap.mmap(-1, length) as memory:
        memory[:: mmap.PAGESIZE] = bytes([1]) * (length // mmap.PAGESIZE)


def conditions(folder: Path) -> dict[str, str]:
    """On what the figures were found."""
    cpus = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    kind = subprocess.run(
        ["df", "--output=fstype", str(folder)], capture_output=True, text=True, check=True
    )
    return {
        "cpu": f"{os.cpu_count()} x {cpus[0] if cpus else platform.machine()}",
        "memory": f"{pages / GIB:.0f} GiB",
        "kernel": platform.release(),
        "file system": kind.stdout.split()[-1],
        "load": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
