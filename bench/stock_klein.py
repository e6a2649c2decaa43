"""What backupd's ingest is measured against: Klein as its documentation shows it.

``twisted.web`` has spooled the whole body when the handler runs; the handler copies
``request.content`` to the file and, as backupd does, computes SHA-256 and answers only when the
bytes and the file's name are on the disk. Started as ``python -m bench.stock_klein PORT FOLDER``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import IO, cast

from klein import Klein
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IReactorCore
from twisted.internet.threads import deferToThread
from twisted.web.iweb import IRequest
from twisted.web.server import Site

PIECE = 1024 * 1024
"""As large as backupd's blocks; the default of `shutil.copyfileobj` is no faster."""


class _HashingFile:
    """Writes to a file and keeps its digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def store(content: IO[bytes], path: Path) -> str:
    """Copy ``content`` to ``path``, durably; the SHA-256 of it."""
    with path.open("xb", buffering=0) as file:
        hashing = _HashingFile(file)
        shutil.copyfileobj(content, hashing, PIECE)
        os.fdatasync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return hashing.sha256.hexdigest()


def application(folder: Path) -> Klein:
    """A server that keeps what is PUT under ``folder``."""
    app = Klein()

    @app.route("/<name>", methods=["PUT"])
    def put(request: IRequest, name: str) -> Deferred[str]:
        return deferToThread(store, request.content, folder / os.path.basename(name))

    return app


def main(port: str, folder: str) -> None:
    """Serve until killed."""
    endpoint = serverFromString(reactor, f"tcp:{port}:interface=127.0.0.1")
    endpoint.listen(Site(application(Path(folder)).resource()))
    cast(IReactorCore, reactor).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
