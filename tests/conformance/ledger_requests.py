"""What every `ILedger` does with requests and their uploads."""

from __future__ import annotations

import pytest

from backupd.errors import LedgerFailed, NoSuchRequest, Over, WrongState
from backupd.interfaces import Room, Totals
from backupd.requests import (
    BackupRequest,
    Failed,
    Pending,
    VideoId,
    ended,
    lapsed,
)
from tests.conformance.ledger_case import (
    LedgerCase,
    Step,
    broken,
    cancel,
    refuse_offer,
    same,
    store,
)
from tests.conformance.samples import (
    NOW,
    an_ask,
    an_upload,
    plenty,
    to_offered,
    to_received,
    to_receiving,
    to_storing,
)
from tests.outcomes import result_of

__all__ = ["RequestTests"]


class RequestTests(LedgerCase):
    """Admission, steps, reservations, uploads."""

    # admission

    def test_admit(self) -> None:
        """What was admitted is there, whole, by its id and by its capability."""
        request = self.admit(video=2)
        assert request == Pending(ask=an_ask(video=2), due_at=NOW)
        assert self.request() == request
        assert result_of(self.ledger.by_capability("capability-1")) == request
        assert self.totals() == Totals(promised=50, pending=1, active=0, live=1)

    def test_video_ids_keep_their_kind(self) -> None:
        """``2`` comes back as 2 and ``"2"`` as "2", also the largest and the strangest."""
        videos: list[VideoId] = [2, 0, 2**53 - 1, "x" * 128, "é/../\u202e", "%_'\"", " ", "-0"]
        for number, video in enumerate(videos):
            self.admit(str(number), video=video)
            found = self.request(str(number)).ask.video
            assert found == video
            assert type(found) is type(video)

    def test_room_is_asked_with_what_is_promised(self) -> None:
        """The question is put with the sum promised to others and the bytes that come on top."""
        asked: list[tuple[int, int]] = []

        def room(promised: int, growth: int) -> Room:
            asked.append((promised, growth))
            return Room(available=1000)

        for name, size in (("1", 50), ("2", 70), ("1", 60)):
            result_of(self.ledger.admit(an_ask(name, size=size), room, now=NOW, max_pending=9))
        assert asked == [(0, 50), (50, 70), (120, 10)]
        assert self.totals().promised == 130

    def test_refused(self) -> None:
        """What does not fit leaves no trace, and the room there was is told."""
        small = Room(available=10, reason="insufficient-space")
        answer = self.ledger.admit(an_ask(), lambda p, g: small, now=NOW, max_pending=9)
        assert result_of(answer) == (None, small)
        assert self.totals() == Totals(promised=0, pending=0, active=0, live=0)
        with pytest.raises(NoSuchRequest):
            self.request()

    def test_queue_full(self) -> None:
        """More than ``max_pending`` do not wait; those that have their turn do not count, and
        whoever waits already may ask again.
        """
        self.admit("1")
        request, room = result_of(self.ledger.admit(an_ask("2"), plenty, now=NOW, max_pending=1))
        assert (request, room.reason) == (None, "queue-full")
        again, _ = result_of(self.ledger.admit(an_ask("1"), plenty, now=NOW, max_pending=1))
        assert again is not None
        self.change("1", to_offered)
        request, _ = result_of(self.ledger.admit(an_ask("2"), plenty, now=NOW, max_pending=1))
        assert request is not None

    def test_never_fits_is_told_before_queue_full(self) -> None:
        """Whom waiting cannot help is not told to come again."""
        self.admit("1")
        huge = Room(available=10, reason="too-large")
        answer = self.ledger.admit(an_ask("2"), lambda p, g: huge, now=NOW, max_pending=1)
        assert result_of(answer) == (None, huge)

    def test_asked_again(self) -> None:
        """The same video of the same peer is the same request: link and size change, the id
        and the capability stay, and there is one reservation.
        """
        self.admit("1", video=2)
        again = self.admit("new", video="2", size=70)
        assert again.ask.request_id == "request-1"
        assert again.ask.capability == "capability-1"
        assert again.ask.callback.endswith("/ready/new")
        assert self.request() == again
        assert self.totals() == Totals(promised=70, pending=1, active=0, live=1)
        with pytest.raises(NoSuchRequest):
            self.request("new")

    def test_growth_that_does_not_fit(self) -> None:
        """The old promise stands."""
        before = self.admit("1")
        answer = self.ledger.admit(
            an_ask("1", size=51, callback="http://localhost:3002/other"),
            lambda p, g: Room(available=0, reason="insufficient-space"),
            now=NOW,
            max_pending=9,
        )
        assert result_of(answer)[0] is None
        assert self.request() == before
        assert self.totals().promised == 50

    def test_no_growth_needs_no_room(self) -> None:
        """A smaller or equal size is granted although the volume is full by now."""
        self.admit("1")
        full = Room(available=0, reason="insufficient-space")
        for size in (50, 30):
            request, room = result_of(
                self.ledger.admit(an_ask("1", size=size), lambda p, g: full, now=NOW, max_pending=9)
            )
            assert request is not None
            assert room.reason is None
        assert self.totals().promised == 30

    def test_growth_counts_what_is_allocated(self) -> None:
        """Only what passes the blocks that are there already is new."""
        self.admit("1")
        self.change("1", to_receiving, put=an_upload(allocated=80))
        asked: list[tuple[int, int]] = []

        def room(promised: int, growth: int) -> Room:
            asked.append((promised, growth))
            return Room(available=1000)

        result_of(self.ledger.admit(an_ask("1", size=100), room, now=NOW, max_pending=9))
        assert asked == [(0, 20)]
        assert self.totals().promised == 20

    def test_other_peer_other_request(self) -> None:
        """Two peers may each have a video of that name."""
        self.admit("1", video=2)
        self.admit("2", video=2, peer="http://localhost:3003")
        assert self.totals().live == 2
        assert len(result_of(self.ledger.live_for(2, None, 10))) == 2
        (found,) = result_of(self.ledger.live_for("2", "http://localhost:3003", 10))
        assert found.ask.request_id == "request-2"

    def test_room_that_fails(self) -> None:
        """What the look at the volume raises reaches the caller, and nothing is promised."""

        def room(promised: int, growth: int) -> Room:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            result_of(self.ledger.admit(an_ask(), room, now=NOW, max_pending=9))
        assert self.totals().live == 0

    # steps

    def test_every_state_comes_back(self) -> None:
        """Each state is read as it was written."""
        steps: list[Step] = [to_offered, to_receiving, to_received, to_storing]
        for number, step in enumerate(steps):
            name = str(number)
            self.admit(name)
            changed = self.change(name, step)
            assert changed == self.request(name)
            assert changed == step(Pending(ask=an_ask(name), due_at=NOW))
        self.admit("5")
        self.change("5", refuse_offer(NOW + 5))
        self.change("5", lambda r: lapsed(to_offered(r), now=NOW + 1e6))
        pending = self.request("5")
        assert isinstance(pending, Pending)
        assert pending.accepted
        assert pending.last_error is not None
        assert self.change("5", cancel) == self.request("5")

    def test_what_a_step_raises(self) -> None:
        """It reaches the caller as it is, and all stays as it was."""
        before = self.admit("1")
        totals = self.totals()
        with pytest.raises(ZeroDivisionError):
            self.change("1", broken, put=an_upload(allocated=10), drop=("upload-1",))
        with pytest.raises(WrongState):
            self.change("1", store, put=an_upload())
        assert self.request() == before
        assert self.totals() == totals
        assert result_of(self.ledger.uploads(None)) == []

    def test_unknown_request(self) -> None:
        """What was never asked is not there."""
        self.admit("1")
        with pytest.raises(NoSuchRequest):
            self.request("2")
        with pytest.raises(NoSuchRequest):
            self.change("2")
        for capability in ("", "capability-2", "Capability-1", "\ud800"):
            with pytest.raises(NoSuchRequest):
                result_of(self.ledger.by_capability(capability))
        with pytest.raises(NoSuchRequest):
            result_of(self.ledger.last_ended("1", None))

    def test_release(self) -> None:
        """Every way out gives the room back, once, and forgets the uploads."""
        ways: list[tuple[Step, Step]] = [
            (same, cancel),
            (to_offered, lambda r: ended(r, Failed, reason="gave up", now=NOW)),
            (to_receiving, cancel),
            (to_received, cancel),
            (to_storing, store),
        ]
        self.admit("other", size=7)
        for number, (step, out) in enumerate(ways):
            name = str(number)
            self.admit(name)
            self.change(name, step, put=an_upload(name, name, allocated=20))
            assert self.totals().promised == 7 + 30
            self.change(name, out)
            assert self.totals() == Totals(promised=7, pending=1, active=0, live=1)
            assert result_of(self.ledger.uploads(f"request-{name}")) == []
            if step is not to_storing:
                with pytest.raises(Over):
                    self.change(name, cancel)
            self.change(name, same, put=an_upload(name, name, allocated=20))
            assert self.totals() == Totals(promised=7, pending=1, active=0, live=1)
            assert result_of(self.ledger.uploads(None)) == []

    def test_totals_by_state(self) -> None:
        """PENDING waits, OFFERED and RECEIVING have a turn, RECEIVED and STORING hold none."""
        for name in "12345":
            self.admit(name)
        self.change("2", to_offered)
        self.change("3", to_receiving)
        self.change("4", to_received)
        self.change("5", to_storing)
        assert self.totals() == Totals(promised=250, pending=1, active=2, live=5)

    def test_watch(self) -> None:
        """Every change that was committed is told, in order; what changed nothing is not."""
        seen: list[BackupRequest] = []
        self.ledger.watch(seen.append)
        first = self.admit("1")
        second = self.change("1", to_offered)
        self.change("1", same, put=an_upload())
        with pytest.raises(ZeroDivisionError):
            self.change("1", broken)
        third = self.change("1", cancel)
        assert seen == [first, second, third]

    # uploads

    def test_uploads(self) -> None:
        """Uploads are told oldest first, of one request or of all."""
        self.admit("1")
        self.admit("2")
        self.change("1", to_receiving, put=an_upload("b", "1", length=None))
        self.change("2", to_receiving, put=an_upload("c", "2"))
        self.change("1", same, put=an_upload("a", "1", sha256="ef" * 32, file_name="é"))
        self.change("1", same, put=an_upload("b", "1", offset=9, length=50))
        of_one = result_of(self.ledger.uploads("request-1"))
        assert of_one == [
            an_upload("b", "1", offset=9, length=50),
            an_upload("a", "1", sha256="ef" * 32, file_name="é"),
        ]
        assert len(result_of(self.ledger.uploads(None))) == 3
        self.change("1", same, drop=("upload-b", "upload-none"))
        assert result_of(self.ledger.uploads("request-1")) == of_one[1:]

    def test_offsets_never_decrease(self) -> None:
        """An offset that was durable stays so; the step that would lower it does not happen."""
        self.admit("1")
        self.change("1", to_receiving, put=an_upload(offset=40, allocated=50))
        before = self.request()
        with pytest.raises(LedgerFailed, match="cannot go back"):
            self.change("1", cancel, put=an_upload(offset=39))
        assert self.request() == before
        (upload,) = result_of(self.ledger.uploads("request-1"))
        assert (upload.offset, upload.allocated) == (40, 50)
        self.change("1", same, put=an_upload(offset=40, allocated=0))
        (upload,) = result_of(self.ledger.uploads("request-1"))
        assert (upload.offset, upload.allocated) == (40, 0)

    def test_allocated_is_not_promised(self) -> None:
        """Blocks on the volume are no promise any more; without them it is one again, and
        more blocks than were promised do not lend to others.
        """
        self.admit("1")
        self.admit("2", size=5)
        self.change("1", to_receiving, put=an_upload("a", allocated=20))
        assert self.totals().promised == 35
        self.change("1", same, put=an_upload("b", allocated=100))
        assert self.totals().promised == 5
        self.change("1", same, drop=("upload-b",))
        assert self.totals().promised == 35
        self.change("1", same, put=an_upload("a", allocated=0))
        assert self.totals().promised == 55
