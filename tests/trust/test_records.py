"""Peers on the disk and in memory: durable before they count, readable to nobody else."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from backupd.errors import Invalid, NoSuchPeer, SettingsError, StorageFailed
from backupd.trust.files import PeerFiles, read_private, write_private
from backupd.trust.peers import Invitation, Limits, Peer, Right, check_name, token_hash
from backupd.trust.registry import InMemory, Peers
from tests.outcomes import result_of
from tests.receiver.fakes import ManualOff, sync
from tests.receiver.world import now

FULL = Peer(
    name="b.example",
    created_at=1.0,
    rights=frozenset({Right.SEND, Right.DELETE}),
    limits=Limits(quota=500, requests_per_second=2.5),
    url="https://b.example",
    pin="sha256//x",
    origins=("https://b.example",),
    networks=("private",),
    shows=(token_hash("theirs"),),
    token="ours",
    signs=("whsec_1",),
    verifies=("whsec_2",),
    invitation=Invitation(secret_hash="h", expires_at=9.0, used_by="u"),
    fingerprint="f",
)


def a_peer(name: str = "b", **more: object) -> Peer:
    return Peer(name=name, created_at=0.0, **more)  # type: ignore[arg-type]


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    files = PeerFiles(str(tmp_path / "peers"))
    assert files.read() == []
    files.write(FULL)
    files.write(a_peer("c"))
    assert files.read() == [FULL, a_peer("c")]


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    """Not even for the moment in which it is made, and whatever the umask."""
    before = os.umask(0)
    try:
        PeerFiles(str(tmp_path / "peers")).write(FULL)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "peers").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "peers/b.example.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("umask", [0, 0o777])
def test_a_private_file_is_never_anybody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    """From its first moment on; and we can read it, whatever the umask."""
    path, modes = tmp_path / "secret", []
    opened = os.open

    def note(name: str, flags: int, mode: int = 0o777) -> int:
        handle = opened(name, flags, mode)
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return handle

    monkeypatch.setattr(os, "open", note)
    before = os.umask(umask)
    try:
        write_private(str(path), b"secret")
    finally:
        os.umask(before)
    assert modes[0] & ~0o600 == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_private_file_is_replaced_and_not_written_over(tmp_path: Path) -> None:
    """Who has the old one open goes on with it: it is whole, and so is the new one."""
    path = tmp_path / "secret"
    write_private(str(path), b"a long old one")
    with path.open("rb") as old:
        write_private(str(path), b"new")
        assert (old.read(), path.read_bytes()) == (b"a long old one", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_record_that_others_can_reach_stops_the_start(tmp_path: Path, mode: int) -> None:
    files = PeerFiles(str(tmp_path))
    files.write(FULL)
    (tmp_path / "b.example.json").chmod(mode)
    with pytest.raises(SettingsError, match="chmod 600"):
        files.read()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    files = PeerFiles(str(tmp_path))
    files.write(FULL)
    (tmp_path / "b.example.json").rename(tmp_path / "elsewhere")
    (tmp_path / "b.example.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="symbolic link"):
        files.read()


def test_another_users_file_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(0o600)
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, 12345)
    with pytest.raises(SettingsError, match="another user"):
        read_private(str(path))


def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    """It would stop the next start."""
    files = PeerFiles(str(tmp_path))
    files.write(FULL)
    with pytest.raises(Invalid, match="64 KiB"):
        files.write(replace(FULL, networks=("10.0.0.0/8",) * 6000))
    assert files.read() == [FULL]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"name": "b.example"}', b"\xff"])
def test_a_damaged_record_stops_the_start(tmp_path: Path, data: bytes) -> None:
    """A peer that is forgotten by a damaged file could be anybody's name tomorrow."""
    files = PeerFiles(str(tmp_path))
    files.write(FULL)
    (tmp_path / "b.example.json").write_bytes(data)
    with pytest.raises(SettingsError, match="no record of a peer"):
        files.read()


def test_a_record_under_another_name_stops_the_start(tmp_path: Path) -> None:
    files = PeerFiles(str(tmp_path))
    files.write(FULL)
    (tmp_path / "b.example.json").rename(tmp_path / "c.json")
    with pytest.raises(SettingsError, match="not called by the name"):
        files.read()


def test_a_disk_that_fails_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "peers").write_bytes(b"a file is in the way")
    with pytest.raises(StorageFailed, match=r"record of peer b\.example"):
        PeerFiles(str(tmp_path / "peers")).write(FULL)


def test_names() -> None:
    for name in ("b", "b.example", "a-b_c.9", "x" * 64):
        check_name(name)
    for name in ("", "B", "ü", "a b", "a/b", "..", "a..b", ".a", "a.", "-a", "x" * 65, "a\n"):
        with pytest.raises(Exception, match="name"):
            check_name(name)
    for name in ("join", "enrol", "self", "local", "operator"):
        with pytest.raises(Exception, match="something else"):
            check_name(name)


class RegistryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.peers = Peers(InMemory(), sync)

    def put(self, peer: Peer) -> Peer:
        changed: Peer = now(self.peers.change(peer.name, lambda _: peer))
        return changed

    def test_open_until_there_is_a_peer(self) -> None:
        """And not open again when the last is out, or when there must be none."""
        assert not self.peers.closed
        self.put(a_peer())
        assert self.peers.closed
        self.put(a_peer(revoked_at=1.0))
        assert self.peers.closed
        assert Peers(InMemory(), sync, always=True).closed

    def test_a_peer_is_known_by_its_token(self) -> None:
        """By any that it may show, while it is active, and by nothing else."""
        self.put(a_peer(shows=(token_hash("old"), token_hash("new"))))
        for token in ("old", "new"):
            found = self.peers.by_token(token)
            assert found is not None
            assert found.name == "b"
        for token in ("", "x", token_hash("new"), "\udc80", "NEW"):
            assert self.peers.by_token(token) is None
        self.put(a_peer(shows=(token_hash("new"),)))
        assert self.peers.by_token("old") is None
        self.put(a_peer(shows=(token_hash("new"),), revoked_at=1.0))
        assert self.peers.by_token("new") is None

    def test_a_place_is_an_active_peers(self) -> None:
        origin = "https://b.example"
        self.put(a_peer(origins=(origin,)))
        assert self.peers.by_origin(origin) is None
        self.put(a_peer(origins=(origin,), shows=("h",)))
        assert self.peers.by_origin(origin) == self.peers.get("b")
        assert self.peers.by_origin("http://b.example") is None
        self.put(a_peer(origins=(origin,), shows=("h",), revoked_at=1.0))
        assert self.peers.by_origin(origin) is None

    def test_a_change_counts_once_it_is_durable(self) -> None:
        off = ManualOff()
        peers = Peers(InMemory(), off)
        from backupd.waiting import go_on

        first = go_on(peers.change("b", lambda _: a_peer(shows=(token_hash("t"),))))
        second = go_on(peers.change("b", lambda old: a_peer(url=repr(old is None))))
        assert peers.by_token("t") is None
        off.release()
        assert peers.by_token("t") is not None
        off.release()
        assert (now(first).url, now(second).url) == (None, "False")

    def test_a_change_that_fails_changes_nothing(self) -> None:
        off = ManualOff()
        peers = Peers(InMemory(), off)
        from backupd.waiting import go_on

        change = go_on(peers.change("b", lambda _: a_peer()))
        off.release(error=StorageFailed("The disk is gone."))
        with pytest.raises(StorageFailed):
            result_of(change)
        assert not peers.closed
        with pytest.raises(NoSuchPeer):
            peers.get("b")
        again = go_on(peers.change("b", lambda _: a_peer()))
        off.release()
        assert result_of(again).name == "b"
