"""tus-js-client, as it comes from npm, against a real daemon: also cut, killed and proxied."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients import Running, install
from tests.integration.cutter import Cutter
from tests.integration.daemons import Daemon, wait_until
from tests.integration.places import SIZE, Place
from tests.integration.plain import PlainSender
from tests.integration.proxies import PROXIES

MIB = 1024**2
HEADERS = 8192
"""More than the heads of the few requests that finish an upload."""


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("npm"))


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunks": {"chunkSize": MIB},
    "odd chunks": {"chunkSize": 777_777},
    "parallel": {"parallelUploads": 4},
    "parallel chunks": {"parallelUploads": 4, "chunkSize": MIB},
    "with the creation": {"uploadDataDuringCreation": True},
    "with the creation, in chunks": {"uploadDataDuringCreation": True, "chunkSize": 2 * MIB},
    "by POST only": {"overridePatchMethod": True, "chunkSize": 4 * MIB},
}


@pytest.mark.parametrize("way", WAYS)
def test_an_upload(clients: Path, place: Place, way: str) -> None:
    Running(clients, **place.options(**WAYS[way])).finish()
    place.check()


def test_a_length_that_is_not_known(clients: Path, place: Place) -> None:
    """On a link; a direct upload asks for its room first."""
    more = {"uploadLengthDeferred": True, "chunkSize": MIB, "retryDelays": None}
    options = place.options(stream=True, **more)
    upload = Running(clients, **options)
    if "videoId" in place.metadata:
        with pytest.raises(AssertionError, match="400"):
            upload.finish()
    else:
        upload.finish()
        place.check()


# -- what it survives ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["plain", "chunks", "parallel", "with the creation"])
@pytest.mark.parametrize("seed", [1, 2])
def test_cuts_at_any_byte(clients: Path, place: Place, cutter: Cutter, way: str, seed: int) -> None:
    """The client goes on by itself, and what had arrived is not sent again."""
    rng = random.Random(seed)
    base, cuts = cutter.sent, sorted(rng.sample(range(1, SIZE), 4))
    cutter.abruptly = seed % 2 == 1
    cutter.cut_at(*(base + one for one in cuts))
    Running(clients, **place.options(**WAYS[way])).finish()
    place.check()
    assert cutter.cuts == len(cuts)
    if way == "plain" and not cutter.abruptly:
        # A reset takes with it what had arrived and was not yet read.
        assert cutter.sent - base < SIZE + len(cuts) * HEADERS


def test_a_client_that_is_killed_and_started_again(
    clients: Path, place: Place, cutter: Cutter, tmp_path: Path
) -> None:
    """It finds its upload by the URL that it wrote down, and goes on where it was."""
    options = place.options(storage=tmp_path / "urls.json", chunkSize=MIB)
    first: list[Running] = []
    base = cutter.sent
    cutter.call_at(base + 5 * MIB, lambda: first[0].kill())
    first.append(Running(clients, **options))
    wait_until(lambda: cutter.cuts == 1, "it has been killed")
    assert first[0].found == 0
    assert 0 < first[0].accepted < SIZE
    before = cutter.sent
    again = Running(clients, **options)
    again.finish()
    assert again.found == 1
    assert cutter.sent - before < SIZE - first[0].accepted + HEADERS * 12
    place.check()


@pytest.mark.parametrize("way", ["plain", "chunks", "parallel chunks"])
def test_a_receiver_that_is_killed(
    clients: Path, place: Place, cutter: Cutter, behind: Daemon, way: str
) -> None:
    """``kill -9`` in the middle; nothing that was acknowledged is sent again."""
    base = cutter.sent
    seen: list[int] = []

    def kill() -> None:
        seen.append(cutter.sent)
        behind.kill()
        behind.start()

    cutter.call_at(base + 7 * MIB, kill)
    upload = Running(clients, **place.options(**WAYS[way]))
    upload.finish()
    place.check()
    after = cutter.sent - seen[0]
    before = [event["accepted"] for event in upload.events if "accepted" in event]
    if way == "chunks":
        acknowledged = 6 * MIB
        assert acknowledged in before
        assert after < SIZE - acknowledged + HEADERS * 12


@pytest.mark.parametrize("answer", [b"HTTP/1.1 201 ", b"HTTP/1.1 204 "])
def test_an_answer_that_is_lost(clients: Path, place: Place, cutter: Cutter, answer: bytes) -> None:
    """Of the creation, or the last one: the client asks again, and all is well."""
    base = cutter.sent
    cutter.lose_answer(answer)
    Running(clients, **place.options()).finish()
    place.check()
    assert cutter.cuts == 1
    assert cutter.sent - base < SIZE + HEADERS, "no byte was sent twice"


# -- behind a proxy --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PROXIES))
@pytest.mark.parametrize("where", ["link", "direct"])
def test_through_a_proxy(
    clients: Path, sender: PlainSender, video_file: Path, tmp_path: Path, name: str, where: str
) -> None:
    """With TLS, forwarded headers and all; the links in Location are the public ones."""
    turns = {"max_concurrent_transfers": "100", "max_per_peer": "100"}
    with PROXIES[name](tmp_path, loop_interval="0.2", **turns) as front:
        trusts = {"NODE_EXTRA_CA_CERTS": str(front.certificate)}
        place = Place(front.daemon, front.url, sender if where == "link" else None, video_file)
        for way in ("plain", "chunks", "parallel", "with the creation"):
            url = Running(clients, trusts, **place.options(**WAYS[way])).finish()
            assert url.startswith(front.url)
            assert front.spooled() == []
            if where == "direct":
                break
        place.check()


@pytest.mark.parametrize("name", sorted(PROXIES))
def test_a_receiver_that_is_down_behind_a_proxy(
    clients: Path, sender: PlainSender, video_file: Path, tmp_path: Path, name: str
) -> None:
    """The client waits until it is back, and goes on with the upload that it had."""
    with PROXIES[name](tmp_path, loop_interval="0.2") as front:
        place = Place(front.daemon, front.url, sender, video_file)
        trusts = {"NODE_EXTRA_CA_CERTS": str(front.certificate)}
        delays = {"retryDelays": [100] * 50}
        upload = Running(clients, trusts, **place.options(chunkSize=MIB // 2, **delays))
        wait_until(lambda: front.daemon.requests()[-1]["receivedBytes"] > 2 * MIB, "it has begun")
        front.daemon.kill()
        # Nobody answers for a while: the client finds that out, and asks where it stands.
        wait_until(lambda: " 423 " in front.logs(), "it was told to ask again")
        front.daemon.start()
        upload.finish()
        place.check()
        created = re.findall(r"POST \S*/receive-backup/\S* 201", re.sub('"', "", front.logs()))
        assert len(created) == 1, "it began anew"
