"""What is built, pinned and shipped beside the code: wheel, plugin, requirements, deploy files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from backupd.settings import KEYS, Settings, load

ROOT = Path(__file__).resolve().parent.parent
SITE_PACKAGES = sysconfig.get_path("purelib")


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """What a command prints; fails with all of it unless the command succeeds."""
    done = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def pip(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("backupd", "twisted"):
        ignore = shutil.ignore_patterns("__pycache__", "dropin.cache")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ("pyproject.toml", "requirements.in", "README.md"):
        shutil.copy(ROOT / name, copy)
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, copy)
    (built,) = folder.glob("*.whl")
    return built


def twistd(*arguments: str, paths: list[Path], cwd: Path) -> str:
    """twistd with these paths and Twisted itself, and without what .pth files would add."""
    return run(
        *(sys.executable, "-S", "-c", "from twisted.scripts.twistd import run; run()"),
        *arguments,
        cwd=cwd,
        env={"PYTHONPATH": os.pathsep.join([*map(str, paths), SITE_PACKAGES])},
    )


def test_wheel_holds_everything(wheel: Path) -> None:
    """Every module, the upgrades of the ledger, the plugin, the type marker and the command."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "backupd").rglob("*.py")}
    assert "backupd/ledger/versions/0001_first.py" in modules
    assert modules <= names
    assert {"backupd/py.typed", "twisted/plugins/backupd_plugin.py"} <= names
    assert {name.split("/")[0] for name in names} == {
        "backupd",
        "backupd-0.1.0.dist-info",
        "twisted",
    }
    assert "twisted/__init__.py" not in names
    assert "twisted/plugins/__init__.py" not in names
    commands = zipfile.ZipFile(wheel).read("backupd-0.1.0.dist-info/entry_points.txt")
    assert b"backupctl = backupd.cli:main" in commands


def test_wheel_depends_on_what_is_asked_for(wheel: Path) -> None:
    """The wheel asks for exactly the direct dependencies of requirements.in."""
    metadata = zipfile.ZipFile(wheel).read("backupd-0.1.0.dist-info/METADATA").decode()
    asked = re.findall(r"^Requires-Dist: (\S+)", metadata, re.MULTILINE)
    written = (ROOT / "requirements.in").read_text().splitlines()
    assert sorted(asked) == sorted(line for line in written if not line.startswith("#"))


def test_twistd_finds_the_plugin(wheel: Path, tmp_path: Path) -> None:
    """Once installed, twistd lists backupd from any folder, and its options say what they do."""
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--no-index", "--no-deps", "--target", target, wheel)
    listed = re.compile(r"^ +backupd +Keep backups", re.MULTILINE)
    assert not listed.search(twistd("--help", paths=[], cwd=elsewhere))
    assert listed.search(twistd("--help", paths=[target], cwd=elsewhere))
    assert "--reserved-space" in twistd("backupd", "--help", paths=[target], cwd=elsewhere)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_pins_are_whole(name: str) -> None:
    """Each line pins a version and is followed by hashes; no address of any place is in it."""
    text = (ROOT / name).read_text()
    assert not re.search(r"://|^-|index|find-links", text, re.MULTILINE)
    pins = re.split(r"^(?=\w)", text, flags=re.MULTILINE)[1:]
    assert len(pins) > 20
    for pin in pins:
        assert re.match(r"[\w.-]+==\S+ (; .+ )?\\\n    --hash=sha256:[0-9a-f]{64}", pin), pin


def test_pins_are_the_same_in_both() -> None:
    """The tests run on the versions that are shipped, and every direct dependency is pinned."""

    def pins(name: str) -> dict[str, str]:
        text = (ROOT / name).read_text()
        return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))

    shipped = pins("requirements.txt")
    assert shipped.items() <= pins("requirements-dev.txt").items()
    for line in (ROOT / "requirements.in").read_text().splitlines():
        if not line.startswith("#"):
            assert re.sub(r"\[.*", "", line).lower().replace(".", "-") in shipped


def test_example_settings_are_the_defaults(tmp_path: Path) -> None:
    """The example shows every setting, commented out with its default."""
    text = (ROOT / "deploy/backupd.toml.example").read_text()
    assert tomllib.loads(text) == {}
    shown = re.sub(r"^#(?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    assert set(tomllib.loads(shown)) == set(KEYS)
    file = tmp_path / "backupd.toml"
    file.write_text(shown)
    assert load({"BACKUPD_CONFIG": str(file)}) == Settings()


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The systemd unit, with a program that is there."""
    if shutil.which("systemd-analyze") is None and not os.environ.get("BACKUPD_TEST_ALL"):
        pytest.skip("systemd-analyze is not installed")
    text = (ROOT / "deploy/backupd.service").read_text()
    copy = tmp_path / "backupd.service"
    copy.write_text(text.replace("/opt/backupd/bin/twistd", sys.executable))
    return copy


def test_unit_is_right(unit: Path) -> None:
    """systemd finds no mistake in the unit."""
    assert run("systemd-analyze", "verify", "--recursive-errors=yes", unit) == ""


def test_unit_is_hardened(unit: Path) -> None:
    """systemd's own measure of exposure is at most 1.5 of 10."""
    run("systemd-analyze", "security", "--offline=true", "--threshold=15", unit)


def test_unit_waits_longer_than_the_daemon() -> None:
    """The daemon's grace ends before systemd's patience does."""
    text = (ROOT / "deploy/backupd.service").read_text()
    patience = re.search(r"^TimeoutStopSec=(\d+)s$", text, re.MULTILINE)
    assert patience
    assert int(patience[1]) >= 2 * Settings().shutdown_grace
