"""A long, thin link: a TCP proxy that delays both ways and limits the rate of each connection.

``python -m tests.integration.slow_proxy PORT`` runs one by itself and prints its own port.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

__all__ = ["SlowProxy"]

BUFFER = 64 * 1024
BUSY = 512 * 1024
"""Bytes that make a connection count as one that carries a file."""


class SlowProxy:
    """Passes connections on to ``port`` of the loopback address.

    Every byte takes ``delay`` seconds each way, and a connection two of them more before its
    first, as its handshake would. Towards ``port`` a connection carries ``rate`` bytes a second,
    and all of them together ``shared``, if that is given.
    """

    def __init__(
        self, port: int, *, delay: float = 0.1, rate: float, shared: float | None = None
    ) -> None:
        self._to = port
        self._delay = delay
        self._rate = rate
        self._shared = shared
        self._shared_free = 0.0
        self._busy: dict[object, int] = {}
        self.carried = 0
        """Bytes towards ``port``."""
        self.most_busy = 0
        """The most connections that carried a file at once."""
        self._listening = socket.create_server(("127.0.0.1", 0))
        # Small buffers: what the proxy has not passed on must not look sent for long.
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self.port: int = self._listening.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self.serve(),))

    async def serve(self) -> None:
        """Until `stop` is set."""
        server = await asyncio.start_server(self._connection, sock=self._listening)
        async with server:
            await self._stop.wait()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        me = object()
        try:
            await asyncio.sleep(2 * self._delay)
            far, to = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            back.transport.abort()
            return
        self._busy[me] = 0
        up = asyncio.ensure_future(self._carry(near, to, me))
        down = asyncio.ensure_future(self._carry(far, back, None))
        try:
            # The answer ends it; and an end of what is sent ends it when it was cut.
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if not down.done():
                await asyncio.wait({down}, timeout=10 * self._delay)
        finally:
            del self._busy[me]
            for task in (up, down):
                task.cancel()
            for writer in (to, back):
                writer.close()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: object | None
    ) -> None:
        """Pass bytes on, late; ``up`` is the connection when they go towards the port."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        on_the_way = 0
        gone = asyncio.Event()

        async def deliver() -> None:
            nonlocal on_the_way
            while True:
                moment, data = await waiting.get()
                await asyncio.sleep(moment - time.monotonic())
                if data:
                    writer.write(data)
                    await writer.drain()
                on_the_way -= len(data)
                gone.set()
                if not data:
                    return

        delivering = asyncio.ensure_future(deliver())
        free = 0.0
        try:
            while True:
                data = await reader.read(BUFFER)
                free = max(free, time.monotonic())
                if up is not None and data:
                    free += len(data) / self._rate
                    if self._shared is not None:
                        self._shared_free = max(self._shared_free, time.monotonic())
                        self._shared_free += len(data) / self._shared
                        free = max(free, self._shared_free)
                    self.carried += len(data)
                    self._busy[up] += len(data)
                    busy = sum(carried > BUSY for carried in self._busy.values())
                    self.most_busy = max(self.most_busy, busy)
                on_the_way += len(data)
                waiting.put_nowait((free + self._delay, data))
                if not data:
                    await delivering
                    return
                # As many bytes as the link holds.
                while on_the_way > self._rate * 2 * self._delay + BUFFER:
                    gone.clear()
                    await gone.wait()
        except OSError:
            return
        finally:
            delivering.cancel()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


def main() -> None:
    """One proxy, until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.slow_proxy")
    parser.add_argument("port", type=int)
    parser.add_argument("--delay", type=float, default=0.1, help="seconds each way, 0.1")
    parser.add_argument("--rate", type=float, default=2.0, help="MiB/s of a connection, 2")
    options = parser.parse_args()
    rate = options.rate * 1024 * 1024
    with SlowProxy(options.port, delay=options.delay, rate=rate) as proxy:
        print(proxy.port, flush=True)  # noqa: T201
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
