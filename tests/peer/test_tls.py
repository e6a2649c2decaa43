"""TLS between servers: pinned keys without any authority, the system's authorities otherwise."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from backupd.errors import PeerFailed, SettingsError
from backupd.peer.client import PeerClient, make_client
from backupd.peer.connector import Route
from backupd.peer.tls import ClientTls, read_client_certificate
from tests.certificates import Identity, make_identity
from tests.peer.plain import Connection, Plain, answer


def yes(connection: Connection) -> None:
    connection.read()
    connection.say(answer("200 OK", b'{"success": true}'))


def pinning(pin: str | None, tls: ClientTls | None = None) -> PeerClient:
    return make_client(reactor, lambda place: Route(pin=pin), tls)


Make = Callable[..., Identity]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda name="server", *hosts, **more: make_identity(tmp_path, name, *hosts, **more)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest_twisted.ensureDeferred
async def test_the_pinned_key_is_enough(make: Make, host: str) -> None:
    """Whoever signed it, whatever it is called, however old it is: it is the key."""
    authority = make("authority", authority=True)
    for one in (
        make(),
        make("named", "another.example"),
        make("old", until=2002),
        make("signed", by=authority),
    ):
        with Plain(yes, one.server()) as plain:
            url = f"https://{host}:{plain.port}"
            assert await pinning(one.pin).ask(url, {}) == {"success": True}


@pytest_twisted.ensureDeferred
async def test_another_key_is_refused_before_a_word_is_said(make: Make) -> None:
    """Also one with the same names, and one that the system would trust."""
    right = make()
    other = make("other", "localhost", "127.0.0.1")
    with Plain(yes, other.server()) as plain, pytest.raises(PeerFailed):
        await pinning(right.pin).ask(f"https://localhost:{plain.port}", {})
    assert plain.lines == []


@pytest_twisted.ensureDeferred
async def test_the_pinned_key_further_up_the_chain_is_not_enough(
    make: Make, tmp_path: Path
) -> None:
    """Whoever shows the right certificate must have its key too."""
    right = make("right", authority=True)
    evil = make("evil", by=right)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(evil.path.read_bytes() + right.path.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    with Plain(yes, context) as plain, pytest.raises(PeerFailed):
        await pinning(right.pin).ask(f"https://localhost:{plain.port}", {})
    assert plain.lines == []


@pytest_twisted.ensureDeferred
async def test_without_a_pin_the_system_decides(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By authority and by name, and never without."""
    authority = make("authority", authority=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    good = make("good", "localhost", by=authority)
    with Plain(yes, good.server()) as plain:
        url = f"https://localhost:{plain.port}"
        assert await pinning(None).ask(url, {}) == {"success": True}
        with pytest.raises(PeerFailed):
            await pinning(None).ask(url.replace("localhost", "127.0.0.1"), {})
    for bad in (
        make("itself", "localhost"),
        make("expired", "localhost", by=authority, until=2002),
        make("elsewhere", "another.example", by=authority),
        make("stranger", "localhost", by=make("strangers", authority=True)),
    ):
        with Plain(yes, bad.server()) as plain, pytest.raises(PeerFailed):
            await pinning(None).ask(f"https://localhost:{plain.port}", {})
        assert plain.lines == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_tls_is_1_2_at_least(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = make("authority", authority=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    one = make("old", "localhost", by=authority)
    for newest, well in (
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ):
        for pin in (one.pin, None):
            with Plain(yes, one.server(newest=newest)) as plain:
                url = f"https://localhost:{plain.port}"
                if well:
                    assert await pinning(pin).ask(url, {}) == {"success": True}
                else:
                    with pytest.raises(PeerFailed):
                        await pinning(pin).ask(url, {})


@pytest_twisted.ensureDeferred
async def test_a_server_that_speaks_no_tls_is_not_spoken_to_without(make: Make) -> None:
    """What comes over the wire is a handshake, and no request follows it."""
    with Plain(yes) as plain:
        for pin in (make().pin, None):
            with pytest.raises(PeerFailed):
                await pinning(pin).ask(f"https://localhost:{plain.port}/SECRET", {})
    assert not any("POST" in line for line in plain.lines)


@pytest_twisted.ensureDeferred
async def test_our_certificate_is_shown_to_who_asks_for_one(make: Make) -> None:
    authority = make("authority", authority=True)
    ours = make("ours", by=authority)
    server = make()
    context = server.server()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # refuses within the handshake
    tls = ClientTls(read_client_certificate(str(ours.path)))
    with Plain(yes, context) as plain:
        url = f"https://localhost:{plain.port}"
        assert await pinning(server.pin, tls).ask(url, {}) == {"success": True}
        with pytest.raises(PeerFailed):
            await pinning(server.pin).ask(url, {})
    assert len(plain.lines) == 1


def test_a_client_certificate_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="client_certificate"):
        read_client_certificate(str(tmp_path / "nothing.pem"))
    (tmp_path / "bad.pem").write_text("no PEM")
    with pytest.raises(SettingsError, match="client_certificate"):
        read_client_certificate(str(tmp_path / "bad.pem"))
