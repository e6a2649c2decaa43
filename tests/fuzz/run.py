"""Says many conversations to a real daemon, and watches that it stays well.

``python -m tests.fuzz.run --requests 100000 --seed 1`` prints what was answered.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.generate import Conversation, Generator
from tests.integration.daemons import Daemon
from tests.integration.plain import PlainSender

__all__ = ["Found", "Way", "fuzz", "resident", "speak"]

Way = tuple[int, ssl.SSLContext | None]
"""A port, and how TLS is spoken there."""

AT_ONCE = 16
PATIENCE = 20.0
"""Seconds in which every answer that is owed has come."""

QUIET = 0.05
"""Seconds of silence after which nothing more is expected of what is not well-formed."""

ALLOWED_5XX = {503, 507}
"""What a server may say of itself: not now, no room."""

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")
_RESIDENT = re.compile(r"^VmRSS:\s+(\d+) kB", re.MULTILINE)


@dataclass
class Found:
    """What came of it."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    hung: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    grown: int = 0
    seconds: float = 0.0


def resident(daemon: Daemon) -> int:
    """Bytes of memory that it has now."""
    found = _RESIDENT.search(Path(f"/proc/{daemon.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def known(daemon: Daemon, sender: PlainSender) -> list[str]:
    """Ids and capabilities that mean something: an offered request, and a kept backup."""
    send, _ = sender.turn(daemon.url, 2, 4000)
    kept = sender.back_up(daemon.url, 1, b"x" * 4000)["backupId"]
    requests = [request["requestId"] for request in daemon.requests()]
    return [send.rpartition("/")[2], kept, *requests]


async def _say(way: Way, conversation: Conversation) -> bytes | None:
    """What was answered; None when an answer that is owed did not come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", way[0], ssl=way[1])
    answer = b""
    try:
        for segment in conversation.segments:
            writer.write(segment)
            await writer.drain()
            await asyncio.sleep(0)
        if conversation.cut:
            return b""
        while True:
            owed = conversation.whole and not _STATUS.search(answer)
            patience = PATIENCE if owed else QUIET
            data = await asyncio.wait_for(reader.read(65536), patience)
            if not data:
                return answer
            answer += data
            if conversation.whole and _STATUS.search(answer):
                return answer
    except TimeoutError:
        return None if owed else answer
    except OSError:
        return answer  # it had heard enough, and closed
    finally:
        writer.close()


async def speak(way: Callable[[], Way], generator: Generator, requests: int, found: Found) -> None:
    """Say conversations, each on a connection of its own, until there were so many requests."""

    async def one_after_the_other() -> None:
        while found.requests < requests:
            conversation = generator.conversation()
            found.requests += conversation.requests
            answer = await _say(way(), conversation)
            if answer is None:
                found.hung.append(repr(conversation)[:2000])
                continue
            for status in map(int, _STATUS.findall(answer)):
                found.statuses[status] += 1
                if status >= 500 and status not in ALLOWED_5XX:
                    found.failed.append(f"{status}: {conversation!r}"[:2000])

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))


def fuzz(folder: Path, requests: int, seed: int) -> Found:
    """Start a daemon, say ``requests`` requests to it, and look whether it is well."""
    found = Found()
    with (
        PlainSender() as sender,
        Daemon(folder, max_pending="50", max_concurrent_transfers="50", max_per_peer="50") as one,
    ):
        routes = one.call("GET", "/openapi.json").json["paths"]
        ids = known(one, sender)
        generator = Generator(seed, f"localhost:{one.port}", routes, ids)
        started = time.monotonic()
        asyncio.run(speak(lambda: (one.port, None), generator, min(requests, 1000), found))
        warm = resident(one)
        asyncio.run(speak(lambda: (one.port, None), generator, requests, found))
        found.seconds = time.monotonic() - started
        found.grown = resident(one) - warm
        assert one.call("GET", "/healthz").status == 200
        kept = [backup["backupId"] for backup in one.backups()]
        assert ids[1] in kept, "a stranger deleted a backup"
    return found


def main() -> int:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--paired", action="store_true", help="with peers, and by TLS too")
    options = parser.parse_args()
    print(f"seed {options.seed}")  # noqa: T201
    with tempfile.TemporaryDirectory() as folder:
        if options.paired:
            from tests.fuzz.paired import fuzz_paired as fuzz_it
        else:
            fuzz_it = fuzz
        found = fuzz_it(Path(folder), options.requests, options.seed)
    rate = found.requests / found.seconds
    print(f"{found.requests} requests in {found.seconds:.0f} s ({rate:.0f}/s)")  # noqa: T201
    print(f"memory grew by {found.grown / 2**20:.1f} MiB")  # noqa: T201
    for status, count in sorted(found.statuses.items()):
        print(f"  {status}: {count}")  # noqa: T201
    for what in (*found.failed[:10], *found.hung[:10]):
        print(what)  # noqa: T201
    return 1 if found.failed or found.hung else 0


if __name__ == "__main__":
    sys.exit(main())
