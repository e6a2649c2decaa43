"""The receiver's notice, "it is your turn": whose it is, and whether to believe it.

A notice with a new link for a video that is stored already says that the receiver's copy is
damaged: it is sent again, if the file is still the one that was sent.
"""

from __future__ import annotations

import errno
import hmac
from collections.abc import Callable
from dataclasses import replace

from twisted.internet.interfaces import IReactorTime

from backupd.errors import Ambiguous, Busy, Forbidden, Invalid, NoSuchEntry, Over
from backupd.interfaces import Entry, IFileSystem, ILedger, OffThread
from backupd.peer.open_file import FileGone
from backupd.peer.origins import check_link, origin_of, same_origin
from backupd.requests import VideoId, same_video
from backupd.sender.catalogue import examine
from backupd.sender.steps import ASKED, STORED, noticed, sent_again

__all__ = ["anybody", "take_notice"]

UPLOAD = "linkForServerBtoSendBackupToSeverA"
COMPLETE = "linkForServerBtoCompleteBackupToSeverA"

UNREADABLE = 300.0
"""Seconds until the receiver is to call again when the file cannot be looked at."""


def anybody(to: str) -> None:
    """Every notice is taken for authentic: its link is secret, and no peer is at ``to``."""


async def take_notice(
    ledger: ILedger,
    clock: IReactorTime,
    off: OffThread,
    fs: IFileSystem,
    again_for: float,
    capability: str | None,
    video: VideoId,
    upload_link: str,
    complete_link: str,
    authentic: Callable[[str], None],
) -> Entry:
    """Make the entry that is meant READY, durably; a repeat changes nothing. One that has come back
    from this very link is made to ask instead.

    ``authentic`` raises `Forbidden` unless the notice is of the server that it is given.
    One that is sent again is tried for ``again_for`` seconds. Raises `Invalid` for malformed
    links, `NoSuchEntry` when nothing was asked, `Ambiguous` when the bare path could mean several
    entries, `Forbidden` when the links lead anywhere but to the origin that was asked, `Over` when
    the entry was cancelled or has failed, or is to be sent again and its file has changed.
    """
    check_link(UPLOAD, upload_link)
    check_link(COMPLETE, complete_link)
    if capability is None:
        entry = await _only_one(ledger, video)
    else:
        entry = await ledger.entry_by_capability(capability)
        if not hmac.compare_digest(entry.capability.encode(), capability.encode()):
            raise NoSuchEntry("This link belongs to no video that is being sent.")
        if not same_video(entry.video, video):
            raise Invalid("videoId", "is not the video that this link is for")
    authentic(entry.to)
    if entry.state in ("CANCELLED", "FAILED"):
        raise Over(f"This video is not sent any more: the entry is {entry.state}.")
    for link in (upload_link, complete_link):
        if not same_origin(link, entry.to):
            await _refuse(ledger, entry, link)
    now = clock.seconds()
    links = {"upload_link": upload_link, "complete_link": complete_link}
    if entry.state in STORED and entry.upload_link != upload_link:
        await _same_file(entry, off, fs)
        step = sent_again(entry, now=now, deadline=now + again_for, **links)
    else:
        step = noticed(now=now, **links)
    entry = await ledger.change_entry(entry.entry_id, step)
    if entry.state in ("CANCELLED", "FAILED"):
        raise Over(f"This video is not sent any more: the entry is {entry.state}.")
    return entry


async def _only_one(ledger: ILedger, video: VideoId) -> Entry:
    found = await ledger.entries_for(video, 10)
    if not found:
        raise NoSuchEntry(f"No room was asked for video {video}.")
    # Of several versions the others have not been asked for yet.
    if len({(one.path, one.to) for one in found}) > 1:
        raise Ambiguous(f"Video {video} goes to several servers; use the link that each was given.")
    return found[0]


async def _same_file(entry: Entry, off: OffThread, fs: IFileSystem) -> None:
    """Raises `Over` unless the file is the one that was sent, `Busy` while nobody can tell."""
    try:
        found = await off(examine, entry.path, fs)
    except FileGone as error:
        raise Over(f"The video cannot be sent again: {error}") from error
    except OSError as error:
        if error.errno == errno.ENODATA:
            raise Over(f"The video cannot be sent again: {entry.path} is empty.") from error
        why = f"{entry.path} cannot be read at the moment: {error.strerror}."
        raise Busy(why, UNREADABLE) from error
    if found != (entry.size, entry.modified_ns):
        raise Over(f"The video cannot be sent again: {entry.path} has changed since.")


async def _refuse(ledger: ILedger, entry: Entry, link: str) -> None:
    why = (
        f"The notice has links on {origin_of(link)}, but {origin_of(entry.to)} was asked for "
        "room: no byte is sent there. If both are one server, send to the address that it calls "
        "its own, or set its public_url (or HOST and PROTOCOL) to the one that was asked."
    )

    def note(current: Entry) -> Entry:
        return replace(current, last_error=why) if current.state in ASKED else current

    await ledger.change_entry(entry.entry_id, note)
    raise Forbidden(why)
