"""The receiver does what the model says, whatever a sender does and whenever it crashes."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Coroutine
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from backupd.peer.exchange import Reply
from backupd.requests import state_name
from tests.simulation.history import History
from tests.simulation.model import OVER, READY, Model
from tests.simulation.plan import Plan
from tests.simulation.stranger import Asked

T = TypeVar("T")
SIZES = st.sampled_from([1, 2, 511, 4096, 4097, 20_000])


def a_plan() -> Plan:
    """One receiver, and nothing that happens by itself."""
    plan = Plan(0)
    plan.machines = {
        "A": {
            "reserved_space": 65536,
            "max_concurrent_transfers": 2,
            "max_per_peer": 2,
            "offer_lease": 600.0,
        }
    }
    plan.capacity = {"A": 4_000_000}
    plan.weather = {"pieces": 3, "bandwidth": 1e6, "delay": (0.0005, 0.01)}
    return plan


class Senders(RuleBasedStateMachine):
    """A sender asks, uploads, breaks off, completes and gives up; the receiver crashes."""

    @initialize(seed=st.integers(0, 1000))
    def begin(self, seed: int) -> None:
        plan = a_plan()
        plan.seed = seed
        self.history = History(plan, None)
        self.receiver = self.history.machines["A"]
        self.stranger = self.history.stranger
        self.rng = random.Random(seed)
        self.receiver.start()
        self.asked: list[Asked] = []
        self.models: list[Model] = []
        self.pass_time(0.5)

    # -- tools ------------------------------------------------------------------------------------

    def pass_time(self, seconds: float) -> None:
        timeline = self.history.timeline
        end = timeline.now + seconds
        while timeline.step(end):
            self.history.look()

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
        fit = [n for n, model in enumerate(self.models) if model.state in states]
        number = data.draw(st.sampled_from(fit or range(len(self.models))))
        return self.asked[number], self.models[number]

    def agree(self, reply: Reply | None, status: int | None) -> None:
        got = None if reply is None else reply.status
        assert got == status, f"answered {got}, not {status}: {reply and reply.body!r}"

    # -- what happens -----------------------------------------------------------------------------

    @precondition(lambda self: len(self.asked) < 6)
    @rule(size=SIZES)
    def ask(self, size: int) -> None:
        content = self.rng.randbytes(size)
        video = f"v{len(self.asked)}"
        self.history.watch.allow(self.stranger.url, video, content)
        work = self.stranger.ask(self.receiver.url, video, size, content=content)
        asked, status = self.do(work)
        assert status == 200
        assert asked.answer["success"] is True
        self.asked.append(asked)
        self.models.append(Model(size))
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
        assert self.do(self.stranger.ask_again(self.receiver.url, asked)) == 200
        if growth > 1_000_000:
            assert asked.answer["success"] is False
            asked.size, asked.answer = old, known
            return
        model.size = asked.size
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
        reply = self.do(self.stranger.post(asked, content, digest=digest, chunked=chunked))
        self.agree(reply, model.post(content, right=right))
        if reply is not None and reply.status == 200:
            answer = json.loads(reply.body)
            assert answer["sha256"] == hashlib.sha256(content).hexdigest()

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), part=st.floats(0.0, 0.99))
    def break_off(self, data: st.DataObject, part: float) -> None:
        asked, model = self.some(data, "OFFERED", "RECEIVING")
        if asked.upload is None or model.closed() or model.whole is not None:
            return
        sent = int(len(asked.content) * part)
        if sent == 0:
            return
        self.do(self.stranger.post(asked, asked.content, sent=sent, then="close"))
        model.post(asked.content, sent=sent)

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), shift=st.sampled_from([0, 0, 1, -1]), part=st.sampled_from([0.5, 1.0]))
    def go_on(self, data: st.DataObject, shift: int, part: float) -> None:
        asked, model = self.some(data, "RECEIVING")
        if asked.upload is None or model.state != "RECEIVING" or model.length is None:
            return
        offset = max(0, model.offset + shift)
        rest = asked.content[offset:]
        sent = int(len(rest) * part)
        if not sent:
            return
        if sent < len(rest):
            work = self.stranger.patch(asked, offset, rest, sent=sent, then="close")
            self.do(work)
            if model.patch(offset, rest, sent=sent) is None:
                return
        else:
            reply = self.do(self.stranger.patch(asked, offset, rest))
            self.agree(reply, model.patch(offset, rest))
        if model.state == "RECEIVED":
            model.whole = asked.content

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), how=st.sampled_from(["right", "right", "plain", "wrong size", "no"]))
    def finish(self, data: st.DataObject, how: str) -> None:
        asked, model = self.some(data, "RECEIVED", "RECEIVING", "STORED")
        if asked.complete is None:
            return
        success = how != "no"
        size = {"right": len(asked.content), "wrong size": len(asked.content) + 1}.get(how)
        if size == model.offset and model.whole is None:
            return
        before = asked.backup
        reply = self.do(self.stranger.finish(asked, success=success, size=size))
        self.agree(reply, model.complete(success=success, size=size))
        if reply is not None and reply.status == 200 and model.state == "STORED":
            asked.backup = json.loads(reply.body)
            assert before in (None, asked.backup), "the answer to a repeat is the same"
        self.pass_time(6.0)

    @precondition(lambda self: len(self.asked) > 1)
    @rule(data=st.data())
    def mix_up(self, data: st.DataObject) -> None:
        """A capability works for its own request only."""
        asked, model = self.some(data, "RECEIVED")
        if asked.complete is not None and model.state not in ("STORED", *OVER):
            other = next(one for one in self.asked if one is not asked)
            reply = self.do(self.stranger.finish(asked, video=other.video))
            self.agree(reply, 400)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def announce(self, data: st.DataObject) -> None:
        asked, model = self.some(data, "OFFERED")
        if asked.upload is not None and model.state != "PENDING":
            self.agree(self.do(self.stranger.announce(asked)), model.announce())

    @rule(power=st.booleans(), seconds=st.sampled_from([0.5, 30.0]))
    def crash(self, power: bool, seconds: float) -> None:
        """Nothing that was answered is lost, at any moment."""
        self.history.down_for["A"] = seconds
        self.receiver.crash(power=power)
        self.pass_time(seconds + 8.0)

    @rule(seconds=st.sampled_from([1.0, 60.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    # -- what must be true ------------------------------------------------------------------------

    @invariant()
    def states_agree(self) -> None:
        if not hasattr(self, "models"):
            return
        for asked, model in zip(self.asked, self.models, strict=True):
            row = self.receiver.books.rows[asked.answer["requestId"]]
            model.told(len(asked.links))
            assert state_name(row.request) == model.state, asked

    @invariant()
    def nobody_waits_beside_a_free_turn(self) -> None:
        if self._waiting_beside_a_free_turn():
            self.pass_time(11.0)
            self.states_agree()
            assert not self._waiting_beside_a_free_turn()

    def _waiting_beside_a_free_turn(self) -> bool:
        states = [model.state for model in getattr(self, "models", [])]
        return "PENDING" in states and sum(s in ("OFFERED", "RECEIVING") for s in states) < 2

    @invariant()
    def offsets_agree(self) -> None:
        for asked, model in zip(
            getattr(self, "asked", []), getattr(self, "models", []), strict=True
        ):
            if asked.upload is not None and model.state == "RECEIVING":
                assert self.do(self.stranger.standing(asked)) == model.head()

    def teardown(self) -> None:
        if hasattr(self, "history"):
            self.receiver.forget()


TestSenders = Senders.TestCase
TestSenders.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
