"""Charts of many boxes as SVG: bars of classes, histograms, and densities over width and height."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from gkd_fast.report.charts import COLOURS, figure, ticks

Across = Callable[[float], float]

STYLE = """
.chart .bar{opacity:.75}.chart .outline{fill:none;stroke-width:2}.chart .mark{stroke:var(--ink);stroke-dasharray:3 3}
.chart .band{fill:var(--ink);opacity:.09}.chart text.note{fill:var(--ink);font-size:10.5px}
.chart .anchor{fill:none;stroke:var(--ink);stroke-width:1.6}.chart .axis{font-size:11px}
"""

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 44, 40
_BIN = 0.25  # of an octave
_LETTER = 6.2


@dataclass(frozen=True)
class Mark:
    """A place on the horizontal axis, or a stretch of it, with what it means."""

    low: float
    high: float
    text: str


def class_bars(title: str, note: str, names: Sequence[str], counts: Mapping[str, Sequence[int]], *, most: int) -> str:
    """A row for each class with a bar for each split, as long as the logarithm of the number beside it.

    Args:
        title, note: the caption.
        names: of the classes, from top to bottom.
        counts: of every split, the number of boxes of each class.
        most: the number of the longest bar.
    """
    row = 12 * len(counts) + 8
    left = 16 + _LETTER * min(max(len(name) for name in names), 28)
    parts = []
    for at, name in enumerate(names):
        top = 4 + at * row
        shown = name if len(name) <= 28 else f"{name[:27]}…"
        parts.append(
            f'<text x="{left - 8:.1f}" y="{top + row / 2 - 1:.1f}" text-anchor="end">{escape(shown)}'
            f"<title>{escape(name)}</title></text>"
        )
        for number, own in enumerate(counts.values()):
            y, width = top + 12 * number, (_WIDTH - left - 60) * math.log1p(own[at]) / math.log1p(most)
            parts.append(
                f'<rect class="bar" x="{left:.1f}" y="{y}" width="{width:.1f}" height="10" fill="{COLOURS[number]}"/>'
                f'<text class="note" x="{left + width + 4:.1f}" y="{y + 9}">{own[at]:,}</text>'
            )
    return figure(title, note, "".join(parts), (_WIDTH, 4 + row * len(names)), _colours(counts))


def histogram(
    title: str,
    note: str,
    edges: np.ndarray,
    values: Mapping[str, np.ndarray],
    labels: Mapping[float, str],
    marks: Sequence[Mark] = (),
    *,
    x_label: str,
) -> str:
    """The share of each split's values in every bin: the first split filled, the second as an outline.

    Args:
        title, note: the caption.
        edges: float [n + 1] of the bins; what lies beyond them counts in the outer bins.
        values: float [B] of every split; a split without any is left out.
        labels: of the horizontal axis, by their place on it.
        marks: lines and stretches.
        x_label: what the values are, with their unit.
    """
    last = np.nextafter(edges[-1], -np.inf)
    shares = {
        name: np.histogram(np.clip(own, edges[0], last), edges)[0] / len(own)
        for name, own in values.items()
        if len(own)
    }
    if not shares:
        return ""
    most = max(float(own.max()) for own in shares.values())
    across = _across(float(edges[0]), float(edges[-1]))
    parts = _bands(marks, across)
    for value in ticks(0, 100 * most, 5):
        y = _down(value / 100, most)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value:g}%</text>')
    for number, own in enumerate(shares.values()):
        parts.append(_steps(own, edges, across, most, COLOURS[number], filled=number == 0))
    parts += _axis(labels, across, x_label) + _lines(marks, across)
    return figure(title, note, "".join(parts), (_WIDTH, _HEIGHT), _colours(shares))


def density(
    title: str, note: str, shapes: np.ndarray, fits: np.ndarray, anchors: np.ndarray, *, limits: tuple[float, float]
) -> str:
    """Where boxes lie by width and height, both on a logarithmic scale, with the anchors as crosses.

    Args:
        title, note: the caption.
        shapes: float [B,2], width and height in pixels.
        fits: bool [B], whether an anchor fits the box.
        anchors: float [A,2], width and height in pixels.
        limits: log2 of the least and the greatest side that is drawn.
    """
    low, high = limits
    height = _WIDTH * 3 // 4
    across = _across(low, high)
    span = height - _TOP - _BOTTOM

    def down(value: float) -> float:
        return round(_TOP + (high - value) / (high - low) * span, 1)

    edges = np.arange(low, high + _BIN / 2, _BIN)
    at = np.clip(np.log2(np.maximum(shapes, 2.0**low)), low, high - 1e-9)
    total, fitting = (np.histogram2d(own[:, 0], own[:, 1], bins=[edges, edges])[0] for own in (at, at[fits]))
    parts = []
    for value in range(math.ceil(low), math.floor(high) + 1):
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down(value)}" y2="{down(value)}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{down(value) + 4}" text-anchor="end">{2**value:g}</text>')
    deepest = math.log1p(total.max())
    for column, line in zip(*np.nonzero(total), strict=True):
        x, y = across(edges[column]), down(edges[line + 1])
        wide, tall = across(edges[column + 1]) - x, down(edges[line]) - y
        own, good = int(total[column, line]), int(fitting[column, line])
        colour = COLOURS[0] if 2 * good >= own else COLOURS[1]
        parts.append(
            f'<rect x="{x}" y="{y}" width="{wide:.1f}" height="{tall:.1f}" fill="{colour}" '
            f'opacity="{0.15 + 0.85 * math.log1p(own) / deepest:.2f}"><title>{own:,} boxes, {own - good:,} without a '
            "fitting anchor</title></rect>"
        )
    for width, tall in np.log2(anchors):
        if low <= width <= high and low <= tall <= high:
            x, y = across(width), down(tall)
            parts.append(f'<path class="anchor" d="M{x - 4} {y - 4}l8 8m0 -8l-8 8"/>')
    powers = {float(k): f"{2**k:g}" for k in range(math.ceil(low), math.floor(high) + 1)}
    parts += _axis(powers, across, "width, pixels; height upwards", height)
    colours = {"an anchor fits": COLOURS[0], "no anchor fits": COLOURS[1], "crosses: anchors": "transparent"}
    return figure(title, note, "".join(parts), (_WIDTH, height), colours)


def octave_edges(values: Sequence[np.ndarray], least: float, most: float) -> np.ndarray:
    """Edges of bins of a quarter octave, as log2, around values in pixels that include `least` and `most`."""
    found = [own[own > 0] for own in values if len(own)]
    low = min([least, *(float(own.min()) for own in found)])
    high = max([most, *(float(own.max()) for own in found)])
    return np.arange(math.floor(math.log2(low)), math.ceil(math.log2(high) + 1e-9) + _BIN / 2, _BIN)


def powers_of_two(edges: np.ndarray) -> dict[float, str]:
    """The labels of an axis of log2."""
    return {float(k): f"{2.0**k:g}" for k in range(math.ceil(edges[0]), math.floor(edges[-1]) + 1)}


def _colours(names: Mapping[str, object]) -> dict[str, str]:
    return dict(zip(names, COLOURS, strict=False))


def _across(low: float, high: float) -> Across:
    """From a value of the horizontal axis to its place."""
    return lambda value: round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)


def _down(share: float, most: float) -> float:
    return round(_HEIGHT - _BOTTOM - share / most * (_HEIGHT - _TOP - _BOTTOM), 1)


def _steps(shares: np.ndarray, edges: np.ndarray, across: Across, most: float, colour: str, *, filled: bool) -> str:
    base = _HEIGHT - _BOTTOM
    points = [f"{across(edges[0])},{base}"]
    for share, left, right in zip(shares, edges, edges[1:], strict=False):
        points += [f"{across(left)},{_down(share, most)}", f"{across(right)},{_down(share, most)}"]
    points.append(f"{across(edges[-1])},{base}")
    if filled:
        return f'<polygon class="bar" points="{" ".join(points)}" fill="{colour}"/>'
    return f'<polyline class="outline" points="{" ".join(points)}" stroke="{colour}"/>'


def _axis(labels: Mapping[float, str], across: Across, x_label: str, height: int = _HEIGHT) -> list[str]:
    parts = [
        f'<text x="{across(place)}" y="{height - _BOTTOM + 15}" text-anchor="middle">{escape(text)}</text>'
        for place, text in labels.items()
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return [*parts, f'<text x="{middle}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>']


def _bands(marks: Sequence[Mark], across: Across) -> list[str]:
    return [
        f'<rect class="band" x="{across(mark.low)}" y="{_TOP}" width="{across(mark.high) - across(mark.low):.1f}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM}"/>'
        for mark in marks
        if mark.high > mark.low
    ]


def _lines(marks: Sequence[Mark], across: Across) -> list[str]:
    """Dashed lines, their texts in rows above the chart so that no two of a row touch."""
    parts, ends = [], [-math.inf] * 3
    for mark in sorted(marks, key=lambda own: own.low):
        x = across((mark.low + mark.high) / 2)
        half = _LETTER * len(mark.text) / 2
        shown = min(max(x, half + 2), _WIDTH - half - 2)
        row = next((k for k, end in enumerate(ends) if shown - half > end + 4), len(ends) - 1)
        ends[row] = shown + half
        for place in sorted({mark.low, mark.high}):
            parts.append(
                f'<line class="mark" x1="{across(place)}" x2="{across(place)}" y1="{12 + 14 * row}" '
                f'y2="{_HEIGHT - _BOTTOM}"/>'
            )
        parts.append(f'<text class="note" x="{shown:.1f}" y="{11 + 14 * row}" text-anchor="middle">{mark.text}</text>')
    return parts
