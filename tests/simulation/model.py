"""The protocol as a sender may rely on it, in plain Python: the specification of one receiver.

Every method says what the answer to a message must be in the state at hand, and moves on. A body
that breaks off has no answer (None), and what arrived of it counts. What a crash leaves is what
had been answered before it. What only chance decides (who gets the next turn) is told from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

__all__ = ["ACTIVE", "MAX_TRIES", "OVER", "READY", "Model", "Receiver", "Upload"]

MAX_TRIES = 5
ACTIVE = ("OFFERED", "RECEIVING")
READY = (*ACTIVE, "RECEIVED")
OVER = ("EXPIRED", "CANCELLED", "FAILED")


@dataclass(eq=False, repr=False)
class Upload:
    """What a link's newest upload is, and a tus URL leads to."""

    owner: Model
    length: int
    data: bytes = b""
    room: int = 0
    """What is set aside for it of the reservation, from its first byte on."""

    partial: bool = False
    parts: tuple[Upload, ...] = ()

    @property
    def whole(self) -> bool:
        return len(self.data) == self.length


@dataclass(eq=False, repr=False)
class Receiver:
    """What all its requests share: turns, and the time. ``slack`` is how late time may be."""

    turns: int
    lease: float
    expiry: float
    slack: float
    now: float = 0.0
    requests: list[Model] = field(default_factory=list)

    def ask(self, size: int, *, direct: bool = False, part: bool = False) -> Model:
        expires = self.now + self.expiry if direct else inf
        self.requests.append(Model(self, size, direct, part, expires=expires))
        return self.requests[-1]

    def free(self, model: Model) -> bool:
        """Whether there is a turn for it; what is received holds none, and parts share one."""
        taken = {one.turn for one in self.requests if one.state in ACTIVE}
        return model.turn in taken or len(taken) < self.turns

    def shares(self, model: Model) -> bool:
        """Whether it is a part, and others of its peer have their turn, which is its own."""
        return model.part and any(one.part and one.state in ACTIVE for one in self.requests)

    def join(self, parts: Sequence[Upload]) -> tuple[int, Model | None]:
        """Direct uploads' parts become one video, with the room that they had.

        Asked for again, it is the same.
        """
        known = parts[0].owner
        if not known.part and known.closed() is not None:
            return 201 if known.state == "STORED" else 410, known
        if not known.part:
            return known.join(parts), known
        if not all(part in part.owner.uploads for part in parts):
            return 404, None
        final = self.ask(sum(part.length for part in parts), direct=True)
        for part in parts:
            part.owner.end("CANCELLED")
            part.owner = final
            final.uploads.append(part)
        return final.join(parts), final


@dataclass(eq=False, repr=False)
class Model:
    """What the receiver must do for one request of ``size`` bytes."""

    receiver: Receiver
    size: int
    direct: bool = False
    part: bool = False
    expires: float = inf
    lease: float = inf
    state: str = "PENDING"
    accepted: bool = False
    """It had a turn before; its time does not begin anew with the next one."""

    asleep: bool = False
    """A direct upload whose lease ran out waits for its client, and for no turn."""

    uploads: list[Upload] = field(default_factory=list)
    received: Upload | None = None
    stored: bytes | None = None
    tries: int = 0

    @property
    def turn(self) -> object:
        return "parts" if self.part else self

    # -- time, and turns --------------------------------------------------------------------------

    def offered(self) -> None:
        """Its turn has come, or it has come for its turn."""
        receiver = self.receiver
        self.state, self.asleep, self.lease = "OFFERED", False, receiver.now + receiver.lease
        if not self.accepted:
            self.accepted, self.expires = True, receiver.now + receiver.expiry

    def told(self) -> None:
        """An offer has come, and was taken; those that repeat the last one change nothing."""
        late = self.state in ACTIVE and self.receiver.now >= self.lease - self.receiver.slack
        if self.state == "PENDING" or late:
            self.offered()

    def time_passes(self) -> None:
        """Without a byte for a whole lease the turn is another's; and everything ends some day."""
        now = self.receiver.now - self.receiver.slack
        if self.closed() is None and self._over_at() <= now:
            self.end("EXPIRED")
        elif self.state in ACTIVE and self.lease <= now:
            self.state, self.asleep = "PENDING", self.direct

    def _over_at(self) -> float:
        """A turn that came just before the end is kept for its lease."""
        if self.state not in ACTIVE:
            return self.expires
        return max(self.expires, min(self.lease, self.expires + self.receiver.lease))

    def due(self) -> list[float]:
        """When time ends something of it."""
        if self.closed() is not None:
            return []
        return [self._over_at(), *([self.lease] if self.state in ACTIVE else [])]

    def may_be_offered(self) -> bool:
        """Whether there is a turn for it, and it is in line for one."""
        return self.state == "PENDING" and not self.asleep and self.receiver.free(self)

    def waits(self) -> bool:
        """Whether it waits beside a turn that is free. A part has that of the others for the
        asking, and may stand in line as long as nobody asks.
        """
        return self.may_be_offered() and not self.receiver.shares(self)

    def restarted(self) -> None:
        """What could be joined, and had no turn, is joined; what was set aside in vain is free."""
        for one in self.uploads:
            one.room = min(one.room, one.length)
        for final in [one for one in self.uploads if one.parts and not one.whole]:
            self._join(final)

    # -- steps that messages share ----------------------------------------------------------------

    def closed(self) -> int | None:
        """How anything but ``complete`` is answered once it is over."""
        if self.state == "STORED":
            return 409
        return 410 if self.state in OVER else None

    def end(self, state: str) -> None:
        self.state, self.uploads = state, []

    def _receiving(self) -> int | None:
        """The first byte comes; 503 when there is no turn for it."""
        if self.state not in ACTIVE and not self.receiver.free(self):
            return 503
        if self.state == "PENDING":
            self.offered()
        self.state, self.lease = "RECEIVING", self.receiver.now + self.receiver.lease
        return None

    def _set_aside(self, upload: Upload, room: int) -> None:
        """Others give way where it does not fit beside them: first what is not finished, by age."""
        upload.room = room
        for one in sorted(self.uploads, key=lambda one: one.whole and not one.partial):
            if sum(each.room for each in self.uploads if each is not upload) + room <= self.size:
                break
            if one.room and one is not upload:
                self._drop(one)

    def _drop(self, upload: Upload) -> None:
        """With a part goes what waits for it."""
        self.uploads = [
            one
            for one in self.uploads
            if one is not upload and (one.whole or upload not in one.parts)
        ]

    def _take(self, upload: Upload, data: bytes, sent: int | None) -> int | None:
        if (status := self._receiving()) is not None:
            return status
        if not upload.data:
            self._set_aside(upload, upload.room or upload.length)
        upload.data += data[:sent]
        receiver = self.receiver
        self.lease, self.expires = receiver.now + receiver.lease, receiver.now + receiver.expiry
        if sent is not None and sent < len(data):
            return None
        if upload.whole and not upload.partial:
            self._received(upload)
        for final in [one for one in self.uploads if upload in one.parts and upload.whole]:
            self._join(final)
        return 204

    def _received(self, upload: Upload) -> None:
        """All is there; of a direct upload that is its end."""
        self.state, self.received = "RECEIVED", upload
        self.expires = self.receiver.now + self.receiver.expiry
        if self.direct:
            self._store(upload)

    def _store(self, upload: Upload) -> None:
        self.stored = upload.data
        self.end("STORED")

    def _join(self, final: Upload) -> int:
        """The parts' bytes become the whole's, as soon as all are there."""
        if final.whole or not all(one.whole and one in self.uploads for one in final.parts):
            return 201
        if (status := self._receiving()) is not None:
            return status
        self.uploads = [one for one in self.uploads if one not in final.parts]
        final.data = b"".join(part.data for part in final.parts)
        final.room = final.length
        self._received(final)
        return 201

    def _wrong(self, state: str) -> int:
        """Other bytes than were meant."""
        self.state, self.tries = state, self.tries + 1
        if self.tries >= MAX_TRIES:
            self.end("FAILED")
        return 422

    def _no_more(self, upload: Upload) -> int | None:
        """How it is answered when an upload is over, or its request is."""
        if self.direct and upload.partial and upload not in self.uploads:
            return 410
        if (status := self.closed()) is not None:
            return status
        return None if upload in self.uploads else 404

    # -- the link ---------------------------------------------------------------------------------

    def ask_again(self, size: int) -> None:
        """Who asks is there: it waits for its turn, and the time for offers begins anew."""
        self.size, self.asleep = size, False
        if self.state == "PENDING" and not self.accepted:
            self.expires = inf

    def announce(self) -> int:
        if (status := self.closed()) is not None:
            return status
        if self.state in ("PENDING", "OFFERED"):
            return self._receiving() or 200
        return 200

    def post(
        self, content: bytes, *, right: bool = True, chunked: bool = False, sent: int | None = None
    ) -> int | None:
        """A new upload. One in chunks may need all the room that there is."""
        if (status := self.closed()) is not None:
            return status
        if not content:
            return 400
        if len(content) > self.size:
            return 413
        upload = Upload(self, len(content), room=self.size if chunked else 0)
        if self.state not in ACTIVE and not self.receiver.free(self):
            return 503
        if not right:
            self._receiving()
            self._set_aside(upload, len(content))
            return self._wrong("RECEIVING")
        self.uploads.append(upload)
        return None if self._take(upload, content, sent) is None else 200

    def newest(self) -> Upload | None:
        """What the link stands for as a tus resource: what is received, else the newest."""
        if self.state == "RECEIVED":
            return self.received
        own = [one for one in self.uploads if not one.partial and not one.parts]
        return own[-1] if own else None

    def complete(self, *, success: bool = True, size: int | None = None) -> int:
        if self.state == "STORED":
            return 200 if success else 409
        if self.state in OVER:
            return 200 if self.state == "FAILED" and not success else 410
        if not success:
            self.end("FAILED")
            return 200
        whole = [one for one in self.uploads if one.whole and not one.partial]
        if not whole:
            return 409
        if size is not None and size != whole[-1].length:
            if self.state != "RECEIVED":
                self.expires = self.receiver.now + self.receiver.expiry
            self.uploads = []
            return self._wrong("PENDING")
        self._store(whole[-1])
        return 200

    def cancel(self) -> int:
        """The operator does not want it."""
        if (status := self.closed()) is None:
            self.end("CANCELLED")
        return status or 200

    # -- tus 1.0.0 --------------------------------------------------------------------------------

    def create(
        self, length: int, *, partial: bool = False, first: bytes = b""
    ) -> tuple[int, Upload | None]:
        """A new upload, perhaps with its ``first`` bytes; a direct one is its request's only."""
        if (status := self.closed()) is not None:
            return status, None
        if length > self.size:
            return 413, None
        if self.direct:
            self.uploads = []
        upload = Upload(self, length, partial=partial)
        self.uploads.append(upload)
        status = self._take(upload, first, None) if first else 204
        return 201 if status == 204 else status or 0, upload

    def join(self, parts: Sequence[Upload]) -> int:
        """An upload that joins others; asked for again, it is the same."""
        if (status := self.closed()) is not None:
            return status
        for one in self.uploads:
            if one.parts == tuple(parts):
                return self._join(one)
        if not all(part in self.uploads for part in parts):
            return 404
        if not all(part.partial for part in parts):
            return 403
        length = sum(part.length for part in parts)
        if length > self.size:
            return 413
        self.uploads.append(Upload(self, length, parts=tuple(parts)))
        return self._join(self.uploads[-1])

    def head(self, upload: Upload | None) -> tuple[int, int | None]:
        """Status and offset. What joins parts tells none before it is whole."""
        if self.direct and self.stored is not None and upload is not None and not upload.partial:
            return 200, len(self.stored)
        if upload is None:
            return (200, 0) if (status := self.closed()) is None else (status, None)
        if (status := self._no_more(upload)) is not None:
            return status, None
        return 200, None if upload.parts and not upload.whole else len(upload.data)

    def patch(
        self, upload: Upload, offset: int, data: bytes, *, sent: int | None = None
    ) -> int | None:
        """Going on; what was sent before is what the upload has."""
        if (status := self._no_more(upload)) is not None:
            return status
        if upload.parts:
            return 403
        if self.direct and self.state == "PENDING" and not self.receiver.free(self):
            self.asleep = False
            return 503
        if self.direct and self.state == "PENDING" and not self.receiver.shares(self):
            self.offered()
        if offset != len(upload.data):
            return 409
        if upload.whole or offset + len(data) > upload.length:
            return 413
        return self._take(upload, data, sent)

    def delete(self, upload: Upload) -> int:
        """An upload is ended; with a direct one its request is."""
        if (status := self._no_more(upload)) is not None:
            return status
        if self.direct:
            self.end("CANCELLED")
            return 204
        self._drop(upload)
        if self.state == "RECEIVED" and self.received not in self.uploads:
            self.state = "PENDING"
        return 204
