"""Where the bytes of an entry are on their way to, as its record keeps it over a restart."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from backupd.interfaces import Entry

__all__ = ["Part", "Places", "recorded"]


@dataclass(frozen=True, slots=True)
class Part:
    """An upload of the ``length`` bytes from ``start`` on."""

    start: int
    length: int
    url: str

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Places:
    """The uploads that were made on one offer's ``link``.

    Either none, or one of the whole file, or parts of it that are to be joined: without gaps,
    from the first byte on, in order.
    """

    link: str
    whole: str | None = None
    parts: tuple[Part, ...] = ()

    def also(self, part: Part) -> Places:
        """With one part more."""
        return replace(self, parts=(*self.parts, part))

    @property
    def end(self) -> int:
        """Where the last part ends."""
        return self.parts[-1].end if self.parts else 0

    def text(self) -> str:
        """As it is recorded."""
        parts = [[part.start, part.length, part.url] for part in self.parts]
        return json.dumps({"link": self.link, "whole": self.whole, "parts": parts})


def recorded(entry: Entry) -> Places:
    """What the entry's record says of the link that it has now; of another, nothing counts."""
    link = entry.upload_link or ""
    told = json.loads(entry.uploads) if entry.uploads else {}
    if told.get("link") != link:
        return Places(link)
    return Places(link, told["whole"], tuple(Part(*part) for part in told["parts"]))
