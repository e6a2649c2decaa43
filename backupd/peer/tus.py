"""The client's side of tus 1.0.0 (tus.io/protocols/resumable-upload): one method per request."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from twisted.web.iweb import IBodyProducer

from backupd.errors import PeerFailed
from backupd.peer.answers import Answer, accepted, refusal, shown
from backupd.peer.client import PeerClient
from backupd.peer.origins import same_origin

__all__ = ["GONE", "Abilities", "Tus"]

VERSION = {"Tus-Resumable": "1.0.0"}

GONE = frozenset({403, 404, 410})
"""The statuses that say that an upload is not there, or not any more."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a tus server offers."""

    extensions: frozenset[str]


class Tus:
    """Speaks tus by ``client``. Every method raises `PeerRefused` and `PeerFailed`."""

    def __init__(self, client: PeerClient) -> None:
        self._client = client

    async def abilities(self, link: str) -> Abilities | None:
        """What the server at ``link`` offers; None when uploads cannot be made there by tus."""
        answer = accepted(link, await self._client.small("OPTIONS", link))
        if "1.0.0" not in _words(answer, "tus-version"):
            return None
        extensions = frozenset(_words(answer, "tus-extension"))
        return Abilities(extensions) if "creation" in extensions else None

    async def create(
        self, link: str, length: int, metadata: Mapping[str, str], *, partial: bool = False
    ) -> str:
        """Make an upload of ``length`` bytes; its URL."""
        headers = {"Upload-Length": str(length)}
        if partial:
            headers["Upload-Concat"] = "partial"
        return await self._create(link, headers, metadata)

    async def concatenate(
        self, link: str, parts: Sequence[str], metadata: Mapping[str, str], limit: float
    ) -> str:
        """Join ``parts``, URLs that `create` returned, within ``limit`` seconds; the new URL."""
        # Paths are enough, and a header has to stay short.
        paths = " ".join(urlsplit(part)._replace(scheme="", netloc="").geturl() for part in parts)
        return await self._create(link, {"Upload-Concat": f"final;{paths}"}, metadata, limit)

    async def _create(
        self, link: str, headers: dict[str, str], metadata: Mapping[str, str], limit: float = 60.0
    ) -> str:
        if metadata:
            headers["Upload-Metadata"] = ",".join(
                f"{key} {b64encode(value.encode('utf-8', 'replace')).decode()}"
                for key, value in metadata.items()
            )
        answer = await self._client.small("POST", link, None, VERSION | headers, limit)
        location = accepted(link, answer).headers.get("location", "")
        try:
            url = urljoin(link, location)
            if answer.status == 201 and url != link and same_origin(url, link):
                return url
        except ValueError:
            pass
        raise PeerFailed(f"{shown(link)} made an upload, but not where it could be sent to.")

    async def standing(self, url: str) -> int:
        """The offset at which the upload at ``url`` goes on."""
        answer = await self._client.small("HEAD", url, None, VERSION)
        if not 200 <= answer.status < 300:
            raise refusal(url, answer)
        return _offset(url, answer.body)

    async def patch(self, url: str, offset: int, body: IBodyProducer) -> int:
        """Send ``body`` to the upload at ``url``, whose offset it is; the offset afterwards.

        Raises what ``body`` raises.
        """
        return _offset(url, await self._client.resume(url, offset, body))


def _offset(url: str, body: Mapping[str, object]) -> int:
    offset = body.get("receivedBytes")
    if not isinstance(offset, int):
        raise PeerFailed(f"{shown(url)} does not tell how much of the upload it has.")
    return offset


def _words(answer: Answer, name: str) -> list[str]:
    return [word.strip() for word in answer.headers.get(name, "").split(",") if word.strip()]
