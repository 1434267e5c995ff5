"""A chart of means with intervals and of the single values behind them, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from gkd_fast.study.statistics import Interval
from gkd_fast.ticks import round_step

_WIDTH, _ROW, _TOP, _BOTTOM, _RIGHT, _LETTER = 720, 30, 16, 44, 24, 7.5
_INK, _PALE, _GRID = "#1f4e79", "#d9822b", "#d0d0d0"


@dataclass(frozen=True)
class Row:
    """A line of the chart: name, the single values, and their mean with its interval."""

    name: str
    values: Sequence[float]
    interval: Interval


def interval_chart(rows: Sequence[Row], title: str) -> str:
    """Draw one line a row: values as small dots, the mean as a bar with its interval; the first mean is dashed.

    Args:
        rows: from top to bottom, at least one; the first is what the others are compared with.
        title: of the axis, with the unit.

    Returns:
        The text of an SVG file.
    """
    low, high, step = _axis(rows)
    left = 24 + _LETTER * max(len(row.name) for row in rows)
    bottom = _TOP + _ROW * len(rows)

    def x(value: float) -> str:
        return f"{left + (value - low) / (high - low) * (_WIDTH - _RIGHT - left):.1f}"

    marks = [f'<rect width="{_WIDTH}" height="{bottom + _BOTTOM}" fill="white"/>']
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        marks.append(f'<line x1="{x(value)}" x2="{x(value)}" y1="{_TOP}" y2="{bottom}" stroke="{_GRID}"/>')
        marks.append(f'<text x="{x(value)}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    base = x(rows[0].interval.mean)
    marks.append(f'<line x1="{base}" x2="{base}" y1="{_TOP}" y2="{bottom}" stroke="{_INK}" stroke-dasharray="4 3"/>')
    for number, row in enumerate(rows):
        marks += _row(row, _TOP + _ROW * (number + 0.5), left, x)
    marks.append(
        f'<text x="{(left + _WIDTH - _RIGHT) / 2:.1f}" y="{bottom + 36}" text-anchor="middle">{escape(title)}</text>'
    )
    size = f'viewBox="0 0 {_WIDTH} {bottom + _BOTTOM}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">'
    return "\n".join([head, *marks, "</svg>"])


def _row(row: Row, y: float, left: float, x: Callable[[float], str]) -> list[str]:
    half = row.interval.half_width or 0.0
    ends = x(row.interval.mean - half), x(row.interval.mean + half)
    mean = x(row.interval.mean)
    return [
        f'<text x="{left - 12:.1f}" y="{y + 4}" text-anchor="end">{escape(row.name)}</text>',
        f'<line x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}" stroke="{_INK}" stroke-width="2"/>',
        f'<line x1="{mean}" x2="{mean}" y1="{y - 8}" y2="{y + 8}" stroke="{_INK}" stroke-width="3"/>',
        *(f'<circle cx="{x(value)}" cy="{y}" r="4" fill="{_PALE}" fill-opacity="0.8"/>' for value in row.values),
    ]


def _axis(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Lower end, upper end and distance of the grid lines, round numbers, around all that is drawn."""
    reach = [(row.interval.mean, row.interval.half_width or 0.0) for row in rows]
    low = min([mean - half for mean, half in reach] + [value for row in rows for value in row.values])
    high = max([mean + half for mean, half in reach] + [value for row in rows for value in row.values])
    step = round_step(max(high - low, 1e-3), 6)
    first = math.floor(low / step) * step
    last = math.ceil(high / step) * step
    return first, max(last, first + step), step
