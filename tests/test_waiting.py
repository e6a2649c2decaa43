"""Small tools for things that happen later."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from backupd.errors import BackupdError, UploadCut
from backupd.waiting import KeyedLocks, Round, go_on, shielded
from tests.outcomes import pending, result_of


class TestGoOn:
    """`go_on`"""

    def test_outcome(self) -> None:
        """The Deferred fires with what the work returns or raises."""

        async def work(wait: Deferred[int]) -> int:
            return await wait + 1

        wait: Deferred[int] = Deferred()
        done = go_on(work(wait))
        assert pending(done)
        wait.callback(1)
        assert result_of(done) == 2
        wait = Deferred()
        done = go_on(work(wait))
        wait.errback(ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            result_of(done)


class TestShielded:
    """`shielded`: what must not be cancelled is not."""

    def setup_method(self) -> None:
        self.wait: Deferred[int] = Deferred()
        self.steps: list[str] = []

    async def work(self) -> int:
        self.steps.append("begun")
        result = await self.wait
        self.steps.append("ended")
        return result

    def test_starts_at_once(self) -> None:
        """The work has begun when the call returns, and its outcome is passed on."""
        done = shielded(self.work())
        assert self.steps == ["begun"]
        self.wait.callback(5)
        assert result_of(done) == 5

    def test_failure(self) -> None:
        """What the work raises reaches the one who waits, and only him."""
        done = shielded(self.work())
        self.wait.errback(ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            result_of(done)

    def test_cancel(self) -> None:
        """Cancelling stops the waiting, not the work."""
        done = shielded(self.work())
        done.cancel()
        with pytest.raises(CancelledError):
            result_of(done)
        assert self.steps == ["begun"]
        self.wait.callback(5)
        assert self.steps == ["begun", "ended"]

    def test_foreseen_error_after_cancel(self) -> None:
        """That the client is gone concerns nobody but the client who is gone."""
        done = shielded(self.work())
        done.cancel()
        with pytest.raises(CancelledError):
            result_of(done)
        with capturedLogs() as logged:
            self.wait.errback(UploadCut("gone"))
        assert logged == []

    def test_defect_after_cancel(self) -> None:
        """A defect is never swallowed: with nobody waiting it goes to the log."""
        done = shielded(self.work())
        done.cancel()
        with pytest.raises(CancelledError):
            result_of(done)
        with capturedLogs() as logged:
            self.wait.errback(ZeroDivisionError())
        assert [event["log_failure"].type for event in logged] == [ZeroDivisionError]


class TestKeyedLocks:
    """`KeyedLocks`: one at a time, key by key."""

    def setup_method(self) -> None:
        self.locks = KeyedLocks()
        self.inside: list[str] = []

    def enter(self, key: str, name: str) -> tuple[Deferred[None], Deferred[None]]:
        """Hold ``key`` until the second Deferred fires; the first fires when all is over."""
        leave: Deferred[None] = Deferred()

        async def work() -> None:
            async with self.locks.hold(key):
                self.inside.append(name)
                try:
                    await leave
                finally:
                    self.inside.remove(name)

        return go_on(work()), leave

    def test_one_at_a_time(self) -> None:
        """Whoever comes second waits, and waiters come in order."""
        (one, leave_one), (two, leave_two), (three, leave_three) = (
            self.enter("key", name) for name in ("one", "two", "three")
        )
        assert self.inside == ["one"]
        leave_one.callback(None)
        result_of(one)
        assert self.inside == ["two"]
        leave_two.callback(None)
        result_of(two)
        assert self.inside == ["three"]
        leave_three.callback(None)
        result_of(three)

    def test_other_keys(self) -> None:
        """Another key waits for nobody."""
        one, leave_one = self.enter("a", "one")
        two, leave_two = self.enter("b", "two")
        assert self.inside == ["one", "two"]
        leave_one.callback(None)
        leave_two.callback(None)
        result_of(one)
        result_of(two)

    def test_error_inside(self) -> None:
        """What is raised inside lets go of the lock."""
        one, leave_one = self.enter("key", "one")
        two, leave_two = self.enter("key", "two")
        leave_one.errback(ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            result_of(one)
        assert self.inside == ["two"]
        leave_two.callback(None)
        result_of(two)

    def test_cancelled_waiter(self) -> None:
        """Whoever gives up waiting is passed over, and harms nobody."""
        one, leave_one = self.enter("key", "one")
        two, _ = self.enter("key", "two")
        three, leave_three = self.enter("key", "three")
        two.cancel()
        with pytest.raises(CancelledError):
            result_of(two)
        leave_one.callback(None)
        result_of(one)
        assert self.inside == ["three"]
        leave_three.callback(None)
        result_of(three)

    def test_nothing_is_kept(self) -> None:
        """A key that nobody holds or awaits takes no memory."""
        one, leave_one = self.enter("key", "one")
        two, _ = self.enter("key", "two")
        two.cancel()
        with pytest.raises(CancelledError):
            result_of(two)
        assert len(self.locks._locks) == 1
        leave_one.callback(None)
        result_of(one)
        assert self.locks._locks == {}


class TestWhenIdle:
    """`KeyedLocks.when_idle`: the end of everything that holds a lock."""

    def test_idle(self) -> None:
        """At once while nobody holds a lock, else once the last has let go."""
        locks = KeyedLocks()
        assert not pending(locks.when_idle())

        async def hold(key: str, until: Deferred[None]) -> None:
            async with locks.hold(key):
                await until

        ends: list[Deferred[None]] = [Deferred() for _ in range(3)]
        works = [go_on(hold(key, end)) for key, end in zip("aab", ends, strict=True)]
        assert ("a" in locks, "c" in locks, len(locks)) == (True, False, 2)
        idle = locks.when_idle()
        for end in ends:
            assert pending(idle)
            end.callback(None)
        assert not pending(idle)
        assert [pending(work) for work in works] == [False] * 3
        assert len(locks) == 0


class TestRound:
    """`Round`: a job of a loop, never twice at a time, never forgotten."""

    def setup_method(self) -> None:
        self.clock = Clock()
        self.begun: list[Deferred[None]] = []

        async def job() -> None:
            end: Deferred[None] = Deferred()
            self.begun.append(end)
            await end

        self.round = Round(job, self.clock)

    def test_asked_for_while_it_runs_it_runs_once_more(self) -> None:
        """What changed behind its back is not left to the next tick; however often it changed."""
        for _ in range(3):
            self.round.run()
        assert len(self.begun) == 1
        self.begun[0].callback(None)
        self.clock.advance(0)
        assert len(self.begun) == 2
        self.begun[1].callback(None)
        self.clock.advance(60)
        assert len(self.begun) == 2

    def test_it_goes_on_after_what_is_foreseen(self) -> None:
        self.round.run()
        self.begun[0].errback(BackupdError("The disk is full."))
        self.round.run()
        assert len(self.begun) == 2

    def test_it_goes_on_after_a_defect_which_is_told(self) -> None:
        self.round.run()
        with capturedLogs() as logged:
            self.begun[0].errback(ZeroDivisionError())
        assert [event["log_failure"].type for event in logged] == [ZeroDivisionError]
        self.round.run()
        assert len(self.begun) == 2

    def test_a_stop_waits_for_it_and_forgets_what_was_asked_for(self) -> None:
        self.round.run()
        self.round.run()
        stopped = self.round.stop()
        assert not stopped.called
        self.begun[0].callback(None)
        assert stopped.called
        self.clock.advance(60)
        self.round.run()
        assert len(self.begun) == 1
