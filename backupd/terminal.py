"""What `backupctl` shows on a terminal: words, bars and tables."""

from __future__ import annotations

import errno
import json
import re
import sys
import time
from collections.abc import Iterable
from typing import Any, NoReturn

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    Task,
    TextColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from backupd.control import Api, part
from backupd.errors import BackupdError
from backupd.sizes import format_size

__all__ = [
    "OVER",
    "POLL",
    "Group",
    "add_row",
    "complaints",
    "conclude",
    "console",
    "fail",
    "follow",
    "harmless",
    "moment",
    "plain",
    "print_table",
    "progress_bar",
    "red",
    "say",
    "short",
    "show",
    "span",
    "table_of",
    "told_of_scrub",
]

POLL = 0.3
"""Seconds between two looks at something that goes on."""

OVER = ("VERIFIED", "UNVERIFIED", "FAILED", "CANCELLED")

_OBEYED = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal obeys instead of showing it, or cannot take: control characters but the end of a
line, those that turn the direction of writing, and halves of characters.
"""


# -- what others have said -------------------------------------------------------------------------


def harmless(text: str, *, lines: bool = False) -> str:
    """``text`` in one line, unless it may be ``lines``, with nothing in it that a terminal obeys:
    that is written out, as ``\\x1b``.
    """
    text = _OBEYED.sub(lambda met: _written(ord(met[0])), text)
    return text if lines else text.replace("\n", "\\n")


def _written(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def plain(said: object) -> str:
    """What others have said, as a part of a line with markup: it is shown as it is, in that line,
    and neither terminal nor markup obeys it.
    """
    return escape(harmless(str(said)))


class _Terminal(Console):
    """Shows nothing that the terminal obeys but what rich itself means.

    Whatever gets to the terminal in text, in a table, or beside a bar comes by here.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(emoji=False, **options)  # a name like :bomb: is no picture

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for one in super().render(renderable, options):
            yield one if one.control else Segment(harmless(one.text, lines=True), one.style)


console = _Terminal()
complaints = _Terminal(stderr=True)


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
    complaints.print(f"[red]backupctl:[/red] {plain(message)}", highlight=False, soft_wrap=True)
    sys.exit(1)


def say(text: str) -> None:
    """Print ``text`` in one line, however long, with nothing in it that a terminal obeys."""
    click.echo(harmless(text))


def show(data: Any) -> None:
    """Print ``data`` as JSON."""
    written = json.dumps(data, indent=2, ensure_ascii=False)
    # The last of them, such as C1, are left by JSON as they are; they stand in texts alone.
    click.echo(_OBEYED.sub(lambda met: f"\\u{ord(met[0]):04x}", written))


class _Speed(TransferSpeedColumn):
    """Nothing, rather than a question mark, while no speed is known."""

    def render(self, task: Task) -> Text:
        known = task.finished_speed or task.speed
        return super().render(task) if known else Text("")


class _Said(TextColumn):
    """Words that are no markup, and as wide as they are shown."""

    def render(self, task: Task) -> Text:
        return Text(harmless(self.text_format.format(task=task)))


def progress_bar(*, transient: bool = False) -> Progress:
    """A bar with its words, bytes and speed."""
    return Progress(
        _Said("{task.fields[name]}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        _Speed(),
        _Said("{task.description}"),
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
        console.print(f"{plain(entry['fileName'])}: {plain(words)}", highlight=False)


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
    name = harmless(name)
    return name if len(name) <= 32 else f"{name[:15]}…{name[-16:]}"


def conclude(entry: Any) -> None:
    name = plain(entry["fileName"])
    match entry["state"]:
        case "VERIFIED":
            console.print(
                f"[green]✓[/green] {name} is stored and verified: backup "
                f"{plain(entry['backupId'])}, sha256 {plain(entry['sha256'])}",
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
            why = plain(entry["lastError"] or "no reason is known")
            complaints.print(f"[red]✗[/red] {name} {plain(state.lower())}: {why}", soft_wrap=True)


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


def add_row(table: Table, *cells: str | Text) -> None:
    """One more row of what others have said; a `Text` is shown in its own style."""
    table.add_row(*(plain(one) if isinstance(one, str) else one for one in cells))


def red(said: str) -> Text:
    """What others have said, in a cell that is to be seen."""
    return Text(harmless(said), style="red")


def print_table(table: Table) -> None:
    """As wide as it needs where nobody sees it break."""
    if console.is_terminal:
        console.print(table)
    else:
        _Terminal(width=240).print(table)
