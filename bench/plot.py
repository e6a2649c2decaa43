"""Plots as SVG, written by hand: how something grows, a panel for each measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

__all__ = ["Measure", "panels"]

_WIDTH, _HEIGHT, _GAP = 300, 170, 64
_TOP, _LEFT = 56, 56
_ROW = _HEIGHT + 68
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.t{font-weight:600}.h{font-size:15px}"
    ".g{stroke:#ddd}.l{fill:none;stroke:#0b6e99;stroke-width:2}.p{fill:#0b6e99}"
    ".x{stroke:#c0392b;stroke-dasharray:5 4}.e{fill:#c0392b}"
)


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure at each step; ``limit`` is what is expected of it."""

    title: str
    values: Sequence[float]
    form: str = "{:.0f}"
    limit: float | None = None


def _nice(highest: float) -> float:
    """A step of the grid, so that four or five lines reach ``highest``."""
    rough = (highest or 1.0) / 4
    power = 10.0 ** floor(log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough)


def panels(
    title: str,
    along: str,
    steps: Sequence[str],
    measures: Sequence[Measure],
    *,
    per_row: int = 0,
) -> str:
    """The panels side by side, ``per_row`` of them, or all; each from 0.

    The steps stand at equal distances, and those without a name have no label.
    """
    per_row = per_row or len(measures)
    width = _LEFT + per_row * (_WIDTH + _GAP)
    height = _TOP + ceil(len(measures) / per_row) * _ROW - 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text class="t h" x="{_LEFT}" y="22">{escape(title)}</text>',
    ]
    for number, measure in enumerate(measures):
        row, column = divmod(number, per_row)
        left = _LEFT + column * (_WIDTH + _GAP)
        parts += _panel(left, _TOP + row * _ROW, along, steps, measure)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(left: int, top: int, along: str, steps: Sequence[str], measure: Measure) -> list[str]:
    highest = max(*measure.values, measure.limit or 0.0)
    step = _nice(highest)
    lines = max(1, ceil(highest / step))
    bottom = top + _HEIGHT
    radius = 3.5 if len(steps) < 20 else 1.5

    def x(at: int) -> float:
        return left + 14 + at * (_WIDTH - 28) / max(1, len(steps) - 1)

    def y(value: float) -> float:
        return bottom - value / (lines * step) * _HEIGHT

    parts = [f'<text class="t" x="{left}" y="{top - 12}">{escape(measure.title)}</text>']
    for line in range(lines + 1):
        at = y(line * step)
        label = f"{line * step:g}"
        parts.append(f'<path class="g" d="M{left} {at:.1f}h{_WIDTH}"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    if measure.limit is not None:
        parts.append(f'<path class="x" d="M{left} {y(measure.limit):.1f}h{_WIDTH}"/>')
    points = " ".join(f"{x(at):.1f},{y(v):.1f}" for at, v in enumerate(measure.values))
    parts.append(f'<polyline class="l" points="{points}"/>')
    for at, (name, value) in enumerate(zip(steps, measure.values, strict=True)):
        parts.append(
            f'<circle class="p" cx="{x(at):.1f}" cy="{y(value):.1f}" r="{radius}">'
            f"<title>{escape(name)}: {measure.form.format(value)}</title></circle>"
        )
        if name:
            label = f'<text x="{x(at):.1f}" y="{bottom + 18}" text-anchor="middle">{name}</text>'
            parts.append(label)
    middle = left + _WIDTH / 2
    parts.append(
        f'<text x="{middle}" y="{bottom + 38}" text-anchor="middle">{escape(along)}</text>'
    )
    return parts
