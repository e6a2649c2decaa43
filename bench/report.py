"""Rows: what was measured, beside what, whether that is what is expected; one table, one JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from bench.peers import Peers

__all__ = ["Bench", "Row", "beside", "found", "print_table", "spread", "within", "write_json"]


@dataclass(frozen=True, slots=True)
class Bench:
    """What every section is told: where it may write, how much it shall send, and how often."""

    folder: Path
    size: int
    runs: int
    say: Callable[[str], None]
    peers: Peers


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. ``held`` is None where nothing is expected."""

    what: str
    ours: str
    beside: str = ""
    ratio: str = ""
    expected: str = ""
    held: bool | None = None
    raw: Mapping[str, object] = field(default_factory=dict)


def spread(values: Sequence[float], form: str = "{:.0f}") -> str:
    """The median, and from where to where."""
    middle = form.format(median(values))
    if len(values) == 1:
        return middle
    return f"{middle}  ({form.format(min(values))} - {form.format(max(values))})"


def beside(
    what: str,
    ours: Sequence[float],
    name: str,
    other: Sequence[float],
    *,
    form: str = "{:.0f}",
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """Ours divided by another's, round by round: what the machine does to a round, it does to
    both."""
    ratio = median(mine / its for mine, its in zip(ours, other, strict=True))
    expected, held = _limits(ratio, "{:g} x", at_least, at_most)
    return Row(
        what=what,
        ours=spread(ours, form),
        beside=f"{name}\n{spread(other, form)}",
        ratio=f"{ratio:.2f} x",
        expected=expected,
        held=held,
        raw={"backupd": list(ours), name: list(other), "ratio": ratio},
    )


def within(
    what: str,
    values: Sequence[float],
    *,
    form: str = "{:.0f}",
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> Row:
    """Ours against a figure; their median counts."""
    expected, held = _limits(median(values), "{:g}", at_least, at_most)
    return Row(
        what=what,
        ours=spread(values, form) + (f"\n{note}" if note else ""),
        expected=expected,
        held=held,
        raw={"backupd": list(values)},
    )


def found(what: str, name: str, values: Sequence[float], *, form: str = "{:.0f}") -> Row:
    """What is told of another, or of the machine, for its own sake."""
    return Row(what=what, ours="", beside=f"{name}\n{spread(values, form)}", raw={name: [*values]})


def _limits(
    value: float, form: str, at_least: float | None, at_most: float | None
) -> tuple[str, bool | None]:
    if at_least is not None:
        return f"{form.format(at_least)} at least", value >= at_least
    if at_most is not None:
        return f"{form.format(at_most)} at most", value <= at_most
    return "", None


def print_table(console: Console, rows: Sequence[Row], caption: str) -> None:
    """Every row, with its verdict; what several rows tell of is said once."""
    table = Table("measurement", "backupd", "beside", "ratio", "expected", "", caption=caption)
    verdicts = {None: "", True: "[green]PASS[/]", False: "[red]miss[/]"}
    before = None
    for row in rows:
        if row.what != before and before is not None:
            table.add_section()
        what = row.what if row.what != before else ""
        before = row.what
        table.add_row(what, row.ours, row.beside, row.ratio, row.expected, verdicts[row.held])
    console.print(table)


def write_json(path: Path, rows: Sequence[Row], told: Mapping[str, object]) -> None:
    """The raw numbers, and on what they were found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [
        {"what": row.what, "expected": row.expected, "held": row.held, **row.raw} for row in rows
    ]
    path.write_text(json.dumps({**told, "rows": listed}, indent=1) + "\n", "utf-8")
