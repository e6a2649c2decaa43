"""Whether a sync is answered with success whose bytes an error of the volume has taken.

``python -m tests.torture.false_syncs`` gives an ext4 an error while some threads append and sync,
and looks after it was mended for what they had been told is there. Nothing of backupd is in it: it
tells what no program on this kernel can promise, or, with ``--twice``, at what price (root only).
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tests.integration.volumes import Ext4, ext4

SIZE = 64 * 1024 * 1024
RECORD = 4096
MOST = 1000
THREADS = 4


def _record(number: int) -> bytes:
    return number.to_bytes(8, "little") * (RECORD // 8)


def _append(path: Path, twice: bool, told: list[int]) -> None:
    """Append until the volume takes no more; ``told`` grows by each that was synced."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        for number in range(MOST):
            os.pwrite(fd, _record(number), number * RECORD)
            os.fdatasync(fd)
            if twice:
                os.fdatasync(fd)
            told.append(number)
    except OSError:
        pass  # it takes no more
    finally:
        os.close(fd)


def lost(volume: Ext4, chance: random.Random, *, twice: bool) -> int:
    """How many records that were told to be there are not, after an error at a random moment."""
    paths = [volume.path / str(number) for number in range(THREADS)]
    told: list[list[int]] = [[] for _ in paths]
    threads = [
        threading.Thread(target=_append, args=(path, twice, there))
        for path, there in zip(paths, told, strict=True)
    ]
    for thread in threads:
        thread.start()
    time.sleep(chance.uniform(0.05, 0.3))
    volume.fail()
    for thread in threads:
        thread.join()
    volume.mend()
    kept = [path.read_bytes() if path.exists() else b"" for path in paths]
    return sum(
        data[number * RECORD : (number + 1) * RECORD] != _record(number)
        for data, there in zip(kept, told, strict=True)
        for number in there
    )


def main() -> None:
    """Some errors, each on a volume of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.false_syncs")
    parser.add_argument("--errors", type=int, default=20, help="how many, 20")
    parser.add_argument("--twice", action="store_true", help="sync each record a second time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.errors < 1:
        parser.error("--errors is 1 at least")
    chance, with_loss = random.Random(options.seed), 0
    for number in range(options.errors):
        try:
            with (
                tempfile.TemporaryDirectory() as folder,
                ext4(Path(folder) / "volume", SIZE) as volume,
            ):
                records = lost(volume, chance, twice=options.twice)
        except pytest.skip.Exception as why:
            parser.exit(1, f"It cannot be tried here: {why}\n")
        with_loss += records > 0
        print(f"error {number + 1} of {options.errors}: {records} records lost", flush=True)
    print(f"in {with_loss} of {options.errors} what a sync had said yes to was lost")


if __name__ == "__main__":
    main()
