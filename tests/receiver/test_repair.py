"""Repair: the sender of a damaged backup is told, once, and the last copy is never deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backupd.errors import NoSuchBackup, StorageFailed
from backupd.receiver.repair import FIRST, LONGEST
from backupd.requests import Backup, BackupRequest, Cancelled, Failed, Live, ended
from tests.receiver.world import Answer, WorldCase, now, set_attribute

DATA = b"the bytes of a video" * 500
PEER = "http://b:1"
LINK = f"{PEER}/ready/secret"
DAY = 86400.0


class RepairCase(WorldCase):
    def keep(self, data: bytes = DATA, video: int | str = 2, **more: Any) -> Backup:
        """A backup as its sender brought it."""
        told = {"callback": LINK, "file_name": "two.mp4", "content_type": "video/mp4"} | more
        request_id = self.world.offered(video, size=len(data), **told)
        self.world.send(request_id, data)
        backup: Backup = now(self.world.keeper.complete(request_id))
        return backup

    def damage(self, backup: Backup) -> Backup:
        path = Path(self.world.root, backup.folder, backup.name)
        path.write_bytes(DATA[:-1] + b"?")
        found: Backup = now(self.world.keeper.verify(backup.backup_id))
        assert found.problem is not None
        return found

    def look(self) -> None:
        """A tick of the loop: repairs, then offers, then what is overdue."""
        now(self.world.repairs.tick())
        self.world.tick()
        self.world.sweep()

    def live(self) -> list[Live]:
        found: list[Live] = now(self.world.ledger.all_live())
        return found

    def listed(self) -> list[str]:
        page = now(self.world.ledger.backups(peer=None, video=None, after=0, limit=99))
        return [backup.backup_id for _, backup in page]

    def bring(self, data: bytes = DATA) -> Backup:
        """The sender comes for the one request that is alive."""
        (request,) = self.live()
        self.world.send(request.ask.request_id, data)
        backup: Backup = now(self.world.keeper.complete(request.ask.request_id))
        return backup

    def asked(self) -> int:
        """How many requests there ever were."""
        return len(now(self.world.ledger.requests(live=None, peer=None, after=0, limit=99)))


class TellTests(RepairCase):
    def test_the_sender_is_told(self) -> None:
        """By an ordinary offer on its own link, for an ordinary request with its reservation."""
        backup = self.damage(self.keep())
        self.look()
        (request,) = self.live()
        ask = request.ask
        assert (ask.peer, ask.origin, ask.video, ask.callback) == (PEER, PEER, 2, LINK)
        assert (ask.size, ask.sha256) == (backup.size, backup.sha256)
        assert (ask.file_name, ask.content_type) == ("two.mp4", "video/mp4")
        assert now(self.world.ledger.totals()).promised == backup.size
        offer = self.world.offers.sent[-1]
        assert offer.link == LINK
        assert json.loads(offer.body).keys() == {
            "videoId",
            "linkForServerBtoSendBackupToSeverA",
            "linkForServerBtoCompleteBackupToSeverA",
        }

    def test_the_damaged_one_gives_way(self) -> None:
        """To the copy that its sender brought; until then it stays, with its problem."""
        old = self.damage(self.keep())
        self.look()
        assert self.listed() == [old.backup_id]
        new = self.bring()
        assert self.listed() == [old.backup_id, new.backup_id]
        self.look()
        assert self.listed() == [new.backup_id]
        assert not Path(self.world.root, old.folder).exists()
        assert Path(self.world.root, new.folder, new.name).read_bytes() == DATA
        self.clock.advance(100 * DAY)
        self.look()
        assert self.live() == []

    def test_any_whole_copy_will_do(self) -> None:
        """One that is there already saves asking."""
        old, new = self.keep(), self.keep()
        self.damage(old)
        self.look()
        assert self.listed() == [new.backup_id]
        assert self.live() == []

    def test_the_last_copy_is_never_deleted(self) -> None:
        """Of two that are damaged, of other bytes, and of another peer: none gives way."""
        backups = [self.keep(), self.keep(), self.keep(DATA[::-1]), self.keep(peer="http://c:1")]
        ids = [backup.backup_id for backup in backups]
        for backup in backups[:2]:
            self.damage(backup)
        self.look()
        assert self.listed() == ids
        assert len(self.live()) == 1

    def test_a_copy_that_rots_meanwhile_is_none(self) -> None:
        """What is found while both are looked at counts."""
        old, new = self.damage(self.keep()), self.keep()
        find = self.world.ledger.copy_of

        def copy_of(backup: Backup) -> Any:
            found = find(backup)
            self.damage(new)
            return found

        set_attribute(self, self.world.ledger, "copy_of", copy_of)
        assert now(self.world.keeper.superseded(old.backup_id)) is False
        assert self.listed() == [old.backup_id, new.backup_id]

    def test_other_bytes_repair_nothing(self) -> None:
        """What arrives must be what was kept; the damaged one stays."""
        old = self.damage(self.keep())
        self.look()
        (request,) = self.live()
        for _ in range(5):
            self.world.tick()
            if self.world.state(request.ask.request_id) == "FAILED":
                break
            try:
                self.world.send(request.ask.request_id, DATA[::-1])
            except Exception as error:
                assert "SHA-256" in str(error)  # noqa: PT017
        assert isinstance(self.world.request(request.ask.request_id), Failed)
        self.look()
        assert self.listed() == [old.backup_id]

    def test_nobody_to_tell(self) -> None:
        """A direct upload, without a callback, is only reported."""
        backup = self.keep()
        self.world.ledger._writer.exec_driver_sql("UPDATE backups SET callback = NULL")  # type: ignore[union-attr]
        self.damage(backup)
        self.look()
        assert self.live() == []


class AgainTests(RepairCase):
    def test_not_twice_while_it_is_asked_for(self) -> None:
        """Neither by further findings nor by time, as long as the request is alive."""
        backup = self.damage(self.keep())
        self.world.offers.answers[PEER] = Answer(503)
        self.look()
        (request,) = self.live()
        for _ in range(3):
            self.damage(backup)
            self.look()
        assert self.live() == [self.world.request(request.ask.request_id)]
        assert self.asked() == 2

    def ends(self, kind: Any) -> None:
        (request,) = self.live()
        moment = self.clock.seconds()

        def step(current: BackupRequest) -> BackupRequest:
            end: Failed | Cancelled = ended(current, kind, reason="The end.", now=moment)
            return end

        now(self.world.intake.end(request.ask.request_id, step))

    def test_nobody_comes(self) -> None:
        """Asked again after a day, then after two, then four, at last once in thirty days."""
        self.damage(self.keep())
        self.look()
        waits = []
        for _ in range(8):
            self.ends(Failed)
            start = self.clock.seconds()
            while not self.live():
                assert self.clock.seconds() < start + 31 * DAY
                self.clock.advance(DAY)
                self.look()
            waits.append((self.clock.seconds() - start) / DAY)
        assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
        assert (FIRST, LONGEST) == (DAY, 30 * DAY)

    def test_no_room(self) -> None:
        """Asked again the next day, not at every tick."""
        self.damage(self.keep())
        real = self.world.storage.free
        set_attribute(self, self.world.storage, "free", lambda: 5)
        self.look()
        set_attribute(self, self.world.storage, "free", real)
        self.look()
        assert self.live() == []
        self.clock.advance(DAY)
        self.look()
        assert len(self.live()) == 1

    def test_the_sender_does_not_have_it_any_more(self) -> None:
        """It answers 410: the request is cancelled, and it is not asked again."""
        backup = self.damage(self.keep())
        self.world.offers.answers[PEER] = Answer(410)
        self.look()
        assert self.live() == []
        for _ in range(40):
            self.clock.advance(DAY)
            self.look()
        assert self.asked() == 2
        assert self.listed() == [backup.backup_id]

    def test_the_operator_does_not_want_it(self) -> None:
        self.damage(self.keep())
        self.look()
        self.ends(Cancelled)
        for _ in range(40):
            self.clock.advance(DAY)
            self.look()
        assert self.asked() == 2

    def test_what_the_sender_asked_for_itself(self) -> None:
        """Stays as it is; and its end says nothing about the damaged one."""
        self.world.offers.answers[PEER] = Answer(503)
        backup = self.damage(self.keep_first())
        mine = self.world.admit(2, size=7, callback=f"{PEER}/ready/other")
        self.look()
        (request,) = self.live()
        assert request.ask == mine.ask
        self.ends(Cancelled)
        self.clock.advance(DAY)
        self.look()
        (request,) = self.live()
        assert (request.ask.size, request.ask.callback) == (backup.size, LINK)

    def keep_first(self) -> Backup:
        self.world.offers.answers.clear()
        backup = self.keep()
        self.world.offers.answers[PEER] = Answer(503)
        return backup

    def test_well_again(self) -> None:
        """A disk that was away is no reason to ask, once it is back."""
        backup = self.keep()
        path = Path(self.world.root, backup.folder, backup.name)
        path.rename(path.with_name("away"))
        assert now(self.world.keeper.verify(backup.backup_id)).problem is not None
        path.with_name("away").rename(path)
        assert now(self.world.keeper.verify(backup.backup_id)).problem is None
        self.look()
        assert self.live() == []

    def test_draining(self) -> None:
        """A server that stops asks for nothing; the next start does."""
        self.damage(self.keep())
        self.world.admission.draining = True
        self.look()
        self.world.admission.draining = False
        self.look()
        assert len(self.live()) == 1

    def test_one_that_fails_keeps_no_other(self) -> None:
        """A damaged backup that cannot be removed is left for another day."""
        first, other = self.keep(), self.keep(video=3, callback=f"{PEER}/ready/3")
        self.keep()
        self.damage(first)
        self.damage(other)

        def remove(_: Backup) -> None:
            raise StorageFailed("EIO")

        set_attribute(self, self.world.storage, "remove", remove)
        self.look()
        assert [request.ask.video for request in self.live()] == [3]
        assert first.backup_id in self.listed()

    def test_deleted_by_the_operator(self) -> None:
        backup = self.damage(self.keep())
        now(self.world.keeper.delete(backup.backup_id))
        self.look()
        assert self.live() == []
        self.raises(NoSuchBackup, self.world.keeper.superseded(backup.backup_id))


class SecretTests(RepairCase):
    def test_the_link_is_in_the_ledger_only(self) -> None:
        """Neither beside the file, nor in what is listed, nor in the log's words."""
        backup = self.damage(self.keep())
        sidecar = Path(self.world.root, backup.folder, "backup.json").read_text()
        assert "secret" not in sidecar
        assert "secret" not in repr(backup)
        (repair,) = now(self.world.ledger.repairs(now=self.clock.seconds(), limit=9))
        assert repair.callback == LINK
        assert "secret" not in repr(repair)
