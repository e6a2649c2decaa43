"""``backupctl``: the daemon's command line, a client of its HTTP API.

Exit codes: 0 when the thing is done, 1 when it failed, 2 for wrong usage, 3 when a video is
stored but nobody could verify it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from backupd.control import Api, ApiFailed, find_token, part, resolve
from backupd.doctor import examine
from backupd.errors import BackupdError
from backupd.sizes import format_size

__all__ = ["main"]

POLL = 0.3
"""Seconds between two looks at something that goes on."""

OVER = ("VERIFIED", "UNVERIFIED", "FAILED", "CANCELLED")
UNVERIFIED = 3

console = Console()
complaints = Console(stderr=True)


class Group(click.Group):
    """Turns foreseen errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BackupdError as error:
            fail(str(error))
        except KeyboardInterrupt:
            complaints.print("Interrupted.")
            sys.exit(130)


def fail(message: str) -> NoReturn:
    """Say what went wrong, and exit with 1."""
    complaints.print(f"[red]backupctl:[/red] {escape(message)}", highlight=False)
    sys.exit(1)


def show(data: Any) -> None:
    """Print ``data`` as JSON."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def progress_bar(*, transient: bool = False) -> Progress:
    """A bar with its words, bytes and speed."""
    return Progress(
        TextColumn("{task.fields[name]}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=transient,
    )


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--url",
    envvar="BACKUPD_URL",
    default="http://localhost:3000",
    show_default=True,
    help="Where the daemon is.",
)
@click.option("--token", help="The control token (default: BACKUPD_TOKEN, or the file under root).")
@click.version_option(package_name="backupd", prog_name="backupctl")
@click.pass_context
def main(context: click.Context, url: str, token: str | None) -> None:
    """Keep each other's backups: send videos, see what is kept, get it back."""
    context.obj = Api(url, find_token(token, os.environ))


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
    video: object = int(video_id) if video_id and video_id.isdecimal() else video_id
    entries = []
    for file in files:
        wanted = {"path": resolve(file), "to": to, "videoId": video}
        body = {name: value for name, value in wanted.items() if value is not None}
        entries.append(api.call("POST", "/api/v1/outbox", body)["entry"])
    if not detach:
        entries = _follow(api, entries, quiet=as_json)
    if as_json:
        show({"entries": entries})
    elif detach:
        for entry in entries:
            console.print(f"queued {escape(entry['fileName'])}: {entry['entryId']}")
    if detach:
        return
    for entry in entries if not as_json else ():
        _conclude(entry)
    states = {entry["state"] for entry in entries}
    if states & {"FAILED", "CANCELLED"}:
        sys.exit(1)
    if "UNVERIFIED" in states:
        sys.exit(UNVERIFIED)


def _follow(api: Api, entries: list[Any], *, quiet: bool) -> list[Any]:
    """Show how the entries come along until all are over."""
    bars = progress_bar()
    bars.disable = quiet
    tasks = {}
    last: dict[str, str] = {}
    with bars:
        for entry in entries:
            tasks[entry["entryId"]] = bars.add_task(
                "", name=_short(entry["fileName"]), total=entry["size"]
            )
        try:
            while True:
                for entry in entries:
                    words = _words(entry)
                    bars.update(
                        tasks[entry["entryId"]], completed=entry["sentBytes"], description=words
                    )
                    if not quiet and not console.is_terminal:
                        _say_once(last, entry, words)
                if all(entry["state"] in OVER for entry in entries):
                    return entries
                time.sleep(POLL)
                entries = [
                    entry
                    if entry["state"] in OVER
                    else api.call("GET", f"/api/v1/outbox/{part(entry['entryId'])}")
                    for entry in entries
                ]
        except KeyboardInterrupt:
            complaints.print("The daemon goes on without you; `backupctl queue` shows how far.")
            sys.exit(130)


def _say_once(last: dict[str, str], entry: Any, words: str) -> None:
    if last.get(entry["entryId"]) != words:
        last[entry["entryId"]] = words
        console.print(f"{escape(entry['fileName'])}: {escape(words)}", highlight=False)


def _words(entry: Any) -> str:
    state, error = entry["state"], entry["lastError"]
    words = {
        "ASKING": "asking for room",
        "WAITING": f"waiting, place {entry['position'] or '?'}",
        "READY": "sending",
        "SENT": "verifying",
        "VERIFIED": "stored and verified",
        "UNVERIFIED": "stored, unverified",
        "FAILED": "failed",
        "CANCELLED": "cancelled",
    }[state]
    return f"{words} ({error})" if error and state in ("ASKING", "WAITING", "READY") else words


def _short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:15]}…{name[-16:]}"


def _conclude(entry: Any) -> None:
    name = escape(entry["fileName"])
    match entry["state"]:
        case "VERIFIED":
            console.print(
                f"[green]✓[/green] {name} is stored and verified: backup {entry['backupId']}, "
                f"sha256 {entry['sha256']}",
                highlight=False,
                soft_wrap=True,
            )
        case "UNVERIFIED":
            complaints.print(
                f"[yellow]![/yellow] {name} is stored, but the receiver named no digest, so "
                "nobody knows whether its copy is right.",
                soft_wrap=True,
            )
        case state:
            why = escape(entry["lastError"] or "no reason is known")
            complaints.print(f"[red]✗[/red] {name} {state.lower()}: {why}", soft_wrap=True)


# -- looking ---------------------------------------------------------------------------------------


@main.command("list")
@click.option("--peer", help="Only of this peer.")
@click.option("--video-id", help="Only of this video.")
@as_json
@click.pass_obj
def list_(api: Api, peer: str | None, video_id: str | None, as_json: bool) -> None:
    """The backups that are kept here."""
    query = {"peer": peer, "videoId": video_id}
    wanted = {name: value for name, value in query.items() if value is not None}
    backups = list(api.pages("/api/v1/backups", "backups", wanted))
    if as_json:
        show({"backups": backups})
        return
    if not backups:
        console.print("No backups are kept here yet.")
        return
    table = Table("backup", "video", "file", "size", "stored", "verified", "peer")
    for backup in backups:
        verified = backup["verifiedAt"] or "never"
        table.add_row(
            backup["backupId"],
            escape(str(backup["videoId"])),
            escape(backup["fileName"]),
            format_size(backup["size"]),
            _moment(backup["storedAt"]),
            f"[red]{escape(backup['problem'])}[/red]" if backup["problem"] else _moment(verified),
            escape(backup["peer"]),
        )
    _print_table(table)


def _moment(timestamp: str) -> str:
    return timestamp[:16].replace("T", " ")


def _print_table(table: Table) -> None:
    """As wide as it needs where nobody sees it break."""
    if console.is_terminal:
        console.print(table)
    else:
        Console(width=240).print(table)


@main.command()
@as_json
@click.pass_obj
def status(api: Api, as_json: bool) -> None:
    """Whether the daemon is well, and what it can still promise."""
    ready = api.call("GET", "/readyz")
    if as_json:
        show(ready)
        return
    console.print(
        f"{api.url} is {ready['status']}: {ready['availableSpace']} can still be promised, "
        f"{ready['pending']} requests wait, {ready['inProgress']} are in progress.",
        highlight=False,
    )


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
        table = Table("request", "video", "state", "place", "received", "peer", "last error")
        for one in requests:
            table.add_row(
                one["requestId"],
                escape(str(one["videoId"])),
                one["state"],
                str(one["position"] or ""),
                f"{format_size(one['receivedBytes'])} of {format_size(one['reservedBytes'])}",
                escape(one["peer"]),
                escape(one["lastError"] or ""),
            )
        table.title = "Kept for others"
        _print_table(table)
    if entries:
        table = Table("entry", "video", "file", "state", "sent", "to", "last error")
        for one in entries:
            table.add_row(
                one["entryId"],
                escape(str(one["videoId"])),
                escape(one["fileName"]),
                one["state"],
                f"{format_size(one['sentBytes'])} of {format_size(one['size'])}",
                escape(one["to"]),
                escape(one["lastError"] or ""),
            )
        table.title = "Sent to others"
        _print_table(table)


# -- getting back ----------------------------------------------------------------------------------


@main.command()
@click.argument("backup_id", metavar="ID")
@click.option("-o", "--output", type=click.Path(), help="File or folder to write to.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@as_json
@click.pass_obj
def restore(api: Api, backup_id: str, output: str | None, force: bool, as_json: bool) -> None:
    """Get a backup back, resuming a partial file, and check its digest."""
    backup = api.call("GET", f"/api/v1/backups/{part(backup_id)}")
    target = _target(output, backup["fileName"])
    if target.exists() and not force:
        fail(f"{target} is there already; give another -o, or --force.")
    partial = target.with_name(target.name + ".part")
    bars = progress_bar()
    bars.disable = as_json
    with bars:
        task = bars.add_task("restoring", name=_short(target.name), total=backup["size"])
        digest = _fetch(api, backup, partial, lambda done: bars.update(task, completed=done))
        if digest != backup["sha256"]:
            partial.unlink()
            fail(
                f"The bytes that came have SHA-256 {digest} instead of {backup['sha256']}; they "
                f"were thrown away. Try again, and `backupctl verify {backup_id}` there."
            )
        partial.replace(target)
        _sync_folder(target.parent)
        bars.update(task, description="restored and verified")
    if as_json:
        show({"backupId": backup_id, "path": str(target), "size": backup["size"], "sha256": digest})
    else:
        console.print(
            f"[green]✓[/green] {escape(str(target))} is restored, sha256 {digest}",
            highlight=False,
            soft_wrap=True,
        )


def _target(output: str | None, name: str) -> Path:
    """Where to write; the sender's name is never more than a name here."""
    plain = "".join("_" if char in "/\\\0" or ord(char) < 32 else char for char in name)
    plain = plain if plain.strip(". ") else "video"
    if output is None:
        return Path(plain)
    return Path(output) / plain if os.path.isdir(output) else Path(output)


def _fetch(api: Api, backup: Any, partial: Path, done: Callable[[int], None]) -> str:
    """Bring ``partial`` to its full size, on the disk; the digest of the whole of it."""
    hasher = hashlib.sha256()
    size = backup["size"]
    try:
        with partial.open("a+b") as file:
            if file.tell() > size:
                file.truncate(0)
            file.seek(0)
            while block := file.read(1024 * 1024):
                hasher.update(block)
            at = file.tell()
            done(at)
            if at < size:
                headers = {"Range": f"bytes={at}-", "If-Range": f'"{backup["sha256"]}"'}
                path = f"/api/v1/backups/{part(backup['backupId'])}/content"
                response = api.open("GET", path, headers=headers if at else {})
                if at and response.status != 206:
                    file.truncate(0)
                    at, hasher = 0, hashlib.sha256()
                while block := response.read(1024 * 1024):
                    file.write(block)
                    hasher.update(block)
                    at += len(block)
                    done(at)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        fail(f"{partial} could not be completed: {error}. Run the same again to go on from there.")
    if at < size:
        fail(f"Only {at} of {size} bytes came. Run the same again to go on from there.")
    return hasher.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
            console.print(f"{identifier} is cancelled.", highlight=False)
        return
    fail(f"Nothing that waits or moves has the id {identifier}; `backupctl queue` shows what does.")


@main.command()
@click.argument("backup_id", metavar="[ID]", required=False)
@as_json
@click.pass_obj
def verify(api: Api, backup_id: str | None, as_json: bool) -> None:
    """Read the stored bytes again, of one backup or of all, and compare their digest."""
    if backup_id is not None:
        backups = [api.call("GET", f"/api/v1/backups/{part(backup_id)}")]
    else:
        backups = list(api.pages("/api/v1/backups", "backups", {}))
    results = []
    bars = progress_bar()
    bars.disable = as_json
    with bars:
        for backup in backups:
            task = bars.add_task("reading", name=_short(backup["fileName"]), total=backup["size"])
            results.append(_verify(api, backup, functools.partial(_advance, bars, task)))
            words = results[-1]["problem"] or "is whole"
            bars.update(task, completed=backup["size"], description=words)
    damaged = [backup for backup in results if backup["problem"]]
    if as_json:
        show({"backups": results})
    elif not damaged:
        console.print(f"[green]✓[/green] {len(results)} backups are whole.", highlight=False)
    for backup in damaged if not as_json else ():
        complaints.print(f"[red]✗[/red] {backup['backupId']}: {escape(backup['problem'])}")
    if damaged:
        sys.exit(1)


def _advance(bars: Progress, task: TaskID, done: int) -> None:
    bars.update(task, completed=done)


def _verify(api: Api, backup: Any, done: Callable[[int], None]) -> Any:
    """Ask for one verification and wait for its end."""
    path = f"/api/v1/backups/{part(backup['backupId'])}"
    now = api.call("POST", f"{path}/verify")
    now = api.call("GET", path)
    while "verifying" in now:
        done(now["verifying"]["readBytes"])
        time.sleep(POLL)
        now = api.call("GET", path)
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
            f"{found['added']} backups were found and listed, {found['known']} were known.",
            highlight=False,
        )
        for one in found["damaged"]:
            complaints.print(f"[yellow]![/yellow] {escape(one['path'])}: {escape(one['why'])}")
        if found["moreDamaged"]:
            complaints.print(f"… and {found['moreDamaged']} more.")
        if found["added"]:
            console.print("`backupctl verify` reads them and tells whether they are whole.")
    if found["damaged"]:
        sys.exit(1)


@main.command()
@click.option("--to", help="URL of another server, to see whether it can be reached.")
@as_json
@click.pass_obj
def doctor(api: Api, to: str | None, as_json: bool) -> None:
    """Check settings, folders, space and reachability, and say what to do."""
    findings = list(examine(os.environ, api, to))
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
            f"{mark} {escape(one.what)}: {escape(one.told)}", highlight=False, soft_wrap=True
        )
        if one.advice:
            console.print(f"    → {escape(one.advice)}", highlight=False, soft_wrap=True)
    if not all(one.well for one in findings):
        sys.exit(1)


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def serve(options: tuple[str, ...]) -> None:
    """Run the daemon in the foreground; OPTIONS are those of `twistd backupd`."""
    from twisted.scripts.twistd import run

    sys.argv = ["twistd", "--nodaemon", "--pidfile=", "backupd", *options]
    run()
