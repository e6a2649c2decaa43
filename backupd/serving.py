"""Where the daemon listens: Twisted's endpoint strings, and ``ssl:`` with keys that are read again.

``ssl:3000`` alone serves with the daemon's own key, made at the first start. With
``privateKey=`` and ``certKey=`` (the chain may be in the same file, or in ``extraCertChain=``) it
serves with those; ``clientAuthorities=`` names a file of authorities of which every client must
show a certificate. All of them are read again on SIGHUP.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from backupd.errors import SettingsError
from backupd.interfaces import OffThread
from backupd.peer.origins import is_loopback
from backupd.settings import Settings
from backupd.trust.files import read_private
from backupd.trust.own_key import OWN_CERTIFICATE, OWN_KEY, make_own_key, pin_of

__all__ = ["Listening", "ServerTls", "base_of"]

_log = Logger()

BACKLOG = 1024
"""Connections that wait in the kernel to be taken; the 50 that Twisted has are there at once when
many come, and whoever comes then tries again after a second."""

_SSL_KEYS = frozenset(
    {"interface", "backlog", "privateKey", "certKey", "extraCertChain", "clientAuthorities"}
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the files of an endpoint held; ``pin`` is the hash of the public key when the
    certificate is signed by itself: nobody but those who know that hash will trust it.
    """

    context: SSL.Context
    pin: str | None


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """Key and certificate of one endpoint; TLS 1.2 at least. A key that is our ``own`` only we may
    read. Raises `SettingsError`.
    """

    def __init__(
        self, key: str, certificate: str, chain: str = "", clients: str = "", *, own: bool = False
    ) -> None:
        self._own = own
        self._key = key
        self._certificate = certificate
        self._chain = chain
        self._clients = clients
        self._loaded = self.read()

    @property
    def pin(self) -> str | None:
        """The hash of the public key that is served, when no authority vouches for it."""
        return self._loaded.pin

    def read(self) -> Loaded:
        """Read the files; blocks. What is served changes with `use`."""
        first, *others = self._certificates(self._certificate)
        if self._chain:
            others += self._certificates(self._chain)
        try:
            content = _private(self._key) if self._own else _content(self._key)
            key = load_pem_private_key(content, None)
            options: dict[str, Any] = {
                "privateKey": key,
                "certificate": first,
                "extraCertChain": others,
                "raiseMinimumTo": TLSVersion.TLSv1_2,
            }
            if self._clients:
                authorities = self._certificates(self._clients)
                options |= {"verify": True, "requireCertificate": True}
                options["caCerts"] = [X509.from_cryptography(one) for one in authorities]
            context = CertificateOptions(**options).getContext()
            context.check_privatekey()
        except (ValueError, TypeError, SSL.Error) as error:
            why = f"is no private key that belongs to {self._certificate}"
            raise SettingsError(self._key, why) from error
        context.set_alpn_select_callback(_http)
        return Loaded(context, pin_of(first) if first.issuer == first.subject else None)

    def use(self, loaded: Loaded) -> bool:
        """Serve with what was read, from the next connection on; whether peers must learn it."""
        before, self._loaded = self._loaded, loaded
        return before.pin != loaded.pin

    def _certificates(self, path: str) -> list[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(_content(path))
        except ValueError as error:
            raise SettingsError(path, "holds no certificate (PEM)") from error

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:  # noqa: N802, N803
        return SSL.Connection(self._loaded.context, None)


def _http(connection: SSL.Connection, offered: list[bytes]) -> Any:
    return b"http/1.1" if b"http/1.1" in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1024 * 1024)
    except OSError as error:
        raise SettingsError(path, f"cannot be read: {error.strerror}") from error


def _private(path: str) -> bytes:
    try:
        return read_private(path)
    except FileNotFoundError as error:
        raise SettingsError(path, f"cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """One endpoint; ``tls`` when it serves TLS."""

    plain: IStreamServerEndpoint
    tls: ServerTls | None = None

    def listen(self, factory: Any) -> Any:
        """A Deferred with the listening port."""
        if self.tls is not None:
            factory = TLSMemoryBIOFactory(self.tls, False, factory)
            factory.noisy = False
        return self.plain.listen(factory)


class Listening:
    """Every endpoint of the settings."""

    def __init__(self, settings: Settings, reactor: Any) -> None:
        self._settings = settings
        self._reactor = reactor
        self._endpoints: list[_Endpoint] = []
        self.ports: list[IListeningPort] = []

    def start(self, factory: IProtocolFactory, *, anywhere: bool) -> None:
        """Listen; blocks. Unless ``anywhere``, on this machine only. Raises `SettingsError`."""
        for description in self._settings.listen:
            failures: list[Failure] = []
            try:
                endpoint = self._endpoint(description)
                listening = endpoint.listen(factory)
            except (ValueError, TypeError, KeyError, LookupError) as error:
                raise SettingsError(
                    "listen", f"{description!r} is no endpoint string: {error}"
                ) from error
            listening.addCallbacks(self.ports.append, failures.append)
            if failures:
                # The cause comes first: `twistd` cuts what it says of a start in the background.
                raise SettingsError(
                    "listen", f"{_cause(failures[0].value)}; {description!r} cannot be used"
                )
            self._endpoints.append(endpoint)
            if not anywhere and not _is_local(self.ports[-1].getHost()):
                raise SettingsError(
                    "listen",
                    f"{description!r} can be reached from outside, and no peers are configured; "
                    'add :interface=127.0.0.1, or set access = "peers"',
                )
            if endpoint.tls is None and not _is_local(self.ports[-1].getHost()):
                _log.warn(
                    "{listen} can be reached from outside without TLS: whoever listens in on the "
                    "network learns every token, unless a proxy before it speaks TLS",
                    listen=description,
                )

    def _endpoint(self, description: str) -> _Endpoint:
        """Raises `SettingsError` for a file that cannot be read, `ValueError`."""
        if not description.startswith("ssl:"):
            if description.startswith("tcp:") and ":backlog=" not in description:
                description += f":backlog={BACKLOG}"
            return _Endpoint(serverFromString(self._reactor, description))
        port, given = _parse(description)
        ours = "privateKey" not in given and "certKey" not in given
        if not ours:
            certificate = given.get("certKey") or given["privateKey"]
            key = given.get("privateKey") or certificate
        else:
            own = self._settings.own_folder
            make_own_key(own, _own_names(self._settings))
            key, certificate = os.path.join(own, OWN_KEY), os.path.join(own, OWN_CERTIFICATE)
        chain, clients = given.get("extraCertChain", ""), given.get("clientAuthorities", "")
        tls = ServerTls(key, certificate, chain, clients, own=ours)
        backlog = int(given.get("backlog", BACKLOG))
        plain = TCP4ServerEndpoint(self._reactor, port, backlog, given.get("interface", ""))
        return _Endpoint(plain, tls)

    @property
    def base(self) -> str:
        """What the links begin with, by where it listens first."""
        tls = self._endpoints[0].tls is not None
        return base_of(self._settings, self.ports[0].getHost(), tls=tls)

    @property
    def beyond(self) -> bool:
        """Whether it listens for other machines."""
        return not all(_is_local(port.getHost()) for port in self.ports)

    @property
    def pin(self) -> str | None:
        """The hash of the public key that is served first, when no authority vouches for it."""
        tls = self._endpoints[0].tls if self._endpoints else None
        return None if tls is None else tls.pin

    async def reload(self, off: OffThread) -> None:
        """Read keys and certificates again; a wrong one changes nothing. Never fails."""
        for tls in [one.tls for one in self._endpoints if one.tls is not None]:
            try:
                if tls.use(await off(tls.read)):
                    _log.warn("the public key has changed: peers that know the old one refuse it")
            except SettingsError as error:
                _log.error("what was served before is served on: {why}", why=str(error))
            except Exception:
                _log.failure("keys and certificates could not be read by a defect")
            else:
                _log.info("keys and certificates were read again")

    def give_up(self) -> None:
        """Stop at once: something else of the start has failed."""
        for port in self.ports:
            port.stopListening()
        self.ports.clear()
        self._endpoints.clear()

    async def stop(self) -> None:
        """Take no more connections."""
        for port in self.ports:
            await maybeDeferred(port.stopListening)


def base_of(settings: Settings, address: object, *, tls: bool = False) -> str:
    """What the links begin with: the settings' word, or the port that is listened on."""
    if settings.public_url:
        return settings.public_url
    port = address.port if isinstance(address, IPv4Address | IPv6Address) else 3000
    protocol = "https" if tls else settings.protocol
    return f"{protocol}://{settings.host or f'localhost:{port}'}"


def _own_names(settings: Settings) -> list[str]:
    """What a certificate of our own is made for."""
    public = urlsplit(base_of(settings, None)).hostname or "localhost"
    return list(dict.fromkeys(["localhost", "127.0.0.1", "::1", public]))


def _is_local(host: object) -> bool:
    return isinstance(host, UNIXAddress) or (
        isinstance(host, IPv4Address | IPv6Address) and is_loopback(host.host)
    )


def _cause(error: BaseException | None) -> str:
    """Why a port cannot be had, without the port."""
    cause = error.socketError if isinstance(error, CannotListenError) else error
    return getattr(cause, "strerror", None) or str(cause)


def _parse(description: str) -> tuple[int, Mapping[str, str]]:
    r"""Port and named parts of ``ssl:3000:name=value``; ``\`` quotes the character behind it."""
    parts, quoted = [""], False
    for char in description.removeprefix("ssl:"):
        if quoted or char not in "\\:":
            parts[-1] += char
            quoted = False
        elif char == "\\":
            quoted = True
        else:
            parts.append("")
    named = dict(part.partition("=")[::2] for part in parts if "=" in part)
    plain = [part for part in parts if "=" not in part]
    port = named.pop("port", None) or (plain.pop(0) if plain else "")
    if plain or not set(named) <= _SSL_KEYS or not port.isdecimal():
        raise ValueError(f"ssl: takes a port and {', '.join(sorted(_SSL_KEYS))}")
    return int(port), named
