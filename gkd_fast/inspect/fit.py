"""Sizes and shapes of boxes against the pyramid and its anchors, as a part of a page."""

from __future__ import annotations

from html import escape

import numpy as np

from gkd_fast.detectors.anchor_fit import ANCHOR_SIZES, MATCH, MOST_COMPARED, unmatched_by_size
from gkd_fast.inspect.charts import Mark, density, histogram, octave_edges, powers_of_two
from gkd_fast.inspect.inspection import Inspection, with_short_side
from gkd_fast.inspect.remarks import anchor_line

_SHORT_SIDES = (160, 240, 320, 480, 640, 800)


def anchor_section(inspection: Inspection) -> str:
    """Charts of sizes and shapes, the levels, and what other settings would make of them."""
    train, val = inspection.shapes
    data, levels = inspection.config.data, inspection.levels
    all_anchors = np.concatenate([level.shapes for level in levels])
    split_sides = {"train": np.sqrt(train.prod(1)), "val": np.sqrt(val.prod(1))}
    edges = octave_edges([*split_sides.values()], levels[0].stride, levels[-1].sides[-1])
    marks = [Mark(np.log2(levels[0].stride), np.log2(levels[0].stride), f"a cell: {levels[0].stride}")]
    marks += [
        Mark(np.log2(level.sides[0]), np.log2(level.sides[-1]), f"{level.sides[0]:.0f} (stride {level.stride})")
        for level in levels
    ]
    note = f"pixels at --short-side {data.short_side}, --long-side {data.long_side}"
    sizes = histogram(
        "Side of the boxes",
        note,
        edges,
        {name: np.log2(own) for name, own in split_sides.items()},
        powers_of_two(edges),
        marks,
        x_label="side of a square as large as the box, pixels; dashed: the anchors of each level",
    )
    fits = inspection.matches[0] >= MATCH
    limits = (float(edges[0]), float(edges[-1]))
    shapes = density("Width and height of training boxes", note, train, fits, all_anchors, limits=limits)
    aspect = histogram(
        "Shape of the boxes",
        "height / width",
        np.arange(-3.125, 3.126, 0.25),
        {name: np.log2(own[:, 1] / own[:, 0]) for name, own in (("train", train), ("val", val))},
        {float(k): f"{2.0**k:g}" for k in range(-3, 4)},
        [Mark(np.log2(ratio), np.log2(ratio), f"anchors: {ratio:g}") for ratio in levels[0].ratios],
        x_label="height / width; boxes beyond 8 count in the outer bins",
    )
    return (
        "<p>Look for boxes left of the smallest anchor, and for shapes far from the anchors' own. Where no anchor "
        f"reaches an IoU of {MATCH:g}, at the best place that it could have, training takes the best one all the same, "
        f"and learns such boxes worse.</p><p>{escape(anchor_line(inspection))}.</p>"
        f'<div class="charts">{sizes}{aspect}{shapes}<div>{_levels(inspection)}{_choices(inspection)}</div></div>'
    )


def _levels(inspection: Inspection) -> str:
    """The anchors of every level, and the boxes whose best anchor is one of its."""
    overlap, level = inspection.matches
    rows = []
    for number, own in enumerate(inspection.levels):
        here = level == number
        sides = " ".join(f"{side:.0f}" for side in own.sides)
        cells = f"{here.sum():,}", f"{here.mean():.0%}", f"{(here & (overlap < MATCH)).sum():,}"
        rows.append(f"<tr><td>{own.stride}</td><td>{sides}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(
        f"<th>{text}</th>" for text in ("stride", "anchors, px", "boxes nearest to them", "share", "no anchor fits")
    )
    return f'<h3>Levels</h3><div class="wide"><table class="scores"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _choices(inspection: Inspection) -> str:
    """The share of training boxes that no anchor fits, by short side and smallest anchor."""
    config = inspection.config
    now = config.data.short_side, config.model.anchor_size
    short_sides = sorted({*_SHORT_SIDES, now[0]})
    anchor_sizes = sorted({*ANCHOR_SIZES, now[1]})
    drawn = f"; of {MOST_COMPARED:,} boxes drawn at random" if len(inspection.train.label) > MOST_COMPARED else ""
    rows = []
    for short in short_sides:
        shapes = inspection.train.resized(*with_short_side(config, short))
        shares = unmatched_by_size(shapes, inspection.spec, anchor_sizes)
        cells = "".join(
            f'<td class="{"here" if (short, size) == now else ""}">{100 * share:.1f}</td>'
            for size, share in shares.items()
        )
        rows.append(f"<tr><td>{short}</td>{cells}</tr>")
    head = "".join(f"<th>{size}</th>" for size in anchor_sizes)
    return (
        "<h3>Training boxes that no anchor fits, in % <small>down: --short-side, across: --anchor-size; framed: as "
        f'set{drawn}</small></h3><div class="wide"><table class="scores">'
        f"<tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
    )
