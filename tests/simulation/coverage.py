"""Which states and moves a set of histories has been through, and which there are."""

from __future__ import annotations

__all__ = ["ENTRY_MOVES", "MOVES", "RARE", "STATES"]

STATES = (
    *("PENDING", "OFFERED", "RECEIVING", "RECEIVED", "STORING"),
    *("STORED", "EXPIRED", "CANCELLED", "FAILED"),
)

MOVES = (
    "nothing -> PENDING",
    *(f"PENDING -> {state}" for state in ("OFFERED", "RECEIVING", "EXPIRED", "CANCELLED")),
    *(f"OFFERED -> {state}" for state in ("PENDING", "RECEIVING", "CANCELLED")),
    *(f"RECEIVING -> {state}" for state in ("PENDING", "RECEIVED", "CANCELLED")),
    *(f"RECEIVED -> {state}" for state in ("PENDING", "RECEIVING", "STORING")),
    *(f"RECEIVED -> {state}" for state in ("EXPIRED", "CANCELLED")),
    *("STORING -> STORED", "kept -> trash", "kept -> gone"),
    *("OFFERED -> EXPIRED", "RECEIVING -> EXPIRED"),
    *(f"{state} -> FAILED" for state in ("PENDING", "OFFERED", "RECEIVING", "RECEIVED")),
)
"""Moves of a request that this simulation has to see."""

ENTRY_MOVES = (
    "nothing -> ASKING",
    "ASKING -> WAITING",
    "WAITING -> READY",
    "READY -> SENT",
    "SENT -> VERIFIED",
    "WAITING -> ASKING",
    "READY -> ASKING",
    "SENT -> READY",
    *(f"{state} -> CANCELLED" for state in ("ASKING", "WAITING", "READY")),
    *(f"{state} -> FAILED" for state in ("ASKING", "READY")),
    *("ASKING -> READY", "READY -> WAITING", "SENT -> ASKING", "VERIFIED -> READY"),
)
"""Moves of an entry of the outbox that this simulation has to see."""

RARE = (
    # A file that somebody takes away between two calls of `complete-backup`.
    "STORING -> FAILED",
    # Two commits, or more, between two looks.
    *(f"{state} -> STORING" for state in ("PENDING", "OFFERED", "RECEIVING")),
    *("SENT -> WAITING", "SENT -> CANCELLED"),
    # An entry's time is over: 30 days by default, and no history is as long but by a clock.
    *(f"{state} -> FAILED" for state in ("WAITING", "SENT")),
    # A receiver that names no digest: none of ours (tests/sender/test_sending.py).
    "SENT -> UNVERIFIED",
)
"""Moves that may be, and need not be seen. Any that is in none of these tables must not be."""
