"""Signatures as the Standard Webhooks specification says, by its own library."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from backupd.errors import Forbidden
from backupd.trust.signing import TOLERANCE, Replays, check_secret, signed, verify

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()
BODY = '{"videoId": 2, "name": "Größe"}'.encode()
NOW = 1_800_000_000


def check(headers: dict[str, str], body: bytes = BODY, **more: Any) -> None:
    told: dict[str, Any] = {"now": NOW, "sender": "a", "replays": Replays()} | more
    secrets = told.pop("secrets", [SECRET])
    get = headers.get
    three = get("webhook-id"), get("webhook-timestamp"), get("webhook-signature")
    verify(secrets, three, body, **told)


def test_the_published_library_accepts_them() -> None:
    """As they are, at the time that they are made."""
    headers = signed([SECRET], "msg_1", int(time.time()), BODY)
    assert Webhook(SECRET).verify(BODY, headers) == {"videoId": 2, "name": "Größe"}
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(BODY, headers)
    both = signed([OTHER, SECRET], "msg_1", int(time.time()), BODY)
    assert Webhook(SECRET).verify(BODY, both)


def test_we_accept_those_of_the_published_library() -> None:
    from datetime import UTC, datetime

    signature = Webhook(SECRET).sign("msg_1", datetime.fromtimestamp(NOW, UTC), BODY.decode())
    check({"webhook-id": "msg_1", "webhook-timestamp": str(NOW), "webhook-signature": signature})


def test_the_specifications_own_example() -> None:
    """https://www.standardwebhooks.com: the values that every implementation is checked with."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    headers = signed([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_secret_the_id_the_time_and_the_body_must_all_be_right() -> None:
    headers = signed([SECRET], "msg_1", NOW, BODY)
    check(headers)
    check(headers, secrets=[OTHER, SECRET])
    for wrong in (
        {"webhook-id": "msg_2"},
        {"webhook-timestamp": str(NOW + 1)},
        {"webhook-signature": "v1,"},
        {"webhook-signature": headers["webhook-signature"].replace("v1,", "v2,")},
        {"webhook-signature": headers["webhook-signature"].removeprefix("v1,")},
        {"webhook-signature": "v1,ü"},
    ):
        with pytest.raises(Forbidden, match="signature"):
            check(headers | wrong)
    with pytest.raises(Forbidden, match="signature"):
        check(headers, BODY + b" ")
    for secrets in ([OTHER], []):
        with pytest.raises(Forbidden, match="signature"):
            check(headers, secrets=secrets)


def test_unsigned_is_refused() -> None:
    headers = signed([SECRET], "msg_1", NOW, BODY)
    for name in headers:
        with pytest.raises(Forbidden, match="must be signed"):
            check({key: value for key, value in headers.items() if key != name})
    with pytest.raises(Forbidden, match="no number"):
        check(headers | {"webhook-timestamp": "\uff11"})


def test_five_minutes_either_way() -> None:
    headers = signed([SECRET], "msg_1", NOW, BODY)
    for off in (-TOLERANCE, 0.0, TOLERANCE):
        check(headers, now=NOW + off)
    for off in (-TOLERANCE - 1, TOLERANCE + 1):
        with pytest.raises(Forbidden, match="5 minutes"):
            check(headers, now=NOW + off)


def test_a_replay_is_refused_and_another_try_is_none() -> None:
    """The same id at another time is another try; the same id from another peer is another."""
    replays = Replays()
    check(signed([SECRET], "msg_1", NOW, BODY), replays=replays)
    with pytest.raises(Forbidden, match="come before"):
        check(signed([SECRET], "msg_1", NOW, BODY), replays=replays, now=NOW + TOLERANCE)
    check(signed([SECRET], "msg_1", NOW + 5, BODY), replays=replays)
    check(signed([SECRET], "msg_1", NOW, BODY), replays=replays, sender="c")


def test_what_is_not_rightly_signed_is_not_remembered() -> None:
    """Nobody can use up the place of a message that is still to come."""
    replays = Replays()
    headers = signed([SECRET], "msg_1", NOW, BODY)
    with pytest.raises(Forbidden):
        check(headers, b"forged", replays=replays)
    check(headers, replays=replays)


def test_memory_is_bounded_and_forgets_what_is_too_old_anyway() -> None:
    replays = Replays()
    for number in range(20_000):
        assert replays.first("a", str(number), "1", NOW)
    assert len(replays._seen) <= 10_000
    assert not replays.first("a", "19999", "1", NOW)
    assert replays.first("a", "new", "1", NOW + 2 * TOLERANCE + 1)
    assert len(replays._seen) == 1


def test_without_a_secret_nothing_is_signed() -> None:
    assert signed([], "msg_1", NOW, BODY) == {}


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_AAAA", SECRET.removeprefix("whsec_"), SECRET + "!", "whsec_ü"]
)
def test_a_secret_that_is_none(secret: str) -> None:
    check_secret(SECRET)
    with pytest.raises(ValueError, match="whsec_"):
        check_secret(secret)
