"""``ssl:`` endpoints: a key of our own, files that are read again, clients that must show one."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import shutil
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs

from backupd.errors import SettingsError
from backupd.serving import Listening
from backupd.settings import Settings
from backupd.trust.own_key import make_own_key, pin_of
from tests.certificates import Identity, make_identity


@asynccontextmanager
async def listening(tmp_path: Path, description: str) -> AsyncIterator[Listening]:
    settings = Settings(root=str(tmp_path), listen=(description,))
    one = Listening(settings, reactor)
    one.start(Factory.forProtocol(Echo), anywhere=True)
    try:
        yield one
    finally:
        await one.stop()


class Echo(Protocol):
    def connectionMade(self) -> None:
        self.transport.write(b"hello")  # type: ignore[union-attr]
        self.transport.loseConnection()  # type: ignore[union-attr]


async def off(f: Any, *args: Any) -> Any:
    return await deferToThread(f, *args)


async def pin_at(one: Listening, context: ssl.SSLContext | None = None) -> str:
    """The public key that is served. Raises `OSError`."""
    if context is None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

    def look() -> str:
        host: Any = one.ports[0].getHost()
        with (
            socket.create_connection(("127.0.0.1", host.port), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            assert connection.read() == b"hello"
            shown = connection.getpeercert(binary_form=True)
            assert shown is not None
            return pin_of(x509.load_der_x509_certificate(shown))

    found: str = await deferToThread(look)
    return found


def quoted(path: Path) -> str:
    return str(path).replace(":", r"\:")


@pytest_twisted.ensureDeferred
async def test_a_key_of_our_own_is_made_once(tmp_path: Path) -> None:
    """It is what peers know us by: the next start serves with it again."""
    description = "ssl:0:interface=127.0.0.1"
    async with listening(tmp_path, description) as one:
        pin = await pin_at(one)
        assert pin == one.pin
        assert one.base.startswith("https://localhost:")
    async with listening(tmp_path, description) as one:
        assert await pin_at(one) == pin
    key = tmp_path / ".backupd/tls/key.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    trusting = ssl.create_default_context(cafile=str(key.with_name("certificate.pem")))
    async with listening(tmp_path, description) as one:
        assert await pin_at(one, trusting) == pin  # backupctl trusts it by name


def test_a_key_of_our_own_survives_a_power_cut(tmp_path: Path, synced: list[str]) -> None:
    """Its folder is synced where it was made, or peers would know us by a key that is gone."""
    own = tmp_path / ".backupd"
    own.mkdir()
    make_own_key(str(own), ["localhost"])
    assert {str(own), str(own / "tls")} < set(synced)


@pytest_twisted.ensureDeferred
async def test_a_key_of_our_own_that_others_can_read_stops_the_start(tmp_path: Path) -> None:
    """Who could read it once may be taken for us by every peer; nor is it taken over on SIGHUP."""
    description = "ssl:0:interface=127.0.0.1"
    async with listening(tmp_path, description) as one:
        key = tmp_path / ".backupd/tls/key.pem"
        key.chmod(0o640)
        with capturedLogs() as logs:
            await one.reload(off)  # type: ignore[arg-type]
        assert ["chmod 600" in log["why"] for log in logs] == [True]
    with pytest.raises(SettingsError, match=r"key\.pem.*chmod 600"):
        async with listening(tmp_path, description):
            pass
    key.chmod(0o600)
    async with listening(tmp_path, description) as one:
        assert await pin_at(one) == one.pin


@pytest_twisted.ensureDeferred
async def test_files_are_read_again_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    first, second = (make_identity(tmp_path, name) for name in ("first", "second"))
    used = tmp_path / "a:b.pem"
    shutil.copy(first.path, used)
    async with listening(tmp_path, f"ssl:0:interface=127.0.0.1:certKey={quoted(used)}") as one:
        assert await pin_at(one) == first.pin == one.pin
        shutil.copy(second.path, used)
        assert await pin_at(one) == first.pin
        await one.reload(off)  # type: ignore[arg-type]
        assert await pin_at(one) == second.pin == one.pin
        for broken in (b"", b"no PEM", second.path.read_bytes()[:300]):
            used.write_bytes(broken)
            await one.reload(off)  # type: ignore[arg-type]
            assert await pin_at(one) == second.pin
        used.unlink()
        await one.reload(off)  # type: ignore[arg-type]
        assert await pin_at(one) == second.pin


@pytest_twisted.ensureDeferred
async def test_what_an_authority_vouches_for_is_not_pinned(tmp_path: Path) -> None:
    """Its key may change with every renewal; the chain is served too."""
    authority = make_identity(tmp_path, "authority", authority=True)
    middle = make_identity(tmp_path, "middle", by=authority, authority=True)
    server = make_identity(tmp_path, "server", "localhost", by=middle)
    trusting = ssl.create_default_context(cafile=str(authority.path))
    together = tmp_path / "fullchain.pem"
    together.write_bytes(server.path.read_bytes() + middle.path.read_bytes())
    for description in (
        f"privateKey={server.path}:certKey={together}",
        f"privateKey={server.path}:extraCertChain={middle.path}",
    ):
        async with listening(tmp_path, f"ssl:0:interface=127.0.0.1:{description}") as one:
            assert one.pin is None
            assert await pin_at(one, trusting) == server.pin


@pytest_twisted.ensureDeferred
async def test_clients_may_have_to_show_a_certificate(tmp_path: Path) -> None:
    authority = make_identity(tmp_path, "authority", authority=True)
    good = make_identity(tmp_path, "good", by=authority)
    bad = make_identity(tmp_path, "bad")
    description = f"ssl:0:interface=127.0.0.1:clientAuthorities={authority.path}"

    def showing(one: Identity | None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if one is not None:
            context.load_cert_chain(one.path)
        return context

    async with listening(tmp_path, description) as one:
        assert await pin_at(one, showing(good)) == one.pin
        for context in (showing(None), showing(bad)):
            with pytest.raises((OSError, AssertionError)):
                await pin_at(one, context)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_tls_is_1_2_at_least(tmp_path: Path) -> None:
    async with listening(tmp_path, "ssl:0:interface=127.0.0.1") as one:
        for newest, well in (
            (ssl.TLSVersion.TLSv1_1, False),
            (ssl.TLSVersion.TLSv1_2, True),
            (ssl.TLSVersion.TLSv1_3, True),
        ):
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, newest
            if well:
                assert await pin_at(one, context) == one.pin
            else:
                with pytest.raises(OSError, match=r".") as caught:
                    await pin_at(one, context)
                assert isinstance(caught.value, ssl.SSLError | ConnectionError)


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ("ssl:", "ssl: takes a port"),
        ("ssl:x", "ssl: takes a port"),
        ("ssl:0:1", "ssl: takes a port"),
        ("ssl:0:sslmethod=SSLv3_METHOD", "ssl: takes a port"),
        ("ssl:0:backlog=x", "invalid literal"),
        ("ssl:0:privateKey=/nothing.pem", "cannot be read"),
        ("ssl:0:certKey=/etc/hostname", "no certificate"),
        ("nonsense:0", "no endpoint string"),
    ],
)
def test_a_wrong_endpoint_ends_the_start_with_a_sentence(
    tmp_path: Path, description: str, words: str
) -> None:
    one = Listening(Settings(root=str(tmp_path), listen=(description,)), reactor)
    with pytest.raises(SettingsError, match=words):
        one.start(Factory.forProtocol(Echo), anywhere=True)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    first, second = (make_identity(tmp_path, name) for name in ("first", "second"))
    description = f"ssl:0:privateKey={first.path}:certKey={second.path}"
    one = Listening(Settings(root=str(tmp_path), listen=(description,)), reactor)
    with pytest.raises(SettingsError, match="no private key that belongs to"):
        one.start(Factory.forProtocol(Echo), anywhere=True)


@pytest_twisted.ensureDeferred
async def test_only_with_peers_it_listens_beyond_this_machine(tmp_path: Path) -> None:
    for description in ("tcp:0", "ssl:0", "ssl:0:interface=0.0.0.0"):
        one = Listening(Settings(root=str(tmp_path), listen=(description,)), reactor)
        with pytest.raises(SettingsError, match="can be reached from outside"):
            one.start(Factory.forProtocol(Echo), anywhere=False)
        await one.stop()
        one.start(Factory.forProtocol(Echo), anywhere=True)
        await one.stop()


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("kind", ["tcp:0", "ssl:0"])
async def test_many_may_wait_to_be_taken(tmp_path: Path, kind: str) -> None:
    """When a thousand come at once, none of them is sent away to try again after a second."""
    async with listening(tmp_path, f"{kind}:interface=127.0.0.1") as one:
        port: Any = one.ports[0]
        assert port.backlog == 1024
    async with listening(tmp_path, f"{kind}:interface=127.0.0.1:backlog=7") as one:
        port = one.ports[0]
        assert port.backlog == 7
