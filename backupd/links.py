"""The links that this server hands out."""

from __future__ import annotations

from urllib.parse import unquote

__all__ = ["Links", "redacted"]

API = "/api/v1"


class Links:
    """Links under ``base``, such as ``http://localhost:3000``, without a slash at its end.

    The base is set once the daemon knows its port, before anything is handed out.
    """

    def __init__(self, base: str) -> None:
        self.base = base

    def upload(self, capability: str) -> str:
        return f"{self.base}{API}/backup/receive-backup/{capability}"

    def resource(self, capability: str, upload_id: str) -> str:
        return f"{self.upload(capability)}/{upload_id}"

    def direct(self, token: str) -> str:
        return f"{self.base}{API}/uploads/{token}"

    def complete(self, capability: str) -> str:
        return f"{self.base}{API}/backup/complete-backup/{capability}"

    def notice(self, capability: str) -> str:
        return f"{self.base}{API}/backup/serverAisReadyForBackup/{capability}"

    def status(self, request_id: str) -> str:
        return f"{self.base}{API}/backup/requests/{request_id}"

    def content(self, backup_id: str) -> str:
        return f"{self.base}{API}/backups/{backup_id}/content"


def redacted(path: str) -> str:
    """``path`` without its query, and with all but the first 6 characters of a capability gone."""
    parts = path.partition("?")[0].split("/")
    secret = ("receive-backup", "complete-backup", "serverAisReadyForBackup", "uploads")
    for place, part in enumerate(parts[:-1]):
        if unquote(part) in secret:  # as routing reads it
            parts[place + 1 :] = [parts[place + 1][:6] + "…"]
            break
    return "/".join(parts)
