"""``python -m tests.torture``: real daemons, and everything that may happen to them.

A seed says what happens and when; what comes of it depends on the machine too::

    python -m tests.torture                            every section, with a seed that is printed
    python -m tests.torture --seed 7 --only kills      one of them, with the chances of that seed
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import secrets
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

import pytest

__all__ = ["SECTIONS", "Section", "main"]


@dataclass(frozen=True)
class Section:
    """A module of this package, imported when it is run.

    Its ``run(chance, told, **options)`` raises `AssertionError` with an account of what is wrong,
    tells how it goes line by line, and may return what could not be tried on this machine, with
    the reasons; where that is all of it, it skips. ``takes`` names the options that it is given.
    """

    says: str
    takes: tuple[str, ...] = ()

    def again(self, name: str, seed: int, options: argparse.Namespace) -> str:
        """The command that repeats it: the same chances, and as much of everything."""
        given = [f"--{option} {getattr(options, option)}" for option in self.takes]
        return " ".join([f"python -m {__package__} --seed {seed} --only {name}", *given])

    def run(self, name: str, chance: random.Random, options: argparse.Namespace) -> list[str]:
        """What was not tried."""

        def told(line: str) -> None:
            print(f"{name}: {line}", flush=True)

        module: Any = importlib.import_module(f"{__package__}.{name}")
        given = {option: getattr(options, option) for option in self.takes}
        return list(module.run(chance, told, **given) or [])


SECTIONS: dict[str, Section] = {
    "kills": Section("kill -9 of either daemon under load, at any instant", ("kills",)),
    "long": Section(
        "all that goes on between two servers, and what it takes", ("minutes", "restarts")
    ),
    "disks": Section("volumes that others fill, that fail and have no inodes left"),
    "syscalls": Section("system calls that fail, each at its n-th call"),
    "forgetful": Section("power cuts, on a file system that forgets what is not synced"),
    "network": Section("loss, silence, cut wires and half-open connections between two daemons"),
}
"""In the order in which they are run, by the name of the module."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture",
        epilog="; ".join(f"{name}: {section.says}" for name, section in SECTIONS.items()),
    )
    parser.add_argument("--seed", type=int, help="of all chances; another one each time")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION"
    )
    parser.add_argument("--kills", type=int, default=1000, help="how many, 1000")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="of the long run, 60; 10 at least"
    )
    parser.add_argument("--restarts", type=int, default=8, help="of a daemon in the long run, 8")
    options = parser.parse_args(arguments)
    if options.kills < 1 or options.minutes <= 0 or options.restarts < 0:
        parser.error("--kills is 1 at least, --minutes more than 0, and --restarts none or more")
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    failed, untried = [], []
    for name in options.only:
        began = time.monotonic()
        try:
            # A section has the same chances whatever runs beside it.
            left = SECTIONS[name].run(name, random.Random(f"{seed} {name}"), options)
        except pytest.skip.Exception as why:
            print(f"{name}: not tried: {why}", flush=True)
            untried.append(name)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        else:
            took = f"after {time.monotonic() - began:.0f} s"
            if left:
                untried.append(f"part of {name}")
                print(f"{name}: not tried: {'; '.join(left)}", flush=True)
                print(f"{name}: the rest of it is well, {took}", flush=True)
            else:
                print(f"{name}: well, {took}", flush=True)
    for name in failed:
        print(f"FAILED {name}; again: {SECTIONS[name].again(name, seed, options)}")
    if untried:
        print(f"NOT TRIED on this machine: {', '.join(untried)}")
    return 1 if failed or (untried and os.environ.get("BACKUPD_TEST_ALL")) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
