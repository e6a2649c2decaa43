"""What a receiver answers, and what its ledger has at that moment: no byte is acknowledged that is
not durable, and none that was acknowledged is taken back. And how many videos a sender sends.

It listens to every connection, whoever is at its other side.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.requests import Cancelled, Received, Stored, Storing
from tests.simulation.machine import Machine

if TYPE_CHECKING:
    from tests.simulation.history import History
    from tests.simulation.process import Process
    from tests.simulation.transport import End

__all__ = ["Answers"]

METHODS = (b"HEAD ", b"PATCH ", b"POST ")
TARGETS = "/api/v1/backup/receive-backup", "/api/v1/backup/complete-backup", "/api/v1/uploads"
OFFSET = re.compile(rb"^Upload-Offset: (\d+)\r$", re.MULTILINE | re.IGNORECASE)
LOCATION = re.compile(rb"^Location: (\S+)\r$", re.MULTILINE | re.IGNORECASE)
SIZE = re.compile(rb'"size": ?(\d+)')


@dataclass(slots=True)
class _Standing:
    """What there is of an upload's URL: bytes by upload, and the one that it names."""

    offsets: dict[str, int]
    named: str = ""


@dataclass(slots=True)
class _Question:
    """A request on its way, what stood when it was made, and how much had been told by then."""

    method: str
    target: str
    stood: _Standing
    told: int


class Answers:
    """Follows questions and answers about offsets."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._asked: dict[End, _Question] = {}
        self._bodies: dict[End, _Question] = {}
        """Answers of which the head has been written, and a body is to follow."""
        self._links: dict[tuple[str, str], str] = {}
        """The request of each link that was used."""
        self._parts: dict[str, str] = {}
        """What a request for a part of a direct upload has, wherever it belongs by now."""
        self._told: dict[str, int] = {}

    def heard(self, end: End, data: bytes) -> None:
        """Somebody writes to a connection."""
        if data.startswith(METHODS):
            self._question(end.other, data)
        elif end in self._bodies:
            self._said(end, self._bodies.pop(end), SIZE.search(data))
        elif data.startswith(b"HTTP/1.1 ") and end in self._asked:
            self._answer(end, self._asked[end], data)

    def _question(self, end: End, data: bytes) -> None:
        self._asked.pop(end, None)
        self._bodies.pop(end, None)
        method, target = data.partition(b"\r\n")[0].decode("latin-1").split(" ")[:2]
        machine = self._machine(end)
        if machine is not None and target.startswith(TARGETS):
            stood = self._standing(machine, target)
            told = self._told.get(stood.named, 0)
            self._asked[end] = _Question(method, target, stood, told)
            if method != "HEAD" and "/receive-backup/" in target:
                self._sending(end.other.process)

    def _sending(self, process: Process) -> None:
        """A sender has begun one more request with bytes: it sends so many videos at once."""
        sender = process.machine
        if not isinstance(sender, Machine):
            return
        links: dict[str, None] = {}
        for end, question in list(self._asked.items()):
            theirs = end.other
            if theirs.closed or theirs.disconnecting or not theirs.connected:
                del self._asked[end]
            elif theirs.process is process and question.method != "HEAD":
                _, found, rest = question.target.partition("/receive-backup/")
                if found:
                    links[rest.partition("/")[0]] = None
        most = sender.settings.max_sends
        if len(links) > most:
            self._history.violations.append(
                f"{sender.name} sends {len(links)} videos at once; {most} are allowed"
            )

    def _answer(self, end: End, question: _Question, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 1"):
            del self._asked[end]
        head, _, body = data.partition(b"\r\n\r\n")
        head += b"\r\n"
        place = LOCATION.search(head)
        if place is not None:
            path = place[1].decode("latin-1").partition("//")[2].partition("/")[2]
            question = _Question(question.method, f"/{path}", _Standing({}), 0)
            machine = self._machine(end)
            if machine is not None:
                # While it is there: a part may soon belong to another request.
                self._standing(machine, question.target)
        offset = OFFSET.search(head)
        if offset is not None:
            self._said(end, question, offset)
        elif question.method == "POST" and data.startswith(b"HTTP/1.1 200 "):
            if body:
                self._said(end, question, SIZE.search(body))
            else:
                self._bodies[end] = question

    def _said(self, end: End, question: _Question, found: re.Match[bytes] | None) -> None:
        """So many bytes are acknowledged."""
        machine = self._machine(end)
        if found is None or machine is None:
            return
        said, stood = int(found[1]), question.stood
        stands = self._standing(machine, question.target)
        most = max((*stood.offsets.values(), *stands.offsets.values()), default=0)
        what = f"{machine.name} answers {said} to {question.method} {question.target}"
        if said > most:
            self._history.violations.append(f"{what}: {most} bytes are durable")
        elif stands.named and stands.named == stood.named and said < question.told:
            self._history.violations.append(f"{what}, and had answered {question.told}")
        elif stands.named:
            there = min(said, stands.offsets[stands.named])
            self._told[stands.named] = max(there, self._told.get(stands.named, 0))

    def _machine(self, end: End) -> Machine | None:
        machine = self._history.network.machines.get(end.host.port)
        return machine if isinstance(machine, Machine) else None

    def _standing(self, machine: Machine, target: str) -> _Standing:
        """What there is of the uploads that a URL may mean."""
        parts = target.partition("?")[0].split("/")
        link, upload_id = [*parts[4 if parts[3] == "uploads" else 5 :], "", ""][:2]
        request_id, books = self._request(machine, link), machine.books
        upload_id, row = upload_id or self._parts.get(request_id, ""), books.rows.get(request_id)
        uploads = [one for _, one in books.uploads.values() if one.request_id == request_id]
        own = [one for one in uploads if not one.partial and not one.parts]
        if upload_id:
            found = books.uploads.get(upload_id)
            own = uploads = [] if found is None else [found[1]]
        elif row is not None and row.request.ask.part and uploads:
            self._parts[request_id] = uploads[0].upload_id
            own = uploads
        offsets = {one.upload_id: one.offset for one in uploads}
        if row is not None and isinstance(row.request, Received | Stored):
            offsets[""] = row.request.size
        elif row is not None and isinstance(row.request, Storing):
            offsets[""] = row.request.backup.size
        elif row is not None and isinstance(row.request, Cancelled):
            # It may have been taken back between the commit and the answer.
            watch = self._history.watch
            offsets[""] = max(watch.had(request_id), watch.reached(upload_id))
        return _Standing(offsets, own[-1].upload_id if own else "")

    def _request(self, machine: Machine, link: str) -> str:
        known = self._links.get((machine.name, link), "")
        if known or not link:
            return known
        for request_id, row in machine.books.rows.items():
            if row.request.ask.capability == link:
                self._links[machine.name, link] = request_id
                return request_id
        return ""
