"""The servers of the bench, started: backupd and those that it is measured against."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.peers import Peers
from bench.server import Server, free_port

__all__ = ["backupd", "bare", "express", "nginx", "rsync", "stock_klein", "tus"]

_TWISTD = Path(sys.executable).with_name("twistd")

# As Debian's nginx.conf has it, with what a PUT of any size needs. The second server is tuned for
# uploads, the third reads past the page cache.
_NGINX = """
daemon off;
{user}
worker_processes auto;
pid nginx.pid;
error_log log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    access_log off;
    client_max_body_size 0;
    client_body_temp_path body;
    proxy_temp_path unused; fastcgi_temp_path unused; uwsgi_temp_path unused;
    scgi_temp_path unused;
    root files;
    server {{
        listen 127.0.0.1:{port};
        location / {{ dav_methods PUT; }}
    }}
    server {{
        listen 127.0.0.1:{tuned};
        client_body_buffer_size 1m;
        location / {{ dav_methods PUT; }}
    }}
    server {{
        listen 127.0.0.1:{direct};
        directio 1m;
        aio threads;
        output_buffers 2 2m;
    }}
}}
"""

_RSYNC = """
use chroot = no
{user}
[files]
    path = {files}
    read only = no
"""


def backupd(folder: Path, *, program: Sequence[str | Path] = (_TWISTD,), **settings: str) -> Server:
    """A real daemon; with the default settings, but for those that are given."""
    port = free_port()
    config = folder / "empty.toml"
    folder.mkdir(parents=True, exist_ok=True)
    config.touch()
    environment = {
        "BACKUPD_CONFIG": str(config),
        "BACKUPD_ROOT": str(folder / "root"),
        "BACKUPD_LISTEN": f"tcp:{port}:interface=127.0.0.1",
    }
    environment |= {f"BACKUPD_{name.upper()}": value for name, value in settings.items()}
    server = Server([*program, "-n", "--pidfile=", "backupd"], folder, port, environment)
    server.wait_until("/readyz", 200, 120.0)
    return server


def stock_klein(folder: Path) -> Server:
    """`bench.stock_klein`, keeping its files in ``folder/files``."""
    port, files = free_port(), _files(folder)
    command = [sys.executable, "-m", "bench.stock_klein", str(port), str(files)]
    server = Server(command, folder, port)
    server.wait_until("/", 404)
    return server


def bare(folder: Path) -> Server:
    """`bench.bare`, keeping its files in ``folder/files``."""
    port, files = free_port(), _files(folder)
    command = [sys.executable, "-m", "bench.bare", str(port), str(files)]
    server = Server(command, folder, port)
    server.wait_until_listening()
    return server


def nginx(folder: Path, peers: Peers) -> tuple[Server, int, int]:
    """nginx with WebDAV's PUT into ``folder/files``: as it comes, the port of the tuned one, and
    that of the one with ``directio``."""
    _files(folder)
    port, tuned, direct = free_port(), free_port(), free_port()
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        _NGINX.format(port=port, tuned=tuned, direct=direct, user=user)
    )
    command = [peers.program("nginx"), "-p", str(folder), "-c", "nginx.conf", "-e", "log"]
    server = Server(command, folder, port, peers.environment)
    server.wait_until("/", 403)
    return server, tuned, direct


def tus(folder: Path, peers: Peers) -> Server:
    """@tus/server with its file store in ``folder/files``."""
    port, files = free_port(), _files(folder)
    command = ["node", *map(str, (peers.script("tus.mjs"), port, files))]
    server = Server(command, folder, port)
    server.wait_until_listening()
    return server


def express(folder: Path, peers: Peers) -> Server:
    """Express, piping what is PUT into ``folder/files``."""
    port, files = free_port(), _files(folder)
    command = ["node", *map(str, (peers.script("express.mjs"), port, files))]
    server = Server(command, folder, port)
    server.wait_until("/healthz", 200)
    return server


def rsync(folder: Path, peers: Peers) -> Server:
    """rsync's daemon with a module ``files`` in ``folder/files``."""
    port, files = free_port(), _files(folder)
    me = getpass.getuser()
    user = f"uid = {me}\ngid = {os.getegid()}" if os.geteuid() == 0 else ""
    config = folder / "rsyncd.conf"
    config.write_text(_RSYNC.format(files=files, user=user))
    command = [peers.program("rsync"), "--daemon", "--no-detach", "--address=127.0.0.1"]
    options = [f"--port={port}", f"--config={config}"]
    server = Server([*command, *options], folder, port, peers.environment)
    server.wait_until_listening()
    return server


def _files(folder: Path) -> Path:
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    return files
