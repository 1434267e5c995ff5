"""Charts as SVG: lines, and the frame of any."""

from __future__ import annotations

import itertools
import math
from html import escape

from gkd_fast.ticks import round_step

Points = list[tuple[float, float]]

_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 30
COLOURS = ("#2a6fdb", "#e07b1a", "#2e9e6b", "#c2408f", "#7a5cd6", "#8a8f1d", "#d0433f", "#1b9aaa")


def line_chart(title: str, series: dict[str, Points], *, x_label: str = "step") -> str:
    """A chart of named lines, each a list of (x, y); lines without a finite point are left out.

    Returns:
        A figure element with caption and legend, or nothing where no line is left.
    """
    finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    shown = {name: points for name, points in finite.items() if points}
    if not shown:
        return ""
    xs, ys = zip(*(point for points in shown.values() for point in points), strict=True)
    x_ticks, y_ticks = ticks(min(0, min(xs)), max(xs)), ticks(min(0, min(ys)), max(ys))
    x_end, low, high = max(xs), y_ticks[0], max(y_ticks[-1], max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + x / (x_end or 1) * (_WIDTH - _LEFT - _RIGHT)
        down = _TOP + (high - y) / ((high - low) or 1) * (_HEIGHT - _TOP - _BOTTOM)
        return round(across, 1), round(down, 1)

    parts = []
    for value in y_ticks:
        _, y = place(0, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        x, _ = place(value, 0)
        parts.append(f'<text x="{x}" y="{_HEIGHT - 10}" text-anchor="middle">{value:g}</text>')
    colours = dict(zip(shown, itertools.cycle(COLOURS), strict=False))
    for name, points in shown.items():
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" stroke="{colours[name]}"><title>{escape(name)}</title></polyline>')
    return figure(title, f"by {x_label}", "".join(parts), (_WIDTH, _HEIGHT), colours)


def figure(title: str, note: str, drawing: str, size: tuple[int, int], colours: dict[str, str]) -> str:
    """A drawing in SVG with its caption and legend.

    Args:
        title, note: the caption, as text.
        drawing: SVG elements.
        size: width and height that they are drawn in.
        colours: what the legend names, and in which colour it is drawn.
    """
    legend = [f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in colours.items()]
    width, height = size
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <small>{escape(note)}</small></figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{drawing}</svg>'
        f'<div class="legend">{"".join(legend)}</div></figure>'
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers, at most `most`, from `low` or below to at most `high`."""
    if not high > low:
        return [low]
    step = round_step(high - low, most - 1)
    first = math.floor(low / step)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]
