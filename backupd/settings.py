"""Settings: one TOML file, the environment, and options; checked once, errors name the setting.

The file is the one that ``BACKUPD_CONFIG`` names, else ``./backupd.toml``, else
``/etc/backupd/backupd.toml``. Every key is also an environment variable ``BACKUPD_<KEY>``, which
wins over the file; an option on the command line wins over both.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from backupd.bandwidth import UNLIMITED, Schedule
from backupd.errors import Invalid, SettingsError
from backupd.sizes import parse_size

__all__ = ["KEYS", "UNIX", "Settings", "load", "parse_duration"]

UNIX = "unix"
"""In ``trusted_proxies``: whoever connects by a socket in the file system."""

NOT_KEYS = frozenset(
    {"BACKUPD_CONFIG", "BACKUPD_URL", "BACKUPD_TOKEN", "BACKUPD_INVITATION", "BACKUPD_TEST_ALL"}
)
"""Variables that look like keys and are not."""

_UNITS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(s|min|h|d|)", re.ASCII)
_LONGEST = 36500 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a daemon is told. Durations are seconds, sizes are bytes."""

    listen: tuple[str, ...] = ("tcp:3000:interface=127.0.0.1",)
    access: str = "open"
    root: str = "backupd-data"
    ledger: str = ""
    host: str = ""
    protocol: str = "http"
    public_url: str = ""
    reserved_space: int = 1024**3
    loop_interval: float = 5.0
    max_concurrent_transfers: int = 4
    max_per_peer: int = 2
    max_pending: int = 100_000
    offer_lease: float = 600.0
    offer_deadline: float = 86400.0
    upload_expiry: float = 86400.0
    history: float = 90 * 86400.0
    shutdown_grace: float = 30.0
    scrub_period: float = 30 * 86400.0
    scrub_rate: int = 20 * 1024**2
    trash_period: float = 7 * 86400.0
    keep_last: int = 0
    keep_for: float = 0.0
    minimum_keep: float = 0.0
    videos: tuple[str, ...] = ()
    watch_to: str = ""
    max_sends: int = 4
    send_deadline: float = 7 * 86400.0
    client_certificate: str = ""
    bandwidth_in: Schedule = UNLIMITED
    bandwidth_out: Schedule = UNLIMITED
    send_bandwidth: Schedule = UNLIMITED
    max_connections: int = 4000
    max_connections_per_address: int = 1000
    min_rate: int = 1024
    allowed_origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    log_format: str = "text"

    @property
    def ledger_url(self) -> str:
        """The SQLAlchemy URL of the ledger; SQLite under the root unless the settings say."""
        return self.ledger or f"sqlite:///{quote(self.own_folder)}/ledger.sqlite3"

    @property
    def ledger_file(self) -> str:
        """The path of the ledger's file."""
        return unquote(self.ledger_url.removeprefix("sqlite:///"))

    @property
    def own_folder(self) -> str:
        """Where the daemon keeps what is not a backup: ledger, lock, token, unfinished uploads."""
        return os.path.join(os.path.abspath(self.root), ".backupd")

    @property
    def peers_folder(self) -> str:
        """Where the records of peers lie, with what is shared with each."""
        return os.path.join(self.own_folder, "peers")

    @property
    def audit_file(self) -> str:
        """Where it is noted who did what, and who was refused."""
        return os.path.join(self.own_folder, "audit.jsonl")

    @property
    def mark_file(self) -> str:
        """Where the mark lies by which the ledger knows the root."""
        return os.path.join(self.own_folder, "root-mark")

    @property
    def token_file(self) -> str:
        """Where the control token lies."""
        return os.path.join(self.own_folder, "control-token")


def parse_duration(value: object) -> float:
    """Seconds: a number, or a number and ``s``, ``min``, ``h`` or ``d``. Raises `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError('must be seconds, or a text such as "10 min", "24 h" or "90 d"')
    match = _DURATION.fullmatch(str(value))
    if match is None:
        raise ValueError('must be seconds, or a text such as "10 min", "24 h" or "90 d"')
    seconds = float(match[1]) * _UNITS[match[2]]
    if not 0 < seconds <= _LONGEST:
        raise ValueError("must be more than 0 and at most 100 years (36500 d)")
    return seconds


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a text")
    return value


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError('must be a size, such as "1 GB"')
    if value in (0, "0"):
        return 0
    try:
        return parse_size(str(value))
    except Invalid as error:
        raise ValueError(str(error).partition(": ")[2]) from error


def _rate(value: object) -> int:
    rate = _size(value)
    if rate == 0:
        raise ValueError('must be a size for each second, such as "20 MB"')
    return rate


def _least_rate(value: object) -> int:
    return 0 if value == "off" else _size(value)


def _period(value: object) -> float:
    off = value in (0, "0", "0.0", "off") and value is not False
    return 0.0 if off else parse_duration(value)


def _count(value: object) -> int:
    try:
        count = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else 0
    except ValueError:
        count = 0
    if not 1 <= count <= 10**9:
        raise ValueError("must be a whole number of at least 1")
    return count


def _count_or_off(value: object) -> int:
    off = value in (0, "0", "off") and value is not False
    return 0 if off else _count(value)


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split())
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ValueError("must be a list of texts")


def _proxies(value: object) -> tuple[str, ...]:
    proxies = _texts(value)
    for proxy in proxies:
        try:
            if proxy != UNIX:
                ip_network(proxy)
        except ValueError as error:
            raise ValueError(
                'must be addresses, networks such as "10.0.0.0/8", or "unix"'
            ) from error
    return proxies


def _paths(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [path for path in value.split(os.pathsep) if path]
    paths = _texts(value)
    if not all(_is_path(path) for path in paths):
        raise ValueError("must be the paths of folders")
    return paths


def _listen(value: object) -> tuple[str, ...]:
    endpoints = _texts(value)
    if not endpoints:
        raise ValueError("must name at least one endpoint")
    return endpoints


def _is_path(text: str) -> bool:
    return bool(text) and "\0" not in text


def _root(value: object) -> str:
    path = _text(value)
    if not _is_path(path):
        raise ValueError("must be the path of a folder")
    return path


def _file(value: object) -> str:
    path = _text(value)
    if path and not _is_path(path):
        raise ValueError("must be the path of a file")
    return path


def _url(value: object) -> str:
    url = _text(value).rstrip("/")
    if not url:
        return url
    try:
        parts = urlsplit(url)
        plain = re.fullmatch(r"[!-~]+", url) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        plain = False
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError('must be a URL such as "https://backup.example.org"')
    if parts.query or parts.fragment:
        raise ValueError("must be a URL without query and fragment")
    return url


def _host(value: object) -> str:
    host = _text(value)
    match = re.fullmatch(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?", host)
    if host and (match is None or not 0 < int(match[1] or 80) < 65536):
        raise ValueError('must be a host and a port, such as "localhost:3000"')
    return host


def _ledger(value: object) -> str:
    url = _text(value)
    if url and (not re.fullmatch(r"sqlite:///[^?]+", url) or not _is_path(unquote(url))):
        raise ValueError('must be a URL such as "sqlite:////var/lib/backupd/ledger.sqlite3"')
    return url


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return str(value)

    return parse


_PARSERS: dict[str, Callable[[object], Any]] = {
    "listen": _listen,
    "access": _one_of("open", "peers"),
    "root": _root,
    "ledger": _ledger,
    "host": _host,
    "protocol": _one_of("http", "https"),
    "public_url": _url,
    "reserved_space": _size,
    "loop_interval": parse_duration,
    "max_concurrent_transfers": _count,
    "max_per_peer": _count,
    "max_pending": _count,
    "offer_lease": parse_duration,
    "offer_deadline": parse_duration,
    "upload_expiry": parse_duration,
    "history": parse_duration,
    "shutdown_grace": parse_duration,
    "scrub_period": _period,
    "scrub_rate": _rate,
    "trash_period": _period,
    "keep_last": _count_or_off,
    "keep_for": _period,
    "minimum_keep": _period,
    "videos": _paths,
    "watch_to": _url,
    "max_sends": _count,
    "send_deadline": parse_duration,
    "client_certificate": _file,
    "bandwidth_in": Schedule.parse,
    "bandwidth_out": Schedule.parse,
    "send_bandwidth": Schedule.parse,
    "max_connections": _count,
    "max_connections_per_address": _count,
    "min_rate": _least_rate,
    "allowed_origins": _texts,
    "trusted_proxies": _proxies,
    "log_format": _one_of("text", "json"),
}

KEYS: dict[str, str] = {
    "listen": "Twisted endpoint strings to listen on",
    "access": "open (local only, until the first peer is invited) or peers (nobody else, ever)",
    "root": "the folder that backups are kept under",
    "ledger": "URL of the ledger (default: SQLite under the root)",
    "host": "HOST:PORT in the links that are handed out",
    "protocol": "http or https in the links that are handed out",
    "public_url": "overrides host and protocol",
    "reserved_space": "bytes of the volume that are never promised",
    "loop_interval": "seconds between two looks at the queue",
    "max_concurrent_transfers": "requests that have their turn at once",
    "max_per_peer": "of these, how many of one peer",
    "max_pending": "requests that may wait",
    "offer_lease": "how long a turn is kept without a byte",
    "offer_deadline": "how long an offer is repeated",
    "upload_expiry": "how long an unfinished upload is kept after its last byte",
    "history": "how long ended requests are remembered",
    "shutdown_grace": "how long a stop waits for uploads",
    "scrub_period": "in which every backup is read again and compared; 0 or off: never",
    "scrub_rate": "bytes that are read for that in a second, at most; half of it beside uploads",
    "trash_period": "how long what was deleted can be undeleted; 0 or off: it is removed at once",
    "keep_last": "good versions of a video that are kept; 0 or off: all",
    "keep_for": "how long older versions of a video are kept; 0 or off: as keep_last says",
    "minimum_keep": "for which nobody but the operator deletes a backup; 0 or off: no time",
    "videos": "folders in which videos are found by their id",
    "watch_to": "URL of the receiver that every new video in these folders is sent to",
    "max_sends": "videos that are sent at once",
    "send_deadline": "how long a video is tried before it is given up",
    "client_certificate": "PEM file with the key and certificate shown to servers that ask for one",
    "bandwidth_in": "how fast bytes of uploads come in, all together; also by the time of day",
    "bandwidth_out": "how fast bytes of restores go out, all together",
    "send_bandwidth": "how fast this server sends its own videos, all together",
    "max_connections": "connections at once, in all",
    "max_connections_per_address": "of these, how many from one address that is no trusted proxy",
    "min_rate": "bytes in a second, on the average of a minute, that a client must send, or take "
    "of a restore; 0 or off: it may be as slow as it likes",
    "allowed_origins": "web origins whose pages may write",
    "trusted_proxies": "proxies whose X-Forwarded-* headers are believed",
    "log_format": "text or json",
}
"""Every key, with what it means."""


def _read_file(environ: Mapping[str, str]) -> dict[str, Any]:
    named = environ.get("BACKUPD_CONFIG")
    for path in (
        [Path(named)] if named else [Path("backupd.toml"), Path("/etc/backupd/backupd.toml")]
    ):
        try:
            with path.open("rb") as file:
                return tomllib.load(file)
        except FileNotFoundError as error:
            if named:
                raise SettingsError("BACKUPD_CONFIG", f"there is no file {path}") from error
        except OSError as error:
            raise SettingsError(str(path), f"cannot be read: {error.strerror}") from error
        except ValueError as error:  # not TOML, not UTF-8, or a number of too many digits
            raise SettingsError(str(path), f"is not TOML: {error}") from error
    return {}


def load(environ: Mapping[str, str], options: Mapping[str, object] | None = None) -> Settings:
    """Settings from file, environment and options. Raises `SettingsError`."""
    values: dict[str, object] = {}
    for key, value in _read_file(environ).items():
        if key not in KEYS:
            raise SettingsError(key, f"is not a setting; settings are {', '.join(sorted(KEYS))}")
        values[key] = value
    for variable, key in (("HOST", "host"), ("PROTOCOL", "protocol")):
        if environ.get(variable):
            values[key] = environ[variable]
    for variable, text in environ.items():
        if not variable.startswith("BACKUPD_") or variable in NOT_KEYS:
            continue
        key = variable.removeprefix("BACKUPD_").lower()
        if key not in KEYS:
            raise SettingsError(variable, "is not a setting")
        values[key] = text
    values.update({key: value for key, value in (options or {}).items() if value is not None})
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        try:
            parsed[key] = _PARSERS[key](value)
        except ValueError as error:
            raise SettingsError(key, f"{error}, not {value!r}") from error
    return Settings(**parsed)


if {field.name for field in fields(Settings)} != set(KEYS) or set(KEYS) != set(_PARSERS):
    raise AssertionError("every setting needs a parser and a description")
