"""What a daemon tells the service manager that started it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from backupd.tap import tell_init


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager that listens."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listening:
        listening.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield listening


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("READY=1", b"READY=1"),
        ("STATUS=/srv/\u00fc is full", b"STATUS=/srv/\xc3\xbc is full"),
        ("STATUS=/srv/\udcfc is full", b"STATUS=/srv/? is full"),
    ],
)
def test_it_is_told_whatever_bytes_a_path_has(
    manager: socket.socket, state: str, told: bytes
) -> None:
    tell_init(state)
    assert manager.recv(4096) == told


def test_it_may_listen_where_no_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An abstract address, which is written with an @."""
    name = f"backupd-{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listening:
        listening.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        tell_init("READY=1")
        assert listening.recv(4096) == b"READY=1"


def test_one_that_does_not_listen_hinders_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue is full, and whoever waits for room in it may wait for ever."""
    path = str(tmp_path / "notify")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other,
    ):
        manager.bind(path)
        other.connect(path)
        with suppress(BlockingIOError):
            while other.send(b"x"):
                pass
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        telling = threading.Thread(target=tell_init, args=("READY=1",), daemon=True)
        telling.start()
        telling.join(10)
        assert not telling.is_alive()


@pytest.mark.parametrize("address", ["/nobody/listens", "@nobody-listens", "/" + "x" * 200, "x:1"])
def test_one_that_cannot_be_told_hinders_nothing(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """Work and its orderly end matter more than who is told of them."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    tell_init("READY=1")
