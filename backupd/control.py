"""A small, blocking client of the daemon's HTTP API, for the command line."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from cryptography.x509 import load_der_x509_certificate

from backupd.errors import BackupdError, SettingsError
from backupd.own_folder import read_token
from backupd.settings import load
from backupd.trust.files import PeerFiles
from backupd.trust.own_key import OWN_CERTIFICATE, pin_of

__all__ = ["Api", "ApiFailed", "find_token", "find_url"]

TIMEOUT = 60.0

LONGEST = 64 * 1024 * 1024
"""Bytes of an answer, unless it is a content: a page of a list has less than a tenth of that."""

_NO_JSON = (OSError, ValueError, RecursionError, http.client.HTTPException)
"""What reading an answer raises: the connection, its JSON, JSON too deep, and HTTP."""


class ApiFailed(BackupdError):
    """The daemon could not be reached, or refused; ``status`` is 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


def find_token(given: str | None, environ: Mapping[str, str]) -> str | None:
    """The control token: as given, from ``BACKUPD_TOKEN``, or from the file under the root."""
    for token in (given, environ.get("BACKUPD_TOKEN")):
        if token is not None and token.strip():
            return token
    try:
        return read_token(load(environ).token_file)
    except (FileNotFoundError, SettingsError):
        # Asked for only when an action needs it, and then with what to do about it.
        return None


def find_url(environ: Mapping[str, str]) -> str:
    """Where a daemon with our settings listens first, from this machine."""
    try:
        first = load(environ).listen[0]
    except SettingsError:
        first = ""
    found = re.match(r"(tcp6?|ssl):(?:port=)?([0-9]+)", first)
    if found is None or int(found[2]) > 65535:
        return "http://localhost:3000"  # what does not call the daemon works all the same
    return f"{'https' if found[1] == 'ssl' else 'http'}://localhost:{found[2]}"


def _parts_of(url: str) -> SplitResult:
    """What can be called. Raises `ApiFailed` that says what is wrong with ``url``."""
    why = "it is not http://HOST:PORT or https://HOST"
    try:
        parts = urlsplit(url)
        _ = parts.port  # it is looked at only when it is asked for
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except UnicodeError:
        why = "its host is no name that can be looked up"
    except ValueError as error:
        why = str(error)
    else:
        if parts.scheme in ("http", "https") and re.fullmatch(r"[A-Za-z0-9._:%-]+", host):
            if re.fullmatch("[!-~]*", parts.path):
                return parts
            why = "its path has characters that a URL must not have"
    raise ApiFailed(f"{url!r} is no URL of a server ({why}); try http://localhost:3000")


def _in_header(token: str | None) -> str | None:
    """The token as it stands in a header. Raises `ApiFailed` that never shows it."""
    # Out of a file it comes with the end of its line, also with that of Windows.
    token = (token or "").strip()
    if re.fullmatch("[!-~]*", token):
        return token or None
    raise ApiFailed(
        "The token has characters that no token has (it is not shown here); give it as it stands "
        "in .backupd/control-token, with BACKUPD_TOKEN or --token."
    )


def _trusted(environ: Mapping[str, str]) -> ssl.SSLContext:
    """What the system trusts, and the key that our own daemon has made for itself."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with contextlib.suppress(OSError, SettingsError):
        context.load_verify_locations(os.path.join(load(environ).own_folder, OWN_CERTIFICATE))
    return context


class _Pinned(http.client.HTTPSConnection):
    """Says nothing before the other side has shown the one public key."""

    def __init__(self, host: str, port: int | None, pin: str) -> None:
        # Whoever signed it and whatever it is called: it is the key that counts.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        super().__init__(host, port, timeout=TIMEOUT, context=context)
        self._pin = pin

    def connect(self) -> None:
        super().connect()
        shown = self.sock.getpeercert(binary_form=True)
        if shown is None or pin_of(load_der_x509_certificate(shown)) != self._pin:
            self.close()
            raise ssl.SSLError("it shows another public key than the one of this peer")


class Api:
    """The API at ``url``. Never follows a redirect, never uses a proxy.

    With a ``pin`` the server must have that public key, else be trusted by the system.
    """

    def __init__(self, url: str, token: str | None, pin: str | None = None) -> None:
        url = url.strip()
        parts = _parts_of(url)
        self.url = url.rstrip("/")
        self._host, self._port = parts.hostname or "", parts.port
        self._tls = parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._token = _in_header(token)
        self._pin = pin
        self._peer = ""

    @classmethod
    def at_peer(cls, name: str, environ: Mapping[str, str]) -> Api:
        """The API of a peer, as that peer's own: with what our daemon shares with it.

        Raises `ApiFailed`, `SettingsError`.
        """
        for peer in PeerFiles(load(environ).peers_folder).read():
            if peer.name == name and peer.url is not None and peer.token is not None:
                api = cls(peer.url, peer.token, peer.pin)
                api._peer = name
                return api
        raise ApiFailed(
            f"There is no peer {name!r} that we have joined; `backupctl peer list` shows them. Run "
            "this as the daemon's user with the same BACKUPD_ROOT (or settings file)."
        )

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls and self._pin is not None:
            return _Pinned(self._host, self._port, self._pin)
        if self._tls:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=TIMEOUT, context=_trusted(os.environ)
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT)

    def open(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """The answer, its body not read yet; the connection closes with it. Raises `ApiFailed`."""
        sent = dict(headers or {}) | {"Connection": "close"}
        data = None
        if body is not None:
            data, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        try:
            connection = self._connect()
            connection.request(method, self._prefix + path, data, sent)
            response = connection.getresponse()
        except (OSError, ValueError, http.client.HTTPException) as error:
            advice = "Start it with `make run`, or say where it is with --url or BACKUPD_URL."
            if self._peer:
                advice = f"It is the peer {self._peer!r}: ask there, or try again later."
            raise ApiFailed(
                f"backupd does not answer at {self.url} ({error}); is it running? {advice}"
            ) from error
        if response.status >= 400:
            self._refused(response)
        return response

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, object] | None = None,
    ) -> Any:
        """The decoded answer. Raises `ApiFailed` unless it is a success."""
        asked = urlencode(
            {name: str(value) for name, value in (query or {}).items()}, errors="replace"
        )
        response = self.open(method, f"{path}?{asked}" if asked else path, body)
        try:
            answer = response.read(LONGEST + 1)
            if len(answer) > LONGEST:
                raise ApiFailed(f"{self.url} answered more than {LONGEST} bytes; is it backupd?")
            if response.length:
                raise http.client.IncompleteRead(answer, response.length)
            return json.loads(answer or b"null")
        except _NO_JSON as error:
            raise ApiFailed(f"{self.url} answered what is no JSON: {error}") from error

    def pages(self, path: str, member: str, query: Mapping[str, object]) -> Iterator[Any]:
        """Every item of a list, page after page."""
        after: object = query.get("after", 0)
        while after is not None:
            page = self.call("GET", path, query=dict(query) | {"after": after, "limit": 500})
            listed = page.get(member) if isinstance(page, dict) else None
            if not isinstance(listed, list):
                raise ApiFailed(f"{self.url} answered what is no list of {member}; is it backupd?")
            yield from listed
            after = page.get("next")

    def _refused(self, response: http.client.HTTPResponse) -> None:
        try:
            answer = json.loads(response.read(64 * 1024))
            message = str(answer.get("detail") or answer.get("message"))
        except (*_NO_JSON, AttributeError):
            message = f"{self.url} answered {response.status} {response.reason}."
        if response.status == 401 and self._peer:
            message = f"Peer {self._peer} does not take our token any more; has it revoked us?"
        elif response.status == 401:
            message = (
                "This needs the control token. It lies in .backupd/control-token under the "
                "daemon's root: run this as the daemon's user with the same BACKUPD_ROOT (or "
                "settings file), or give it with --token or BACKUPD_TOKEN."
            )
        raise ApiFailed(message, response.status)


def part(identifier: str) -> str:
    """An id as a part of a path."""
    return quote(identifier, safe="", errors="replace")


def resolve(path: str) -> str:
    """The path of a local file as the daemon must be told it."""
    return os.path.abspath(os.path.expanduser(path))
