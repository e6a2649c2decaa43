"""``backupctl peer``: who may keep backups here, and with whom we keep ours."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from backupd.control import Api, part
from backupd.settings import parse_duration
from backupd.sizes import format_size, parse_size
from backupd.terminal import (
    Group,
    add_row,
    console,
    moment,
    plain,
    print_table,
    say,
    show,
    span,
    table_of,
)

__all__ = ["hide", "peer"]

INVITATION = "BACKUPD_INVITATION"
_RIGHTS = ("send", "restore", "delete", "admin")
_PATH = "/api/v1/peers"

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def hide(secret: str, variable: str) -> None:
    """Start again with ``secret`` where only this user sees it: everybody sees the words of a
    command.
    """
    words = ["-" if word == secret else word for word in sys.orig_argv[1:]]
    words = [f"{word[: -len(secret)]}-" if word.endswith(f"={secret}") else word for word in words]
    if words != sys.orig_argv[1:]:
        os.environ[variable] = secret
        os.execv(sys.executable, [sys.executable, *words])  # noqa: S606


def _rights(_: click.Context, __: click.Parameter, text: str | None) -> list[str] | None:
    if text is None:
        return None
    rights = [word for word in text.replace(",", " ").split() if word != "nothing"]
    if not set(rights) <= set(_RIGHTS):
        raise click.BadParameter(f"takes some of {', '.join(_RIGHTS)}, or nothing")
    return rights


def _quota(_: click.Context, __: click.Parameter, text: str | None) -> int | str | None:
    if text is None or text == "none":
        return text
    return parse_size(text, "--quota")


def _versions(_: click.Context, __: click.Parameter, text: str | None) -> int | str | None:
    if text in (None, "none"):
        return text
    if text == "all":
        return 0
    if not str(text).isdecimal():
        raise click.BadParameter("takes a number, all, or none to do as the settings say")
    return int(str(text))


def _seconds(_: click.Context, __: click.Parameter, text: str | None) -> float | str | None:
    if text in (None, "none"):
        return text
    try:
        return 0.0 if text in ("0", "off") else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}; off, or none to do as the settings say") from error


_RETENTION = (
    click.option("--keep-last", callback=_versions, help="Good versions of a video; all; none."),
    click.option("--keep-for", callback=_seconds, help="How long older ones, as 90d; off; none."),
    click.option(
        "--minimum-keep", callback=_seconds, help="Undeletable for so long, as 30d; off; none."
    ),
)


def _retaining(command: Any) -> Any:
    """The options that say how long a peer's versions are kept."""
    for option in _RETENTION:
        command = option(command)
    return command


_LIMITS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "max-pending": ("maxPending", int),
    "max-uploads": ("maxUploads", int),
    "max-size": ("maxSize", lambda text: parse_size(text, "max-size")),
    "requests-per-second": ("requestsPerSecond", float),
    "bandwidth-in": ("bandwidthIn", str),
    "bandwidth-out": ("bandwidthOut", str),
}


def _limits(_: click.Context, __: click.Parameter, said: tuple[str, ...]) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    for text in said:
        name, value = (one.strip() for one in text.partition("=")[::2])
        if name not in _LIMITS or not value:
            raise click.BadParameter(f"takes NAME=VALUE, with a name of {', '.join(_LIMITS)}")
        member, read = _LIMITS[name]
        try:
            limits[member] = None if value == "none" else read(value)
        except ValueError as error:
            raise click.BadParameter(f"{name} is no {value!r}") from error
    return limits


def _granting(command: Any) -> Any:
    """The options that say what a peer may do and have."""
    for option in (
        click.option("--may", callback=_rights, help="Rights: send,restore,delete,admin; nothing."),
        click.option("--quota", callback=_quota, help='Room in all, as "500 GB"; none.'),
        click.option(
            "--network",
            "networks",
            multiple=True,
            help="Addresses that are not public and may be called for it: a network, loopback, "
            "private. Again for another.",
        ),
    ):
        command = option(command)
    return command


def _granted(
    may: list[str] | None, quota: int | str | None, networks: tuple[str, ...]
) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if may is not None:
        said["rights"] = may
    if quota is not None:
        said["limits"] = {"quota": None if quota == "none" else quota}
    if networks:
        said["networks"] = [word for word in networks if word != "none"]
    return said


@click.group(cls=Group)
def peer() -> None:
    """Other servers: invite them, join them, and say what each may do."""


@peer.command()
@click.argument("name")
@_granting
@click.option("--for", "lasting", default="24 h", show_default=True, help="How long it holds.")
@as_json
@click.pass_obj
def invite(
    api: Api,
    name: str,
    may: list[str] | None,
    quota: int | str | None,
    networks: tuple[str, ...],
    lasting: str,
    as_json: bool,
) -> None:
    """Make the one string that another server joins with; it holds once."""
    try:
        seconds = parse_duration(lasting)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--for") from error
    body = {"name": name, "seconds": seconds} | _granted(may, quota, networks)
    answer = api.call("POST", _PATH, body)
    if as_json:
        show(answer)
        return
    console.print(
        f"{plain(name)} is invited for {plain(lasting)}. On the other server run\n",
        highlight=False,
    )
    say(f"backupctl peer join {answer['invitation']}")
    click.echo()
    console.print(
        f"and compare the fingerprint it shows with that of `backupctl peer show {plain(name)}`.",
        highlight=False,
    )


@peer.command()
@click.argument("name")
@_granting
@click.option("--origin", "origins", multiple=True, help="Where it is called back, as a URL.")
@as_json
@click.pass_obj
def add(
    api: Api,
    name: str,
    may: list[str] | None,
    quota: int | str | None,
    networks: tuple[str, ...],
    origins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Add a program that is no backupd; its token and signing secret are shown this once."""
    body = {"name": name, "direct": True} | _granted(may, quota, networks)
    answer = api.call("POST", _PATH, body | {"origins": list(origins)})
    _credentials(answer, as_json)


def _credentials(answer: Any, as_json: bool) -> None:
    if as_json:
        show(answer)
        return
    say(f"token:          {answer['token']}")
    say(f"signing secret: {answer['signingSecret']}")
    console.print("Nobody can show them again.", highlight=False)


@peer.command()
@click.argument("invitation", metavar="[STRING]", required=False)
@click.option("--name", help="What to call it here (default: its host name).")
@_granting
@as_json
@click.pass_obj
def join(
    api: Api,
    invitation: str | None,
    name: str | None,
    may: list[str] | None,
    quota: int | str | None,
    networks: tuple[str, ...],
    as_json: bool,
) -> None:
    """Join the server that has made STRING; without it, it is asked for.

    What that server may do here says --may: nothing, unless you say so.
    """
    if invitation not in (None, "-"):
        hide(str(invitation), INVITATION)
    if invitation in (None, "-"):
        invitation = os.environ.pop(INVITATION, "") or _asked()
    body = {"invitation": invitation, "name": name} | _granted(may, quota, networks)
    answer = api.call("POST", f"{_PATH}/join", body)
    if as_json:
        show(answer)
        return
    told = answer["peer"]
    console.print(
        f"[green]✓[/green] Paired with {plain(told['name'])} at {plain(told['url'])}.\n"
        f"Fingerprint: {plain(told['fingerprint'])}\n"
        "It must be the one that the other server shows.",
        highlight=False,
        soft_wrap=True,
    )


def _asked() -> str:
    """The string from a terminal, unseen, or from a pipe."""
    if sys.stdin.isatty():
        return str(click.prompt("Invitation", hide_input=True))
    return sys.stdin.readline()


@peer.command("list")
@as_json
@click.pass_obj
def list_(api: Api, as_json: bool) -> None:
    """Every peer, the revoked too."""
    answer = api.call("GET", _PATH)
    if as_json:
        show(answer)
        return
    if not answer["peers"]:
        console.print("There are no peers. `backupctl peer invite NAME` invites one.")
        return
    table = table_of("peer", "state", "may", "quota", "where", "fingerprint")
    for one in answer["peers"]:
        add_row(
            table,
            one["name"],
            one["state"],
            ", ".join(one["rights"]) or "nothing",
            _size(one["limits"]["quota"]),
            one["url"] or " ".join(one["origins"]),
            one["fingerprint"] or "",
        )
    print_table(table)


def _size(value: int | None) -> str:
    return "" if value is None else format_size(value)


@peer.command("show")
@click.argument("name")
@as_json
@click.pass_obj
def show_(api: Api, name: str, as_json: bool) -> None:
    """One peer, with the fingerprint that the other side must show too."""
    _show(api.call("GET", f"{_PATH}/{part(name)}"), as_json)


def _show(one: Any, as_json: bool) -> None:
    if as_json:
        show(one)
        return
    lines = {
        "peer": one["name"],
        "state": one["state"],
        "may": ", ".join(one["rights"]) or "nothing",
        "quota": _size(one["limits"]["quota"]) or "none",
        "keeps": _kept(one["retention"]),
        "where": one["url"] or "",
        "called back": " ".join(one["origins"]),
        "networks": " ".join(one["networks"]),
        "public key": one["pin"] or "",
        "fingerprint": one["fingerprint"] or "",
        "since": moment(one["createdAt"]),
        "invited until": moment(one["invitedUntil"] or ""),
        "revoked": moment(one["revokedAt"] or ""),
    }
    for name, value in lines.items():
        if value:
            say(f"{name:>13}: {value}")


def _kept(retention: Any) -> str:
    """What is said of a peer's retention; nothing when all is as the settings say."""
    words = []
    if (last := retention["keepLast"]) is not None:
        words.append(f"the last {last} versions" if last else "all versions")
    for name, what in (("keepFor", "older ones for"), ("minimumKeep", "none shorter than")):
        if (seconds := retention[name]) is not None:
            words.append(f"{what} {span(seconds)}")
    return ", ".join(words)


@peer.command("set")
@click.argument("name")
@_granting
@_retaining
@click.option("--origin", "origins", multiple=True, help="Where it is called back, as a URL.")
@click.option(
    "--limit",
    "limits",
    multiple=True,
    callback=_limits,
    metavar="NAME=VALUE",
    help=f"Such as bandwidth-in='20 Mbit/s'; none lifts it. Names: {', '.join(_LIMITS)}.",
)
@as_json
@click.pass_obj
def set_(
    api: Api,
    name: str,
    may: list[str] | None,
    quota: int | str | None,
    networks: tuple[str, ...],
    origins: tuple[str, ...],
    keep_last: int | str | None,
    keep_for: float | str | None,
    minimum_keep: float | str | None,
    limits: dict[str, Any],
    as_json: bool,
) -> None:
    """Change what a peer may do and have; what is not said stays."""
    body = _granted(may, quota, networks)
    if limits:
        body["limits"] = body.get("limits", {}) | limits
    told = {"keepLast": keep_last, "keepFor": keep_for, "minimumKeep": minimum_keep}
    if kept := {name: one for name, one in told.items() if one is not None}:
        body["retention"] = {name: None if one == "none" else one for name, one in kept.items()}
    if origins:
        body["origins"] = [word for word in origins if word != "none"]
    if not body:
        raise click.UsageError("say what to change, by one of the options")
    _show(api.call("PATCH", f"{_PATH}/{part(name)}", body), as_json)


@peer.command()
@click.argument("name")
@as_json
@click.pass_obj
def rotate(api: Api, name: str, as_json: bool) -> None:
    """Renew the tokens and secrets that are shared with a peer, on both sides."""
    answer = api.call("POST", f"{_PATH}/{part(name)}/rotate")
    if "token" in answer:
        _credentials(answer, as_json)
    elif as_json:
        show(answer)
    else:
        console.print(f"[green]✓[/green] All that is shared with {plain(name)} is new.")


@peer.command()
@click.argument("name")
@as_json
@click.pass_obj
def revoke(api: Api, name: str, as_json: bool) -> None:
    """Put a peer out, at once and with all that it has under way; its backups stay."""
    answer = api.call("DELETE", f"{_PATH}/{part(name)}")
    if as_json:
        show(answer)
    else:
        console.print(
            f"{plain(name)} is out. Its backups stay; `backupctl list --peer {plain(name)}` "
            "shows them.",
            highlight=False,
            soft_wrap=True,
        )
