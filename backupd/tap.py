"""Options of ``twistd backupd``, and the only place where the daemon's objects are joined."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from twisted.application.service import IService
from twisted.logger import ILogObserver, Logger, jsonFileLogObserver
from twisted.python import usage

from backupd import interpreter
from backupd.descriptors import raise_limit, room_for_connections
from backupd.entropy import Entropy
from backupd.errors import SettingsError
from backupd.interfaces import ILedger, IVolume, OffThread
from backupd.ledger.sql import SqlLedger
from backupd.links import Links
from backupd.own_folder import OwnFolder
from backupd.own_time import OwnTime, WallClock
from backupd.peer.backoff import backoff
from backupd.peer.client import make_client
from backupd.peer.pairing import Pairing
from backupd.peer.routes import CallbackRoutes, Offers, OwnRoutes
from backupd.peer.tls import ClientTls, read_client_certificate
from backupd.sender.outbox import Outbox
from backupd.service import BackupService, Chance, Running
from backupd.settings import KEYS, Settings, load
from backupd.storage.disk import DiskStorage
from backupd.storage.system import SYSTEM
from backupd.threads import Threads
from backupd.trust.audit import Audit
from backupd.trust.audit_file import AuditFile
from backupd.trust.files import PeerFiles
from backupd.trust.registry import InMemory, Peers, Records
from backupd.web.resource import make_site

__all__ = ["FOOTPRINT", "Options", "build", "chance_from", "join", "makeService"]

_log = Logger()

OFFER_BACKOFF = (5.0, 300.0)
DISK_THREADS = 16

FOOTPRINT = 32 * 1024
"""Bytes that a backup occupies beside its own: the rest of its last block, sidecar, folders."""


class Options(usage.Options):
    """Every setting is an option too, and wins over file and environment."""

    optParameters = [  # noqa: RUF012, N815
        [key.replace("_", "-"), None, None, help_text] for key, help_text in KEYS.items()
    ]

    def settings(self) -> Settings:
        """The settings that these options, the environment and the file make."""
        given = {key: self[key.replace("_", "-")] for key in KEYS}
        return load(os.environ, given)


PATIENCE = 1.0
"""Seconds that a service manager may be too busy to hear us."""


def tell_init(state: str) -> None:
    """Tell the service manager, as sd_notify(3) does; nothing where there is none.

    One that cannot be told is a line in the log, and never an error: the start and the orderly
    end of a daemon must not hang on it.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            # It may be too busy to read for a moment; but nobody waits for it for long.
            notify.settimeout(PATIENCE)
            notify.connect(address)
            # A path in it may have bytes that are no UTF-8.
            notify.send(state.encode(errors="replace"))
    except OSError as error:
        _log.warn(
            "the service manager could not be told {state}: {why} (NOTIFY_SOCKET is {address})",
            state=state,
            why=error,
            address=path,
        )


def on_hangup(reactor: Any, act: Callable[[], None]) -> None:
    """Do this when the process gets SIGHUP, in the reactor's thread."""
    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(act))


def chance_from(
    rng: random.Random, token: Callable[[int], str], new_id: Callable[[], str]
) -> Chance:
    """Ids, capabilities out of ``token(bytes)``, and the back-off of offers with its jitter."""
    return Chance(
        new_id=new_id,
        new_capability=lambda: token(24),
        backoff=lambda n: backoff(n, first=OFFER_BACKOFF[0], cap=OFFER_BACKOFF[1], rng=rng),
    )


def join(
    settings: Settings,
    *,
    reactor: Any,
    own: OwnFolder,
    ledger: ILedger,
    fs: IVolume,
    off: OffThread,
    rng: random.Random,
    chance: Chance,
    threads: Sequence[Running],
    peer_records: Records | None = None,
    on_hangup: Callable[[Callable[[], None]], None] = lambda act: None,
    tell_init: Callable[[str], None] = lambda state: None,
    exit: Callable[[int], object] = lambda status: None,  # noqa: A002
    log_observer: ILogObserver | None = None,
    steady: Callable[[], float] | None = None,
    wall: Callable[[], float] | None = None,
    begin_time: Callable[[float | None], None] = lambda latest: None,
    audit: Audit | None = None,
    settled: Callable[[], None] = lambda: None,
) -> BackupService:
    """A daemon out of its parts: clock and network (``reactor``), disk, threads and chance.

    Production hands in the real ones, the simulation its own; nothing else differs.
    """
    wall = wall or reactor.seconds
    audit = audit or Audit(None, off, reactor)
    peers = Peers(peer_records or InMemory(), off, always=settings.access == "peers")
    shown = settings.client_certificate
    tls = ClientTls(read_client_certificate(shown) if shown else None)
    peer = make_client(reactor, OwnRoutes(peers), tls)
    callbacks = make_client(reactor, CallbackRoutes(peers), tls)

    def outbox(links: Links, nudge: Callable[[], None]) -> Outbox:
        return Outbox(
            ledger=ledger,
            peer=peer,
            links=links,
            settings=settings,
            clock=reactor,
            off=off,
            rng=rng,
            new_id=chance.new_id,
            new_capability=chance.new_capability,
            nudge=nudge,
            fs=fs,
            wall=wall,
        )

    service = BackupService(
        settings=settings,
        reactor=reactor,
        own=own,
        ledger=ledger,
        storage=DiskStorage(settings.root, fs=fs),
        off=off,
        offer=Offers(callbacks, peers, WallClock(wall), audit.often),
        outbox=outbox,
        chance=chance,
        peers=peers,
        threads=threads,
        on_hangup=on_hangup,
        tell_init=tell_init,
        exit=exit,
        log_observer=log_observer,
        steady=steady,
        wall=wall,
        begin_time=begin_time,
        audit=audit,
        settled=settled,
    )
    service.pairing = Pairing(
        peers=peers,
        here=service,
        client=peer,
        dial=lambda routes: make_client(reactor, routes, tls),
        clock=reactor,
        new_token=chance.new_capability,
    )
    service.site = make_site(service)
    return service


def build(settings: Settings) -> BackupService:
    """A daemon with these settings; nothing is opened or started yet."""
    from twisted.internet import reactor

    own_time, clock = OwnTime(time.time, _steady), cast(Any, reactor)
    clock.seconds = own_time
    raise_limit()
    room = room_for_connections(settings.max_connections)
    settings = replace(settings, max_connections=room)
    rng = random.Random()  # noqa: S311 - jitter is no secret
    entropy = Entropy(os.urandom)
    write, read = Threads(reactor, 1, "ledger-write"), Threads(reactor, 1, "ledger-read")
    noting = Threads(reactor, 1, "audit")
    disk = Threads(reactor, DISK_THREADS, "disk")
    ledger = SqlLedger(settings.ledger_url, write_off=write, read_off=read, footprint=FOOTPRINT)
    service = join(
        settings,
        reactor=reactor,
        own=OwnFolder(settings, lambda: secrets.token_urlsafe(32), ledger.file),
        ledger=ledger,
        fs=SYSTEM,
        off=disk,
        rng=rng,
        chance=chance_from(rng, entropy.token, entropy.id),
        threads=[write, read, disk, noting],
        peer_records=PeerFiles(settings.peers_folder),
        on_hangup=lambda act: on_hangup(reactor, act),
        tell_init=tell_init,
        exit=os._exit,
        log_observer=_log_observer(settings),
        steady=_steady,
        wall=time.time,
        begin_time=own_time.begin,
        audit=Audit(AuditFile(settings.audit_file), noting, reactor, time.time),
        settled=interpreter.settle,
    )
    service.turns.watch(reactor)
    return service


def _steady() -> float:
    """A clock that nobody sets; where there is one that counts while the machine sleeps, that."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boottime is None else time.clock_gettime(boottime)


def _log_observer(settings: Settings) -> ILogObserver | None:
    if settings.log_format != "json":
        return None
    observer: ILogObserver = jsonFileLogObserver(sys.stdout, "")
    return observer


def makeService(options: Options) -> IService:  # noqa: N802
    """The service of ``twistd backupd``; a wrong setting ends the start with one line."""
    try:
        return build(options.settings())
    except SettingsError as error:
        raise SystemExit(f"backupd: {error}") from error
