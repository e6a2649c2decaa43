"""Constants of the daemon that a history turns: with small blocks a small video is a long one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

from werkzeug.routing import Rule

from backupd.peer import file_body
from backupd.receiver import blocks, joining, trash
from backupd.sender import delivery, lanes

__all__ = ["turned"]


def _no_builder(*_: object) -> None:
    """Builds no URL."""
    raise NotImplementedError


@contextmanager
def turned(knobs: Mapping[str, int]) -> Iterator[None]:
    """Small blocks make a small video a long one."""
    with (
        patch.object(blocks, "BLOCK", knobs["BLOCK"]),
        patch.object(blocks, "SYNC_BYTES", knobs["SYNC_BYTES"]),
        # Most histories are over within an hour, and what falls out of retention is to be seen.
        patch.object(trash, "PASS_EVERY", 60.0),
        patch.object(file_body, "BLOCK", knobs["FILE_BLOCK"]),
        patch.object(file_body, "SLICE", knobs["SLICE"]),
        patch.object(delivery, "PIECES", (knobs["PIECE"], 16 * knobs["PIECE"])),
        patch.object(delivery, "MIB", min(knobs["PIECE"], delivery.MIB)),
        patch.object(delivery, "WORTH", knobs["WORTH"]),
        patch.object(delivery, "JOINING", (float(knobs["JOINING"]), delivery.JOINING[1])),
        patch.object(lanes, "LEAST", knobs["LEAST"]),
        patch.object(joining, "STRIDE", knobs["STRIDE"]),
        patch.object(joining, "LEAST_STRIDE", min(knobs["STRIDE"], joining.LEAST_STRIDE)),
        patch.object(lanes, "TRIAL", knobs["TRIAL"]),
        patch.object(lanes, "LARGER", knobs["LARGER"]),
        # A part is never long enough to be told by its seconds here; by its round trips it may be.
        patch.object(lanes, "TELLING", 0.0),
        patch.object(lanes, "ROUNDS", knobs["ROUNDS"]),
        # Half of the time of a start goes into compiling what builds URLs; nothing here does.
        patch.object(Rule, "_compile_builder", lambda self, append_unknown=True: _no_builder),
    ):
        yield
