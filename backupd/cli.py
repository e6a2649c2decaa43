"""``backupctl``: the daemon's command line, a client of its HTTP API.

Exit codes: 0 when the thing is done, 1 when it failed, 2 for wrong usage, 3 when a video is
stored but nobody could verify it.
"""

from __future__ import annotations

import functools
import os
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

import click
from rich.progress import Progress, TaskID

from backupd import own_folder
from backupd.cli_keeping import COMMANDS
from backupd.cli_peers import hide, peer
from backupd.cli_resend import resend
from backupd.cli_restore import restore
from backupd.control import Api, ApiFailed, find_token, find_url, part, resolve
from backupd.doctor import examine
from backupd.fetch import listed, told_of
from backupd.sender.catalogue import id_of
from backupd.settings import load
from backupd.sizes import format_size
from backupd.terminal import (
    POLL,
    Group,
    add_row,
    complaints,
    conclude,
    console,
    fail,
    follow,
    moment,
    plain,
    print_table,
    progress_bar,
    red,
    short,
    show,
    table_of,
    told_of_scrub,
)

__all__ = ["main"]

UNVERIFIED = 3

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
at_peer = click.option("--at", metavar="PEER", help="At this peer, which keeps ours.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--url",
    envvar="BACKUPD_URL",
    help="Where the daemon is (default: where the settings say that it listens).",
)
@click.option("--token", help="The control token (default: BACKUPD_TOKEN, or the file under root).")
@click.version_option(package_name="backupd", prog_name="backupctl")
@click.pass_context
def main(context: click.Context, url: str | None, token: str | None) -> None:
    """Keep each other's backups: send videos, see what is kept, get it back."""
    if token not in (None, "-"):
        hide(str(token), "BACKUPD_TOKEN")
    token = find_token(None if token == "-" else token, os.environ)  # noqa: S105
    context.obj = Api(url or find_url(os.environ), token)


for command in (peer, restore, resend, *COMMANDS):
    main.add_command(command)


# -- sending ---------------------------------------------------------------------------------------


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--to", required=True, help="URL of the server that shall keep them.")
@click.option("--video-id", help="Id of the video (default: the file's name).")
@click.option("--detach", is_flag=True, help="Queue them, and do not wait.")
@as_json
@click.pass_obj
def send(
    api: Api, files: tuple[str, ...], to: str, video_id: str | None, detach: bool, as_json: bool
) -> None:
    """Back up FILES to another server, and wait until they are stored and verified."""
    if video_id is not None and len(files) > 1:
        raise click.UsageError("--video-id is for one file")
    video = None if video_id is None else id_of(video_id)
    entries = []
    for file in files:
        wanted = {"path": resolve(file), "to": to, "videoId": video}
        body = {name: value for name, value in wanted.items() if value is not None}
        entries.append(api.call("POST", "/api/v1/outbox", body)["entry"])
    if not detach:
        entries = follow(api, entries, quiet=as_json)
    if as_json:
        show({"entries": entries})
    elif detach:
        for entry in entries:
            console.print(f"queued {plain(entry['fileName'])}: {plain(entry['entryId'])}")
    if detach:
        return
    for entry in entries if not as_json else ():
        conclude(entry)
    states = {entry["state"] for entry in entries}
    if states & {"FAILED", "CANCELLED"}:
        sys.exit(1)
    if "UNVERIFIED" in states:
        sys.exit(UNVERIFIED)


# -- looking ---------------------------------------------------------------------------------------


@main.command("list")
@click.option("--peer", help="Only of this peer.")
@click.option("--video-id", help="Only of this video.")
@at_peer
@click.option("--trash", is_flag=True, help="What was deleted, and is not removed yet.")
@as_json
@click.pass_obj
def list_(
    api: Api, peer: str | None, video_id: str | None, at: str | None, trash: bool, as_json: bool
) -> None:
    """The backups that are kept here, or for us by a peer."""
    if at is not None:
        api = Api.at_peer(at, os.environ)
    query = {"peer": peer, "videoId": video_id, "trash": "true" if trash else None}
    wanted = {name: value for name, value in query.items() if value is not None}
    backups = listed(api, wanted)
    if as_json:
        show({"backups": backups})
        return
    if not backups:
        where = "here" if at is None else "there"
        console.print("The trash is empty." if trash else f"No backups are kept {where} yet.")
        return
    last = ("deleted by", "until") if trash else ()
    table = table_of("backup", "video", "file", "size", "stored", "verified", "peer", *last)
    for backup in backups:
        verified = backup["verifiedAt"] or "never"
        add_row(
            table,
            backup["backupId"],
            str(backup["videoId"]),
            backup["fileName"],
            format_size(backup["size"]),
            moment(backup["storedAt"]),
            red(backup["problem"]) if backup["problem"] else moment(verified),
            backup["peer"],
            *((backup["deletedBy"], moment(backup["removedAt"])) if trash else ()),
        )
    print_table(table)


@main.command()
@as_json
@click.pass_obj
def status(api: Api, as_json: bool) -> None:
    """Whether the daemon is well, what it can still promise, and how well the backups are."""
    ready, scrub = api.call("GET", "/readyz"), api.call("GET", "/api/v1/scrub")
    if as_json:
        show(ready | {"scrub": scrub})
        return
    told = (
        f"{api.url} is {ready['status']}: {ready['availableSpace']} can still be promised, "
        f"{ready['pending']} requests wait, {ready['inProgress']} are in progress."
    )
    console.print(plain(told), highlight=False, soft_wrap=True)
    for line in told_of_scrub(scrub):
        console.print(plain(line), highlight=False, soft_wrap=True)


@main.command()
@as_json
@click.pass_obj
def queue(api: Api, as_json: bool) -> None:
    """What waits and moves: requests of others, and videos of our own."""
    requests = list(api.pages("/api/v1/backup/requests", "requests", {"state": "live"}))
    entries = list(api.pages("/api/v1/outbox", "entries", {"state": "going"}))
    if as_json:
        show({"requests": requests, "entries": entries})
        return
    if not requests and not entries:
        console.print("Nothing waits, and nothing is in progress.")
    if requests:
        table = table_of("request", "video", "state", "place", "received", "peer", "last error")
        for one in requests:
            add_row(
                table,
                one["requestId"],
                str(one["videoId"]),
                one["state"],
                str(one["position"] or ""),
                f"{format_size(one['receivedBytes'])} of {format_size(one['reservedBytes'])}",
                one["peer"],
                one["lastError"] or "",
            )
        table.title = "Kept for others"
        print_table(table)
    if entries:
        table = table_of("entry", "video", "file", "state", "sent", "to", "last error")
        for one in entries:
            add_row(
                table,
                one["entryId"],
                str(one["videoId"]),
                one["fileName"],
                one["state"],
                f"{format_size(one['sentBytes'])} of {format_size(one['size'])}",
                one["to"],
                one["lastError"] or "",
            )
        table.title = "Sent to others"
        print_table(table)


# -- acting ----------------------------------------------------------------------------------------


@main.command()
@click.argument("identifier", metavar="ID")
@as_json
@click.pass_obj
def cancel(api: Api, identifier: str, as_json: bool) -> None:
    """Cancel a video that is being sent, or a request that was made here."""
    for path in ("/api/v1/outbox/", "/api/v1/backup/requests/"):
        try:
            answer = api.call("DELETE", path + part(identifier))
        except ApiFailed as error:
            if error.status != 404:
                raise
            continue
        if as_json:
            show(answer)
        else:
            console.print(f"{plain(identifier)} is cancelled.", highlight=False)
        return
    fail(f"Nothing that waits or moves has the id {identifier}; `backupctl queue` shows what does.")


@main.command()
@click.argument("backup_id", metavar="[ID]", required=False)
@as_json
@click.pass_obj
def verify(api: Api, backup_id: str | None, as_json: bool) -> None:
    """Read the stored bytes again, of one backup or of all, and compare their digest."""
    backups = [told_of(api, backup_id)] if backup_id is not None else listed(api, {})
    results = []
    bars = progress_bar()
    bars.disable = as_json or not backups
    with bars:
        for backup in backups:
            task = bars.add_task("reading", name=short(backup["fileName"]), total=backup["size"])
            results.append(_verify(api, backup, functools.partial(_advance, bars, task)))
            words = results[-1]["problem"] or "is whole"
            bars.update(task, completed=backup["size"], description=words)
    damaged = [backup for backup in results if backup["problem"]]
    if as_json:
        show({"backups": results})
    elif not results:
        console.print("No backups are kept here yet.")
    elif not damaged:
        whole = "1 backup is" if len(results) == 1 else f"{len(results)} backups are"
        console.print(f"[green]✓[/green] {whole} whole.", highlight=False)
    for backup in damaged if not as_json else ():
        complaints.print(
            f"[red]✗[/red] {plain(backup['fileName'])} of {plain(backup['peer'])}, backup "
            f"{plain(backup['backupId'])}: {plain(backup['problem'])}",
            highlight=False,
            soft_wrap=True,
        )
    if damaged:
        sys.exit(1)


def _advance(bars: Progress, task: TaskID, done: int) -> None:
    bars.update(task, completed=done)


def _verify(api: Api, backup: Any, done: Callable[[int], None]) -> Any:
    """Ask for one verification and wait for its end."""
    path = f"/api/v1/backups/{part(backup['backupId'])}"
    try:
        api.call("POST", f"{path}/verify")
        now = api.call("GET", path)
        while "verifying" in now:
            done(now["verifying"]["readBytes"])
            time.sleep(POLL)
            now = api.call("GET", path)
    except ApiFailed as error:
        if error.status != 404:
            raise
        # Its sender may be that quick.
        return backup | {"problem": "It is gone; if it was damaged, another copy has its place."}
    if not now["problem"] and now["verifiedAt"] == backup["verifiedAt"]:
        return now | {"problem": "It was not read to its end; the daemon's log has why. Try again."}
    return now


@main.command()
@as_json
@click.pass_obj
def rebuild(api: Api, as_json: bool) -> None:
    """Put on the list again what lies under the root, when the ledger was lost."""
    found = api.call("POST", "/api/v1/rebuild")
    if as_json:
        show(found)
    else:
        console.print(
            f"{plain(found['added'])} backups were found and listed, "
            f"{plain(found['known'])} were known.",
            highlight=False,
        )
        for one in found["damaged"]:
            complaints.print(f"[yellow]![/yellow] {plain(one['path'])}: {plain(one['why'])}")
        if found["moreDamaged"]:
            complaints.print(f"… and {plain(found['moreDamaged'])} more.")
        if found["added"]:
            console.print("`backupctl verify` reads them and tells whether they are whole.")
    if found["damaged"]:
        sys.exit(1)


@main.command("accept-root")
def accept_root() -> None:
    """Say that what lies at `root` is meant: the disk is lost, or was replaced on purpose.

    Only where the daemon does not start, and asks for it. What the ledger lists and is not there
    counts as lost from the next start on.
    """
    # SQLAlchemy takes longer to load than all the rest that most commands need.
    from backupd.ledger.opening import remembered

    settings = load(os.environ)
    root = os.path.abspath(settings.root)
    known = remembered(settings.ledger_url)
    if own_folder.accept_root(settings, known, lambda: secrets.token_urlsafe(32), os.geteuid()):
        words = f"[green]✓[/green] {plain(root)} is the root from now on. Start backupd; then "
        words += "`backupctl verify` asks the senders for what is not there."
    else:
        words = f"The ledger ({plain(settings.ledger_url)}) knows no other root than "
        words += f"{plain(root)}: there is nothing to accept."
    console.print(words, highlight=False, soft_wrap=True)


@main.command()
@click.option("--to", help="URL of another server, to see whether it can be reached.")
@click.option("--repair", is_flag=True, help="Mend what can be mended of what is kept.")
@as_json
@click.pass_obj
def doctor(api: Api, to: str | None, repair: bool, as_json: bool) -> None:
    """Check settings, folders, space, what is kept, and reachability, and say what to do.

    Without --repair it changes nothing, and says what --repair would do.
    """
    with complaints.status("looking at what is kept") as shown:

        def wait(seen: Any) -> None:
            read = f", {format_size(seen['bytesRead'])} read" if seen["bytesRead"] else ""
            shown.update(f"looking at what is kept: {plain(seen['lookedAt'])} backups{read}")
            time.sleep(POLL)

        findings = list(examine(os.environ, api, to, repair=repair, wait=wait))
    if as_json:
        show(
            [
                {"what": one.what, "well": one.well, "told": one.told, "advice": one.advice}
                for one in findings
            ]
        )
    for one in findings if not as_json else ():
        mark = "[green]✓[/green]" if one.well else "[red]✗[/red]"
        console.print(
            f"{mark} {plain(one.what)}: {plain(one.told)}", highlight=False, soft_wrap=True
        )
        if one.advice:
            console.print(f"    → {plain(one.advice)}", highlight=False, soft_wrap=True)
    if not all(one.well for one in findings):
        sys.exit(1)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> None:
    """Run the daemon in the foreground; OPTIONS are those of `twistd backupd`."""
    from twisted.scripts.twistd import run

    sys.argv = ["twistd", "--nodaemon", "--pidfile=", "backupd", *options]
    run()
