"""What `backupctl` shows on a terminal: words, bars and tables."""

from __future__ import annotations

import errno
import json
import sys
import time
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    Task,
    TextColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from backupd.control import Api, part
from backupd.errors import BackupdError
from backupd.sizes import format_size

__all__ = [
    "OVER",
    "POLL",
    "Group",
    "complaints",
    "conclude",
    "console",
    "fail",
    "follow",
    "moment",
    "print_table",
    "progress_bar",
    "short",
    "show",
    "span",
    "table_of",
    "told_of_scrub",
]

POLL = 0.3
"""Seconds between two looks at something that goes on."""

OVER = ("VERIFIED", "UNVERIFIED", "FAILED", "CANCELLED")

console = Console()
complaints = Console(stderr=True)


class Group(click.Group):
    """Turns foreseen errors into one line and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BackupdError as error:
            fail(str(error))
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # who read what we say has read enough
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}.")
        except KeyboardInterrupt:
            complaints.print("Interrupted.")
            sys.exit(130)


def fail(message: str) -> NoReturn:
    """Say what went wrong, and exit with 1."""
    complaints.print(f"[red]backupctl:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(1)


def show(data: Any) -> None:
    """Print ``data`` as JSON."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


class _Speed(TransferSpeedColumn):
    """Nothing, rather than a question mark, while no speed is known."""

    def render(self, task: Task) -> Text:
        known = task.finished_speed or task.speed
        return super().render(task) if known else Text("")


def progress_bar(*, transient: bool = False) -> Progress:
    """A bar with its words, bytes and speed."""
    return Progress(
        TextColumn("{task.fields[name]}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        _Speed(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=transient,
    )


def follow(api: Api, entries: list[Any], *, quiet: bool) -> list[Any]:
    """Show how the entries come along until all are over."""
    bars = progress_bar()
    bars.disable = quiet
    tasks = {}
    last: dict[str, str] = {}
    with bars:
        for entry in entries:
            tasks[entry["entryId"]] = bars.add_task(
                "", name=short(entry["fileName"]), total=entry["size"]
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


def short(name: str) -> str:
    return name if len(name) <= 32 else f"{name[:15]}…{name[-16:]}"


def conclude(entry: Any) -> None:
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


def moment(timestamp: str) -> str:
    return timestamp[:16].replace("T", " ")


def span(seconds: float) -> str:
    """How long that is, in the largest unit that fits: ``30 days``, ``1 hour``, ``2.5 s``."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = f"{seconds / size:.1f}".removesuffix(".0")
            return f"{count} {unit}" if count == "1" else f"{count} {unit}s"
    return f"{seconds:.1f}".removesuffix(".0") + " s"


def told_of_scrub(scrub: Any) -> list[str]:
    """What ``backupctl status`` says of the backups that are kept."""
    damaged = scrub["damaged"]
    lines = []
    if damaged:
        verb = "backup is" if damaged == 1 else "backups are"
        lines.append(f"{damaged} {verb} damaged; `backupctl list` shows what is wrong.")
    if scrub["state"] == "off":
        lines.append("Backups are not read again by themselves: scrub_period is off.")
    elif scrub["keepsPeriod"]:
        lines.append(f"Every backup is read again within {span(scrub['periodSeconds'])}.")
    else:
        lines.append(
            f"Reading every backup again takes {span(scrub['takesSeconds'])}, longer than "
            f"scrub_period ({span(scrub['periodSeconds'])}): scrub_rate would have to be "
            f"{format_size(scrub['neededRate'])} a second."
        )
    if scrub["oldestVerifiedAt"]:
        which = "All others were" if damaged else "All were"
        lines.append(f"{which} verified on {moment(scrub['oldestVerifiedAt'])} or later.")
    return lines


def table_of(identifier: str, *columns: str) -> Table:
    """A table whose first column is an id that can be copied whole, however narrow it is."""
    table = Table()
    table.add_column(identifier, no_wrap=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_table(table: Table) -> None:
    """As wide as it needs where nobody sees it break."""
    if console.is_terminal:
        console.print(table)
    else:
        Console(width=240).print(table)
