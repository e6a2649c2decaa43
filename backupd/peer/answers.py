"""What another server answered: the parts that are understood, and how it is told to people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime

from backupd.errors import PeerFailed, PeerRefused
from backupd.peer.origins import Place, place_of

__all__ = [
    "Answer",
    "accepted",
    "answer_of",
    "place_called",
    "refusal",
    "seconds_in",
    "shown",
    "words_in",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, whatever it says; ``retry_after`` is in seconds, ``body`` what JSON there was,
    ``headers`` the last of each name, which is in small letters."""

    status: int
    retry_after: float | None
    body: dict[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)


def answer_of(status: int, told: Mapping[str, str], content: bytes, now: float) -> Answer:
    """``Upload-Offset`` is told as ``receivedBytes``, as our own receiver's JSON does."""
    body = _json(content)
    headers = {name.lower(): value.strip() for name, value in told.items()}
    offset = headers.get("upload-offset", "")
    if re.fullmatch(r"[0-9]{1,19}", offset, re.ASCII):
        body["receivedBytes"] = int(offset)
    return Answer(status, _seconds(headers.get("retry-after"), now), body, headers)


def place_called(url: str) -> Place:
    """Where ``url`` leads. Raises `PeerFailed`."""
    try:
        return place_of(url)
    except ValueError as error:
        raise PeerFailed("The link of the other server is no URL that can be called.") from error


def shown(url: str) -> str:
    """What may be told of ``url``: its origin."""
    return place_called(url).origin


def _json(content: bytes) -> dict[str, object]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _seconds(retry_after: str | None, now: float) -> float | None:
    """``Retry-After``: seconds, or an HTTP date."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def seconds_in(body: Mapping[str, object]) -> float | None:
    """``retryAfter`` of a JSON answer."""
    match body.get("retryAfter"):
        case bool():
            return None
        case int() | float() as seconds if 0 <= seconds < 1e9:
            return float(seconds)
    return None


def words_in(body: Mapping[str, object]) -> str:
    """What a JSON answer says to people, made fit for one line; empty when it says nothing."""
    said = str(body.get("detail") or body.get("message") or "")[:2000]
    return " ".join("".join(c if c.isprintable() else " " for c in said).split())[:300]


def accepted(url: str, answer: Answer) -> Answer:
    """``answer`` if it is a 2xx; raises `PeerRefused`."""
    if not 200 <= answer.status < 300:
        raise refusal(url, answer)
    return answer


def refusal(url: str, answer: Answer) -> PeerRefused:
    """What to raise when ``answer`` is no 2xx."""
    words = words_in(answer.body)
    why = f"{shown(url)} answered {answer.status}" + (f": {words[:300]}" if words else ".")
    after = answer.retry_after
    if after is None:
        after = seconds_in(answer.body)
    return PeerRefused(why, answer.status, answer.body, after)
