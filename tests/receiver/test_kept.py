"""What is kept: verified, and deleted."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, cast

import pytest

from backupd.errors import (
    NoSuchBackup,
    StorageFailed,
)
from backupd.interfaces import IFileSystem
from backupd.requests import Backup
from backupd.waiting import go_on
from tests.receiver.test_keeping import DATA, KeepingCase
from tests.receiver.world import ManualOff, logged, now, set_attribute
from tests.storage.faulty import FaultyFileSystem, failing


class VerifyTests(KeepingCase):
    def test_good(self) -> None:
        """Every byte is read again, and the time of it is kept."""
        backup = self.complete(self.received())
        self.clock.advance(1000)
        checked = now(self.world.keeper.verify(backup.backup_id))
        assert (checked.problem, checked.verified_at) == (None, self.clock.seconds())
        assert self.listed() == [checked]
        assert self.world.keeper.verifying == {}

    def test_until_the_verdict(self) -> None:
        """Whoever waits for it does not take it for whole before it is known to be."""
        backup = self.complete(self.received())
        verified, seen = self.world.ledger.verified, []

        def note(*arguments: Any, **more: Any) -> Any:
            seen.append(dict(self.world.keeper.verifying))
            return verified(*arguments, **more)

        set_attribute(self, self.world.ledger, "verified", note)
        now(self.world.keeper.verify(backup.backup_id))
        assert [list(one) for one in seen] == [[backup.backup_id]]
        assert self.world.keeper.verifying == {}

    def damaged(self, damage: Any) -> Backup:
        backup = self.complete(self.received())
        damage(Path(self.world.root, backup.folder, backup.name))
        self.clock.advance(1000)
        checked: Backup = now(self.world.keeper.verify(backup.backup_id))
        assert self.listed() == [checked]
        assert checked.verified_at == backup.verified_at
        return checked

    def test_rot(self) -> None:
        """Bytes that changed are a problem, and no verification."""
        problem = self.damaged(lambda path: path.write_bytes(DATA[:-1] + b"?")).problem
        assert problem is not None
        assert "SHA-256" in problem

    def test_short(self) -> None:
        problem = self.damaged(lambda path: path.write_bytes(DATA[:-1])).problem
        assert problem is not None
        assert str(len(DATA) - 1) in problem

    def test_gone(self) -> None:
        problem = self.damaged(lambda path: path.unlink()).problem
        assert problem is not None
        assert "gone" in problem

    def test_healed(self) -> None:
        """A problem that is gone is forgotten."""
        backup = self.damaged(lambda path: path.write_bytes(b"?"))
        Path(self.world.root, backup.folder, backup.name).write_bytes(DATA)
        assert now(self.world.keeper.verify(backup.backup_id)).problem is None

    def test_sidecar_finds_no_room(self) -> None:
        """On a full volume the list tells it all the same."""
        root = Path(self.folder, "faulty")
        root.mkdir()
        fs = FaultyFileSystem(str(root))
        self.world = self.make("faulty", fs=cast(IFileSystem, fs))
        backup = self.complete(self.received())
        for number in (errno.ENOSPC, errno.EIO):
            fs.fault = failing(number, "pwritev")
            self.clock.advance(10)
            checked = now(self.world.keeper.verify(backup.backup_id))
            assert checked.verified_at == self.clock.seconds()

    def test_once_at_a_time(self) -> None:
        """A second verification of the same backup does not read it a second time."""
        backup = self.complete(self.received())
        off = ManualOff()
        set_attribute(self, self.world.keeper, "_off", off)
        first = go_on(self.world.keeper.verify(backup.backup_id))
        assert now(self.world.keeper.verify(backup.backup_id)) == backup
        off.release_all()
        now(first)

    def test_unknown(self) -> None:
        self.raises(NoSuchBackup, self.world.keeper.verify("nothing"))


class DeleteTests(KeepingCase):
    def test_deleted(self) -> None:
        """Files, folders that are empty then, and the line on the list are gone."""
        backup = self.complete(self.received())
        assert now(self.world.keeper.delete(backup.backup_id)) == backup
        assert self.listed() == []
        assert os.listdir(self.world.root) == [".backupd"]
        self.raises(NoSuchBackup, self.world.keeper.delete(backup.backup_id))

    def test_fails(self) -> None:
        """What could not be deleted stays on the list."""
        backup = self.complete(self.received())

        def remove(_: Backup) -> None:
            raise StorageFailed("EIO")

        set_attribute(self, self.world.storage, "remove", remove)
        self.raises(StorageFailed, self.world.keeper.delete(backup.backup_id))
        assert self.listed() == [backup]

    def test_while_verified(self) -> None:
        """A backup that is deleted while it is being verified does not come back."""
        backup = self.complete(self.received())
        off = ManualOff()
        set_attribute(self, self.world.keeper, "_off", off)
        verified = go_on(self.world.keeper.verify(backup.backup_id))
        while off.names != ["describe"]:
            off.release()
        deleted = go_on(self.world.keeper.delete(backup.backup_id))
        assert off.names == ["describe"], "described and removed at the same time"
        off.release_all()
        now(deleted)
        now(verified)
        assert self.listed() == []
        assert os.listdir(self.world.root) == [".backupd"]

    def test_before_the_verdict(self) -> None:
        backup = self.complete(self.received())
        off = ManualOff()
        set_attribute(self, self.world.keeper, "_off", off)
        verified = go_on(self.world.keeper.verify(backup.backup_id))
        deleted = go_on(self.world.keeper.delete(backup.backup_id))
        for step in ("inspect", "remove"):
            off.release(step)
        off.release_all()
        now(deleted)
        with pytest.raises(NoSuchBackup):
            now(verified)
        assert self.listed() == []
        assert logged(self) == []
