"""The scrub: everything is read again within its period, at its pace, and nothing else suffers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from backupd.errors import LedgerFailed, StorageFailed
from backupd.receiver import keeping
from backupd.receiver.scrub import EACH, FRESH, LOOK_EVERY, LOOK_UP
from backupd.requests import Backup
from backupd.storage.system import SYSTEM
from backupd.waiting import Round, go_on
from tests.receiver.world import KIB, ManualOff, World, WorldCase, logged, now, set_attribute

DAY = 86400.0
PERIOD = 30 * DAY
RATE = 1024 * KIB
TICK = 5.0
PIECE = 1 / 16
"""Seconds that a piece takes at that rate."""


class ScrubCase(WorldCase):
    """A receiver that reads again, and a loop that ticks."""

    def setUp(self) -> None:
        super().setUp()
        set_attribute(self, keeping, "READ", 64 * KIB)
        self.world = self.scrubbing()

    def scrubbing(self, name: str = "scrubbed", **settings: Any) -> World:
        told = {"scrub_period": PERIOD, "scrub_rate": RATE, "loop_interval": TICK} | settings
        return self.make(name, told, ledger_url=f"sqlite:///{self.folder}/{name}.sqlite3")

    def keep(self, video: int, size: int = KIB, world: World | None = None) -> Backup:
        """A backup of a video, stored now."""
        world = world or self.world
        request_id = world.offered(video, size=size, peer=f"http://p{video}:1")
        world.send(request_id, bytes([video]) * size)
        backup: Backup = now(world.keeper.complete(request_id))
        return backup

    def look(self, backup: Backup) -> Backup:
        found: Backup = now(self.world.ledger.backup(backup.backup_id))
        return found

    def path(self, backup: Backup) -> Path:
        return Path(self.world.root, backup.folder, backup.name)

    def tick(self, world: World | None = None) -> Deferred[None]:
        """One turn of the loop, which may still be reading afterwards."""
        return go_on((world or self.world).scrub.run())

    def live(self, seconds: float, step: float = TICK) -> None:
        """The loop ticks for so long; a reading is given the time that it takes."""
        job = Round(self.world.scrub.run, self.clock)
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            job.run()
            while self.clock.getDelayedCalls():
                self.clock.advance(PIECE)
            self.clock.advance(step)


class PeriodTests(ScrubCase):
    def test_what_is_new_is_left_alone(self) -> None:
        """What was read when it came is not read again at once; later it is, and tells so."""
        backup = self.keep(1)
        self.clock.advance(FRESH * PERIOD)
        now(self.tick())
        assert self.look(backup) == backup
        self.clock.advance(LOOK_EVERY)
        now(self.tick())
        assert self.look(backup).verified_at == self.clock.seconds()
        assert self.world.keeper.bytes_verified == backup.size

    def test_every_backup_is_read_within_the_period(self) -> None:
        """However they came: here all at once, then one by one, in any size; period by period."""
        period = 4000.0
        self.world = self.scrubbing("any", scrub_period=period)
        backups = [self.keep(number, size=number * 7 * KIB) for number in range(1, 30)]
        for number in range(30, 40):
            self.live(20.0)
            backups.append(self.keep(number, size=100 * KIB))
        oldest = 0.0
        for _ in range(150):
            self.live(80.0)
            ages = [self.clock.seconds() - (self.look(one).verified_at or 0) for one in backups]
            oldest = max(oldest, *ages)
        assert oldest <= period
        assert oldest > period * 0.8, "it is read more often than it has to be"

    def test_reading_is_spread_over_the_period(self) -> None:
        """A hundred backups that came on one day are not read again on one day."""
        backups = [self.keep(number) for number in range(100)]
        self.clock.advance(FRESH * PERIOD + 1)
        per_day = []
        for _ in range(29):
            before = self.clock.seconds()
            self.live(DAY, step=DAY / 24)
            times = [self.look(backup).verified_at or 0 for backup in backups]
            per_day.append(sum(moment >= before for moment in times))
        assert sum(per_day) == 100
        assert max(per_day) <= 5

    def test_many_small_ones_in_one_tick(self) -> None:
        """More backups than ticks are read in time too."""
        self.world = self.scrubbing("short", scrub_period=200.0, scrub_rate=2**40)
        backups = [self.keep(number) for number in range(120)]
        stored_at = self.clock.seconds()
        self.live(200.0 + TICK)
        for backup in backups:
            assert (self.look(backup).verified_at or 0) > stored_at

    def test_the_rest_is_kept_to(self) -> None:
        """A large backup makes the rest after it long."""
        self.keep(1, size=1000 * KIB)
        self.keep(2, size=1000 * KIB)
        self.clock.advance(FRESH * PERIOD + 1)
        self.live(10.0)
        read = self.world.keeper.bytes_verified
        assert read == 1000 * KIB
        self.live(10 * DAY, step=DAY)
        assert self.world.keeper.bytes_verified == read
        self.live(10 * DAY, step=DAY)
        assert self.world.keeper.bytes_verified == 2 * read

    def test_off(self) -> None:
        self.world = self.scrubbing("off", scrub_period=0.0)
        backup = self.keep(1)
        self.clock.advance(1000 * DAY)
        now(self.tick())
        assert self.look(backup) == backup
        assert self.world.scrub.state is None

    def test_too_much_for_the_rate(self) -> None:
        """It is said, with what would be needed; and it reads on without a rest."""
        self.world = self.scrubbing("slow", scrub_period=100.0, scrub_rate=10 * KIB)
        for video in (1, 2):
            self.keep(video, size=2000 * KIB)
        self.clock.advance(6)
        self.live(400)
        state = self.world.scrub.state
        assert state is not None
        assert state.needed == (2 * 2000 * KIB + 2 * EACH) / 95
        assert state.takes == 100 * state.needed / (10 * KIB)
        assert self.world.keeper.bytes_verified == 2 * 2000 * KIB


class PaceTests(ScrubCase):
    def reading(self, size: int = 1024 * KIB) -> tuple[Backup, Deferred[None]]:
        """A backup that is being read."""
        backup = self.keep(1, size=size)
        self.clock.advance(FRESH * PERIOD + 1)
        return backup, self.tick()

    def took(self, reading: Deferred[None]) -> float:
        began = self.clock.seconds()
        while not reading.called:
            self.clock.advance(PIECE)
            assert self.clock.seconds() - began < 100
        now(reading)
        return self.clock.seconds() - began

    def test_rate(self) -> None:
        """It reads no faster than it may, a piece at a time."""
        _, reading = self.reading(8 * 1024 * KIB)
        at_once = self.world.keeper.bytes_verified
        assert at_once <= 128 * KIB
        self.clock.pump([PIECE] * 16)
        assert self.world.keeper.bytes_verified == at_once + RATE
        assert 6.8 <= self.took(reading) <= 7.0

    def test_half_of_it_beside_uploads(self) -> None:
        """While somebody uploads, or has been told to, the disk is theirs."""
        self.keep(1, size=1024 * KIB)
        self.clock.advance(FRESH * PERIOD + 1)
        request_id = self.world.offered(2)
        upload = self.world.receive(request_id, self.world.source(b"x"), 5)
        assert 1.9 <= self.took(self.tick()) <= 2.0
        assert not upload.called

    def test_an_operator_who_waits_is_not_kept_waiting(self) -> None:
        """A backup that is asked for while it is being read is read to its end at once."""
        self.world = self.scrubbing("slow", scrub_rate=KIB)
        backup, reading = self.reading()
        now(self.world.keeper.verify(backup.backup_id))
        self.clock.advance(LOOK_UP)
        now(reading)
        assert self.look(backup).verified_at == self.clock.seconds()
        assert self.world.keeper.bytes_verified == backup.size, "it was read twice"

    def test_one_at_a_time(self) -> None:
        """And the state tells which."""
        first, reading = self.reading()
        self.keep(2)
        state = self.world.scrub.state
        assert state is not None
        assert state.reading == first.backup_id
        assert list(self.world.keeper.verifying) == [first.backup_id]
        self.took(reading)
        state = self.world.scrub.state
        assert state is not None
        assert state.reading is None

    def test_off_the_reactor(self) -> None:
        """Opening, reading and hashing are done by threads; nothing is read before they do."""
        self.keep(1)
        self.clock.advance(FRESH * PERIOD + 1)
        off = ManualOff()
        set_attribute(self, self.world.keeper, "_off", off)
        reading = self.tick()
        for name in ("begin", "read_on"):
            assert off.names == [name]
            off.release()
        self.clock.advance(1)
        off.release_all()
        now(reading)

    def test_it_reads_from_the_disk(self) -> None:
        """What the memory still has says nothing about the disk: it is let go first."""
        asked: list[str] = []

        class Watched:
            def __getattr__(self, name: str) -> Any:
                return getattr(SYSTEM, name)

            def posix_fadvise(self, _: int, offset: int, length: int, advice: int) -> None:
                if advice == os.POSIX_FADV_DONTNEED:
                    asked.append(f"forget {offset} {length}")

            def fstat(self, fd: int) -> Any:
                asked.append("look")
                return SYSTEM.fstat(fd)

        self.keep(1, size=150 * KIB)
        self.clock.advance(FRESH * PERIOD + 1)
        set_attribute(self, self.world.storage, "_fs", Watched())
        self.took(self.tick())
        assert "look" in asked
        assert asked[0] == "forget 0 0"


class RestartTests(ScrubCase):
    def test_it_goes_on_where_it_was(self) -> None:
        """What was read before a restart is not read again after it."""
        backups = [self.keep(number) for number in range(6)]
        self.clock.advance(FRESH * PERIOD + 1)
        self.live(12 * DAY, step=DAY)
        before = [self.look(backup) for backup in backups]
        done = [one.verified_at != one.stored_at for one in before]
        assert done == sorted(done, reverse=True)
        assert 0 < sum(done) < 6
        self.world = self.world.restart()
        self.live(TICK)
        after = [self.look(backup) for backup in backups]
        assert after[: sum(done)] == before[: sum(done)]
        assert after[sum(done)] != before[sum(done)]

    def test_a_file_too_large_to_finish_starves_nobody(self) -> None:
        """A restart every minute: the large one never comes to its end, all others do."""
        large = self.keep(1, size=120 * RATE)
        self.clock.advance(TICK)
        others = [self.keep(number) for number in range(2, 8)]
        self.clock.advance(FRESH * PERIOD + 1)
        for _ in range(10):
            reading = self.tick()
            self.clock.pump([1.0] * 30)
            # The process ends: nothing of it goes on.
            self.world.scrub.stop()
            now(reading)
            self.world = self.world.restart()
        assert self.look(large).verified_at == large.verified_at
        for backup in others:
            assert self.look(backup).verified_at != backup.verified_at

    def test_a_stop_does_not_wait_for_the_end(self) -> None:
        """The reading is left off after its piece, with no verdict, and the file is closed."""
        backup = self.keep(1, size=1024 * KIB)
        self.clock.advance(FRESH * PERIOD + 1)
        reading = self.tick()
        self.world.scrub.stop()
        now(reading)
        assert self.look(backup) == backup
        assert self.world.keeper.verifying == {}
        assert self.clock.getDelayedCalls() == []
        read = self.world.keeper.bytes_verified
        assert read < backup.size
        now(self.tick())
        assert self.world.keeper.bytes_verified == read


class TroubleTests(ScrubCase):
    def test_rot_is_found(self) -> None:
        """Marked on the list and beside the file; the others are read all the same."""
        rotten, well = self.keep(1), self.keep(2)
        data = bytearray(self.path(rotten).read_bytes())
        data[500] ^= 1
        self.path(rotten).write_bytes(data)
        self.clock.advance(FRESH * PERIOD + 1)
        self.live(20 * DAY, step=DAY)
        found = self.look(rotten)
        assert found.problem is not None
        assert "SHA-256" in found.problem
        assert found.verified_at == rotten.verified_at
        assert "SHA-256" in (self.path(rotten).parent / "backup.json").read_text()
        assert self.look(well).problem is None
        assert self.look(well).verified_at != well.verified_at
        assert now(self.world.ledger.condition()).damaged == 1

    def test_one_wrong_reading_is_no_rot(self) -> None:
        """A bit that turned over on its way from the disk is not found a second time."""
        backup = self.keep(1)
        data, path = self.path(backup).read_bytes(), self.path(backup)
        wrong = [True]
        real = self.world.storage.open

        def open_it(kept: Backup) -> Any:
            path.write_bytes(data[:-1] + b"?" if wrong.pop() else data)
            wrong.append(False)
            return real(kept)

        set_attribute(self, self.world.storage, "open", open_it)
        assert now(self.world.keeper.verify(backup.backup_id)).problem is None
        wrong[:] = [True]
        path.chmod(0o600)
        set_attribute(self, self.world.storage, "open", real)
        path.write_bytes(data[:-1] + b"?")
        assert now(self.world.keeper.verify(backup.backup_id)).problem is not None

    def test_deleted_while_it_is_read(self) -> None:
        backup = self.keep(1, size=1024 * KIB)
        self.clock.advance(FRESH * PERIOD + 1)
        reading = self.tick()
        now(self.world.keeper.delete(backup.backup_id))
        self.clock.pump([0.1] * 15)
        now(reading)

    def test_one_that_cannot_be_noted_keeps_nobody(self) -> None:
        """A failure at one backup is told, and the next is another."""
        first, second = self.keep(1), self.keep(2)
        verify = self.world.keeper.verify

        async def failing(backup_id: str, *more: Any) -> Backup:
            if backup_id == first.backup_id:
                raise LedgerFailed("The ledger could not commit.")
            return await verify(backup_id, *more)

        set_attribute(self, self.world.keeper, "verify", failing)
        self.clock.advance(FRESH * PERIOD + 1)
        self.live(20 * DAY, step=DAY)
        assert self.look(second).verified_at != second.verified_at

    def test_a_disk_that_cannot_be_read(self) -> None:
        """An error of the disk is damage too, in its words."""
        backup = self.keep(1)

        def fails(_: Backup) -> None:
            raise StorageFailed("Could not open it: Input/output error.")

        set_attribute(self, self.world.storage, "open", fails)
        self.clock.advance(FRESH * PERIOD + 1)
        now(self.tick())
        assert "Input/output error" in (self.look(backup).problem or "")
        assert logged(self) == []
