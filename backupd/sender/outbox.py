"""The outbox: what is to be sent, and when each entry is carried a step further."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from backupd.bandwidth import Bandwidth
from backupd.errors import AlreadyStored, BackupdError, Invalid
from backupd.interfaces import Entry, IFileSystem, ILedger, OffThread, Pick
from backupd.links import Links
from backupd.peer.backoff import Chance
from backupd.peer.client import PeerClient
from backupd.peer.open_file import FileGone
from backupd.peer.origins import check_link, origin_of, place_of
from backupd.requests import VideoId
from backupd.sender.catalogue import (
    Catalogue,
    Watcher,
    content_type_of,
    examine,
    stem_of,
    video_of,
)
from backupd.sender.courier import Courier
from backupd.sender.notices import anybody, take_notice
from backupd.sender.sharing import UnderWay, longest_due, share
from backupd.sender.steps import GOING, OVER, changed, moved
from backupd.settings import Settings
from backupd.waiting import go_on

__all__ = ["Outbox"]

SMALL_STEPS = 32
"""Questions and looks that are under way at once, beside ``max_sends`` uploads."""

EACH = 4
"""So many of them for one server."""

PAGE = 500
REST = 5.0
"""Seconds that an entry is left alone when not even its failure could be recorded."""

SCAN = 10.0
"""Seconds between two looks into the watched folders."""


class Outbox:
    """Keeps every entry moving, at most one step of each at a time."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        peer: PeerClient,
        links: Links,
        settings: Settings,
        clock: IReactorTime,
        off: OffThread,
        rng: Chance,
        new_id: Callable[[], str],
        new_capability: Callable[[], str],
        nudge: Callable[[], None],
        fs: IFileSystem = os,
        wall: Callable[[], float] | None = None,
    ) -> None:
        self._ledger = ledger
        self._settings = settings
        self._clock = clock
        self._off = off
        self._new_id = new_id
        self._new_capability = new_capability
        self._nudge = nudge
        self._fs = fs
        self._courier = Courier(
            ledger=ledger,
            peer=peer,
            links=links,
            clock=clock,
            off=off,
            rng=rng,
            fs=fs,
            pace=Bandwidth(settings.send_bandwidth, clock, wall=wall).of(None),
        )
        self._catalogue = Catalogue(settings.videos)
        self._unreadable: dict[str, str] = {}
        self._watcher: Watcher | None = None
        self._next_scan = 0.0
        self._uploads, self._small = UnderWay(settings.max_sends), UnderWay(SMALL_STEPS)
        self._resting: dict[str, float] = {}
        self._aside: dict[str, Deferred[None]] = {}
        self._alarm: IDelayedCall | None = None
        self._stopped = False

    # -- what is asked of it ----------------------------------------------------------------------

    async def enqueue(
        self, *, to: str, path: str | None = None, video: VideoId | None = None
    ) -> Entry:
        """Send the file at ``path``, or the catalogue's file for ``video``, to the server ``to``.

        Without ``video`` the file's name is its id. The entry that is sending the same file to
        the same server already is returned as it is; it asks anew where the file has changed.
        Where all of the old had arrived by then, the new is an entry behind it.
        Raises `Invalid`.
        """
        check_link("to", to)
        place = place_of(to)
        if "?" in to:
            raise Invalid("to", "must be the address of a server, without a query")
        if path is None:
            if video is None:
                raise Invalid("path", "or videoId must say what to send")
            path = await self._off(self._catalogue.find, video)
        size, modified_ns = await self._examined(path)
        now = self._clock.seconds()
        entry = Entry(
            entry_id=self._new_id(),
            path=path,
            size=size,
            modified_ns=modified_ns,
            video=video_of(stem_of(path)) if video is None else video,
            to=place.origin + place.target.rstrip("/"),
            capability=self._new_capability(),
            state="ASKING",
            created_at=now,
            changed_at=now,
            due_at=now,
            deadline=now + self._settings.send_deadline,
            file_name=os.path.basename(path),
            content_type=content_type_of(path),
        )
        kept = await self._queued(entry)
        if kept.entry_id == entry.entry_id:
            self._log.info(
                "entry {entry_id}: {path}, {size} bytes, goes to {to} as video {video}",
                entry_id=kept.entry_id,
                path=path,
                size=size,
                to=place.origin,
                video=kept.video,
            )
        self._nudge()
        return kept

    async def _queued(self, entry: Entry) -> Entry:
        """The entry, or the one that is sending this file already, as it is now."""
        kept = await self._ledger.enqueue(entry)
        if (kept.size, kept.modified_ns) == (entry.size, entry.modified_ns):
            return kept
        step = changed(entry, now=self._clock.seconds())
        kept = await self._ledger.change_entry(kept.entry_id, step)
        # The last byte of the old may have come since it was looked at.
        return kept if kept.state == "ASKING" else await self._ledger.enqueue(entry)

    async def _examined(self, path: str) -> tuple[int, int]:
        if not os.path.isabs(path) or "\0" in path:
            raise Invalid("path", "must be absolute")
        try:
            path.encode("utf-8")
            return await self._off(examine, path, self._fs)
        except UnicodeEncodeError as error:
            raise Invalid("path", "is not UTF-8") from error
        except FileGone as error:
            raise Invalid("path", str(error)) from error
        except OSError as error:
            raise Invalid("path", f"{path} cannot be sent: {error.strerror}") from error

    async def cancel(self, entry_id: str) -> Entry:
        """Stop sending an entry. Raises `NoSuchEntry`, `AlreadyStored`; again is harmless."""
        step = moved(
            "CANCELLED",
            leaving=GOING,
            now=self._clock.seconds(),
            last_error="The operator cancelled it.",
        )
        entry = await self._ledger.change_entry(entry_id, step)
        if entry.state in ("VERIFIED", "UNVERIFIED"):
            raise AlreadyStored("The receiver has stored it already; delete the backup there.")
        work = self._uploads.works.get(entry_id) or self._small.works.get(entry_id)
        if work is not None:
            work.cancel()
            await work
        self._courier.forget(entry_id)
        if entry.state == "CANCELLED":
            self._beside(f"cancel {entry_id}", self._courier.tell_given_up(entry))
        return entry

    async def notice(
        self,
        capability: str | None,
        video: VideoId,
        upload_link: str,
        complete_link: str,
        authentic: Callable[[str], None] = anybody,
    ) -> Entry:
        """The receiver says that it is our turn. Raises what `notices.take_notice` raises."""
        entry = await take_notice(
            self._ledger,
            self._clock,
            self._off,
            self._fs,
            self._settings.send_deadline,
            capability,
            video,
            upload_link,
            complete_link,
            authentic,
        )
        self._log.info(
            "entry {entry_id} (request {request_id}): {to} says that it is our turn",
            entry_id=entry.entry_id,
            request_id=entry.request_id or "unknown",
            to=origin_of(entry.to),
        )
        self._nudge()
        return entry

    def progress(self, entry: Entry) -> tuple[int, int | None]:
        """Bytes that have been sent, and the place in the receiver's queue, as far as known."""
        if entry.state in ("SENT", "VERIFIED", "UNVERIFIED"):
            return entry.size, None
        position = self._courier.positions.get(entry.entry_id)
        sent = self._courier.sent.get(entry.entry_id, 0) if entry.state == "READY" else 0
        return sent, position if entry.state == "WAITING" else None

    # -- the loop ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Ask again for everything that was waiting: a receiver repeats its offer then."""
        after = 0
        now = self._clock.seconds()
        step = moved("ASKING", leaving={"WAITING"}, now=now)
        while True:
            page = await self._ledger.entries(over=False, after=after, limit=PAGE)
            waiting = [entry.entry_id for _, entry in page if entry.state == "WAITING"]
            for change in [self._ledger.change_entry(entry_id, step) for entry_id in waiting]:
                await change
            if len(page) < PAGE:
                return
            after = page[-1][0]

    async def tick(self) -> None:
        """Start the steps that are due and have a place; never raises, does not wait for them."""
        if self._stopped:
            return
        try:
            self._watch()
            await self._look()
        except BackupdError as error:
            self._log.error("the outbox could not be read: {why}", why=str(error))
        except Exception:
            self._log.failure("the outbox could not be read")

    async def _look(self) -> None:
        now = self._clock.seconds()
        self._resting = {one: until for one, until in self._resting.items() if until > now}
        outgoing = await self._ledger.outgoing()
        known = {one.to for one in outgoing}
        self._courier.silent &= known
        for kind in (self._uploads, self._small):
            kind.forget_all_but(known)
        waiting = {
            one.to: {state for state, at in one.due.items() if at <= now} for one in outgoing
        }
        sends, smalls = self._shares(waiting)
        picks = [Pick(to, "READY", count) for to, count in sends.items()]
        for to, count in smalls.items():
            picks += [Pick(to, state, count) for state in self._small_states(to, waiting[to])]
        if not picks:
            return
        without = [*self._uploads.works, *self._small.works, *self._resting]
        due: dict[str, list[Entry]] = {}
        for entry in await self._ledger.entries_due(picks, now=now, without=without):
            if entry.state == "READY" and entry.to not in self._courier.silent:
                self._start(entry, self._uploads)
            else:
                due.setdefault(entry.to, []).append(entry)
        for to, entries in due.items():
            for entry in longest_due(entries, smalls[to]):
                self._start(entry, self._small)

    def _small_states(self, to: str, due: set[str]) -> list[str]:
        """To a silent server nothing is sent: an entry that is READY asks whether it is there."""
        silent = to in self._courier.silent
        return [state for state in sorted(due) if state != "READY" or silent]

    def _shares(self, due: dict[str, set[str]]) -> tuple[Counter[str], Counter[str]]:
        """How many uploads and how many small steps may begin, by server."""
        silent, uploads, smalls = self._courier.silent, self._uploads, self._small
        ready = [to for to in due if "READY" in due[to] and to not in silent]
        small = [to for to in due if self._small_states(to, due[to])]
        return (
            share(
                uploads.in_turn(ready),
                busy=uploads.busy(),
                silent=(),
                places=uploads.most,
                each=uploads.most,
            ),
            share(
                smalls.in_turn(small),
                busy=smalls.busy(),
                silent=silent,
                places=smalls.most,
                each=EACH,
            ),
        )

    def _start(self, entry: Entry, kind: UnderWay) -> None:
        entry_id = entry.entry_id
        under_way = entry_id in self._uploads or entry_id in self._small
        if self._stopped or under_way or kind.full:
            return
        kind.begin(entry)
        work = go_on(self._carry(entry))
        if not work.called:
            kind.works[entry_id] = work
        work.addBoth(self._carried, entry_id, kind)

    async def _carry(self, entry: Entry) -> None:
        try:
            entry = await self._courier.carry(entry)
        except CancelledError:
            raise
        except BackupdError as error:
            self._rest(entry, str(error))
            return
        except Exception:
            self._log.failure("entry {entry_id}: a defect", entry_id=entry.entry_id)
            why = "Something went wrong here that should not; the log has it."
            try:
                entry = await self._courier.again(entry, why)
            except BackupdError as error:
                self._rest(entry, str(error))
                return
        if entry.state not in OVER:
            self._wake_at(entry.due_at)

    def _rest(self, entry: Entry, why: str) -> None:
        self._log.error("entry {entry_id} rests: {why}", entry_id=entry.entry_id, why=why)
        until = self._resting[entry.entry_id] = self._clock.seconds() + REST
        self._wake_at(until)

    def _carried(self, result: object, entry_id: str, kind: UnderWay) -> None:
        kind.end(entry_id)
        if isinstance(result, Failure) and not result.check(CancelledError):
            self._resting[entry_id] = self._clock.seconds() + REST
            self._log.failure("entry {entry_id}: a defect", result, entry_id=entry_id)
        if not self._stopped:
            self._nudge()

    def _wake_at(self, moment: float) -> None:
        """Be on time for the next step; those after it are left to the loop."""
        if self._stopped:
            return
        if self._alarm is not None and self._alarm.active():
            if self._alarm.getTime() <= moment:
                return
            self._alarm.cancel()
        wait = max(0.0, moment - self._clock.seconds())
        self._alarm = self._clock.callLater(wait, self._nudge)

    def _beside(self, name: str, work: Coroutine[Deferred[Any], Any, None]) -> None:
        """Something that nobody waits for but `stop`; one of each name at a time."""
        if name in self._aside or self._stopped:
            work.close()
            return
        going = go_on(work)
        if not going.called:
            self._aside[name] = going
        going.addBoth(self._done_beside, name)

    def _done_beside(self, result: object, name: str) -> None:
        self._aside.pop(name, None)
        if isinstance(result, Failure) and not result.check(CancelledError):
            self._log.failure("{name} failed", result, name=name)

    # -- watched folders --------------------------------------------------------------------------

    def _watch(self) -> None:
        settings, now = self._settings, self._clock.seconds()
        if not settings.watch_to or not settings.videos:
            return
        if "watch" in self._aside or now < self._next_scan:
            return
        self._next_scan = now + SCAN
        self._beside("watch", self._scan())

    async def _scan(self) -> None:
        if self._watcher is None:
            self._watcher = await self._new_watcher()
        watcher = self._watcher
        files = await self._off(lambda: list(self._catalogue.everything()))
        before, self._unreadable = self._unreadable, self._catalogue.unreadable
        for path, why in self._unreadable.items():
            if before.get(path) != why:
                self._log.error(
                    "{path} cannot be read, and what is in it is not sent: {why}",
                    path=path,
                    why=why,
                )
        for file in watcher.look(files, self._clock.seconds()):
            try:
                await self.enqueue(to=self._settings.watch_to, path=file.path, video=file.video)
            except BackupdError as error:
                watcher.forget(file.path)
                self._log.error("{path} is not queued: {why}", path=file.path, why=str(error))

    async def _new_watcher(self) -> Watcher:
        """One that knows what has been queued before, whatever became of it."""
        watcher, after = Watcher(), 0
        while True:
            page = await self._ledger.entries(over=None, after=after, limit=PAGE)
            for _, entry in page:
                watcher.know(entry.path, entry.size, entry.modified_ns)
            if len(page) < PAGE:
                return watcher
            after = page[-1][0]

    # -- the end ----------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Cut every upload, and return once nothing is under way; the ledger knows the rest."""
        self._stopped = True
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        works = [*self._uploads.works.values(), *self._small.works.values()]
        works += self._aside.values()
        for work in works:
            work.cancel()
        for work in works:
            await work
