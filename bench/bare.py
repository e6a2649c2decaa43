"""The least that whoever takes, verifies and keeps bytes has to do: how fast Python is at that.

From the socket into memory in huge pages, hashed and written past the page cache each in a thread
of its own, synced with its folder, answered. No framework, no ledger, nothing that could go on
after a cut. Started as ``python -m bench.bare PORT FOLDER``; takes ``PUT /name``, each in a thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from backupd.receiver.pool import ALIGN, BLOCK, BlockPool

_BUFFERS = 4
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
_NAME = re.compile(rb"PUT /([A-Za-z0-9._-]+) ")

Job = tuple[memoryview, int]


def _thread(
    jobs: SimpleQueue[Job | None], do: Callable[[memoryview, int], None]
) -> threading.Thread:
    def work() -> None:
        while (job := jobs.get()) is not None:
            do(*job)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def _keep(connection: socket.socket, body: bytes, length: int, path: Path, pool: BlockPool) -> str:
    """Take ``length`` bytes, of which ``body`` are here; their SHA-256 once they are durable."""
    digest = hashlib.sha256()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    os.posix_fallocate(file, 0, length)
    free: SimpleQueue[memoryview] = SimpleQueue()
    buffers = [pool.take() for _ in range(_BUFFERS)]
    for buffer in buffers:
        free.put(buffer[:BLOCK])
    to_hash: SimpleQueue[Job | None] = SimpleQueue()
    to_write: SimpleQueue[Job | None] = SimpleQueue()

    def hash_it(data: memoryview, offset: int) -> None:
        digest.update(data)
        to_write.put((data, offset))

    def write_it(data: memoryview, offset: int) -> None:
        whole = len(data) // ALIGN * ALIGN
        if os.pwrite(direct, data[:whole], offset) != whole or (
            os.pwrite(file, data[whole:], offset + whole) != len(data) - whole
        ):
            raise OSError("a short write")
        free.put(data)  # only the last block is shorter, and nobody waits for a buffer any more

    threads = [_thread(to_hash, hash_it), _thread(to_write, write_it)]
    at = 0
    while at < length:
        room = free.get()
        want, got = min(BLOCK, length - at), len(body)
        room[:got], body = body, b""
        while got < want:
            count = connection.recv_into(room[got:want])
            if not count:
                raise ConnectionError("cut")
            got += count
        to_hash.put((room[:want], at))
        at += want
    for jobs, thread in zip((to_hash, to_write), threads, strict=True):
        jobs.put(None)
        thread.join()
    os.fdatasync(file)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    for descriptor in (folder, direct, file):
        os.close(descriptor)
    for buffer in buffers:
        pool.give_back(buffer)
    return digest.hexdigest()


def _take(connection: socket.socket, folder: Path, pool: BlockPool) -> None:
    head = b""
    while b"\r\n\r\n" not in head:
        if not (data := connection.recv(4096)):
            return
        head += data
    head, _, body = head.partition(b"\r\n\r\n")
    length, name = _LENGTH.search(head + b"\r\n"), _NAME.match(head)
    if length is None or name is None:
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        return
    if b"100-continue" in head:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    sha256 = _keep(connection, body, int(length[1]), folder / name[1].decode(), pool)
    said = json.dumps({"sha256": sha256}).encode()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))


def main(port: int, folder: Path) -> None:
    """Serve, until killed."""
    pools: SimpleQueue[BlockPool] = SimpleQueue()

    def serve(connection: socket.socket) -> None:
        try:
            pool = pools.get_nowait()
        except Empty:
            pool = BlockPool()
        with connection:
            _take(connection, folder, pool)
        pools.put(pool)

    with socket.create_server(("127.0.0.1", port)) as listening:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=serve, args=(connection,)).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
