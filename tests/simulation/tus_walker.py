"""The walk goes on: uploads as tus knows them, on an offer's link and direct ones."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from backupd.peer.exchange import Reply
from backupd.receiver.intake import PATIENCE
from tests.simulation.model import Model, Upload
from tests.simulation.walker import SIZES, Walker

__all__ = ["Senders"]

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {"Content-Type": "application/offset+octet-stream"}


@dataclass(eq=False, repr=False)
class Known:
    """An upload that its client knows by its URL."""

    url: str
    upload: Upload
    content: bytes

    @property
    def owner(self) -> Model:
        return self.upload.owner


class Senders(Walker):
    """Senders that speak tus besides, and some that nobody calls back."""

    def __init__(self) -> None:
        super().__init__()
        self.known: list[Known] = []
        self.pairs: list[tuple[str, list[Known]]] = []
        """Parts that belong together, and where they are to be joined."""
        self.directs: list[tuple[str, Known]] = []

    def tus(
        self, method: str, url: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Reply | None:
        kind = BYTES if body or method == "PATCH" else {}
        return self.do(self.stranger.request(method, url, body, TUS | kind | (headers or {})))

    def create(
        self, at: str, model: Model, content: bytes, headers: dict[str, str], *, first: bytes
    ) -> Known | None:
        """A new upload, perhaps with its first bytes."""
        length = {"Upload-Length": str(len(content))}
        partial = headers.get("Upload-Concat") == "partial"
        status, upload = model.create(len(content), partial=partial, first=first)
        reply = self.tus("POST", at, headers | length, first)
        if model.direct and model not in self.ids:
            self.met(model)
        self.agree(reply, status)
        if reply is None or upload is None or "Location" not in reply.headers:
            return None
        if status == 201 and first:
            assert reply.headers["Upload-Offset"] == str(len(first))
        return Known(reply.headers["Location"], upload, content)

    def met(self, model: Model) -> None:
        """A direct upload's request is the newest that the receiver has and we did not ask for."""
        self.ids[model] = list(self.receiver.books.rows)[-1]

    def of(self, data: st.DataObject, *, unfinished: bool = False) -> Known:
        """One of the uploads, mostly one that is there still."""
        there = [
            number
            for number, one in enumerate(self.known)
            if one.upload in one.owner.uploads and not (unfinished and one.upload.whole)
        ]
        mostly: int = data.draw(st.integers(0, 5))
        fit = there if there and mostly else list(range(len(self.known)))
        return self.known[data.draw(st.sampled_from(fit))]

    # -- on a link --------------------------------------------------------------------------------

    @precondition(lambda self: any(one.upload for one, _ in self.asked))
    @rule(data=st.data(), how=st.sampled_from(["plain", "begun", "too long"]))
    def create_on_link(self, data: st.DataObject, how: str) -> None:
        asked, model = self.some(data, "OFFERED", "RECEIVING", "RECEIVED")
        if asked.upload is None:
            return
        content = asked.content + bytes(model.size) * (how == "too long")
        first = content[: data.draw(st.integers(1, len(content)))] if how == "begun" else b""
        known = self.create(asked.upload, model, content, {}, first=first)
        if known is not None:
            self.known.append(known)

    @precondition(lambda self: any(one.upload for one, _ in self.asked))
    @rule(data=st.data(), begun=st.sampled_from([(0, 0), (1, 1), (1, 1), (1, 0)]))
    def create_parts(self, data: st.DataObject, begun: tuple[int, int]) -> None:
        """Two halves of a video, with all their bytes or none."""
        asked, model = self.some(data, "OFFERED", "RECEIVING", "RECEIVED")
        if asked.upload is not None and len(asked.content) > 1:
            self.halves(asked.upload, [model, model], asked.content, begun)

    def halves(self, at: str, models: list[Model], content: bytes, begun: tuple[int, int]) -> None:
        cut = len(content) // 3 or 1
        pair = []
        for model, half, there in zip(models, (content[:cut], content[cut:]), begun, strict=True):
            kind = {"Upload-Concat": "partial"}
            known = self.create(at, model, half, kind, first=half if there else b"")
            if known is None:
                return
            pair.append(known)
            self.known.append(known)
        self.pairs.append((at, pair))

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        """Parts become one upload, when all of them are there; again gives the same."""
        number = data.draw(st.integers(0, len(self.pairs) - 1))
        at, pair = self.pairs[number]
        parts, owner = [one.upload for one in pair], pair[0].owner
        headers = {"Upload-Concat": "final;" + " ".join(one.url for one in pair)}
        content = b"".join(one.content for one in pair)
        if owner.direct:
            video = f"p{number}"
            self.history.watch.allow("local", video, content)
            headers["Upload-Metadata"] = f"videoId {b64encode(video.encode()).decode()}"
        if owner.direct:
            status, final = self.spec.join(parts)
        else:
            status, final = owner.join(parts), owner
        reply = self.tus("POST", at, headers)
        if final is not None and final not in self.ids:
            self.met(final)
        self.agree(reply, status)
        if reply is None or status != 201 or final is None or not final.uploads:
            return
        upload = next(one for one in final.uploads if one.parts == tuple(parts))
        if all(one.upload is not upload for one in self.known):
            self.known.append(Known(reply.headers["Location"], upload, content))

    # -- direct uploads ---------------------------------------------------------------------------

    @rule(data=st.data(), size=SIZES, how=st.sampled_from(["new", "begun", "whole", "again"]))
    def create_direct(self, data: st.DataObject, size: int, how: str) -> None:
        """Admission, offer and creation in one step; what is unfinished gives way to another."""
        at = f"{self.receiver.url}/api/v1/uploads"
        alive = [n for n, (_, one) in enumerate(self.directs) if one.owner.closed() is None]
        if how == "again" and alive:
            video, old = self.directs[data.draw(st.sampled_from(alive))]
            content, model = old.content, old.owner
            model.ask_again(model.size)
        elif len(self.directs) < 4:
            video, old = f"d{len(self.directs)}", None
            content = self.rng.randbytes(size)
            self.history.watch.allow("local", video, content)
            model = self.spec.ask(size, direct=True)
        else:
            return
        first = {"begun": content[: size // 2], "whole": content}.get(how, b"")
        told = {"Upload-Metadata": f"videoId {b64encode(video.encode()).decode()}"}
        known = self.create(at, model, content, told, first=first)
        assert known is not None, "its client learns where it is, whatever became of its bytes"
        if old is not None:
            assert old.url == known.url
            old.upload = known.upload
        else:
            self.directs.append((video, known))
            self.known.append(known)

    @precondition(lambda self: len(self.ids) < 12)
    @rule(size=SIZES, begun=st.sampled_from([(0, 0), (1, 1), (1, 1), (1, 0)]))
    def create_direct_parts(self, size: int, begun: tuple[int, int]) -> None:
        content = self.rng.randbytes(size + 1)
        cut = len(content) // 3 or 1
        for half in (content[:cut], content[cut:]):
            self.history.watch.allow_part("local", half)
        models = [
            self.spec.ask(length, direct=True, part=True) for length in (cut, len(content) - cut)
        ]
        self.halves(f"{self.receiver.url}/api/v1/uploads", models, content, begun)

    # -- each of them -----------------------------------------------------------------------------

    @precondition(lambda self: self.known)
    @rule(data=st.data(), how=st.sampled_from(["all", "all", "half", "cut", "offset", "too long"]))
    def patch(self, data: st.DataObject, how: str) -> None:
        one = self.of(data, unfinished=True)
        stands = len(one.upload.data)
        rest = one.content[stands:]
        offset = stands + (how == "offset")
        match how:
            case "half":
                rest = rest[: len(rest) // 2] or rest
            case "too long":
                rest += b"more"
        rest = rest or b"x"
        cut = len(rest) // 2 if how == "cut" and len(rest) > 1 else None
        headers = TUS | BYTES | {"Upload-Offset": str(offset)}
        then = "wait" if cut is None else "close"
        status = one.owner.patch(one.upload, offset, rest, sent=cut)
        reply = self.do(self.stranger.request("PATCH", one.url, rest, headers, sent=cut, then=then))
        if cut is not None:
            if status == 503:
                self.pass_time(PATIENCE + 1.0)  # it waits for its turn all the same
            return
        self.agree(reply, status)
        if reply is not None and status == 204:
            assert reply.headers["Upload-Offset"] == str(offset + len(rest))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Its client wants it no more."""
        one = self.of(data)
        status = one.owner.delete(one.upload)
        self.agree(self.tus("DELETE", one.url), status)

    @invariant()
    def uploads_stand_where_they_should(self) -> None:
        for one in self.known[-3:]:
            self.look(one)

    @precondition(lambda self: self.known)
    @rule()
    def look_at_all(self) -> None:
        """What is over is told to be, too."""
        for one in self.known:
            self.look(one)

    def look(self, one: Known) -> None:
        reply = self.tus("HEAD", one.url)
        assert reply is not None
        offset = reply.headers.get("Upload-Offset")
        told = reply.status, None if offset is None else int(offset)
        assert told == one.owner.head(one.upload), one.url
