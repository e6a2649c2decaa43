"""``backupctl`` for how long things are kept: delete, undelete, lock, and the audit log."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from backupd.control import Api, part
from backupd.terminal import complaints, console, moment, plain, say, show

__all__ = ["COMMANDS"]

POLL = 1.0
"""Seconds between two looks at the audit log."""

_PATH = "/api/v1/backups"

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _say(answer: Any, as_json: bool, words: str) -> None:
    if as_json:
        show(answer)
    else:
        console.print(words, highlight=False, soft_wrap=True)


@click.command()
@click.argument("backup_id", metavar="ID")
@click.option("--now", is_flag=True, help="Remove it at once: nobody can bring it back.")
@as_json
@click.pass_obj
def delete(api: Api, backup_id: str, now: bool, as_json: bool) -> None:
    """Put a backup into the trash; it is removed after trash_period."""
    query = "?now=true" if now else ""
    answer = api.call("DELETE", f"{_PATH}/{part(backup_id)}{query}")
    words = f"{backup_id} is removed."
    if not now:
        words = (
            f"{backup_id} is in the trash until {moment(answer['removedAt'])}; "
            f"`backupctl undelete {backup_id}` brings it back, `backupctl delete {backup_id} "
            "--now` frees its room."
        )
    _say(answer, as_json, plain(words))


@click.command()
@click.argument("backup_id", metavar="ID")
@as_json
@click.pass_obj
def undelete(api: Api, backup_id: str, as_json: bool) -> None:
    """Take a backup out of the trash."""
    answer = api.call("POST", f"{_PATH}/{part(backup_id)}/undelete", {})
    _say(answer, as_json, f"[green]✓[/green] {plain(backup_id)} is kept again.")


@click.command()
@click.argument("backup_id", metavar="ID")
@click.option("--until", required=True, help="A date or a time, as 2030-12-31; UTC.")
@as_json
@click.pass_obj
def lock(api: Api, backup_id: str, until: str, as_json: bool) -> None:
    """Let nobody delete a backup until then, you neither; a lock can only be extended."""
    answer = api.call("POST", f"{_PATH}/{part(backup_id)}/lock", {"until": until})
    until = moment(answer["lockedUntil"])
    _say(answer, as_json, f"[green]✓[/green] {plain(backup_id)} is locked until {plain(until)}.")


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens from now on.")
@click.option("--limit", default=100, show_default=True, help="How many of the last events.")
@as_json
@click.pass_obj
def audit(api: Api, follow: bool, limit: int, as_json: bool) -> None:
    """Who was refused, let in or put out; what was deleted, locked or given back, and by whom."""
    answer = api.call("GET", f"/api/v1/audit?limit={limit}")
    while True:
        for event in answer["events"]:
            say(json.dumps(event) if as_json else _line(event))
        if answer["trouble"]:
            complaints.print(f"[yellow]![/yellow] {plain(answer['trouble'])}")
        if not follow:
            return
        if not answer["events"]:
            time.sleep(POLL)
        answer = api.call("GET", f"/api/v1/audit?after={answer['next']}&limit=1000")


def _line(event: Any) -> str:
    known = [event.get(name) for name in ("peer", "address", "what")]
    words = [event.get("time", ""), event["event"], *(one for one in known if one)]
    if "count" in event:
        words.append(f"{event['count']} times")
    text = " ".join(map(str, words)) + (f": {event['why']}" if "why" in event else "")
    # Of what clients say nothing may look like an event of its own.
    return "".join(letter if letter.isprintable() else "?" for letter in text)


COMMANDS = (delete, undelete, lock, audit)
