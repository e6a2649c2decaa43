"""The links that are handed out, and what of them a log may show."""

from __future__ import annotations

import pytest

from backupd.links import Links, redacted

SECRET = "AbCdEf-secret-secret-secret"


def test_links() -> None:
    """Every link is absolute, under the original's paths and the base that stands now."""
    links = Links("http://localhost:3000")
    api = "http://localhost:3000/api/v1"
    assert links.upload("c") == f"{api}/backup/receive-backup/c"
    assert links.complete("c") == f"{api}/backup/complete-backup/c"
    assert links.notice("c") == f"{api}/backup/serverAisReadyForBackup/c"
    assert links.status("r") == f"{api}/backup/requests/r"
    assert links.content("b") == f"{api}/backups/b/content"
    links.base = "https://backup.example.org"
    assert links.upload("c") == "https://backup.example.org/api/v1/backup/receive-backup/c"


@pytest.mark.parametrize(
    "path",
    [
        f"/api/v1/backup/receive-backup/{SECRET}",
        f"/api/v1/backup/complete-backup/{SECRET}",
        f"/api/v1/backup/serverAisReadyForBackup/{SECRET}",
        f"/api/v1/backup/receive-backup/{SECRET}/more/{SECRET}",
        f"/api/v1/backup/receive-backup/{SECRET}?videoId={SECRET}",
        f"/api/v1/backup/receive%2Dbackup/{SECRET}",
        f"/receive-backup/complete-backup/{SECRET}",
    ],
)
def test_no_capability_whole_in_a_log(path: str) -> None:
    """A capability shows at most its first 6 characters, however the path is spelled."""
    shown = redacted(path)
    assert "secret" not in shown
    assert shown.endswith("…")


def test_other_paths_are_shown() -> None:
    """What is no capability stays; a query never does."""
    assert redacted("/api/v1/backups/b/content") == "/api/v1/backups/b/content"
    assert redacted("/api/v1/backup/receive-backup") == "/api/v1/backup/receive-backup"
    assert redacted("/api/v1/backups?token=x") == "/api/v1/backups"
