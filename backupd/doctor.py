"""``backupctl doctor``: is everything as it must be, and if not, what to do."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from backupd.control import Api, ApiFailed
from backupd.errors import LedgerFailed, SettingsError, WrongRoot
from backupd.own_folder import check_root, read_token
from backupd.settings import Settings, load
from backupd.sizes import format_size
from backupd.terminal import span

__all__ = ["Finding", "examine"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``advice`` says what to do unless it is well."""

    what: str
    well: bool
    told: str
    advice: str = ""


def examine(
    environ: Mapping[str, str],
    api: Api,
    other: str | None,
    *,
    repair: bool = False,
    wait: Callable[[Any], None] = lambda inspection: None,
) -> Iterator[Finding]:
    """Look at settings, folders, space, the daemon, what it keeps, and ``other``, the URL of
    another server. With ``repair`` the daemon mends what it can; ``wait`` is called until then.
    """
    try:
        settings = load(environ)
    except SettingsError as error:
        yield Finding("settings", False, str(error), "mend the setting, then start again")
        return
    yield Finding("settings", True, "are well-formed")
    wrong = _wrong(settings)
    if wrong is not None:
        yield wrong
        if wrong.what == "root":
            return  # all else would be told of another place
    yield from _root(settings)
    yield from _videos(settings)
    yield from _daemon(settings, api, lambda: _files(api, wait, repair=repair))
    if other:
        yield _reach("other server", other)


def _wrong(settings: Settings) -> Finding | None:
    """Where the root is not what the ledger is about, or one of the two cannot be read."""
    # SQLAlchemy takes longer to load than all the rest that most commands need.
    from backupd.ledger.opening import remembered

    try:
        check_root(settings, remembered(settings.ledger_url))
    except WrongRoot as error:
        return Finding("root", False, error.why, error.advice)
    except SettingsError as error:
        advice = "run this as the user that backupd runs as, or look after the disk"
        return Finding("root", False, str(error).partition(": ")[2], advice)
    except LedgerFailed as error:
        advice = "run this as the user that backupd runs as; of a damaged one see docs/recovery.md"
        return Finding("ledger", False, str(error), advice)
    return None


def _root(settings: Settings) -> Iterator[Finding]:
    root = os.path.abspath(settings.root)
    if not os.path.exists(root):
        yield Finding(
            "root", False, f"{root} is not there yet", "start the daemon once: it makes it"
        )
        return
    try:
        with tempfile.TemporaryFile(dir=root) as probe:
            probe.write(b"backupd")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = f"make {root} writable for the user that backupd runs as"
        if full:
            advice = "free some space on its volume, as `backupctl delete ID --now` does"
        yield Finding("root", False, f"{root} cannot be written: {error.strerror}", advice)
        if not full:
            return
    else:
        yield Finding("root", True, f"{root} can be written")
    volume = os.statvfs(root)
    free = volume.f_bavail * volume.f_frsize
    floor = settings.reserved_space
    told = f"{format_size(free)} free, {format_size(floor)} of them never promised"
    advice = "free some space, or lower reserved_space"
    yield Finding("space", free > floor, told, "" if free > floor else advice)
    yield from _ledger(settings, root)
    try:
        read_token(settings.token_file)
        yield Finding("control token", True, f"is in {settings.token_file}")
    except FileNotFoundError:
        yield Finding(
            "control token", False, "is not there yet", "start the daemon once: it makes one"
        )
    except SettingsError as error:
        yield Finding("control token", False, str(error), "run chmod 600 on the file")


def _ledger(settings: Settings, root: str) -> Iterator[Finding]:
    """The volume of the ledger, if it is another than that of the root."""
    if not settings.ledger:
        return
    folder = os.path.dirname(os.path.abspath(settings.ledger_file))
    try:
        if os.stat(folder).st_dev == os.stat(root).st_dev:
            return
        volume = os.statvfs(folder)
    except OSError as error:
        told = f"{folder} cannot be looked at: {error.strerror}"
        yield Finding("ledger", False, told, "mend `ledger`")
        return
    free = volume.f_bavail * volume.f_frsize
    well = free > settings.reserved_space
    told = f"{format_size(free)} free on its volume, where reserved_space is kept free too"
    yield Finding(
        "ledger", well, told, "" if well else f"free some space on the volume of {folder}"
    )


def _videos(settings: Settings) -> Iterator[Finding]:
    for folder in settings.videos:
        readable = os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)
        told = "can be read" if readable else "is no folder that can be read"
        yield Finding(f"videos {folder}", readable, told, "" if readable else "mend `videos`")


def _daemon(
    settings: Settings, api: Api, files: Callable[[], Iterator[Finding]]
) -> Iterator[Finding]:
    try:
        ready = api.call("GET", "/readyz")
    except ApiFailed as error:
        advice = "start it with `make run`, `twistd -noy backupd.tac` or systemctl start backupd"
        yield Finding("daemon", False, str(error), advice)
        return
    told = f"answers at {api.url}; {ready.get('availableSpace')} can still be promised"
    yield Finding("daemon", True, told)
    yield from files()
    yield from _kept(api)
    yield from _audit(api)
    base = settings.public_url
    if not base and settings.host:
        base = f"{settings.protocol}://{settings.host}"
    if base and urlsplit(base).netloc != urlsplit(api.url).netloc:
        yield _reach("own links", base)


def _files(api: Api, wait: Callable[[Any], None], *, repair: bool) -> Iterator[Finding]:
    """Whether files and list agree."""
    try:
        seen = api.call("POST", "/api/v1/inspection", {"repair": repair})
        while seen["running"]:
            wait(seen)
            seen = api.call("GET", "/api/v1/inspection")
    except ApiFailed as error:
        yield Finding("files", False, f"were not looked at: {error}", "try again")
        return
    for one in seen["findings"]:
        told, advice = one["why"], one["advice"]
        if one["repaired"]:
            told = f"{told} Repaired: {one['remedy']}."
        elif one["remedy"] and not advice:
            advice = f"backupctl doctor --repair: {one['remedy']}"
        yield Finding(one["path"], one["repaired"], told, advice)
    if seen["more"]:
        left = seen["more"] - seen["moreRepaired"]
        told = f"and {seen['more']} more, {left} of which are not repaired"
        yield Finding("files", not left, told, "mend these first" if left else "")
    if seen["failure"]:
        yield Finding("files", False, f"were not all looked at: {seen['failure']}", "try again")
    elif not seen["findings"]:
        yield Finding("files", True, f"all {seen['lookedAt']} backups lie where the list says")


def _kept(api: Api) -> Iterator[Finding]:
    try:
        scrub = api.call("GET", "/api/v1/scrub")
    except ApiFailed as error:
        yield Finding("backups", False, str(error), "see the daemon's log")
        return
    damaged = scrub["damaged"]
    told = f"{damaged} damaged" if damaged else "none is known to be damaged"
    advice = "`backupctl list` shows which; their senders are asked for them where that can be"
    yield Finding("backups", not damaged, told, advice if damaged else "")
    if scrub["state"] == "off":
        yield Finding("scrub", True, "is switched off")
        return
    takes, period = span(scrub["takesSeconds"]), span(scrub["periodSeconds"])
    told = f"everything is read again within {takes if not scrub['keepsPeriod'] else period}"
    late = f"{told}, not within {period}: {format_size(scrub['rate'])} a second are too few"
    advice = f"raise scrub_rate to {format_size(scrub['neededRate'])} or more, or scrub_period"
    if scrub["keepsPeriod"]:
        yield Finding("scrub", True, told)
    else:
        yield Finding("scrub", False, late, advice)


def _audit(api: Api) -> Iterator[Finding]:
    try:
        trouble = api.call("GET", "/api/v1/audit?limit=1")["trouble"]
    except ApiFailed as error:
        yield Finding("audit log", False, str(error), "see the daemon's log")
        return
    told = trouble or "is written"
    advice = "the daemon goes on, and writes what it has kept once that is mended"
    yield Finding("audit log", trouble is None, told, advice if trouble else "")


def _reach(what: str, url: str) -> Finding:
    try:
        api = Api(url, None)
    except ApiFailed as error:
        return Finding(what, False, str(error), "give its URL as https://backup.example.org")
    try:
        api.call("GET", "/healthz")
    except ApiFailed as error:
        advice = f"check that {url} is right and that its daemon runs"
        told = f"{url} does not answer" if error.status == 0 else str(error)
        return Finding(what, False, told, advice)
    return Finding(what, True, f"{url} answers")
