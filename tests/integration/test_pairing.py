"""Two servers, paired by one line each, over TLS: from then on authenticated both ways."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemons import CLIP
from tests.integration.pairs import Server, pair


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    folder = tmp_path_factory.mktemp("pair")
    with Server(folder, "keeper") as keeper, Server(folder, "owner") as owner:
        one, other = pair(keeper, owner)
        assert one == other
        assert re.fullmatch(r"[a-z2-7]{4}(-[a-z2-7]{4}){3}", one)
        yield keeper, owner


def test_a_video_goes_there_and_back(servers: tuple[Server, Server], tmp_path: Path) -> None:
    """By the peer's name; nothing but the two of them has to be configured."""
    keeper, owner = servers
    done = owner.ctl("send", CLIP, "--to", "keeper", "--video-id", "2", seconds=60)
    assert done.code == 0, done.err + owner.text()
    assert "stored and verified" in done.out
    (backup,) = keeper.ctl("list", "--json").json["backups"]
    assert (backup["peer"], backup["videoId"]) == ("owner", 2)
    back = tmp_path / "back.mp4"
    assert keeper.ctl("restore", backup["backupId"], "-o", back).code == 0
    assert back.read_bytes() == CLIP.read_bytes()
