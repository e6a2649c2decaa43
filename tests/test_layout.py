"""The rooms keep to their imports (DESIGN.md, "Rooms"): read from the syntax trees.

Every rule is first seen to catch a made-up offender, so that none can pass by being blind.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parent.parent
COMMAND_LINE = {
    f"backupd.{name}"
    for name in (
        *("cli", "cli_keeping", "cli_peers", "cli_resend", "cli_restore"),
        *("control", "doctor", "fetch", "fetch_all", "terminal"),
    )
}
"""``backupctl``, a process of its own that blocks as it likes."""

STARTS = {"backupd.tap"} | COMMAND_LINE
"""Where the daemon or the command line starts: what joins things."""


@dataclass(frozen=True)
class Module:
    """One file of the package, as a syntax tree."""

    name: str
    tree: ast.Module

    @cached_property
    def imports(self) -> dict[str, str]:
        """What each imported local name stands for, wherever in the file it is imported."""
        known: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for name in node.names:
                    known[name.asname or name.name] = name.name
            elif isinstance(node, ast.ImportFrom):
                # Ruff and mypy let relative imports pass; the rules would not see through them.
                assert node.level == 0, f"{self.name}:{node.lineno}: a relative import"
                for name in node.names:
                    known[name.asname or name.name] = f"{node.module}.{name.name}"
        return known

    @cached_property
    def uses(self) -> set[str]:
        """Every imported name, in full, and every attribute that is reached through one."""
        known = self.imports
        found = set(known.values())
        for node in ast.walk(self.tree):
            chain: list[str] = []
            inner: ast.AST = node
            while isinstance(inner, ast.Attribute):
                chain.insert(0, inner.attr)
                inner = inner.value
            if not isinstance(inner, ast.Name) or not chain:
                continue
            written = [inner.id, *chain]
            for length in range(len(written), 0, -1):
                start = ".".join(written[:length])
                if start in known:
                    found.add(".".join([known[start], *written[length:]]))
                    break
        return found


Rule: TypeAlias = Callable[[Module], Iterator[str]]


def module(name: str, source: str) -> Module:
    return Module(name, ast.parse(source))


@cache
def sources() -> list[Module]:
    found = []
    for path in sorted((ROOT / "backupd").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(module(name, path.read_text("utf-8")))
    return found


def within(name: str, *places: str) -> bool:
    """Whether a dotted name is one of ``places`` or lies below one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def check(rule: Rule, offender: str, source: str) -> None:
    """The rule catches ``source`` in a module named ``offender``, and nothing that we have."""
    assert list(rule(module(offender, source))), "the rule is blind"
    offences = [f"{one.name}: {what}" for one in sources() for what in rule(one)]
    assert offences == []


def only_in(places: set[str], *names: str) -> Rule:
    """``names``, and what is below them, are used in ``places`` only."""

    def rule(one: Module) -> Iterator[str]:
        if not within(one.name, *places):
            yield from sorted(name for name in one.uses if within(name, *names))

    return rule


def of_ours(place: str, allowed: set[str]) -> Rule:
    """Modules in ``place`` import nothing of ours but ``allowed`` and each other."""
    mine = {f"backupd.{name}" for name in allowed} | {place}

    def rule(one: Module) -> Iterator[str]:
        if within(one.name, place):
            for name in sorted(one.imports.values()):
                if within(name, "backupd") and not within(name, *mine):
                    yield f"imports {name}"

    return rule


DOMAIN = {"errors", "interfaces", "requests", "sizes"}
COMMON = DOMAIN | {"own_time", "bandwidth", "links", "settings", "trust", "waiting"}


def test_errors_stand_alone() -> None:
    """errors.py imports nothing of ours."""
    check(of_ours("backupd.errors", set()), "backupd.errors", "import backupd.sizes")


def test_requests_know_only_errors() -> None:
    """requests.py, the pure heart, imports nothing of ours but errors."""
    rule = of_ours("backupd.requests", {"errors"})
    check(rule, "backupd.requests", "from backupd.sizes import parse_size")


def test_interfaces_know_only_the_domain() -> None:
    """interfaces.py knows values, and nothing that does anything."""
    rule = of_ours("backupd.interfaces", DOMAIN)
    check(rule, "backupd.interfaces", "from backupd.storage.disk import DiskStorage")


def test_storage_knows_only_the_domain() -> None:
    """storage/ keeps bytes: no ledger, no settings, no HTTP."""
    rule = of_ours("backupd.storage", DOMAIN | {"memory"})
    check(rule, "backupd.storage.disk", "from backupd.ledger import sql")


def test_the_ledger_knows_only_the_domain() -> None:
    """ledger/ keeps records: no storage, no settings, no HTTP."""
    rule = of_ours("backupd.ledger", DOMAIN)
    check(rule, "backupd.ledger.sql", "def f():\n    from backupd.storage import disk")


def test_trust_knows_only_the_domain() -> None:
    """trust/ says who the peers are: no network, no storage, no HTTP."""
    rule = of_ours("backupd.trust", DOMAIN)
    check(rule, "backupd.trust.registry", "from backupd.peer.client import make_client")


def test_the_peer_client_knows_no_role() -> None:
    """peer/ speaks to the other server for both roles and belongs to neither."""
    rule = of_ours("backupd.peer", COMMON | {"unsent"})
    check(rule, "backupd.peer.client", "import backupd.sender.outbox")


def test_the_receiver_knows_interfaces() -> None:
    """receiver/ sees ledger and storage through interfaces (names are pure), and no HTTP."""
    rule = of_ours("backupd.receiver", COMMON | {"memory", "storage.names"})
    check(rule, "backupd.receiver.intake", "from backupd.web.site import StreamingRequest")
    check(rule, "backupd.receiver.intake", "from backupd.storage.disk import DiskStorage")


def test_the_sender_knows_interfaces() -> None:
    """sender/ sees the ledger through an interface and the network through peer/."""
    rule = of_ours("backupd.sender", COMMON | {"peer", "storage.names"})
    check(rule, "backupd.sender.courier", "from backupd.receiver.queue import Queue")


def test_the_service_knows_both_roles() -> None:
    """service.py owns both roles, and neither the web nor what implements the interfaces."""
    rule = of_ours(
        "backupd.service",
        COMMON | {"own_folder", "peer", "receiver", "sender", "serving", "turns"},
    )
    check(rule, "backupd.service", "from backupd.web.resource import make_site")


def test_the_web_knows_neither_disk_nor_sql() -> None:
    """web/ decodes, calls and encodes; it reaches ledger and storage through the service."""
    rule = of_ours("backupd.web", COMMON | {"peer", "receiver", "sender", "service", "unsent"})
    check(rule, "backupd.web.restore", "from backupd.ledger.sql import SqlLedger")


def test_nobody_imports_what_starts() -> None:
    """The daemon knows neither tap.py nor any of the command line."""
    check(only_in(STARTS, *STARTS), "backupd.service", "from backupd import tap")
    check(only_in(COMMAND_LINE, *COMMAND_LINE), "backupd.tap", "import backupd.control")


def test_klein_stays_in_the_web_room() -> None:
    """Klein, Werkzeug, the form parser and twisted.web's server are known in web/ only."""
    rule = only_in(
        {"backupd.web"},
        *("klein", "werkzeug", "multipart"),
        *(f"twisted.web.{part}" for part in ("resource", "server", "static")),
        *(f"twisted.web.http.{name}" for name in ("HTTPChannel", "HTTPFactory", "Request")),
    )
    check(rule, "backupd.receiver.intake", "from klein import Klein")
    check(rule, "backupd.service", "from twisted.web import server\nserver.Site(None)")


def test_the_network_client_stays_in_the_peer_room() -> None:
    """treq and twisted.web.client are known where the other server is spoken to, and in tap.py."""
    rule = only_in({"backupd.peer", "backupd.tap"}, "treq", "twisted.web.client")
    check(rule, "backupd.sender.courier", "import treq.client as client")


def test_sql_stays_in_the_ledger_room() -> None:
    """SQLAlchemy, Alembic and database drivers are known in ledger/ only."""
    rule = only_in({"backupd.ledger"}, "sqlalchemy", "alembic", "sqlite3", "psycopg")
    check(rule, "backupd.service", "from sqlalchemy import select")


def test_keys_stay_where_they_are_looked_after() -> None:
    """Keys and certificates are known in trust/, peer/, and where TLS is spoken besides."""
    places = {"backupd.trust", "backupd.peer", "backupd.serving", "backupd.control"}
    rule = only_in(places, "cryptography", "OpenSSL", "twisted.internet.ssl")
    check(rule, "backupd.service", "from twisted.internet import ssl\nssl.CertificateOptions()")


def test_the_terminal_stays_on_the_command_line() -> None:
    """click and rich are known on the command line, and in nothing that the daemon runs."""
    rule = only_in(COMMAND_LINE, "click", "rich")
    check(rule, "backupd.tap", "from rich.progress import Progress")


def test_the_global_reactor_is_used_where_things_start() -> None:
    """The reactor is handed in; only tap.py and cli.py take the global one."""
    rule = only_in({"backupd.cli", "backupd.tap"}, "twisted.internet.reactor")
    check(rule, "backupd.service", "def f():\n    from twisted.internet import reactor")
    check(rule, "backupd.service", "from twisted import internet\ninternet.reactor.run()")


def test_time_is_handed_in() -> None:
    """Nobody but tap.py and the command line asks the global clock, or sleeps."""
    clocks = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "sleep")
    rule = only_in(
        STARTS,
        *(f"time.{name}" for name in clocks),
        *(f"datetime.datetime.{name}" for name in ("now", "today", "utcnow")),
        "datetime.date.today",
    )
    check(rule, "backupd.receiver.queue", "import time\nnow = time.time()")
    check(rule, "backupd.receiver.queue", "from time import sleep as wait")
    check(rule, "backupd.web.views", "from datetime import datetime as d\nx = d.now()")


def test_chance_is_handed_in() -> None:
    """Nobody but tap.py and the command line draws from a global source of chance."""

    def rule(one: Module) -> Iterator[str]:
        sources_of_chance = only_in(STARTS, "random", "secrets", "uuid", "os.urandom")
        harmless = {"random", "random.Random", "uuid", "uuid.UUID"}  # the types of what comes in
        yield from (name for name in sources_of_chance(one) if name not in harmless)

    check(rule, "backupd.receiver.queue", "import random\njitter = random.random()")
    check(rule, "backupd.web.auth", "from uuid import uuid4")
    assert not list(rule(module("backupd.peer.backoff", "import random\nx: random.Random")))


def test_threads_are_handed_in() -> None:
    """Only threads.py starts threads, or puts work into them."""
    rule = only_in(
        {"backupd.threads", *STARTS},
        *("threading.Thread", "concurrent.futures", "twisted.internet.threads"),
        "twisted.python.threadpool",
    )
    check(rule, "backupd.storage.disk", "import threading\nthreading.Thread(target=print)")
    check(rule, "backupd.receiver.blocks", "from twisted.internet.threads import deferToThread")


def test_package_files_hold_no_code() -> None:
    """An ``__init__.py`` holds a docstring and ``__all__``, nothing else."""

    def is_dunder_all(node: ast.stmt) -> bool:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        return [ast.unparse(target) for target in targets] == ["__all__"]

    def rule(one: Module) -> Iterator[str]:
        if not ast.get_docstring(one.tree):
            yield "no docstring"
        for node in one.tree.body[1:]:
            if not is_dunder_all(node):
                yield f"line {node.lineno} is neither docstring nor __all__"

    assert list(rule(module("backupd", '"""One."""\n__all__ = []\nimport os')))
    files = sorted((ROOT / "backupd").rglob("__init__.py"))
    assert files
    for path in files:
        assert list(rule(module(path.parent.name, path.read_text("utf-8")))) == [], path


def test_plugin_folders_are_no_packages() -> None:
    """twisted/ and twisted/plugins/ have no ``__init__.py``: they would hide Twisted's own."""
    assert (ROOT / "twisted/plugins/backupd_plugin.py").is_file()
    assert list((ROOT / "twisted").rglob("__init__.py")) == []
