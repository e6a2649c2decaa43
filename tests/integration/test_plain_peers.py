"""Each half of ours against the other half of the original system."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.daemons import CLIP, Daemon, call, wait_until
from tests.integration.plain import (
    COMPLETE,
    LINK,
    SEND,
    Listener,
    PlainReceiver,
    PlainSender,
    sha256,
)

BARE = "/api/v1/backup/serverAisReadyForBackup"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Ours, as sender."""
    with Daemon(tmp_path_factory.mktemp("sender"), "sender", loop_interval="0.2") as running:
        yield running


def entry(daemon: Daemon, video: object) -> Any:
    entries = daemon.call("GET", "/api/v1/outbox?limit=1000", operator=True).json["entries"]
    return next(one for one in entries if str(one["videoId"]) == str(video))


# -- our receiver ----------------------------------------------------------------------------------


def test_our_receiver_serves_the_original_sender(receiver: Daemon, sender: PlainSender) -> None:
    """Ask, be called, send, confirm: with the members of the original and no others."""
    data = CLIP.read_bytes()
    done = sender.back_up(receiver.url, 2, data)
    assert done["sha256"] == hashlib.sha256(data).hexdigest()
    assert call("GET", done["contentUrl"]).body == data


def test_the_notice_has_exactly_three_members(receiver: Daemon, sender: PlainSender) -> None:
    assert sender.ask(receiver.url, "three", "5 MB").json["success"]
    notice = sender.notice("three")
    assert set(notice) == {"videoId", SEND, COMPLETE}
    assert notice["videoId"] == "three"
    assert notice[SEND].startswith(f"{receiver.url}/api/v1/backup/receive-backup/")
    assert notice[COMPLETE].startswith(f"{receiver.url}/api/v1/backup/complete-backup/")
    assert len(notice[SEND].rpartition("/")[2]) >= 22, "at least 128 random bits"


def test_a_sender_that_is_gone_cancels_by_410(receiver: Daemon) -> None:
    with PlainSender() as gone:
        gone.answers_with = 410
        status = gone.ask(receiver.url, "gone", "5 MB").json["statusUrl"]
        wait_until(lambda: call("GET", status).json["state"] == "CANCELLED", "it is cancelled")


def test_one_dead_sender_delays_nobody_else(receiver: Daemon, sender: PlainSender) -> None:
    with PlainSender() as dead:
        dead.answers_with = 500
        asked = [dead.ask(receiver.url, number, "5 MB").json for number in range(5)]
        sender.back_up(receiver.url, "beside", b"x" * 5000)
        for one in asked:
            state = call("GET", one["statusUrl"]).json["state"]
            assert state == "PENDING"
            receiver.call("DELETE", f"/api/v1/backup/requests/{one['requestId']}", operator=True)


# -- our sender ------------------------------------------------------------------------------------


def test_without_a_digest_it_is_stored_but_unverified(daemon: Daemon) -> None:
    with PlainReceiver() as plain:
        sent = daemon.ctl("send", CLIP, "--to", plain.url, "--video-id", "20")
        assert sent.code == 3, sent.out + sent.err
        assert "unverified" in sent.out + sent.err
        assert plain.video(20) == CLIP.read_bytes()
        (completed,) = plain.completed
        assert (completed["videoId"], completed["success"]) == (20, True)
        assert entry(daemon, 20)["state"] == "UNVERIFIED"


def test_with_a_digest_it_is_verified(daemon: Daemon) -> None:
    with PlainReceiver(sha256) as plain:
        sent = daemon.ctl("send", CLIP, "--to", plain.url, "--video-id", "twenty one", "--json")
        assert sent.code == 0, sent.out + sent.err
        assert sent.json["entries"][0]["state"] == "VERIFIED"
        assert plain.video("twenty one") == CLIP.read_bytes()


def test_with_a_wrong_digest_it_has_failed(daemon: Daemon) -> None:
    with PlainReceiver(lambda data: sha256(data + b"x")) as plain:
        sent = daemon.ctl("send", CLIP, "--to", plain.url, "--video-id", "22")
        assert sent.code == 1, sent.out + sent.err
        assert entry(daemon, 22)["state"] == "FAILED"


def test_no_room_is_asked_for_again_until_there_is(daemon: Daemon) -> None:
    with PlainReceiver(sha256) as plain:
        plain.refusals = 2
        sent = daemon.ctl("send", CLIP, "--to", plain.url, "--video-id", "23")
        assert (sent.code, plain.refusals) == (0, 0)
        assert "no room" in sent.out


def test_a_notice_that_nobody_asked_for_moves_no_byte(daemon: Daemon) -> None:
    listener = Listener()
    links = {SEND: f"{listener.url}/send", COMPLETE: f"{listener.url}/complete"}
    for path in (BARE, f"{BARE}/no-such-capability"):
        answer = daemon.call("POST", path, {"videoId": 4711} | links)
        assert answer.status == 404
        assert answer.json["success"] is False
    assert listener.connections == 0
    listener.close()


def test_a_notice_whose_links_lead_elsewhere_moves_no_byte(daemon: Daemon) -> None:
    listener = Listener()
    with PlainReceiver() as plain:
        plain.calls_back = False
        assert daemon.ctl("send", CLIP, "--to", plain.url, "--video-id", "24", "--detach").code == 0
        wait_until(lambda: plain.asks, "room has been asked for")
        wait_until(lambda: entry(daemon, 24)["state"] == "WAITING", "the answer is known")
        link = "/" + plain.asks[0][LINK].split("/", 3)[3]
        own, other = f"{plain.url}/api/v1/backup", listener.url
        for send, complete in (
            (f"{other}/s", f"{other}/c"),
            (f"{own}/receive-backup/x", f"{other}/c"),
            (f"{other}/s", f"{own}/complete-backup/x"),
            (f"http://127.0.0.1:{plain.port}/s", f"http://127.0.0.1:{plain.port}/c"),
            (f"https://localhost:{plain.port}/s", f"https://localhost:{plain.port}/c"),
        ):
            for path in (link, BARE):
                notice = {"videoId": 24, SEND: send, COMPLETE: complete}
                answer = daemon.call("POST", path, notice)
                assert answer.status == 403, answer.body
        for bad in ("/relative", f"http://u:p@localhost:{plain.port}/", "x"):
            answer = daemon.call("POST", link, {"videoId": 24, SEND: bad, COMPLETE: bad})
            assert answer.status == 400
        notice = {"videoId": 25, SEND: f"{own}/s", COMPLETE: f"{own}/c"}
        assert daemon.call("POST", link, notice).status == 400
        assert entry(daemon, 24)["state"] in ("ASKING", "WAITING")
        assert (listener.connections, plain.received) == (0, {})
        listener.close()
        assert daemon.ctl("cancel", entry(daemon, 24)["entryId"]).code == 0
        own_links = {SEND: f"{own}/receive-backup/x", COMPLETE: f"{own}/complete-backup/x"}
        assert daemon.call("POST", link, {"videoId": 24} | own_links).status == 410
        assert plain.received == {}


def test_a_notice_said_twice_sends_once(daemon: Daemon) -> None:
    with PlainReceiver(sha256) as plain:
        assert daemon.ctl("send", CLIP, "--to", plain.url, "--video-id", "26").code == 0
        path = "/" + plain.asks[0][LINK].split("/", 3)[3]
        own, name = f"{plain.url}/api/v1/backup", base64.urlsafe_b64encode(b"26").decode()
        plain.received.clear()
        notice = {
            "videoId": 26,
            SEND: f"{own}/receive-backup/{name}",
            COMPLETE: f"{own}/complete-backup/{name}",
        }
        assert daemon.call("POST", path, notice).status == 202
        assert entry(daemon, 26)["state"] == "VERIFIED"
        assert plain.received == {}
