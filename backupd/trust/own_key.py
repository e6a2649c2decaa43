"""The daemon's own TLS key: made once, signed by itself, known to peers by its hash."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from backupd.errors import SettingsError
from backupd.trust.files import sync_folder, write_private

__all__ = ["OWN_CERTIFICATE", "OWN_KEY", "is_pin", "make_own_key", "pin_of"]

OWN_KEY = "tls/key.pem"
OWN_CERTIFICATE = "tls/certificate.pem"

_PIN = re.compile(r"sha256//[A-Za-z0-9+/]{43}=", re.ASCII)


def is_pin(text: str) -> bool:
    """Whether this is a pin as ``curl --pinnedpubkey`` takes it."""
    return _PIN.fullmatch(text) is not None


def pin_of(certificate: x509.Certificate) -> str:
    """The hash of a certificate's public key: ``sha256//`` and base64, as ``curl`` takes it."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return f"sha256//{base64.b64encode(hashlib.sha256(key).digest()).decode()}"


def make_own_key(folder: str, names: Iterable[str]) -> None:
    """Make key and certificate under ``folder`` unless they are there. Blocks.

    It does not expire (RFC 5280, 4.1.2.5): peers know the key, and nobody else is to trust it.
    Raises `SettingsError`.
    """
    key_path, path = os.path.join(folder, OWN_KEY), os.path.join(folder, OWN_CERTIFICATE)
    try:
        # The certificate comes last: with it both are there.
        if os.path.exists(path):
            return
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        sync_folder(folder)
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(key_path, pem)
        write_private(path, _certificate(key, names).public_bytes(Encoding.PEM))
    except OSError as error:
        raise SettingsError(path, f"cannot be written: {error.strerror}") from error


def _certificate(key: ec.EllipticCurvePrivateKey, names: Iterable[str]) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "backupd")])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName([_name(one) for one in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .sign(key, SHA256())
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
