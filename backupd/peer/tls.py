"""TLS towards other servers: by the public key that was pinned, or by the system's authorities."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import CertificateOptions, TLSVersion, optionsForClientTLS
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from backupd.errors import SettingsError
from backupd.peer.addresses import literal
from backupd.trust.own_key import pin_of

__all__ = ["ClientTls", "read_client_certificate"]


@implementer(IOpenSSLClientConnectionCreator)
class _Pinned:
    """Trusts the one public key, whoever signed it, whatever it is called and however old it is.

    Not even the handshake is finished with another.
    """

    def __init__(self, host: str, pin: str, own: Shown | None) -> None:
        self._pin = pin
        self._name = host.encode("ascii") if literal(host) is None else None
        self._context = CertificateOptions(**_options(own)).getContext()
        wanted = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        self._context.set_verify(wanted, self._verify)

    def _verify(self, connection: SSL.Connection, shown: X509, _: int, depth: int, ok: int) -> bool:
        """Called for each certificate of the chain; only the server's own counts."""
        return depth > 0 or hmac.compare_digest(pin_of(shown.to_cryptography()), self._pin)

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:  # noqa: N802, N803
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(tlsProtocol)
        if self._name is not None:
            connection.set_tlsext_host_name(self._name)
        return connection


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown to a server that asks who we are."""

    key: object = field(repr=False)
    certificate: x509.Certificate


def _options(own: Shown | None) -> dict[str, Any]:
    shown = {} if own is None else {"privateKey": own.key, "certificate": own.certificate}
    return {"raiseMinimumTo": TLSVersion.TLSv1_2} | shown


def read_client_certificate(path: str) -> Shown:
    """Key and certificate in one PEM file; blocks. Raises `SettingsError`."""
    try:
        with open(path, "rb") as file:
            pem = file.read(1024 * 1024)
        return Shown(load_pem_private_key(pem, None), x509.load_pem_x509_certificate(pem))
    except OSError as error:
        raise SettingsError("client_certificate", f"cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        why = f"{path} does not hold a key and its certificate (PEM)"
        raise SettingsError("client_certificate", why) from error


class ClientTls:
    """What connections are encrypted with. ``own`` is shown to servers that ask for it."""

    def __init__(self, own: Shown | None = None) -> None:
        self._own = own

    def options(self, host: str, pin: str | None) -> IOpenSSLClientConnectionCreator:
        """For a connection to ``host``, which must have the public key ``pin``; when there is
        none, a certificate in this name that the system trusts.
        """
        if pin is not None:
            return _Pinned(host, pin, self._own)
        creator: IOpenSSLClientConnectionCreator = optionsForClientTLS(
            host, extraCertificateOptions=_options(self._own)
        )
        return creator
