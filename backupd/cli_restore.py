"""``backupctl restore``: one backup, or with ``--all`` every video of a server."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from rich.progress import TaskID

from backupd.control import Api, ApiFailed, resolve
from backupd.errors import SettingsError
from backupd.fetch import fetch, listed, target_of, told_of
from backupd.fetch_all import AllFetched, Outcome, Wanted, plan
from backupd.sizes import format_size
from backupd.terminal import complaints, console, fail, plain, progress_bar, short, show
from backupd.trust.files import sync_folder

__all__ = ["restore"]


@click.command()
@click.argument("backup_id", metavar="[ID]", required=False)
@click.option("-o", "--output", type=click.Path(), help="File or folder to write to.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--all", "everything", is_flag=True, help="Every video, into the folder --into.")
@click.option("--at", metavar="PEER", help="At this peer, which keeps ours.")
@click.option("--peer", help="With --all: whose videos; or the peer that keeps ours.")
@click.option("--here", "kept_here", is_flag=True, help="With --peer: whose videos, not who keeps.")
@click.option("--into", type=click.Path(file_okay=False), help="With --all: the folder.")
@click.option(
    "--versions",
    type=click.Choice(["newest", "all"]),
    default="newest",
    help="With --all: of each video the newest version, or all.",
)
@click.option(
    "--at-once",
    type=click.IntRange(1, 32),
    default=4,
    show_default=True,
    help="With --all: files that are on their way at once.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def restore(
    api: Api,
    backup_id: str | None,
    output: str | None,
    force: bool,
    everything: bool,
    at: str | None,
    peer: str | None,
    kept_here: bool,
    into: str | None,
    versions: str,
    at_once: int,
    as_json: bool,
) -> None:
    """Get a backup back, or all, resuming what is partly there, and check the digests."""
    if not everything and (backup_id is None or peer or into or kept_here):
        raise click.UsageError("say the ID of a backup, or --all and --into")
    if at is not None:
        api = Api.at_peer(at, os.environ)
    if backup_id is not None and not everything:
        _one(api, backup_id, output, force=force, as_json=as_json)
        return
    if backup_id is not None or output is not None or into is None:
        raise click.UsageError("--all takes --into FOLDER, and no ID")
    if kept_here and at is not None:
        raise click.UsageError("--here is what is kept here, and --at what is kept there")
    there = None if peer is None or kept_here or at is not None else _Joined(peer)
    api, backups = _listed(api, peer, there, quiet=as_json)
    wanted = plan(backups, every=versions == "all")
    _all(api, wanted, Path(resolve(into)), force=force, at_once=at_once, as_json=as_json)


def _one(api: Api, backup_id: str, output: str | None, *, force: bool, as_json: bool) -> None:
    backup = told_of(api, backup_id)
    target = target_of(output, backup)
    if target.exists() and not force:
        fail(f"{target} is there already; give another -o, or --force.")
    partial = target.with_name(target.name + ".part")
    bars = progress_bar()
    bars.disable = as_json
    with bars:
        task = bars.add_task("restoring", name=short(target.name), total=backup["size"])
        digest = fetch(api, backup, partial, lambda done: bars.update(task, completed=done))
        if digest != backup["sha256"]:
            partial.unlink()
            fail(
                f"The bytes that came have SHA-256 {digest} instead of {backup['sha256']}; they "
                f"were thrown away. Try again, and `backupctl verify {backup_id}` there."
            )
        partial.replace(target)
        sync_folder(target.parent)
        bars.update(task, description="restored and verified")
    if as_json:
        show({"backupId": backup_id, "path": str(target), "size": backup["size"], "sha256": digest})
    else:
        console.print(
            f"[green]✓[/green] {plain(target)} is restored, sha256 {digest}",
            highlight=False,
            soft_wrap=True,
        )


# -- all -------------------------------------------------------------------------------------------


class _Joined:
    """A server that we have joined, if there is one of this name; else ``why`` there is none."""

    def __init__(self, name: str) -> None:
        self.api: Api | None = None
        self.why = ""
        try:
            self.api = Api.at_peer(name, os.environ)
        except (ApiFailed, SettingsError) as error:
            self.why = str(error)

    def may_keep_ours(self) -> bool:
        """Whether it does, or cannot be asked."""
        if self.api is None:
            return False
        try:
            return bool(self.api.call("GET", "/api/v1/backups", query={"limit": 1})["backups"])
        except ApiFailed:
            return True


def _listed(
    api: Api, peer: str | None, there: _Joined | None, *, quiet: bool
) -> tuple[Api, list[Any]]:
    """What is to be got back, and from where.

    ``peer`` is whose videos the daemon that is asked keeps. Where that is ours, and it keeps none
    of that name, and the name is that of a peer, then that peer is asked for our own: a fresh
    server keeps nothing. Where both could be meant it has to be said.
    """
    query = {} if peer is None else {"peer": peer}
    backups = listed(api, query)
    if backups and there is not None and there.may_keep_ours():
        fail(
            f"{api.url} keeps backups of {peer}, and {peer} may keep ours: say --at {peer} instead "
            f"of --peer to get ours back, or add --here to get those of {peer}."
        )
    if not backups and there is not None and there.api is not None:
        if not quiet:
            complaints.print(
                f"Nothing of {plain(peer)} is kept here; {plain(peer)} is asked for ours."
            )
        api, peer = there.api, None
        backups = listed(api, {})
    whose = sorted({backup["peer"] for backup in backups})
    if len(whose) > 1:
        fail(f"{api.url} keeps backups of {', '.join(whose)}: say whose with --peer.")
    if not backups:
        why = f" {there.why}" if there is not None else ""
        fail(
            f"{api.url} keeps no backups{f' of {peer}' if peer else ''}; there is nothing to do."
            f"{why}"
        )
    return api, backups


def _all(
    api: Api, wanted: list[Wanted], into: Path, *, force: bool, at_once: int, as_json: bool
) -> None:
    bars = _Bars(wanted, quiet=as_json)
    work = AllFetched(api, into, force=force, moved=bars.moved)
    into.mkdir(parents=True, exist_ok=True)
    needed, free = work.room_needed(wanted), shutil.disk_usage(into).free
    if needed > free:
        fail(
            f"{into} has {format_size(free)} free, and {format_size(needed)} are still to come; "
            "make room, or give another --into."
        )
    outcomes = []
    with bars.bars, closing(work.run(wanted, at_once)) as coming:
        for outcome in coming:
            outcomes.append(outcome)
            bars.over(outcome, work.target(outcome.wanted))
    count = Counter(outcome.state for outcome in outcomes)
    if as_json:
        files = [_told(outcome, work.target(outcome.wanted)) for outcome in outcomes]
        states = {state: count[state] for state in ("restored", "there", "older", "missing")}
        show({"from": api.url, "into": str(into), "files": files} | states)
    else:
        _conclude(outcomes, count, into)
    if count["older"] or count["missing"]:
        sys.exit(1)


def _told(outcome: Outcome, target: Path) -> dict[str, Any]:
    backup = outcome.backup or outcome.wanted.newest
    return {
        "videoId": backup["videoId"],
        "backupId": backup["backupId"],
        "path": str(target),
        "size": backup["size"],
        "sha256": backup["sha256"],
        "state": outcome.state,
        "why": outcome.why,
    }


def _conclude(outcomes: list[Outcome], count: Counter[str], into: Path) -> None:
    for state, word in (("older", "an older version is there"), ("missing", "is missing")):
        for outcome in (one for one in outcomes if one.state == state):
            newest = outcome.wanted.newest
            complaints.print(
                f"[red]✗[/red] video {plain(newest['videoId'])} "
                f"({plain(newest['fileName'])}) {word}: {plain(outcome.why)}",
                highlight=False,
                soft_wrap=True,
            )
    good = count["restored"] + count["there"]
    size = sum(one.backup["size"] for one in outcomes if one.state in ("restored", "there"))
    before = f", {count['there']} of them were before" if count["there"] else ""
    mark = "[green]✓[/green]" if good == len(outcomes) else "[yellow]![/yellow]"
    console.print(
        f"{mark} {good} of {len(outcomes)} files ({format_size(size)}) are in "
        f"{plain(into)} and verified{before}.",
        highlight=False,
        soft_wrap=True,
    )
    if good < len(outcomes):
        complaints.print("Run the same again to try what is missing once more.")


class _Bars:
    """One bar for all, and one for each file that is on its way."""

    def __init__(self, wanted: list[Wanted], *, quiet: bool) -> None:
        self.bars = progress_bar(transient=True)
        self.bars.disable = self._quiet = quiet
        self._all = self.bars.add_task(
            "", name="all", total=sum(one.newest["size"] for one in wanted)
        )
        self._tasks: dict[int, TaskID] = {}
        self._lock = threading.Lock()
        self._done: dict[int, int] = {}
        self._sum = 0

    def moved(self, wanted: Wanted, done: int) -> None:
        """Called by the threads that bring the files."""
        key = id(wanted)
        with self._lock:
            if key not in self._tasks:
                self._tasks[key] = self.bars.add_task(
                    "", name=short(wanted.path[-1]), total=wanted.newest["size"]
                )
            self._count(key, done)
            self.bars.update(self._tasks[key], completed=done)

    def over(self, outcome: Outcome, target: Path) -> None:
        """Called by the one that waits for them."""
        key, size = id(outcome.wanted), outcome.wanted.newest["size"]
        with self._lock:
            task = self._tasks.pop(key, None)
            if task is not None:
                self.bars.remove_task(task)
            self._count(key, size)
        if outcome.state == "restored" and not self._quiet and not console.is_terminal:
            console.print(f"{plain(target)} is restored", highlight=False, soft_wrap=True)

    def _count(self, key: int, done: int) -> None:
        self._sum += done - self._done.get(key, 0)
        self._done[key] = done
        self.bars.update(self._all, completed=self._sum)
