"""``twistd backupd``."""

from twisted.application.service import ServiceMaker

backupd = ServiceMaker(
    "backupd", "backupd.tap", "Keep backups of other video servers, and send them yours.", "backupd"
)
