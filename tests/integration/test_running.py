"""How it starts, refuses to start, tells, and stops: `twistd`, the log, the service manager."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.daemons import (
    REPOSITORY,
    TWISTD,
    Daemon,
    Done,
    call,
    clean_environment,
    free_port,
    run,
    wait_until,
)
from tests.integration.plain import PlainSender, octets

WAYS = {
    "plugin": ["--nodaemon", "--pidfile=", "backupd"],
    "tac": ["--pidfile=", "-noy", str(REPOSITORY / "backupd.tac")],
}
ENDED = (0, -signal.SIGTERM)
"""Exit codes of an orderly end: `twistd` takes the rest of the signal when all is done."""


@pytest.fixture(params=sorted(WAYS))
def way(request: pytest.FixtureRequest) -> list[str]:
    """Both ways to start it in the foreground."""
    return WAYS[request.param]


def started(way: list[str], folder: Path, **settings: str) -> Done:
    """A start that fails, or that takes too long to do so."""
    mine = {"root": str(folder / "root"), "listen": f"tcp:{free_port()}:interface=127.0.0.1"}
    environment = clean_environment(**(mine | settings))
    return run([*TWISTD, *way], environment, cwd=folder, seconds=30)


def is_one_line(done: Done, *words: str) -> None:
    """Exit code 1, and one line that says why, for a person."""
    told = done.out + done.err
    assert done.code == 1, told
    assert "Traceback" not in told
    # By then `twistd` may have begun to log what is written to stderr.
    lines = [line for line in told.splitlines() if re.search(r"^(.*#error\] )?backupd: ", line)]
    assert len(lines) == 1, told
    for word in words:
        assert word in lines[0]


# -- what it refuses to start with -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("reserved_space", "much"),
        ("listen", "nonsense"),
        ("listen", "tcp:99999999"),
        ("no_such_key", "1"),
    ],
)
def test_a_wrong_setting_is_named(way: list[str], tmp_path: Path, setting: str, value: str) -> None:
    done = started(way, tmp_path, **{setting: value})
    word = "BACKUPD_NO_SUCH_KEY" if setting == "no_such_key" else setting
    is_one_line(done, word)


@pytest.mark.parametrize(
    ("text", "word"),
    [("colour = 'red'", "colour"), (None, "BACKUPD_CONFIG")],
)
def test_a_wrong_settings_file_is_named(
    way: list[str], tmp_path: Path, text: str | None, word: str
) -> None:
    file = tmp_path / "settings.toml"
    if text is not None:
        file.write_text(text)
    environment = clean_environment() | {"BACKUPD_CONFIG": str(file)}
    is_one_line(run([*TWISTD, *way], environment, cwd=tmp_path, seconds=30), word)


def test_an_option_of_twistd_wins_and_is_checked_too(tmp_path: Path) -> None:
    command = [*WAYS["plugin"], "--loop-interval", "never"]
    is_one_line(started(command, tmp_path, loop_interval="5"), "loop_interval", "never")


def test_a_root_that_cannot_be_written(way: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "root"
    is_one_line(started(way, tmp_path, root=str(root)), "root", str(root))


def test_a_port_that_is_in_use(way: list[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        listen = f"tcp:{port}:interface=127.0.0.1"
        is_one_line(started(way, tmp_path, listen=listen), "listen", str(port))
    # Nothing is left that would hinder the next start.
    with Daemon(tmp_path, root=str(tmp_path / "root")):
        pass


def test_the_outside_in_open_mode(way: list[str], tmp_path: Path) -> None:
    listen = f"tcp:{free_port()}"
    is_one_line(started(way, tmp_path, listen=listen), "listen", "interface=127.0.0.1")


def test_a_second_daemon_on_the_same_root(tmp_path: Path) -> None:
    with Daemon(tmp_path) as first:
        for way in WAYS.values():
            is_one_line(started(way, tmp_path, root=str(first.root)), "root", str(first.root))
        assert first.ready()["status"] == "ok"


def test_a_ledger_of_a_newer_version(way: list[str], tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    with daemon:
        pass
    with sqlite3.connect(daemon.root / ".backupd" / "ledger.sqlite3") as ledger:
        ledger.execute("UPDATE alembic_version SET version_num = '9999'")
    ledger.close()
    is_one_line(started(way, tmp_path, root=str(daemon.root)), "ledger", "9999")


# -- how it runs -----------------------------------------------------------------------------------


def test_the_tac_file_serves(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    daemon.command = WAYS["tac"]
    with daemon:
        assert daemon.call("GET", "/healthz").json == {"status": "ok"}


def test_backupctl_serve_serves(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    program = "from backupd.cli import main; main()"
    daemon.program = [daemon.program[0], "-c", program, "serve"]
    daemon.command = ["--loop-interval", "1"]
    with daemon:
        assert daemon.call("GET", "/healthz").status == 200


def test_twistd_makes_a_daemon_of_it(tmp_path: Path) -> None:
    """Without -n it goes to the background, works, and SIGTERM leaves nothing of it."""
    daemon = Daemon(tmp_path)
    pidfile, logfile = tmp_path / "twistd.pid", tmp_path / "twistd.log"
    options = [
        "-y",
        str(REPOSITORY / "backupd.tac"),
        f"--pidfile={pidfile}",
        f"--logfile={logfile}",
    ]
    done = run([*TWISTD, *options], daemon.environment, cwd=tmp_path)
    assert done.code == 0, done.out + done.err
    pid = int(wait_until(lambda: pidfile.exists() and pidfile.read_text(), "it has a pid file"))
    try:

        def answers() -> bool:
            try:
                return call("GET", f"{daemon.url}/readyz").status == 200
            except OSError:
                return False

        wait_until(answers, "it answers")
        with PlainSender() as sender:
            sender.back_up(daemon.url, 1, b"a video")
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not pidfile.exists(), "the pid file is gone")
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the process is gone")
    assert "backupd has stopped" in logfile.read_text()
    assert "Traceback" not in logfile.read_text()
    with Daemon(tmp_path):  # the root is free again
        pass


def test_a_daemon_that_cannot_start_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        daemon = Daemon(tmp_path, listen=f"tcp:{other.getsockname()[1]}:interface=127.0.0.1")
        logfile = tmp_path / "twistd.log"
        options = ["-y", str(REPOSITORY / "backupd.tac"), f"--pidfile={tmp_path}/pid"]
        done = run([*TWISTD, *options, f"--logfile={logfile}"], daemon.environment, cwd=tmp_path)
        assert done.code == 1
        # `twistd` tells 100 bytes of it; the log has it all.
        assert "listen: Address already in use" in done.out + done.err
        wait_until(lambda: "cannot be used" in logfile.read_text(), "the log has the whole line")
        assert not (tmp_path / "pid").exists()


def test_the_control_token_is_for_its_user_only(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        token = daemon.token
        assert (daemon.root / ".backupd" / "control-token").stat().st_mode & 0o777 == 0o600
        assert (daemon.root / ".backupd").stat().st_mode & 0o077 == 0
        daemon.stop()
        daemon.start()
        assert daemon.token == token


def test_a_stopped_daemon_ends_well_and_leaves_its_backups(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon, PlainSender() as sender:
        done = sender.back_up(daemon.url, 1, b"a video")
        assert daemon.stop() in ENDED
        daemon.start()
        (kept,) = daemon.backups()
        assert kept["backupId"] == done["backupId"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_log_tells_no_secret(tmp_path: Path, form: str) -> None:
    daemon = Daemon(tmp_path, log_format=form)
    with daemon, PlainSender() as sender:
        send, complete = sender.turn(daemon.url, 1, 5000)
        call("POST", send, b"x" * 9000, octets)
        call("HEAD", send)
        assert call("POST", send, b"x" * 5000, octets).status == 200
        assert call("POST", complete, {"videoId": 1, "success": True}).status == 200
        assert daemon.ctl("verify").code == 0
        queued = daemon.ctl(
            "send", __file__, "--to", sender.url, "--video-id", "9", "--detach", "--json"
        )
        assert queued.code == 0
        notice = wait_until(lambda: sender.asked, "the other server has been asked")
        links = [send, complete, notice[0]]
        secrets = [daemon.token, *(link.rpartition("/")[2] for link in links)]
        call("POST", notice[0], {"videoId": 9})
        daemon.call("GET", "/api/v1/outbox", operator=True)
        daemon.stop()
        for secret in secrets:
            assert len(secret) >= 22
            assert secret not in daemon.text()
            assert secret not in queued.out
        assert "request " in daemon.text() or form == "json"
    if form == "json":
        lines = daemon.text().lstrip("\x1e").splitlines()
        events = [json.loads(line.lstrip("\x1e")) for line in lines if line.strip("\x1e ")]
        assert any("is ready" in event.get("log_format", "") for event in events)


# -- the service manager ---------------------------------------------------------------------------


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[socket.socket]:
    """What the service manager listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def test_the_service_manager_is_told(tmp_path: Path, notify: socket.socket) -> None:
    daemon = Daemon(tmp_path)
    daemon.extra_environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
    with daemon:
        assert notify.recv(4096).decode().splitlines()[0] == "READY=1"
        daemon.stop()
        assert notify.recv(4096).decode().splitlines()[0] == "STOPPING=1"


def test_a_service_manager_that_cannot_be_told_hinders_nothing(tmp_path: Path) -> None:
    """It starts whole and stops in order; the log has what was to be told."""
    with Daemon(tmp_path, shutdown_grace="0.2") as daemon, PlainSender() as sender:
        daemon.stop()
        daemon.extra_environment["NOTIFY_SOCKET"] = str(tmp_path / "nobody")
        daemon.start()
        wait_until(lambda: daemon.text().count("backupd is ready") == 2, "it has started again")
        send, _ = sender.turn(daemon.url, 1, 100_000)
        with begin_upload(daemon, send, b"x" * 50_000, 100_000):
            assert daemon.stop() in ENDED
        text = daemon.text()
        for state in ("READY=1", "STOPPING=1"):
            assert f"the service manager could not be told {state}: " in text
        assert text.count("backupd has stopped") == 2
        daemon.start()
        assert daemon.requests()[0]["receivedBytes"] == 50_000


def begin_upload(daemon: Daemon, link: str, first: bytes, size: int) -> socket.socket:
    """An upload that has begun and goes on when the test says so."""
    connection = socket.create_connection(("127.0.0.1", daemon.port), 20)
    path = "/" + link.split("/", 3)[3]
    head = f"PUT {path} HTTP/1.1\r\nHost: localhost:{daemon.port}\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode() + first)
    wait_until(
        lambda: daemon.requests()[0]["receivedBytes"] == len(first), "the first bytes are there"
    )
    return connection


def test_an_upload_may_finish_while_it_stops(tmp_path: Path) -> None:
    with Daemon(tmp_path, shutdown_grace="20") as daemon, PlainSender() as sender:
        send, _ = sender.turn(daemon.url, 1, 100_000)
        with begin_upload(daemon, send, b"x" * 50_000, 100_000) as connection:
            stopping = threading.Thread(target=daemon.stop)
            stopping.start()
            wait_until(lambda: "is stopping" in daemon.text(), "it is stopping")
            connection.sendall(b"x" * 50_000)
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        stopping.join(20)
        assert not stopping.is_alive()
        daemon.start()
        assert daemon.requests()[0]["state"] == "RECEIVED"


def test_an_upload_that_does_not_finish_in_time_is_kept_as_far_as_it_came(tmp_path: Path) -> None:
    with Daemon(tmp_path, shutdown_grace="0.3") as daemon, PlainSender() as sender:
        send, _ = sender.turn(daemon.url, 1, 100_000)
        with begin_upload(daemon, send, b"x" * 50_000, 100_000):
            assert daemon.stop() in ENDED
        daemon.start()
        assert call("HEAD", send).headers["Upload-Offset"] == "50000"
