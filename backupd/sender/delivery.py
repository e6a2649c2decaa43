"""How the bytes of an entry get to the receiver: by tus where it is offered, else by one POST."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from twisted.internet.interfaces import IReactorTime

from backupd.bandwidth import Pace
from backupd.errors import BackupdError, PeerFailed, PeerRefused
from backupd.interfaces import Entry, IFileSystem, ILedger, OffThread
from backupd.peer.client import PeerClient
from backupd.peer.file_body import FileBody
from backupd.peer.open_file import FileDigest, FileState
from backupd.peer.tus import GONE, Abilities, Tus
from backupd.sender.lanes import LONG, Lanes
from backupd.sender.parts import InParts, PartsGone
from backupd.sender.places import Part, Places, recorded
from backupd.waiting import go_on

__all__ = ["ArrivedWrong", "Delivery"]

MIB = 1024 * 1024

PIECES = (64 * MIB, 1024 * MIB)
"""Bytes of the first request, and of the largest: what a proxy in between may have to keep."""

MINUTE = 60.0
"""Seconds that a piece should take: what is lost at most when a proxy loses it."""

SMALL_PIECES = (64 * MIB, 16 * MIB, 4 * MIB, MIB)
"""What is tried, one after the other, where a proxy answers 413; 1 MiB is nginx's own limit."""

PASSING = frozenset({429, 500, 502, 503, 504})
"""The statuses that say nothing of what the receiver can do."""

CANNOT = frozenset({400, 405, 501})
"""The statuses that say that parts are not joined here, whatever OPTIONS said."""

JOINING = (120.0, 50 * MIB)
"""Seconds for the answer to joining: so many, and one more for each so many bytes."""

LOOKS = 3
"""How often the way is measured before it counts as long."""

WORTH = 16 * MIB
"""Bytes of a file that more than one connection can be worth it for."""

CONFLICTS = 3
"""How often in a row the receiver may name another offset than it told."""


class ArrivedWrong(BackupdError):
    """The receiver has other bytes than we sent."""


@dataclass(slots=True)
class _Memory:
    """What is known of one entry's way; may be lost."""

    digest: FileDigest
    link: str | None = None
    abilities: Abilities | None = None
    piece: int = PIECES[0]
    limit: int = PIECES[1]
    lanes: Lanes | None = None
    round_trip: float = 0.0
    joins: bool = True
    """Whether the receiver can join parts; it has said so, and not refused it."""


def next_piece(length: int, seconds: float) -> int:
    """Bytes for the next request, when ``length`` took so long: about a minute's worth."""
    return int(min(max(length * MINUTE / max(seconds, 0.001), MIB), PIECES[1]))


class Delivery:
    """Sends what the receiver lacks. Knows nothing of an entry's states."""

    def __init__(
        self,
        *,
        ledger: ILedger,
        peer: PeerClient,
        clock: IReactorTime,
        off: OffThread,
        fs: IFileSystem = os,
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace
        self._ledger = ledger
        self._peer = peer
        self._tus = Tus(peer)
        self._clock = clock
        self._off = off
        self._fs = fs
        self._memory: dict[str, _Memory] = {}
        self.sent: dict[str, int] = {}
        """Bytes that have been handed to the network, for each entry."""

    async def deliver(self, entry: Entry, *, afresh: bool) -> str:
        """Send what is missing; the SHA-256 of the file.

        ``afresh``: nothing that went by POST counts. Of tus uploads those count that are recorded.
        Raises `PeerRefused`, `PeerFailed`, `ArrivedWrong`, and what reading the file raises.
        """
        memory = self._remember(entry)
        await memory.digest.check()
        if await self._abilities(entry, memory) is None:
            await self._plainly(entry, memory, afresh)
        else:
            await self._by_tus(entry, memory)
        await memory.digest.follow(entry.size)
        return str(memory.digest.sha256)

    async def digested(self, entry: Entry) -> str:
        """The SHA-256 of the file, which an earlier process knew or nobody did."""
        digest = self._remember(entry).digest
        await digest.follow(entry.size)
        return str(digest.sha256)

    def forget(self, entry_id: str) -> None:
        """It is over."""
        self._memory.pop(entry_id, None)
        self.sent.pop(entry_id, None)

    def _remember(self, entry: Entry) -> _Memory:
        file = FileState(entry.path, entry.size, entry.modified_ns)
        memory = self._memory.get(entry.entry_id)
        if memory is None or memory.digest.file != file:
            memory = self._memory[entry.entry_id] = _Memory(FileDigest(file, self._off, self._fs))
        return memory

    async def _abilities(self, entry: Entry, memory: _Memory) -> Abilities | None:
        """What the receiver offers, asked once for each offer."""
        link = str(entry.upload_link)
        if memory.link == link:
            return memory.abilities
        places = recorded(entry)
        begun = self._clock.seconds()
        try:
            abilities = await self._tus.abilities(link)
        except PeerFailed as error:
            if not isinstance(error, PeerRefused) or error.status in PASSING:
                if places.whole or places.parts:
                    raise
                # A server that does not know OPTIONS may well break down on it.
                return None
            abilities = None
        memory.link, memory.abilities = link, abilities
        memory.round_trip = self._round_trip(link, begun)
        for _ in range(LOOKS - 1):
            if abilities is None or not _in_parts(entry, memory):
                break
            # A busy machine, here or there, looks like a long way; a way is as long every time.
            begun = self._clock.seconds()
            await self._tus.abilities(link)
            memory.round_trip = min(memory.round_trip, self._round_trip(link, begun))
        return abilities

    def _round_trip(self, link: str, begun: float) -> float:
        """There and back for the connection, with TLS once more, and for the answer."""
        return (self._clock.seconds() - begun) / (3 if link.startswith("https:") else 2)

    # -- without tus ------------------------------------------------------------------------------

    async def _plainly(self, entry: Entry, memory: _Memory, afresh: bool) -> None:
        link = str(entry.upload_link)
        offset = None if afresh else await self._peer.standing(link)
        start = offset if offset is not None and offset <= entry.size else 0
        await memory.digest.follow(start)
        body = self._body(entry, memory.digest)
        try:
            await body.open(start)
            if start:
                answer = await self._peer.resume(link, start, body)
            else:
                answer = await self._peer.send(
                    link,
                    body,
                    content_type=entry.content_type,
                    file_name=entry.file_name,
                    sha256=memory.digest.sha256,
                )
        finally:
            await body.close()
        received = answer.get("receivedBytes")
        if isinstance(received, int) and received != entry.size:
            raise PeerFailed(f"Only {received} of {entry.size} bytes have arrived.")
        size, theirs = answer.get("size"), digest_in(answer)
        sha256 = memory.digest.sha256
        if (theirs or sha256) != sha256 or (isinstance(size, int) and size != entry.size):
            raise ArrivedWrong("The receiver got other bytes than we sent.")

    def _body(
        self, entry: Entry, digest: FileDigest | None, progress: Callable[[int], None] | None = None
    ) -> FileBody:
        def sent(to: int) -> None:
            self.sent[entry.entry_id] = to

        return FileBody(
            FileState(entry.path, entry.size, entry.modified_ns),
            off=self._off,
            clock=self._clock,
            digest=digest,
            progress=progress or sent,
            fs=self._fs,
            pace=self._pace,
        )

    # -- by tus -----------------------------------------------------------------------------------

    async def _by_tus(self, entry: Entry, memory: _Memory) -> None:
        places = recorded(entry)
        if places.parts or (places.whole is None and _in_parts(entry, memory)):
            await self._by_parts(entry, memory, places)
            return
        url, offset = places.whole, 0
        if url is not None:
            try:
                offset = await self._tus.standing(url)
            except PeerRefused as error:
                if error.status not in GONE:
                    raise
                if await self._peer.standing(places.link) == entry.size:
                    return
                url = None
        if url is None:
            url = await self._tus.create(places.link, entry.size, metadata_of(entry))
            offset = 0
            await self._record(entry, Places(places.link, url))
        if offset > entry.size:
            raise ArrivedWrong("The receiver has more bytes than the file.")
        # What an earlier process sent is read for the digest while the rest is on its way.
        catching_up = memory.digest.at < offset
        following = go_on(memory.digest.follow(offset))
        try:
            digest = None if catching_up else memory.digest
            await self._send(entry, memory, Part(0, entry.size, url), offset, digest)
        except BaseException:
            following.cancel()
            with suppress(Exception):
                await following
            raise
        await following

    async def _by_parts(self, entry: Entry, memory: _Memory, places: Places) -> None:
        """Several uploads, and one of them joined in the end."""
        if memory.lanes is None:
            memory.lanes = Lanes(memory.round_trip)
        memory.lanes.again()

        async def send(
            part: Part,
            offset: int,
            progress: Callable[[int], None],
            arrived: Callable[[float, int], None],
        ) -> None:
            await self._send(entry, memory, part, offset, None, progress, arrived)

        def sent(to: int) -> None:
            self.sent[entry.entry_id] = to

        parts = InParts(
            places,
            tus=self._tus,
            digest=memory.digest,
            lanes=memory.lanes,
            clock=self._clock,
            send=send,
            record=lambda places: self._record(entry, places),
            progress=sent,
        )
        try:
            await parts.run()
        except PartsGone as error:
            await self._without_parts(entry, memory, places, error)
            return
        try:
            await self._join(entry, memory, parts.places)
        except PeerRefused as error:
            if error.status in CANNOT:
                memory.joins = False
                await self._record(entry, Places(places.link))
                raise PeerFailed(
                    f"The parts cannot be joined; sending it whole. {error}"
                ) from error
            raise

    async def _without_parts(
        self, entry: Entry, memory: _Memory, places: Places, gone: PartsGone
    ) -> None:
        """Parts are gone because they have been joined, are being joined, or are lost.

        Joining may outlast the patience of who asked for it. Asked again for the same, the
        receiver says which it is, and goes on with what it has begun.
        """
        if await self._peer.standing(places.link) == entry.size:
            return
        if places.end == entry.size:
            try:
                await self._join(entry, memory, places)
                return
            except PeerRefused as error:
                if error.status not in GONE | CANNOT:
                    raise
        await self._record(entry, Places(places.link))
        raise PeerFailed(f"Parts of the upload are gone; starting again. {gone}") from gone

    async def _join(self, entry: Entry, memory: _Memory, places: Places) -> None:
        """Have the parts made one upload. Raises `PeerRefused` with 409 while that is done."""
        metadata = metadata_of(entry)
        if memory.digest.sha256 is not None:
            metadata["sha256"] = memory.digest.sha256
        urls = [part.url for part in places.parts]
        limit = JOINING[0] + entry.size / JOINING[1]
        await self._tus.concatenate(places.link, urls, metadata, limit)

    async def _send(
        self,
        entry: Entry,
        memory: _Memory,
        part: Part,
        offset: int,
        digest: FileDigest | None,
        progress: Callable[[int], None] | None = None,
        arrived: Callable[[float, int], None] = lambda began, length: None,
    ) -> None:
        """Send the upload's bytes from ``offset`` on, in pieces, telling what has ``arrived``."""
        conflicts = 0
        while offset < part.length:
            begun = self._clock.seconds()
            goal = min(offset + min(memory.piece, memory.limit), part.length)
            body = self._body(entry, digest, progress)
            try:
                await body.open(part.start + offset, part.start + goal)
                reached = await self._tus.patch(part.url, offset, body)
            except PeerRefused as error:
                told = error.answer.get("receivedBytes")
                smaller = [size for size in SMALL_PIECES if size < goal - offset]
                if error.status == 413 and smaller:
                    memory.limit = smaller[0]
                    continue
                conflicts += 1
                if error.status != 409 or not isinstance(told, int) or conflicts > CONFLICTS:
                    raise
                reached = told
            else:
                if reached <= offset:
                    raise PeerFailed("The receiver took nothing of what was sent, and said yes.")
                conflicts = 0
                memory.piece = next_piece(goal - offset, self._clock.seconds() - begun)
                arrived(begun, reached - offset)
            finally:
                await body.close()
            if not 0 <= reached <= part.length:
                raise ArrivedWrong("The receiver has more bytes than were sent.")
            offset = reached

    async def _record(self, entry: Entry, places: Places) -> None:
        """Durable before the first byte goes there, so that no restart sends it twice."""
        text = places.text()

        def step(current: Entry) -> Entry:
            return replace(current, uploads=text) if current.state == "READY" else current

        await self._ledger.change_entry(entry.entry_id, step)


def _in_parts(entry: Entry, memory: _Memory) -> bool:
    """Whether several connections may be worth it: the way is long, and so is the file."""
    able = memory.abilities is not None and "concatenation" in memory.abilities.extensions
    return able and memory.joins and memory.round_trip >= LONG and entry.size >= WORTH


def metadata_of(entry: Entry) -> dict[str, str]:
    """What tus servers are told of a file."""
    metadata = {"filename": entry.file_name}
    if entry.content_type is not None:
        metadata["filetype"] = entry.content_type
    if entry.sha256 is not None:
        metadata["sha256"] = entry.sha256
    return metadata


def digest_in(answer: dict[str, object]) -> str | None:
    """The SHA-256 that an answer names."""
    digest = answer.get("sha256")
    return digest.strip().lower() if isinstance(digest, str) and digest.strip() else None
