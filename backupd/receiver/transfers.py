"""The transfers that are under way: who sends what, who has to make way, and how they end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from backupd.errors import Busy, Invalid, ShuttingDown, UploadHeld
from backupd.interfaces import Source
from backupd.receiver.joining import Joining
from backupd.receiver.room import Begun
from backupd.receiver.transfer import Transfer

__all__ = ["AT_ONCE", "SILENCE", "Transfers", "ended"]

SILENCE = 5.0
"""Seconds without a byte after which a newer upload may end an older one."""

AT_ONCE = 16
"""Uploads that may be under way for one turn at the same time."""

AnyTransfer = Transfer | Joining
X = TypeVar("X", Transfer, Joining)


async def ended(transfer: AnyTransfer) -> None:
    """Wait until a transfer has let go."""
    waiter: Deferred[None] = Deferred()
    transfer.done.addCallback(lambda _: waiter.callback(None))
    await waiter


class Transfers:
    """Every transfer by its upload, one for each at a time."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._by_upload: dict[str, AnyTransfer] = {}
        self._beginning: Counter[str] = Counter()
        self._of_peer: Counter[str] = Counter()
        self._silent: list[Source] = []
        self._stopping = self._given_up = False
        self._going = 0
        self._quiet: list[Deferred[None]] = []

    # -- what there is ----------------------------------------------------------------------------

    def get(self, upload_id: str) -> AnyTransfer | None:
        """The transfer of an upload, None when nobody sends it."""
        return self._by_upload.get(upload_id)

    def __len__(self) -> int:
        return len(self._by_upload)

    def __contains__(self, upload_id: object) -> bool:
        return upload_id in self._by_upload

    def of(self, request_id: str) -> list[AnyTransfer]:
        """The transfers of a request."""
        return [one for one in self._by_upload.values() if one.ask.request_id == request_id]

    def under_way(self, request_id: str) -> int | None:
        """Bytes that the transfers of a request have taken so far, None when none runs."""
        running = self.of(request_id)
        return sum(one.received for one in running) if running else None

    # -- beginning and making way -----------------------------------------------------------------

    @contextmanager
    def place(self, turn: str, peer: str = "", most: int | None = None) -> Iterator[None]:
        """Of those that a turn has, and of the ``most`` that its peer may have, for a transfer
        until it is registered.

        Raises `Busy` when all are taken.
        """
        if most is not None:
            of_peer = sum(one.ask.peer == peer for one in self._by_upload.values())
            if of_peer + self._of_peer[peer] >= most:
                raise Busy(f"Peer {peer} may have {most} uploads at once; end one first.", 5.0)
        under_way = sum(one.ask.turn == turn for one in self._by_upload.values())
        if under_way + self._beginning[turn] >= AT_ONCE:
            raise Busy(f"{AT_ONCE} uploads are under way already; end one first.", 5.0)
        self._beginning[turn] += 1
        self._of_peer[peer] += 1
        try:
            yield
        finally:
            for counter, key in ((self._beginning, turn), (self._of_peer, peer)):
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]

    async def begun(self, source: Source) -> Begun:
        """``source`` once some of it is here. Cut when a stop waits for it no more.

        Raises `Invalid` when it is empty, `UploadCut`.
        """
        self._silent.append(source)
        try:
            if self._given_up:
                source.abort()
            first = await source.read()
        finally:
            self._silent.remove(source)
        if not first:
            raise Invalid("body", "is empty; a video has at least one byte")
        return Begun(first, source)

    def register(self, transfer: X, upload_id: str) -> X:
        """It is under way until it is `done`."""
        self._by_upload[upload_id] = transfer

        def let_go(_: object) -> None:
            del self._by_upload[upload_id]

        transfer.done.addBoth(let_go)
        if self._given_up:
            transfer.abort()
        return transfer

    async def make_way(self, transfers: Sequence[AnyTransfer]) -> None:
        """End transfers that are dead or silent; raises `UploadHeld` when one is alive."""
        for transfer in transfers:
            if not transfer.ending:
                if transfer.silent_for() < SILENCE:
                    raise UploadHeld(
                        "Another upload for this request is alive.", retry_after=SILENCE
                    )
                transfer.abort()
            await ended(transfer)

    async def make_way_for(self, upload_id: str) -> None:
        """End whatever sends this upload, if it is dead; raises `UploadHeld` if it is alive."""
        transfer = self.get(upload_id)
        if transfer is not None:
            await self.make_way([transfer])

    async def make_way_if_silent(self, upload_id: str) -> None:
        """Whoever asks where an upload stands may go on with it: end one that is dead."""
        transfer = self.get(upload_id)
        if transfer is not None:
            await self.end_silent([transfer])

    async def end_silent(self, transfers: Sequence[AnyTransfer]) -> None:
        """End those that are dead; who is alive stays."""
        await self.make_way([one for one in transfers if one.ending or one.silent_for() >= SILENCE])

    # -- stopping ---------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises `ShuttingDown` once nothing new is begun."""
        if self._stopping:
            raise ShuttingDown("This server is stopping; go on when it is back.", 5.0)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Something that a stop waits for."""
        self._going += 1
        try:
            yield
        finally:
            self._going -= 1
            if not self._going:
                quiet, self._quiet = self._quiet, []
                for waiter in quiet:
                    waiter.callback(None)

    async def stop(self, grace: float) -> None:
        """Let transfers finish for ``grace`` seconds, then checkpoint and end those that go on."""
        self._stopping = True

        def give_up() -> None:
            self._given_up = True
            for transfer in [*self._by_upload.values(), *self._silent]:
                transfer.abort()

        if self._going:
            deadline = self._clock.callLater(grace, give_up)
            waiter: Deferred[None] = Deferred()
            self._quiet.append(waiter)
            await waiter
            if deadline.active():
                deadline.cancel()
