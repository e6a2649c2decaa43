"""Settings: where they come from, which wins, and what a wrong one says."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupd.errors import SettingsError
from backupd.settings import KEYS, Settings, load, parse_duration


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings file lies around."""
    monkeypatch.chdir(tmp_path)


def write(tmp_path: Path, text: str, name: str = "settings.toml") -> dict[str, str]:
    """A settings file, and the environment that names it."""
    (tmp_path / name).write_text(text, "utf-8")
    return {"BACKUPD_CONFIG": str(tmp_path / name)}


def refused(environ: dict[str, str], options: dict[str, object] | None = None) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(environ, options)
    assert "\n" not in str(caught.value), "one line"
    return caught.value


# -- where they come from -------------------------------------------------------------------------


def test_defaults() -> None:
    """Without a word the daemon listens on loopback, keeps 1 GB free and looks every 5 s."""
    settings = load({})
    assert settings == Settings()
    assert settings.listen == ("tcp:3000:interface=127.0.0.1",)
    assert settings.reserved_space == 1024**3
    assert settings.loop_interval == 5
    assert settings.max_concurrent_transfers == 4
    assert settings.max_per_peer == 2
    assert settings.offer_lease == 600
    assert settings.offer_deadline == settings.upload_expiry == 86400
    assert settings.history == 90 * 86400


def test_precedence(tmp_path: Path) -> None:
    """The environment wins over the file, an option over both; what is not named stays."""
    environ = write(tmp_path, 'root = "file"\nmax_per_peer = 7\nloop_interval = "2 s"\n')
    environ |= {"BACKUPD_ROOT": "environment", "BACKUPD_LOOP_INTERVAL": "3"}
    settings = load(environ, {"root": "option", "listen": None})
    assert (settings.root, settings.loop_interval, settings.max_per_peer) == ("option", 3, 7)
    assert settings.listen == Settings().listen


def test_host_and_protocol(tmp_path: Path) -> None:
    """``HOST`` and ``PROTOCOL`` are as in the original; ``BACKUPD_HOST`` is more definite."""
    environ = write(tmp_path, 'host = "file:1"\nprotocol = "http"\n')
    environ |= {"HOST": "a.example:3000", "PROTOCOL": "https"}
    settings = load(environ)
    assert (settings.host, settings.protocol) == ("a.example:3000", "https")
    assert load(environ | {"BACKUPD_HOST": "[::1]:9"}).host == "[::1]:9"
    assert load(environ | {"HOST": "", "PROTOCOL": ""}).host == "file:1"


def test_the_file_beside() -> None:
    """``./backupd.toml`` is read when no file is named, and not when one is."""
    Path("backupd.toml").write_text("max_per_peer = 3")
    assert load({}).max_per_peer == 3
    Path("other.toml").write_text("")
    assert load({"BACKUPD_CONFIG": "other.toml"}).max_per_peer == 2
    assert load({"BACKUPD_CONFIG": ""}).max_per_peer == 3


def test_variables_that_are_no_keys() -> None:
    """The client's and the tests' variables are no unknown settings, nor are others' own."""
    names = ("BACKUPD_URL", "BACKUPD_TOKEN", "BACKUPD_TEST_ALL", "BACKUP_ROOT", "PATH")
    assert load(dict.fromkeys(names, "anything")) == Settings()


def test_every_key_is_a_variable() -> None:
    """What the file can say, the environment can."""
    for field in fields(Settings):
        value = getattr(Settings(), field.name)
        text = " ".join(value) if isinstance(value, tuple) else str(value)
        assert load({f"BACKUPD_{field.name.upper()}": text}) == Settings(), field.name
    assert {field.name for field in fields(Settings)} == set(KEYS)


def test_lists(tmp_path: Path) -> None:
    """Lists are arrays in the file; in the environment endpoints are parted by spaces, folders
    as in ``PATH``.
    """
    environ = write(
        tmp_path, 'listen = ["tcp:1", "tcp:2"]\nvideos = ["/srv/my videos", "/srv/more"]'
    )
    settings = load(environ)
    assert settings.listen == ("tcp:1", "tcp:2")
    assert settings.videos == ("/srv/my videos", "/srv/more")
    settings = load(
        {"BACKUPD_LISTEN": "tcp:1  tcp:2", "BACKUPD_VIDEOS": f"/my videos{os.pathsep}/b"}
    )
    assert settings.listen == ("tcp:1", "tcp:2")
    assert settings.videos == ("/my videos", "/b")


# -- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (5, 5),
        (0.25, 0.25),
        ("5", 5),
        ("1.5 s", 1.5),
        ("10 min", 600),
        ("10min", 600),
        ("24 h", 86400),
        ("90 d", 90 * 86400),
        ("36500 d", 36500 * 86400),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    """Seconds, or a number and ``s``, ``min``, ``h`` or ``d``."""
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, "0 s", "-5", "", "5 m", "5  s", " 5", "1e3", "inf", "nan", "٣ s", "5 days"),
        *(True, None, [5], float("inf"), float("nan"), "9" * 400, "9" * 5000, 10**400, "36501 d"),
    ],
)
def test_no_durations(value: object) -> None:
    """Anything else is refused, and so is what no calendar can hold."""
    with pytest.raises(ValueError, match="must be"):
        parse_duration(value)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()))
def test_durations_raise_nothing_else(value: object) -> None:
    """Whatever a file holds, it is a duration of up to 100 years or a `ValueError`."""
    with suppress(ValueError):
        assert 0 < parse_duration(value) <= 36500 * 86400


def test_sizes() -> None:
    """``reserved_space`` is a size as in the protocol; here it may be 0."""
    assert load({"BACKUPD_RESERVED_SPACE": "10 GB"}).reserved_space == 10 * 1024**3
    assert load({"BACKUPD_RESERVED_SPACE": "0"}).reserved_space == 0


BAD = [
    ("listen", ""),
    ("listen", 3000),
    ("listen", [3000]),
    ("listen", []),
    ("root", ""),
    ("root", 5),
    ("root", "a\0b"),
    ("ledger", "postgresql://localhost/x"),
    ("ledger", "sqlite:"),
    ("ledger", "sqlite://"),
    ("ledger", "sqlite:ledger.db"),
    ("ledger", "sqlite://host/ledger.db"),
    ("ledger", "sqlite:///ledger.db?mode=ro"),
    ("ledger", 5),
    ("ledger", "sqlite:////a\0b"),
    ("ledger", "sqlite:////a%00b"),
    ("host", "http://localhost:3000"),
    ("host", "local host"),
    ("host", "localhost:"),
    ("host", "localhost:65536"),
    ("host", "localhost:0"),
    ("host", "user@localhost"),
    ("host", "localhost\n"),
    ("protocol", "ftp"),
    ("protocol", ["http"]),
    ("public_url", "backup.example.org"),
    ("public_url", "ftp://backup.example.org"),
    ("public_url", "https://"),
    ("public_url", "https://user:pass@backup.example.org"),
    ("public_url", "https://@backup.example.org"),
    ("public_url", "https://backup.example.org/?a=b"),
    ("public_url", "https://backup.example.org/#a"),
    ("public_url", "https://backup.example.org:99999"),
    ("public_url", "https://[backup"),
    ("public_url", "https://back\nup.example.org"),
    ("public_url", "https://backup.example.org/a b"),
    ("watch_to", "localhost:3000"),
    ("reserved_space", "1 gigabyte"),
    ("reserved_space", "-1"),
    ("reserved_space", 1.5),
    ("reserved_space", False),
    ("loop_interval", "soon"),
    ("loop_interval", 0),
    ("loop_interval", True),
    ("max_concurrent_transfers", 0),
    ("max_concurrent_transfers", "four"),
    ("max_per_peer", 1.5),
    ("max_per_peer", True),
    ("max_pending", -1),
    ("max_pending", 10**10),
    ("history", "9" * 400),
    ("videos", 5),
    ("videos", [5]),
    ("videos", ["/a\0b"]),
    ("videos", "/a\0b"),
    ("videos", [""]),
    ("client_certificate", "/a\0b"),
    ("allowed_origins", [None]),
    ("log_format", "xml"),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_bad_value_names_its_setting(key: str, value: object) -> None:
    """One line: the key, what it must be, and what it is."""
    error = refused({}, {key: value})
    assert error.name == key
    assert str(error).startswith(f"{key}: must ")


def test_unknown_keys(tmp_path: Path) -> None:
    """A key that is no setting is refused by the name that the user wrote."""
    assert refused(write(tmp_path, "rooot = 'x'")).name == "rooot"
    assert refused(write(tmp_path, "[receiver]\nroot = 'x'")).name == "receiver"
    assert refused({"BACKUPD_ROOOT": "x"}).name == "BACKUPD_ROOOT"


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    """A named file that is missing, unreadable or no TOML ends the start."""
    assert refused({"BACKUPD_CONFIG": str(tmp_path / "none.toml")}).name == "BACKUPD_CONFIG"
    assert "cannot be read" in str(refused({"BACKUPD_CONFIG": str(tmp_path)}))
    assert "is not TOML" in str(refused(write(tmp_path, "root = ")))
    assert "is not TOML" in str(refused(write(tmp_path, f"max_pending = {'9' * 5000}")))
    (tmp_path / "latin.toml").write_bytes(b"root = '\xe9'")
    assert "is not TOML" in str(refused({"BACKUPD_CONFIG": str(tmp_path / "latin.toml")}))


def test_places() -> None:
    """What is not a backup lies in a folder of its own under the root, the ledger with it."""
    settings = load({"BACKUPD_ROOT": "data"})
    own = os.path.join(os.getcwd(), "data", ".backupd")
    assert settings.own_folder == own
    assert settings.token_file == f"{own}/control-token"
    assert settings.ledger_url.endswith("/data/.backupd/ledger.sqlite3")
    assert settings.ledger_file == f"{own}/ledger.sqlite3"
    settings = load({"BACKUPD_LEDGER": "sqlite:////var/my%20x.db"})
    assert settings.ledger_url == "sqlite:////var/my%20x.db"
    assert settings.ledger_file == "/var/my x.db"


def test_the_scrub_can_be_switched_off() -> None:
    """By a word or by nothing; any other period is a duration, and a rate of nothing is none."""
    for off in ("off", "0"):
        assert load({"BACKUPD_SCRUB_PERIOD": off}).scrub_period == 0
    assert load({}, {"scrub_period": 0}).scrub_period == 0
    assert load({"BACKUPD_SCRUB_PERIOD": "7 d"}).scrub_period == 7 * 86400
    assert load({"BACKUPD_SCRUB_RATE": "1.5 MB"}).scrub_rate == 1.5 * 1024**2
    for key, value in (("scrub_period", False), ("scrub_period", "never"), ("scrub_rate", 0)):
        with pytest.raises(SettingsError, match=key):
            load({}, {key: value})
