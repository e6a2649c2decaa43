"""What a resumable upload survives, byte by byte, over real sockets and by hand."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import time

import pytest

from tests.integration.cutter import Cutter
from tests.integration.daemons import Answer, Daemon, call, wait_until
from tests.integration.plain import PlainSender, octets
from tests.integration.tus import OFFSET, VERSION, Tus, direct, on_link

DATA = random.Random(9).randbytes(20_000)
KIND = f"Content-Type: {OFFSET['Content-Type']}"
SILENCE = 5.0
"""Seconds after which PROTOCOL.md calls a connection silent."""


@pytest.fixture(params=["link", "direct"])
def tus(request: pytest.FixtureRequest, behind: Daemon, sender: PlainSender, video: int) -> Tus:
    if request.param == "direct":
        return direct(behind, video, len(DATA))
    return on_link(behind, sender, video, len(DATA))


def attempt(url: str, offset: int, *, length: int = len(DATA)) -> Answer | None:
    """Send all the rest; None when the connection was cut."""
    headers = VERSION | OFFSET | {"Upload-Offset": str(offset)}
    try:
        return call("PATCH", url, DATA[offset:length], headers)
    except OSError:
        return None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("abruptly", [True, False], ids=["reset", "closed"])
def test_a_cut_at_any_byte(tus: Tus, cutter: Cutter, seed: int, abruptly: bool) -> None:
    """In the head of a request, at its end, in the first byte or the last: offsets only grow, and
    the bytes are those that were sent."""
    rng, cutter.abruptly = random.Random(seed), abruptly
    url = tus.create(len(DATA))
    inside = f"{tus.daemon.url}/{url.split('/', 3)[3]}"
    offset = total = 0
    for _ in range(25):
        sent = rng.choice([rng.randrange(1, 400), rng.randrange(300, 2500)])
        cutter.cut_at(cutter.sent + sent)
        if attempt(url, offset) is not None:
            break
        # What came before an earlier cut may still have been on its way to the disk.
        total += sent
        now = int(call("HEAD", inside, headers=VERSION).headers["Upload-Offset"])
        assert offset <= now <= total
        offset = now
    assert cutter.cuts > 5
    while (answer := attempt(url, offset)) is None or answer.status != 204:
        offset = int(call("HEAD", inside, headers=VERSION).headers["Upload-Offset"])
    assert tus.kept() == DATA


def test_a_silent_connection_makes_way_at_once(tus: Tus) -> None:
    """No byte for 5 s although we read: whoever asks next goes on, and waits for no timeout."""
    url = tus.create(len(DATA))
    with tus.connect() as silent:
        lines = (KIND, "Upload-Offset: 0", f"Content-Length: {len(DATA)}")
        silent.sendall(tus.raw("PATCH", url, *lines) + DATA[:5000])
        begun = time.monotonic()

        def go_on() -> Answer | None:
            offset = tus.offset(url)
            asked = time.monotonic()
            answer = attempt(url, offset)
            assert time.monotonic() - asked < 2, "it waited for something"
            if answer is None or answer.status != 204:
                assert time.monotonic() - begun < SILENCE + 4, "it was held for too long"
                return None
            assert offset == 5000, "what had arrived is kept"
            return answer

        wait_until(go_on, "the silent one makes way")
        silent.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert not silent.recv(1000).startswith(b"HTTP/1.1 2")
    assert tus.kept() == DATA


def test_the_link_itself_tells_where_a_silent_upload_stands(
    behind: Daemon, sender: PlainSender, video: int
) -> None:
    """HEAD on an offer's link ends its newest upload, if that is dead, and tells all that came."""
    tus = on_link(behind, sender, video, len(DATA))
    url = tus.create(len(DATA))
    with tus.connect() as silent:
        lines = (KIND, "Upload-Offset: 0", f"Content-Length: {len(DATA)}")
        silent.sendall(tus.raw("PATCH", url, *lines) + DATA[:5000])
        wait_until(lambda: tus.offset(tus.url) == 5000, "what had arrived is told", SILENCE + 4)
        answer = attempt(tus.url, 5000)
        assert answer is not None
        assert answer.status == 204
    assert tus.kept() == DATA


def test_a_connection_that_speaks_keeps_its_upload(tus: Tus) -> None:
    """Whoever comes second is told so, and when to ask again."""
    url = tus.create(len(DATA))
    with tus.connect() as busy:
        lines = (KIND, "Upload-Offset: 0", f"Content-Length: {len(DATA)}")
        busy.sendall(tus.raw("PATCH", url, *lines) + DATA[:100])
        wait_until(lambda: tus.daemon.requests()[-1]["receivedBytes"] == 100, "it has begun")
        answer = attempt(url, 0)
        assert answer is not None
        assert answer.status == 409
        assert int(answer.headers["Retry-After"]) >= 1
        busy.sendall(DATA[100:])
        assert b" 204 " in busy.recv(1000)
    assert tus.kept() == DATA


# -- lost answers ----------------------------------------------------------------------------------


def test_every_answer_of_a_plain_upload_may_be_lost(
    behind: Daemon, cutter: Cutter, sender: PlainSender, video: int
) -> None:
    """Of the bytes and of the confirmation: said again, both are answered as the first time."""
    send, complete = sender.turn(behind.url, video, len(DATA))
    for link, body, headers in (
        (send, DATA, octets),
        (complete, {"videoId": video, "success": True}, None),
    ):
        cutter.lose_answer(b"HTTP/1.1 200 ")
        with pytest.raises(OSError, match=r"reset|closed|Remote end"):
            call("POST", link, body, headers)
        again = call("POST", link, body, headers)
        assert again.status == 200
        assert again.json["sha256"] == hashlib.sha256(DATA).hexdigest()
    assert cutter.cuts == 2
    (kept,) = behind.backups()
    assert kept["size"] == len(DATA)
    assert behind.incoming == []


def test_a_join_whose_answer_was_lost(tus: Tus, cutter: Cutter) -> None:
    """Asked for again it is the same join, not a second one."""
    parts = [tus.part(DATA[:7000]), tus.part(DATA[7000:])]
    headers = {"Upload_Concat": f"final;{' '.join(parts)}"}
    cutter.lose_answer(b"HTTP/1.1 201 ")
    tus.url = tus.url.replace(f":{tus.daemon.port}/", f":{cutter.port}/")
    with pytest.raises(OSError, match=r"reset|closed|Remote end"):
        tus.post(b"", **headers)
    again = tus.post(b"", **headers)
    assert again.status == 201, again.body
    joined = tus.head(again.headers["Location"])
    assert joined.headers["Upload-Offset"] == str(len(DATA))
    assert tus.kept() == DATA


def test_a_client_that_leaves_after_the_last_byte(tus: Tus) -> None:
    """It need not wait for the answer: what it sent is kept, and stored."""
    url = tus.create(len(DATA))
    with tus.connect() as connection:
        lines = (KIND, "Upload-Offset: 0", f"Content-Length: {len(DATA)}")
        connection.sendall(tus.raw("PATCH", url, *lines) + DATA)
        connection.shutdown(socket.SHUT_WR)
    wait_until(lambda: tus.offset(url) == len(DATA), "all of it is there")
    if "uploads" in tus.url:
        wait_until(tus.daemon.backups, "it is stored")
    assert tus.kept() == DATA
