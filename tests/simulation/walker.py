"""Hypothesis walks through the protocol: a sender, its receiver, and the model beside it."""

from __future__ import annotations

import gc
import hashlib
import json
import random
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from twisted.logger import ILogObserver, globalLogPublisher

from backupd.peer.exchange import Reply
from backupd.requests import Stored, state_name
from tests.simulation.history import OPERATOR, History
from tests.simulation.model import ACTIVE, OVER, READY, Model, Receiver
from tests.simulation.plan import Plan
from tests.simulation.stranger import Asked

__all__ = ["EXPIRY", "LEASE", "Walker"]

T = TypeVar("T")
SIZES = st.sampled_from([1, 2, 511, 4096, 4097, 20_000])
LEASE, EXPIRY = 600.0, 1500.0
TURNS = 2
SLACK = 15.0
"""Seconds after which what is due has been done, and seen."""

AHEAD = 50.0
"""Seconds that a step takes at most, but for those that only let time pass."""

COLLECT_EVERY = 20
"""Examples after which everything that they left behind is taken apart."""


def a_plan() -> Plan:
    """One receiver, and nothing that happens by itself."""
    plan = Plan(0)
    plan.machines = {
        "A": {
            "reserved_space": 65536,
            "max_concurrent_transfers": TURNS,
            "max_per_peer": TURNS,
            "offer_lease": LEASE,
            "upload_expiry": EXPIRY,
        }
    }
    plan.capacity = {"A": 4_000_000}
    plan.weather = {"pieces": 3, "bandwidth": 1e6, "delay": (0.0005, 0.01)}
    return plan


class Walker(RuleBasedStateMachine):
    """A sender asks, uploads, breaks off, completes and gives up; the receiver crashes."""

    walked = 0

    def __init__(self) -> None:
        super().__init__()
        # What an example leaves behind is taken apart between examples, never in the middle of one.
        self.collecting = gc.isenabled()
        gc.disable()

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        plan = a_plan()
        plan.seed = seed
        self.history = History(plan, None)
        globalLogPublisher.addObserver(self.observer)
        self.receiver = self.history.machines["A"]
        self.stranger = self.history.stranger
        self.rng = random.Random(seed)
        self.receiver.start()
        self.asked: list[tuple[Asked, Model]] = []
        self.ids: dict[Model, str] = {}
        """Of every request that the receiver should have."""
        self.notices: dict[Model, int] = {}
        self.spec = Receiver(TURNS, LEASE, EXPIRY, SLACK)
        self.pass_time(0.5)

    @property
    def observer(self) -> ILogObserver:
        """A defect that the daemon logs is a violation."""
        return cast(ILogObserver, self.history.observe)

    # -- tools ------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        """Let so much happen, and more where something is due soon: a step has no part in that."""
        end = self.history.timeline.now + seconds
        while (now := self.history.timeline.now) < end:
            self._pass(min(end, now + 5.0))
            if now + 5.0 >= end and self._due_soon():
                end += 5.0

    def _pass(self, end: float) -> None:
        while self.history.timeline.step(end):
            self.history.look()
        self.spec.now = end
        for asked, model in self.asked:
            if len(asked.links) > self.notices.get(model, 0):
                self.notices[model] = len(asked.links)
                model.told()
        for model, request_id in self.ids.items():
            model.time_passes()
            if model.direct and model.state == "PENDING" and not model.asleep:
                # Nobody is called: only the receiver knows that its turn has come.
                request = self.receiver.books.rows[request_id].request
                if state_name(request) == "OFFERED" and self.spec.free(model):
                    model.offered()

    def _due_soon(self) -> bool:
        now = self.history.timeline.now
        return any(now - SLACK <= due <= now + AHEAD for one in self.ids for due in one.due())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Let it happen, and all that follows within a moment."""
        outcome: list[T] = []
        self.stranger.start(work).addCallback(outcome.append)
        end = self.history.timeline.now + 200.0
        while not outcome and self.history.timeline.step(end):
            self.history.look()
        self.pass_time(0.3)
        assert outcome, "it never ended"
        return outcome[0]

    def some(self, data: st.DataObject, *states: str) -> tuple[Asked, Model]:
        """One of the requests, in one of these states if there is one."""
        fit = [number for number, one in enumerate(self.asked) if one[1].state in states]
        return self.asked[data.draw(st.sampled_from(fit or range(len(self.asked))))]

    def agree(self, reply: Reply | None, status: int | None) -> None:
        got = None if reply is None else reply.status
        assert got == status, f"answered {got}, not {status}: {reply and reply.body!r}"

    # -- what happens -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.asked) < 6)
    @rule(size=SIZES, spare=st.sampled_from([1, 1, 2]))
    def ask(self, size: int, spare: int) -> None:
        content = self.rng.randbytes(size)
        video = f"v{len(self.asked)}"
        self.history.watch.allow(self.stranger.url, video, content)
        work = self.stranger.ask(self.receiver.url, video, spare * size, content=content)
        asked, status = self.do(work)
        assert status == 200
        assert asked.answer["success"] is True
        model = self.spec.ask(spare * size)
        self.asked.append((asked, model))
        self.ids[model] = asked.answer["requestId"]
        self.pass_time(6.0)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), growth=st.sampled_from([0, 1, 9_000_000]))
    def ask_again(self, data: st.DataObject, growth: int) -> None:
        """No second request; what does not fit is refused, and the old promise stands."""
        asked, model = self.some(data, "PENDING", "OFFERED")
        if model.closed():
            return
        known, old = asked.answer, asked.size
        asked.size += growth
        if growth <= 1:
            model.ask_again(asked.size)
        assert self.do(self.stranger.ask_again(self.receiver.url, asked)) == 200
        if growth > 1_000_000:
            assert asked.answer["success"] is False
            asked.size, asked.answer = old, known
            return
        assert asked.answer["requestId"] == known["requestId"]

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), how=st.sampled_from(["right", "right", "wrong", "long", "empty"]))
    def post(self, data: st.DataObject, how: str) -> None:
        asked, model = self.some(data, *READY)
        if asked.upload is None:
            return
        content = asked.content
        match how:
            case "long":
                content += bytes(model.size)
            case "empty":
                content = b""
        right = how != "wrong"
        digest = hashlib.sha256(content if right else b"other").digest()
        # An empty body in chunks shows only when it ends.
        chunked = data.draw(st.booleans()) and how == "right"
        status = model.post(content, right=right, chunked=chunked)
        reply = self.do(self.stranger.post(asked, content, digest=digest, chunked=chunked))
        self.agree(reply, status)
        if reply is not None and reply.status == 200:
            answer = json.loads(reply.body)
            assert answer["sha256"] == hashlib.sha256(content).hexdigest()

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), part=st.floats(0.0, 0.99))
    def break_off(self, data: st.DataObject, part: float) -> None:
        asked, model = self.some(data, "OFFERED", "RECEIVING")
        sent = int(len(asked.content) * part)
        if asked.upload is None or model.state not in ACTIVE or sent == 0:
            return
        model.post(asked.content, sent=sent)
        self.do(self.stranger.post(asked, asked.content, sent=sent, then="close"))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), shift=st.sampled_from([0, 0, 1, -1]), part=st.sampled_from([0.5, 1.0]))
    def go_on(self, data: st.DataObject, shift: int, part: float) -> None:
        """By the link itself."""
        asked, model = self.some(data, "RECEIVING")
        newest = model.newest()
        if asked.upload is None or model.state != "RECEIVING" or newest is None:
            return
        offset = max(0, len(newest.data) + shift)
        rest = asked.content[offset:]
        sent = int(len(rest) * part)
        if not sent:
            return
        cut = sent if sent < len(rest) else None
        status = model.patch(newest, offset, rest, sent=cut)
        work = self.stranger.patch(asked, offset, rest, sent=cut, then="close" if cut else "wait")
        reply = self.do(work)
        if cut is None:
            self.agree(reply, status)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), how=st.sampled_from(["right", "right", "plain", "wrong size", "no"]))
    def finish(self, data: st.DataObject, how: str) -> None:
        asked, model = self.some(data, "RECEIVED", "RECEIVING", "STORED")
        if asked.complete is None:
            return
        success = how != "no"
        size = {"right": len(asked.content), "wrong size": len(asked.content) + 1}.get(how)
        before = asked.backup
        status = model.complete(success=success, size=size)
        reply = self.do(self.stranger.finish(asked, success=success, size=size))
        self.agree(reply, status)
        if reply is not None and reply.status == 200 and model.stored is not None:
            asked.backup = json.loads(reply.body)
            assert before in (None, asked.backup), "the answer to a repeat is the same"
            assert asked.backup["sha256"] == hashlib.sha256(model.stored).hexdigest()
        self.pass_time(6.0)

    @precondition(lambda self: len(self.asked) > 1)
    @rule(data=st.data())
    def mix_up(self, data: st.DataObject) -> None:
        """A capability works for its own request only."""
        asked, model = self.some(data, "RECEIVED")
        if asked.complete is not None and model.state not in ("STORED", *OVER):
            other = next(one for one, _ in self.asked if one is not asked)
            reply = self.do(self.stranger.finish(asked, video=other.video))
            self.agree(reply, 400)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def announce(self, data: st.DataObject) -> None:
        asked, model = self.some(data, "OFFERED")
        if asked.upload is not None:
            status = model.announce()
            self.agree(self.do(self.stranger.announce(asked)), status)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """The operator does not want a request any more."""
        model = list(self.ids)[data.draw(st.integers(0, len(self.ids) - 1))]
        url = f"{self.receiver.url}/api/v1/backup/requests/{self.ids[model]}"
        status = model.cancel()
        self.agree(self.do(self.stranger.request("DELETE", url, headers=OPERATOR)), status)

    @rule(power=st.booleans(), seconds=st.sampled_from([0.5, 30.0]))
    def crash(self, power: bool, seconds: float) -> None:
        """Nothing that was answered is lost, at any moment."""
        self.history.down_for["A"] = seconds
        self.receiver.crash(power=power)
        self.pass_time(seconds + 8.0)
        for model in self.ids:
            model.restarted()

    @rule(seconds=st.sampled_from([1.0, 60.0, 60.0, LEASE, EXPIRY]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    # -- what must be true ------------------------------------------------------------------------

    @invariant()
    def states_agree(self) -> None:
        for model, request_id in getattr(self, "ids", {}).items():
            request = self.receiver.books.rows[request_id].request
            assert state_name(request) == model.state, request
            if isinstance(request, Stored):
                assert request.sha256 == hashlib.sha256(model.stored or b"").hexdigest()

    @invariant()
    def nobody_waits_beside_a_free_turn(self) -> None:
        if any(one.may_be_offered() for one in getattr(self, "ids", {})):
            self.pass_time(11.0)
            self.states_agree()
            assert not any(one.waits() for one in self.ids)

    @invariant()
    def offsets_agree(self) -> None:
        for asked, model in getattr(self, "asked", []):
            if asked.upload is not None and model.state == "RECEIVING":
                told = self.do(self.stranger.standing(asked))
                assert told == model.head(model.newest())

    def teardown(self) -> None:
        if hasattr(self, "history"):
            globalLogPublisher.removeObserver(self.observer)
            self.receiver.forget()
        Walker.walked += 1
        gc.collect(2 if Walker.walked % COLLECT_EVERY == 0 else 0)
        if self.collecting:
            gc.enable()
