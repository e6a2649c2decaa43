"""Two servers, paired by one line each, over TLS: from then on authenticated both ways."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from backupd.trust.invitations import Invite, write_invite
from backupd.trust.own_key import make_own_key, pin_of
from tests.integration.contract import is_problem
from tests.integration.daemons import BACKUPCTL, CLIP, Daemon, clean_environment, wait_until
from tests.integration.pairs import Server, pair
from tests.peer.plain import Connection, Plain, answer


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
    (there,) = owner.ctl("list", "--at", "keeper", "--json").json["backups"]
    assert there == backup
    done = owner.ctl("restore", backup["backupId"], "--at", "keeper", "-o", back)
    assert done.code == 0, done.err
    assert back.read_bytes() == CLIP.read_bytes()


def test_what_is_got_back_comes_from_who_has_the_key(
    servers: tuple[Server, Server], tmp_path: Path
) -> None:
    """Neither from somebody else in its place, nor from a peer that was not joined."""
    _, owner = servers
    record = owner.root / ".backupd/peers/keeper.json"
    before = record.read_bytes()
    told = json.loads(before) | {"pin": f"sha256//{'A' * 43}="}
    try:
        record.write_text(json.dumps(told))
        done = owner.ctl("list", "--at", "keeper")
        assert done.code == 1
        assert "another public key" in done.err
    finally:
        record.write_bytes(before)
    done = owner.ctl("list", "--at", "nobody")
    assert done.code == 1
    assert "no peer 'nobody' that we have joined" in done.err


def test_after_a_renewal_all_goes_on(servers: tuple[Server, Server]) -> None:
    """From either side."""
    keeper, owner = servers
    before = records(keeper), records(owner)
    for server, name in ((keeper, "owner"), (owner, "keeper")):
        done = server.ctl("peer", "rotate", name)
        assert done.code == 0, done.err
    assert (records(keeper), records(owner)) != before
    done = owner.ctl("send", CLIP, "--to", "keeper", "--video-id", "renewed", seconds=60)
    assert done.code == 0, done.err + owner.text()


def records(server: Server) -> list[str]:
    return [path.read_text() for path in sorted((server.root / ".backupd/peers").glob("*.json"))]


def secrets_of(server: Server) -> set[str]:
    """Everything that only this server and its peers may know."""
    found = {server.token}
    for text in records(server):
        record = json.loads(text)
        found |= {record["token"], *record["signs"], *record["verifies"], *record["shows"]}
    return {one for one in found if one}


def test_nothing_secret_lies_about(servers: tuple[Server, Server]) -> None:
    """Not in a log at its most talkative, not in what a peer shows, not in a command's words, and
    on the disk only where nobody else can read it.
    """
    for server in servers:
        secrets = secrets_of(server)
        assert len(secrets) >= 5
        told = server.text() + server.ctl("peer", "list", "--json").out
        told += server.call("GET", "/metrics", operator=True).body.decode()
        told += Path(f"/proc/{server.pid}/cmdline").read_text()
        told += Path(f"/proc/{server.pid}/environ").read_text()
        for secret in secrets:
            assert secret not in told
            assert secret.removeprefix("backupd_").removeprefix("whsec_") not in told
        for path in (server.root / ".backupd").rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            if path.is_file() and any(one.encode() in path.read_bytes() for one in secrets):
                assert mode == 0o600, path


def test_an_invitation_holds_once(servers: tuple[Server, Server]) -> None:
    keeper, owner = servers
    text = keeper.ctl("peer", "invite", "third", "--json").json["invitation"]
    assert owner.ctl("peer", "join", text, "--name", "again").code == 1  # it is "keeper" already
    keeper.ctl("peer", "revoke", "third")
    done = owner.ctl("peer", "join", text, "--name", "keeper")
    assert done.code == 1
    assert "not known" in done.err


def test_a_server_with_another_key_is_not_joined(
    servers: tuple[Server, Server], tmp_path: Path
) -> None:
    """Somebody on the way, with a certificate in the right name: not even the secret is said."""
    keeper, owner = servers
    make_own_key(str(tmp_path), ["localhost"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "tls/certificate.pem").read_bytes())
    invite = Invite(keeper.url, pin_of(certificate), "SECRET" * 6, 4e9)
    heard = keeper.text().count("/enrol")
    done = owner.ctl("peer", "join", write_invite(invite), "--name", "keeper")
    assert done.code == 1
    assert "does not prove" in done.err
    assert keeper.text().count("/enrol") == heard
    assert "SECRET" not in done.err + owner.text() + keeper.text()


def test_the_string_does_not_stay_in_the_process_list(tmp_path: Path) -> None:
    """Everybody on a machine can read the words of a command; only we its environment."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        text = write_invite(Invite("https://a.example", None, "s" * 32, 4e9))
        command = [*BACKUPCTL, "--url", url, "--token", "t" * 43, "peer", "join", text]
        with subprocess.Popen(
            command, env=clean_environment(root=str(tmp_path)), stderr=subprocess.DEVNULL
        ) as process:
            try:
                silent.settimeout(30)
                connection, _ = silent.accept()  # now it waits for an answer
                words = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                assert b"join" in words
                assert text.encode() not in words
                assert b"t" * 43 not in words
                with connection:
                    said = connection.recv(65536)
                    while text.encode() not in said:
                        more = connection.recv(65536)
                        assert more, said
                        said += more
                    assert b"Bearer " + b"t" * 43 in said
            finally:
                process.kill()


def test_the_certificate_is_read_again_on_sighup(servers: tuple[Server, Server]) -> None:
    """Without a word lost: the daemon is the same process."""
    keeper, _ = servers
    folder = keeper.root / ".backupd" / "tls"
    before, pid = shown(keeper), keeper.pid
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        for path in kept:
            path.unlink()
        make_own_key(str(keeper.root / ".backupd"), ["localhost"])
        assert shown(keeper) == before
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: shown(keeper) != before, "the new certificate is served")
        assert "the public key has changed" in keeper.text()
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
        os.kill(pid, signal.SIGHUP)
    wait_until(lambda: shown(keeper) == before, "the old certificate is served again")
    assert keeper.pid == pid


def shown(server: Server) -> str:
    return ssl.get_server_certificate(("127.0.0.1", server.port))


def test_a_revoked_peer_is_out(servers: tuple[Server, Server]) -> None:
    keeper, owner = servers
    token = json.loads(records(owner)[0])["token"]
    assert keeper.call("GET", "/api/v1/peers/self", token=token).status == 200
    assert keeper.ctl("peer", "revoke", "owner").code == 0
    is_problem(keeper.call("GET", "/api/v1/peers/self", token=token), 401)
    owner.ctl("send", CLIP, "--to", "keeper", "--video-id", "late", "--detach")
    wait_until(lambda: "answered 401" in owner.ctl("queue", "--json").out, "the sender is told so")
    one, other = pair(keeper, owner)
    assert one == other
    wait_until(
        lambda: any(
            one["videoId"] == "late" for one in keeper.ctl("list", "--json").json["backups"]
        ),
        "it goes on when it is let in again",
    )


def test_a_revocation_that_a_crash_cut_short_is_finished_at_the_start(tmp_path: Path) -> None:
    """The peer is out, and the room that it was promised is free."""
    with Server(tmp_path, "keeper") as keeper:
        home = "https://third.example"
        token = keeper.add("third", "send", "--origin", home)
        asked = {
            "videoId": 2,
            "diskEmptySpaceRequire": "5 MB",
            "linkForServerAtoNoticeServerBWhenServerAIsReady": f"{home}/ready",
        }
        said = keeper.call("POST", "/api/v1/backup/can-accept-backup", asked, token=token).json
        keeper.kill()
        file = keeper.root / ".backupd" / "peers" / "third.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"revoked_at": 1.0}))
        keeper.start()
        path = f"/api/v1/backup/requests/{said['requestId']}"
        wait_until(
            lambda: keeper.call("GET", path, operator=True).json["state"] == "CANCELLED",
            "what it was promised is free",
        )


def test_the_published_library_verifies_our_offers_as_they_come(tmp_path: Path) -> None:
    """The raw bytes and headers that a program gets which is no backupd."""
    came: list[tuple[dict[str, str], bytes]] = []

    def serve(connection: Connection) -> None:
        came.append((connection.headers, connection.read()))
        connection.say(answer("202 Accepted"))

    with Plain(serve) as plain, Server(tmp_path, "keeper") as keeper:
        done = keeper.ctl(
            *("peer", "add", "b", "--may", "send", "--origin", plain.url),
            *("--network", "loopback", "--json"),
        )
        room = {
            "videoId": 2,
            "diskEmptySpaceRequire": "1 KB",
            "linkForServerAtoNoticeServerBWhenServerAIsReady": f"{plain.url}/ready",
        }
        path = "/api/v1/backup/can-accept-backup"
        assert keeper.call("POST", path, room, token=done.json["token"]).json["success"]
        wait_until(lambda: came, "the offer has come")
    ((headers, body),) = came
    said = Webhook(done.json["signingSecret"]).verify(body, headers)
    assert said["videoId"] == 2
    with pytest.raises(WebhookVerificationError):
        Webhook(done.json["signingSecret"]).verify(body + b" ", headers)
    assert "authorization" not in headers  # it has given us no token to show


def test_a_callback_that_is_not_public_is_called_only_if_it_is_named(tmp_path: Path) -> None:
    """The peer's own origin is on this machine, and its networks do not say so."""
    with Plain(lambda connection: None) as plain, Server(tmp_path, "keeper") as keeper:
        origin = plain.url.replace("127.0.0.1", "localhost")
        token = keeper.add("b", "send", "--origin", origin)
        room = {
            "videoId": 2,
            "diskEmptySpaceRequire": "1 KB",
            "linkForServerAtoNoticeServerBWhenServerAIsReady": f"{origin}/ready",
        }
        path = "/api/v1/backup/can-accept-backup"
        asked = keeper.call("POST", path, room, token=token).json
        where = f"/api/v1/backup/requests/{asked['requestId']}"
        error = wait_until(
            lambda: keeper.call("GET", where, token=token).json["lastError"], "it was tried"
        )
        assert "a loopback address: it is not called" in error
    assert plain.lines == []


def test_open_mode_is_for_this_machine(tmp_path: Path) -> None:
    """Until a peer is invited; then nothing is open any more, at once."""
    with Daemon(tmp_path) as daemon:
        assert daemon.call("GET", "/api/v1/backups").status == 200
        assert daemon.ctl("peer", "add", "b", "--may", "send").code == 0
        is_problem(daemon.call("GET", "/api/v1/backups"), 401)
        assert daemon.call("GET", "/healthz").status == 200
        assert daemon.call("GET", "/api/v1/backups", operator=True).status == 200
    beyond = {"listen": f"tcp:{daemon.port}:interface=0.0.0.0"}
    daemon.settings |= beyond
    daemon.start()
    daemon.stop()
    assert "can be reached from outside without TLS" in daemon.text()


def test_a_record_that_others_can_read_stops_the_start(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        assert daemon.ctl("peer", "add", "b", "--may", "send").code == 0
    record = daemon.root / ".backupd/peers/b.json"
    record.chmod(0o644)
    with pytest.raises(AssertionError, match="chmod 600"):
        daemon.start()


def test_an_invitation_can_come_by_a_pipe(servers: tuple[Server, Server]) -> None:
    """So that it stands in no command line at all."""
    _, owner = servers
    command = [*BACKUPCTL, "--url", owner.url, "peer", "join", "--name", "x"]
    done = subprocess.run(
        command,
        env=owner.environment,
        input="backupd-invite-damaged\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "invitation: is damaged" in done.stderr
