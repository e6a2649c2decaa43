"""Inspection: whether files and list agree, and what can be done where they do not.

First everything under the root is looked at, then everything on the list, then the unfinished
uploads. Nothing is read but descriptions, names, sizes and times; a repair reads the bytes of what
it repairs. It removes nothing but unfinished uploads that nobody can go on with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from backupd.errors import BackupdError, Busy, NoSuchBackup, NoSuchRequest
from backupd.interfaces import Damaged, Found, ILedger, IStorage, OffThread, Part
from backupd.receiver.gone import begin_again
from backupd.receiver.intake import Intake
from backupd.receiver.keeping import Keeper, Progress
from backupd.receiver.recovery import list_found
from backupd.receiver.room import going
from backupd.requests import Backup, Storing, undeleted, video_key
from backupd.waiting import Round

__all__ = ["MOST", "Finding", "Inspection", "Report"]

MOST = 1000
"""Findings that are told; the others are counted."""

PAGE = 500

SLACK = 600.0
"""Seconds after its storing, or its last verification, in which a file may still be touched by
that."""

LOOKS = 3
"""Tries to find a moment at which no upload begins or ends."""

READ = "its bytes are read; if they are right, it is as it should be again"
NAMES = ("request_id", "peer", "file_name", "name", "content_type", "size", "sha256", "stored_at")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be: where, and why.

    ``remedy`` is what a repair does about it, ``advice`` what is left to the operator;
    ``repaired`` tells that all is well there now.
    """

    path: str
    why: str
    remedy: str = ""
    advice: str = ""
    repaired: bool = False


@dataclass(slots=True)
class Report:
    """What one inspection found, so far while it is ``running``.

    ``more`` are not among the ``findings``; ``more_repaired`` of these are.
    ``failure`` is why it ended too early.
    """

    repair: bool
    running: bool = True
    looked_at: int = 0
    bytes_read: int = 0
    findings: list[Finding] = field(default_factory=list)
    more: int = 0
    more_repaired: int = 0
    failure: str | None = None


class _Stopped(BackupdError):
    """The daemon stops."""


class Inspection:
    """One at a time. `run` is started by `begin` and goes on beside everything else."""

    _log = Logger()

    def __init__(
        self,
        *,
        ledger: ILedger,
        storage: IStorage,
        keeper: Keeper,
        intake: Intake,
        clock: IReactorTime,
        off: OffThread,
        now: Callable[[], float],
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._keeper = keeper
        self._intake = intake
        self._clock = clock
        self._off = off
        self._now = now
        self._round = Round(self._run, clock)
        self._stopping = False
        self._found = False
        self._moved: set[str] = set()
        self.report: Report | None = None

    # -- what is asked of it ----------------------------------------------------------------------

    def begin(self, *, repair: bool) -> Report:
        """Start; or the one that is under way, if it is of this kind. Raises `Busy`."""
        if self.report is not None and self.report.running:
            if self.report.repair != repair:
                raise Busy("Another inspection is under way; wait for its end.", 5.0)
            return self.report
        self.report = Report(repair)
        self._round.run()
        return self.report

    def stop(self) -> Deferred[None]:
        """End it soon; fires once it has ended."""
        self._stopping = True
        return self._round.stop()

    async def _run(self) -> None:
        report = self.report
        if report is None or not report.running:
            return
        self._found, self._moved = False, set()
        report.failure = "Something went wrong here that should not; the log has it."
        try:
            await self._walk(report)
            await self._lists(report)
            await self._uploads(report)
            report.failure = None
        except BackupdError as error:
            report.failure = str(error)
        finally:
            report.running = False

    def _check(self) -> None:
        if self._stopping:
            raise _Stopped("The server is stopping.")

    async def _pace(self, progress: Progress, count: int) -> None:
        self._check()
        if self.report is not None:
            self.report.bytes_read += count

    def _tell(self, report: Report, finding: Finding) -> None:
        if len(report.findings) < MOST:
            report.findings.append(finding)
        else:
            report.more += 1
            report.more_repaired += finding.repaired
        if finding.repaired:
            self._log.info("{path}: {why} It is repaired.", path=finding.path, why=finding.why)

    # -- what lies under the root -----------------------------------------------------------------

    async def _walk(self, report: Report) -> None:
        walk = await self._off(self._storage.walk)
        while (one := await self._off(next, walk, None)) is not None:
            self._check()
            self._found |= isinstance(one, Found) or one.part in (Part.DESCRIPTION, Part.FILE)
            if isinstance(one, Found):
                await self._seen(report, one.backup)
            else:
                await self._broken(report, one)

    async def _broken(self, report: Report, one: Damaged) -> None:
        """Something that is no whole backup; what is listed there is told of with the list."""
        parts = one.path.split("/")
        if one.part is Part.FOLDER:
            advice = "make it readable for the user that backupd runs as, or look after the disk"
            self._tell(report, Finding(one.path, one.why, advice=advice))
            return
        if one.part is Part.FOREIGN or len(parts) < 3:
            advice = "it is none of ours and is left alone; move it out of the root"
            self._tell(report, Finding(one.path, one.why, advice=advice))
            return
        folder, backup_id = "/".join(parts[:3]), parts[2]
        known = await self._known(backup_id)
        if (known is not None and known.folder == folder) or await self._in_making(backup_id):
            return
        again = await self._off(self._storage.inspect, folder)
        if not any(isinstance(now, Damaged) and now.part is one.part for now in again):
            return  # it was just being stored, or removed
        if known is not None:
            where = f"backup {backup_id} is listed in {known.folder}"
            advice = f"{where}; once that is whole, move this out of the root"
        elif one.part is Part.FILE:
            advice = (
                "no list has it, and its sender has to send it again; then move what is left of it "
                "out of the root"
            )
        else:
            advice = (
                "no list has it; give its folder the name that its description says, or put the "
                "description back, and repair again; a video without one is nobody's"
            )
        self._tell(report, Finding(one.path, one.why, advice=advice))

    async def _seen(self, report: Report, found: Backup) -> None:
        """A whole backup: is it listed, and here?"""
        known = await self._known(found.backup_id)
        if known is not None and known.folder == found.folder:
            return
        if known is not None:
            await self._elsewhere(report, known, found)
        elif not await self._in_making(found.backup_id):
            finding = Finding(found.folder, "It is on no list.", "it is listed; `verify` reads it")
            if report.repair:
                new = await list_found(
                    found,
                    ledger=self._ledger,
                    storage=self._storage,
                    off=self._off,
                    now=self._now,
                )
                finding = replace(finding, repaired=True)
                if not new:
                    return  # it was just stored, or removed
            elif await self._known(found.backup_id) is not None:
                return
            self._tell(report, finding)

    async def _elsewhere(self, report: Report, known: Backup, found: Backup) -> None:
        """A whole backup whose place on the list is another: a copy, or it has moved."""
        there = await self._off(self._storage.inspect, known.folder)
        same = (known.size, known.sha256) == (found.size, found.sha256)
        if not same or any(isinstance(one, Found) for one in there):
            why = f"It is a copy of backup {known.backup_id}, which lies in {known.folder}."
            self._tell(report, Finding(found.folder, why, advice="move it out of the root"))
            return
        why = f"Backup {known.backup_id} has moved here from {known.folder}."
        finding = Finding(found.folder, why, f"the list has it here then, and {READ}")
        if len(self._moved) < MOST:
            self._moved.add(known.backup_id)
        if report.repair:
            async with self._keeper.places.hold(known.backup_id):
                now = await self._known(known.backup_id)
                if now is None or now.folder != known.folder:
                    return
                await self._ledger.put_backup(replace(now, folder=found.folder, name=found.name))
            finding = await self._read(known.backup_id, finding)
        self._tell(report, finding)

    async def _known(self, backup_id: str) -> Backup | None:
        try:
            return await self._ledger.backup(backup_id)
        except NoSuchBackup:
            return None

    async def _in_making(self, backup_id: str) -> bool:
        """Whether it is on its way from an upload to the list."""
        return any(
            isinstance(one, Storing) and one.backup.backup_id == backup_id
            for one in await self._ledger.in_progress()
        )

    # -- what is on the list ----------------------------------------------------------------------

    async def _lists(self, report: Report) -> None:
        for trash in (False, True):
            after: int | None = 0
            while after is not None:
                page = await self._ledger.backups(
                    peer=None, video=None, after=after, limit=PAGE, trash=trash
                )
                if page and not self._found:
                    await self._nothing(report)
                    return
                for _, backup in page:
                    self._check()
                    report.looked_at += 1
                    await self._listed(report, backup)
                after = page[-1][0] if len(page) == PAGE else None

    async def _nothing(self, report: Report) -> None:
        """No trace of all that is listed: that is no damage to be written down."""
        count, _ = await self._ledger.kept()
        report.looked_at += count
        self._tell(
            report,
            Finding(
                ".",
                f"Not one of the {count} listed backups is there.",
                advice="is the volume mounted? If they are lost, `backupctl verify` marks each, "
                "and its sender is asked for it",
            ),
        )

    async def _listed(self, report: Report, backup: Backup) -> None:
        if backup.backup_id in self._moved or await self._wrong(backup) is None:
            return
        # Once more, while nobody removes or describes it.
        async with self._keeper.places.hold(backup.backup_id):
            now = await self._known(backup.backup_id)
            finding = None if now is None else await self._wrong(now)
        if now is None or finding is None:
            return
        if report.repair and finding.remedy:
            await self._take_over(now)
            finding = await self._read(now.backup_id, finding)
        self._tell(report, finding)

    async def _wrong(self, backup: Backup) -> Finding | None:
        """What is not as the list says, without a look at the bytes."""
        if backup.deleted_at is not None and backup.problem is not None:
            return None  # it was deleted as it is: there is nothing left to do about it
        told = await self._off(self._storage.inspect, backup.folder)
        where = f"{backup.folder}/{backup.name}"
        for one in told:
            if isinstance(one, Damaged) and one.part is Part.FILE:
                gone = "the list tells it as damaged, and its sender is asked for it where it can"
                if backup.problem is None:
                    return Finding(one.path, one.why, gone)
                asked = f"the list tells it as damaged; {_FORGET.format(backup.backup_id)}"
                return Finding(one.path, one.why, advice=asked)
            if isinstance(one, Damaged) and one.part is Part.DESCRIPTION:
                remedy = "its bytes are read; if they are right, it is written anew from the list"
                return Finding(one.path, one.why, remedy)
        found = next((one for one in told if isinstance(one, Found)), None)
        if found is None:
            return None  # its folder cannot be read, which is told already
        if backup.problem is not None:
            return Finding(where, f"It is damaged. {backup.problem}", READ)
        if (differs := _differs(backup, found.backup)) is not None:
            why = f"Its description does not agree with the list: {differs}."
            return Finding(f"{backup.folder}/backup.json", why, f"{READ}: as on the list")
        if (more := _kept_longer(backup, found.backup)) is not None:
            why, remedy = more
            return Finding(f"{backup.folder}/backup.json", why, remedy)
        if found.backup.problem is not None:
            why = f"Its description tells of damage: {found.backup.problem}"
            return Finding(where, why, READ)
        if found.changed_at > max(backup.stored_at, backup.verified_at or 0.0) + SLACK:
            return Finding(where, "It was changed after it was verified.", READ)
        return None

    async def _take_over(self, backup: Backup) -> None:
        """Where the description keeps more than the list, which may be an older one: a lock holds,
        and what came out of the trash stays out.
        """
        await self._keeper.heeded(backup)
        told = await self._off(self._storage.inspect, backup.folder)
        if backup.deleted_at is not None and any(
            isinstance(one, Found) and one.backup.deleted_at is None for one in told
        ):
            await self._ledger.change_backup(backup.backup_id, undeleted)

    async def _read(self, backup_id: str, finding: Finding) -> Finding:
        """Verify it, which also notes on the list and beside the file what was found."""
        try:
            now = await self._keeper.verify(backup_id, self._pace)
        except NoSuchBackup:
            return replace(finding, repaired=True, why=f"{finding.why} It gave way to a copy.")
        wrong = await self._wrong(now)
        if wrong is None:
            return replace(finding, repaired=True)
        if now.problem is None:
            return replace(finding, advice="it could not be written, or is being read; try again")
        return Finding(wrong.path, now.problem, advice=_FORGET.format(backup_id))

    # -- unfinished uploads -----------------------------------------------------------------------

    async def _uploads(self, report: Report) -> None:
        """Uploads without a file, and files without an upload.

        A file is made before its upload is recorded, and removed after that is forgotten, both
        under the lock of the request: only while there is none do the two have to agree.
        """
        for _ in range(LOOKS):
            self._check()
            before = await self._off(self._storage.uploads)
            quiet = not len(self._intake.locks)
            rows = {one.upload_id: one for one in await self._ledger.uploads(None)}
            on_disk = await self._off(self._storage.uploads)
            if quiet and not len(self._intake.locks):
                break
        else:
            return
        for upload_id in [one for one in on_disk if one in before and one not in rows]:
            why = (
                f"An unfinished upload of {on_disk[upload_id]} bytes that the ledger does not know."
            )
            finding = Finding(_incoming(upload_id), why, "it is removed: nobody can go on with it")
            if report.repair:
                await self._off(self._storage.discard, upload_id)
                finding = replace(finding, repaired=True)
            self._tell(report, finding)
        for upload in rows.values():
            if upload.offset and upload.upload_id not in on_disk and not upload.parts:
                await self._without_file(report, upload.request_id, upload.upload_id)

    async def _without_file(self, report: Report, request_id: str, upload_id: str) -> None:
        async with self._intake.locks.hold(request_id):
            try:
                known = await self._ledger.uploads(request_id)
                request = await self._ledger.request(request_id)
            except NoSuchRequest:
                return
            gone = [one for one in known if one.upload_id == upload_id and one.offset]
            on_disk = await self._off(self._storage.uploads)
            if not gone or upload_id in on_disk or isinstance(request, Storing):
                return
            why = f"The {gone[0].offset} bytes of an unfinished upload are gone."
            finding = Finding(_incoming(upload_id), why, "its sender begins again")
            busy = [one for one in going(known, [upload_id]) if one in self._intake.transfers]
            if report.repair and not busy:
                now, transfers = self._clock.seconds(), self._intake.transfers
                left = await begin_again(self._ledger, gone[0], now, transfers)
                await self._intake.discard(left)
                finding = replace(finding, repaired=True)
        self._tell(report, finding)


_FORGET = (
    "unless its sender brings it again (`backupctl queue` shows it): put its files back and repair "
    "again, have its sender send it (`backupctl send` there), or forget it: `backupctl delete {}`"
)


def _incoming(upload_id: str) -> str:
    return f".backupd/incoming/{upload_id}"


def _differs(listed: Backup, found: Backup) -> str | None:
    """The first thing in which a description does not agree with the list."""
    for name in NAMES:
        said, known = getattr(found, name), getattr(listed, name)
        if said != known:
            return f"{name} is {said!r} instead of {known!r}"
    if video_key(listed.video) != video_key(found.video):
        return f"video is {found.video!r} instead of {listed.video!r}"
    return None


def _kept_longer(listed: Backup, found: Backup) -> tuple[str, str] | None:
    """Where list and description disagree about how long it is kept: why, and the remedy. It is
    the one that keeps it longer that counts.
    """
    again = f"`backupctl delete {listed.backup_id}` deletes it again"
    if (found.locked_until or 0.0) > (listed.locked_until or 0.0):
        return "Its description tells of a lock that the list does not know.", "the list has it too"
    if listed.deleted_at is not None and found.deleted_at is None:
        why = "The list has it in the trash, its description does not."
        return why, f"it comes out of the trash; {again}"
    if listed.deleted_at is None and found.deleted_at is not None:
        why = f"Its description says that it was deleted (by {found.deleted_by}); it is listed."
        return why, f"it stays on the list; {again}"
    return None
