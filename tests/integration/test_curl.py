"""The README's example of a direct upload, as it stands there: bash, curl, and nothing of ours."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

from tests.integration.cutter import Cutter
from tests.integration.daemons import REPOSITORY, Daemon, clean_environment, run
from tests.integration.places import SIZE, Place
from tests.integration.proxies import needs


def example() -> str:
    """The one block of bash in the README."""
    (block,) = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    return str(block)


def test_the_readme_example_goes_on_after_every_cut(
    behind: Daemon, cutter: Cutter, video_file: Path, tmp_path: Path
) -> None:
    needs("bash", "curl")
    rng = random.Random(3)
    cutter.cut_at(*sorted(rng.sample(range(2000, SIZE), 3)))
    script = example()
    assert "http://localhost:3000/" in script
    assert script.count("holiday.mp4") == 2
    shutil.copy(video_file, tmp_path / "holiday.mp4")
    told = script.replace("http://localhost:3000", cutter.url)
    done = run(["bash", "-c", told], clean_environment(), cwd=tmp_path)
    assert done.code == 0, done.err
    assert cutter.cuts == 3
    (kept,) = behind.backups()
    assert kept["videoId"] == "2"
    place = Place(behind, cutter.url, None, video_file)
    content = behind.call("GET", f"/api/v1/backups/{kept['backupId']}/content")
    assert content.body == place.file.read_bytes()


def test_the_readme_example_survives_a_killed_receiver(
    behind: Daemon, cutter: Cutter, video_file: Path, tmp_path: Path
) -> None:
    needs("bash", "curl")

    def kill() -> None:
        behind.kill()
        behind.start()

    cutter.call_at(SIZE // 2, kill)
    shutil.copy(video_file, tmp_path / "holiday.mp4")
    told = example().replace("http://localhost:3000", cutter.url)
    done = run(["bash", "-c", told], clean_environment(), cwd=tmp_path)
    assert done.code == 0, done.err
    (kept,) = behind.backups()
    assert kept["size"] == SIZE
