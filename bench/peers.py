"""The programs that backupd is measured against, and where they come from.

A Debian package that is not installed is downloaded and unpacked into the bench's own folder:
nothing is installed, no service is started, and no root is needed. npm's packages, with the
versions that ``node/package.json`` names, go there too.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Peers"]

_SOURCES = Path(__file__).with_name("node")
_SYSTEM = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
# Each with the libraries that a small Debian lacks.
_PACKAGES = {"nginx": ("nginx",), "rsync": ("rsync", "libpopt0", "libxxhash0")}


def _run(command: Sequence[str | Path], folder: Path, advice: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise SystemExit(f"{' '.join(map(str, command))} failed: {advice}\n{said}")
    return done.stdout + done.stderr


@dataclass
class Peers:
    """Finds each program when it is first asked for; ``folder`` gets what has to be fetched."""

    folder: Path
    say: Callable[[str], None]
    _found: dict[str, str] = field(default_factory=dict)
    _node: Path | None = None

    def program(self, name: str) -> str:
        """The path of a program of Debian's."""
        if name not in self._found:
            present = shutil.which(name, path=_SYSTEM)
            self._found[name] = present or self._unpacked(name)
        return self._found[name]

    def _unpacked(self, name: str) -> str:
        self.say(f"fetching {name} from Debian")
        folder = self.folder / "debian"
        folder.mkdir(parents=True, exist_ok=True)
        advice = f"install {name}, or let `apt-get update` find it"
        _run(["apt-get", "download", *_PACKAGES[name]], folder, advice)
        for package in folder.glob("*.deb"):
            _run(["dpkg", "-x", package, folder], folder, advice)
            package.unlink()
        for place in ("usr/sbin", "usr/bin"):
            if (program := folder / place / name).exists():
                return str(program)
        raise SystemExit(f"Debian's package {name} holds no program of that name")

    @property
    def environment(self) -> Mapping[str, str]:
        """What a program that was unpacked needs to find its libraries."""
        libraries = self.folder.glob("debian/usr/lib/*-linux-gnu*")
        paths = [*map(str, libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": os.pathsep.join(paths)} if paths else {}

    def script(self, name: str) -> Path:
        """The path of one of ``node/``'s scripts, beside the packages that it imports."""
        if self._node is None:
            for program in ("node", "npm"):
                if shutil.which(program) is None:
                    raise SystemExit(f"{program} is missing; install nodejs and npm")
            self.say("fetching @tus/server and Express from npm")
            self._node = self.folder / "node"
            shutil.copytree(_SOURCES, self._node)
            command = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
            _run(command, self._node, "npm's packages could not be had")
        return self._node / name

    def versions(self) -> dict[str, str]:
        """Of everything that has been asked for."""
        flags = {"nginx": "-v"}
        found = {"python": platform.python_version()}
        for name in ("curl", *self._found):
            command = [self._found.get(name, name), flags.get(name, "--version")]
            environment = {**os.environ, **self.environment}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            found[name] = (done.stdout + done.stderr).splitlines()[0].strip()
        if self._node is not None:
            found["node"] = _run(["node", "--version"], self._node, "").strip()
            listed = _run(["npm", "ls", "--depth=0", "--parseable", "--long"], self._node, "")
            for line in listed.splitlines()[1:]:
                name, _, version = line.split(":")[1].rpartition("@")
                found[name] = version
        return found
