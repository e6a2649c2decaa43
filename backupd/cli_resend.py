"""``backupctl resend``: what one receiver kept of ours is queued for another."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import click

from backupd.control import Api, ApiFailed, part
from backupd.peer.origins import place_of
from backupd.sizes import format_size
from backupd.terminal import (
    OVER,
    POLL,
    complaints,
    conclude,
    console,
    fail,
    plain,
    progress_bar,
    short,
    show,
)

__all__ = ["resend"]

SHOWN = 8
"""Files that have a bar of their own."""

UNVERIFIED = 3
STORED = ("VERIFIED", "UNVERIFIED")
FINE = {*STORED, "ASKING", "WAITING", "READY", "SENT"}


@click.command()
@click.option("--to", required=True, help="The server that shall keep them: URL, or peer's name.")
@click.option("--from", "source", help="The receiver that kept them: URL, or peer's name.")
@click.option("--detach", is_flag=True, help="Queue them, and do not wait.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def resend(api: Api, to: str, source: str | None, detach: bool, as_json: bool) -> None:
    """Queue for --to everything that another receiver has stored, or was to.

    Again is harmless: what is stored at --to, or on its way there, is not sent twice.
    """
    sent = _Sent(api)
    goal = _place(api, to)
    origin = sent.choose(goal, None if source is None else _place(api, source))
    entries: list[Any] = []
    coming: list[Any] = []
    there: list[Any] = []
    gone = []
    for entry in sent.meant_for(origin):
        if (known := sent.has(goal, entry)) is not None:
            (there if known["state"] in STORED else coming).append(known)
            continue
        try:
            entries.append(_queue(api, entry, to))
        except ApiFailed as error:
            if error.status != 400:
                raise
            if entry["state"] == "FAILED":
                continue  # it was never stored there, and its owner has it no more
            gone.append({"videoId": entry["videoId"], "path": entry["path"], "why": str(error)})
    if not as_json:
        before = f"; on their way already: {len(coming)}" if coming else ""
        before += f"; there: {len(there)}" if there else ""
        console.print(
            f"Of the videos that {plain(origin)} kept, queued for {plain(goal)}: "
            f"{len(entries)}{before}.",
            highlight=False,
            soft_wrap=True,
        )
    # What an earlier run has queued is waited for too: only what is stored there is done.
    entries += coming
    if entries and not detach:
        entries = _follow(api, entries, quiet=as_json)
    if as_json:
        count = len(there) + len(coming)
        show({"from": origin, "to": goal, "entries": entries, "before": count, "gone": gone})
    else:
        _conclude(entries, gone, detach=detach)
    states = {entry["state"] for entry in (*entries, *there)}
    if gone or not states <= FINE:
        sys.exit(1)
    if "UNVERIFIED" in states:
        sys.exit(UNVERIFIED)


def _place(api: Api, name: str) -> str:
    """Where a server is, written as the outbox writes it."""
    url = name
    if "://" not in name:
        try:
            url = api.call("GET", f"/api/v1/peers/{part(name)}")["url"] or ""
        except ApiFailed as error:
            if error.status != 404:
                raise
            fail(f"{name!r} is neither a URL nor a peer; `backupctl peer list` shows the peers.")
    try:
        place = place_of(url)
    except ValueError as error:
        fail(f"{name}: its address {url!r} {error}.")
    return place.origin + place.target.rstrip("/")


def _file(entry: Any) -> tuple[str, str]:
    return entry["path"], str(entry["videoId"])


@dataclass
class _Sent:
    """The outbox: by receiver, the last entry of each file that is, or was to be, kept there."""

    api: Api
    at: dict[str, dict[tuple[str, str], Any]] = field(default_factory=dict)
    given_up: dict[str, dict[tuple[str, str], Any]] = field(default_factory=dict)
    """Likewise, of what has failed there."""

    def __post_init__(self) -> None:
        for entry in self.api.pages("/api/v1/outbox", "entries", {}):
            if entry["state"] in FINE:
                self.at.setdefault(entry["to"], {})[_file(entry)] = entry
            elif entry["state"] == "FAILED":
                self.given_up.setdefault(entry["to"], {})[_file(entry)] = entry

    def meant_for(self, origin: str) -> list[Any]:
        """What was stored there or on its way, and what was given up: at a dead receiver that is
        everything once its time is over.
        """
        kept, given_up = self.at[origin], self.given_up.get(origin, {})
        return [*kept.values(), *(one for file, one in given_up.items() if file not in kept)]

    def choose(self, goal: str, source: str | None) -> str:
        """The receiver that is meant."""
        others = sorted(place for place in self.at if place != goal)
        if source is None and len(others) == 1:
            return others[0]
        if source in others:
            return str(source)
        if not others:
            fail("Nothing was ever stored at another receiver, so there is nothing to send again.")
        known = ", ".join(f"{place} ({len(self.at[place])} videos)" for place in others)
        why = "Several receivers keep our videos; say with --from which is meant"
        return fail(
            f"{why if source is None else f'Nothing was ever stored at {source}'}: {known}."
        )

    def has(self, goal: str, entry: Any) -> Any:
        """The entry by which ``goal`` has this file as it is by now, or is about to get it."""
        there = self.at.get(goal, {}).get(_file(entry))
        if there is None:
            return None
        same = there["sha256"] is not None and there["sha256"] == entry["sha256"]
        newer = there["createdAt"] >= entry["createdAt"]
        return there if same or newer or there["state"] not in STORED else None


def _queue(api: Api, entry: Any, to: str) -> Any:
    """Queue the file, or, where it is not any more, the one that `videos` has for this id."""
    wanted = {"to": to, "videoId": entry["videoId"]}
    try:
        return api.call("POST", "/api/v1/outbox", wanted | {"path": entry["path"]})["entry"]
    except ApiFailed as error:
        if error.status != 400:
            raise
        try:
            return api.call("POST", "/api/v1/outbox", wanted)["entry"]
        except ApiFailed as other:
            raise (error if other.status == 400 else other) from None


def _follow(api: Api, entries: list[Any], *, quiet: bool) -> list[Any]:
    """Show how they come along until all are over; how they ended, in the same order."""
    bars = progress_bar(transient=True)
    bars.disable = quiet
    now = {entry["entryId"]: entry for entry in entries}
    with bars:
        everything = bars.add_task("", name="all", total=sum(one["size"] for one in entries))
        shown: dict[str, Any] = {}
        told = False
        try:
            while True:
                began = time.monotonic()
                _look(api, now)
                over = sum(one["state"] in OVER for one in now.values())
                words = f"{over} of {len(now)} are over"
                if (waits := _why_it_waits(now.values())) is not None:
                    words += f"; {waits}"
                    if not told and not quiet and not console.is_terminal:
                        complaints.print(plain(waits), highlight=False, soft_wrap=True)
                        told = True
                bars.update(
                    everything,
                    completed=sum(_done(one) for one in now.values()),
                    description=words,
                )
                sending = {key: one for key, one in now.items() if one["state"] == "READY"}
                for key in [key for key in shown if key not in sending]:
                    bars.remove_task(shown.pop(key))
                for key, one in sending.items():
                    if key not in shown and len(shown) < SHOWN:
                        shown[key] = bars.add_task(
                            "sending", name=short(one["fileName"]), total=one["size"]
                        )
                    if key in shown:
                        bars.update(shown[key], completed=one["sentBytes"])
                if over == len(now):
                    return list(now.values())
                # A long queue takes a while to read: the daemon has better things to do.
                time.sleep(max(POLL, 5 * (time.monotonic() - began)))
        except KeyboardInterrupt:
            complaints.print("The daemon goes on without you; `backupctl queue` shows how far.")
            sys.exit(130)


def _look(api: Api, now: dict[str, Any]) -> None:
    """Bring what is known of each up to date."""
    going = {
        entry["entryId"]: entry
        for entry in api.pages("/api/v1/outbox", "entries", {"state": "going"})
    }
    for key, known in now.items():
        if known["state"] not in OVER:
            now[key] = going.get(key) or api.call("GET", f"/api/v1/outbox/{part(key)}")


def _why_it_waits(entries: Iterable[Any]) -> str | None:
    """What keeps the first that cannot go on, so that nobody waits without knowing for what."""
    kept = (one for one in entries if one["state"] not in OVER and one["lastError"])
    first = next(kept, None)
    return None if first is None else f"{first['fileName']} waits: {first['lastError']}"


def _done(entry: Any) -> int:
    return int(entry["size"] if entry["state"] in OVER else entry["sentBytes"])


def _conclude(entries: list[Any], gone: list[Any], *, detach: bool) -> None:
    for one in gone:
        complaints.print(
            f"[red]✗[/red] video {plain(one['videoId'])}: {plain(one['why'])}",
            highlight=False,
            soft_wrap=True,
        )
    if detach:
        return
    count = Counter(entry["state"] for entry in entries)
    for entry in entries:
        if entry["state"] != "VERIFIED":
            conclude(entry)
    size = format_size(sum(one["size"] for one in entries if one["state"] == "VERIFIED"))
    if entries:
        console.print(
            f"{count['VERIFIED']} of {len(entries)} ({size}) are stored and verified.",
            highlight=False,
            soft_wrap=True,
        )
