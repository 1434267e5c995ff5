"""One self-contained page about a data set."""

from __future__ import annotations

from html import escape

import numpy as np

from gkd_fast.data import AnnotatedImages, PreparedDataset
from gkd_fast.inspect import charts
from gkd_fast.inspect import examples as drawn
from gkd_fast.inspect.anchors import ANCHOR_SIZES, MATCH, unmatched, with_anchor_size
from gkd_fast.inspect.boxes import SMALL, ordered
from gkd_fast.inspect.charts import Mark, class_bars, density, histogram, octave_edges, powers_of_two
from gkd_fast.inspect.dirt import dirty_images, findings_table
from gkd_fast.inspect.examples import class_examples, colour_keys, whole_image
from gkd_fast.inspect.inspection import Inspection, with_short_side
from gkd_fast.inspect.remarks import anchor_line, remarks
from gkd_fast.report.document import document
from gkd_fast.report.pictures import evenly
from gkd_fast.runs.choice import as_options
from gkd_fast.runs.data import prepared

_STYLE = """
.charts{grid-template-columns:repeat(auto-fill,minmax(440px,1fr));align-items:start}
.groups{display:flex;flex-wrap:wrap;gap:14px 28px}
h2+p{margin-top:0;max-width:900px}.card ul{margin:0;padding-left:20px}.card li{margin:4px 0;overflow-wrap:anywhere}
.scores .text{text-align:left;font-size:13px;overflow-wrap:anywhere;max-width:760px}summary{cursor:pointer}
.scores .here{font-weight:700;outline:2px solid var(--accent);outline-offset:-3px}
.scores .bad{color:#d0433f}code{font-size:13px}.scroll{max-height:640px;overflow:auto}nav{margin-top:14px}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(540px,1fr));gap:16px}
.pairs>div{display:grid;grid-template-columns:1fr 1fr;gap:10px}.pairs figure{margin:0}
"""

_MOST_BARS = 80
_LONG = 20  # rows above which bars take two columns
_MOST_EXAMPLES = 1600  # pictures of all classes together, which keeps the page below some megabytes
_WHOLE = 6  # whole images of a split
_EMPTY = 8
_PAIRS = 6
_MOST_LINES = 400
_SHORT_SIDES = (160, 240, 320, 480, 640, 800)


def page(inspection: Inspection, *, examples: int) -> str:
    """The whole document.

    Args:
        inspection: what was found out.
        examples: drawn of a class.

    Raises:
        InputError: for an image that cannot be read any more.
    """
    sections = {
        "Classes": _classes(inspection),
        "Sizes, shapes and anchors": _anchors(inspection),
        "Boxes in an image": _per_image(inspection),
        "Examples": _examples(inspection, examples),
        "Whole images": _whole_images(inspection),
        "What reading met": _findings(inspection),
        "Images without boxes": _without_boxes(inspection),
        "Images in both splits": _shared(inspection),
        "Settings": _settings(inspection),
    }
    kept = {title: text for title, text in sections.items() if text}
    links = "".join(f'<a href="#s{at}">{escape(title)}</a>' for at, title in enumerate(kept))
    body = [f"<h1>Is the data read right?</h1><p>{escape(_source(inspection))}</p><nav>{links}</nav>"]
    body.append(_overview(inspection))
    body += [f'<h2 id="s{at}">{escape(title)}</h2>{text}' for at, (title, text) in enumerate(kept.items())]
    return document("Data set", "".join(body), style=charts.STYLE + drawn.STYLE + _STYLE)


def _source(inspection: Inspection) -> str:
    data = inspection.config.data
    if not isinstance(inspection.images.train, AnnotatedImages):
        return "Drawn scenes, the data set without files."
    return f"{data.data_root or data.train_annotations}, read as {data.data}."


def _overview(inspection: Inspection) -> str:
    rows = []
    for role, boxes in (("train", inspection.train), ("val", inspection.val)):
        counts, sizes = boxes.per_image(), boxes.sizes
        dataset = getattr(inspection.images, role)
        records = dataset.records if isinstance(dataset, AnnotatedImages) else []
        cells = (
            *(f"{len(sizes):,}", f"{len(boxes.label):,}", f"{np.median(counts):g}", f"{counts.max():,}"),
            *(f"{(counts == 0).sum():,}", f"{sum(int(record.ignored.sum()) for record in records):,}"),
            f"{np.median(sizes[:, 1]):g} x {np.median(sizes[:, 0]):g}",
        )
        rows.append(f"<tr><td>{role}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = ("images", "boxes", "boxes an image, median", "most", "images without box", "crowd or difficult")
    head = "".join(f"<th>{text}</th>" for text in (*heads, "width x height, median"))
    found = remarks(inspection)
    items = "".join(f"<li>{escape(text)}</li>" for text in found) or "<li>Nothing stands out.</li>"
    table = f'<div class="wide"><table class="scores"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    return f'<h2>What stands out</h2><div class="card"><ul>{items}</ul></div><h3>Numbers</h3>{table}'


def _classes(inspection: Inspection) -> str:
    facts, left = ordered(inspection.facts, _MOST_BARS)
    most = max(max(item.train, item.val) for item in facts)
    half = -(-len(facts) // 2) if len(facts) > _LONG else len(facts)
    bars = "".join(
        class_bars(
            "Boxes of each class",
            f"bars on a logarithmic scale{_left_out(left, '; ')}",
            [item.name for item in part],
            {"train": [item.train for item in part], "val": [item.val for item in part]},
            most=most,
        )
        for part in (facts[:half], facts[half:])
        if part
    )
    fewest = dict(zip(inspection.train.classes, inspection.unmatched.tolist(), strict=True))
    resized = dict(zip(inspection.train.classes, _median_sides(inspection), strict=True))
    shown, left = ordered(inspection.facts, _MOST_LINES)
    rows = []
    for item in shown:
        if item.train:
            own = f"{item.side:.0f}", f"{resized[item.name]:.0f}", f"{item.small:.0%}"
            own += (f"{fewest[item.name]:,} ({fewest[item.name] / item.train:.0%})",)
        else:
            own = ("&ndash;",) * 4
        cells = (f"{item.train:,}", f"{item.train_images:,}", f"{item.val:,}", f"{item.val_images:,}", *own)
        rows.append(f"<tr><td>{escape(item.name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = ("train boxes", "in images", "val boxes", "in images", "median side, px", "resized, px")
    head = "".join(f"<th>{text}</th>" for text in (*heads, f"below {SMALL}x{SMALL} px", "no anchor fits"))
    table = f'<table class="scores"><tr><th>class</th>{head}</tr>{"".join(rows)}</table>'
    title = f"<h3>Each class <small>sizes of training boxes{_left_out(left, ', ')}</small></h3>"
    return (
        "<p>Look for names that are no classes of yours, classes without boxes, and shares that differ between train "
        f'and val.</p><div class="charts">{bars}</div>{title}<div class="wide scroll">{table}</div>'
    )


def _median_sides(inspection: Inspection) -> list[float]:
    sides, label = np.sqrt(inspection.shapes[0].prod(1)), inspection.train.label
    groups = np.split(sides[np.argsort(label, kind="stable")], np.cumsum(inspection.train.per_class())[:-1])
    return [float(np.median(own)) if len(own) else np.nan for own in groups]


def _left_out(count: int, before: str = "") -> str:
    return f"{before}the most frequent and the rarest, {count:,} classes between them are not shown" if count else ""


def _anchors(inspection: Inspection) -> str:
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
        x_label="side of a square as large as the box, pixels; dashed: smallest anchors of each level",
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
    rows = []
    for short in short_sides:
        shapes = inspection.train.resized(*with_short_side(config, short))
        cells = []
        for size in anchor_sizes:
            share = unmatched(shapes, with_anchor_size(inspection.spec, size))
            kind = ' class="here"' if (short, size) == now else ""
            cells.append(f"<td{kind}>{100 * share:.1f}</td>")
        rows.append(f"<tr><td>{short}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{size}</th>" for size in anchor_sizes)
    return (
        "<h3>Training boxes that no anchor fits, in % <small>down: --short-side, across: --anchor-size; framed: as "
        f'set</small></h3><div class="wide"><table class="scores"><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'
    )


def _per_image(inspection: Inspection) -> str:
    counts = {"train": inspection.train.per_image(), "val": inspection.val.per_image()}
    most = int(max(own.max() for own in counts.values()))
    width = max(1, -(-(most + 1) // 40))
    edges = np.arange(0, most + width + 1, width) - 0.5
    step = max(1, -(-len(edges) // 12)) * width
    detections = inspection.config.model.detections
    marks = [Mark(detections, detections, f"--detections {detections}")] if detections <= edges[-1] else []
    chart = histogram(
        "Boxes in an image",
        "",
        edges,
        {name: own.astype(float) for name, own in counts.items()},
        {float(k): str(k) for k in range(0, most + 1, step)},
        marks,
        x_label="boxes in an image" + (f", {width} a bin" if width > 1 else ""),
    )
    return (
        "<p>Look for a column at 0 that you do not expect, and for images with more boxes than a detector returns "
        f"({detections}).</p>"
        f'<div class="charts">{chart}</div>'
    )


def _prepared(inspection: Inspection, role: str) -> PreparedDataset:
    return prepared(inspection.config, getattr(inspection.images, role))


def _examples(inspection: Inspection, count: int) -> str:
    classes = len(inspection.train.classes)
    own = min(count, max(_MOST_EXAMPLES // classes, 2))
    fewer = f" {count} were asked for; with {classes:,} classes the page holds {own} of each." if own < count else ""
    sides = np.sqrt(inspection.shapes[0].prod(1))
    rows = class_examples(_prepared(inspection, "train"), inspection.train, sides, own)
    missing = [name for name in inspection.train.classes if name not in rows]
    facts = {item.name: item for item in inspection.facts}
    parts = [
        f"<section><h4>{escape(name)} <small>{_boxes(facts[name].train)}</small></h4>{row}</section>"
        for name, row in rows.items()
    ]
    none = f"<p>No training box: {escape(', '.join(missing))}.</p>" if missing else ""
    return (
        "<p>Look for boxes that lie beside their object, objects of another class, and small ones that you cannot "
        f"recognise yourself: the detector sees no more than these pixels. Of every class up to {own} training boxes "
        f"from the smallest to the largest, as resized; below each its side.{fewer}</p>"
        f'<div class="groups">{"".join(parts)}</div>{none}'
    )


def _boxes(count: int) -> str:
    return f"{count:,} box" if count == 1 else f"{count:,} boxes"


def _whole_images(inspection: Inspection) -> str:
    figures = []
    for role, boxes in (("train", inspection.train), ("val", inspection.val)):
        data, counts = _prepared(inspection, role), boxes.per_image()
        order = np.argsort(counts, kind="stable")
        order = order[counts[order] > 0]
        for index in order[evenly(len(order), _WHOLE)].tolist():
            caption = f"<br>{role}, {_boxes(int(counts[index]))}"
            figures.append(whole_image(data, index, f"{role}-{index}", caption))
    return (
        "<p>Look for objects without a box, and boxes shifted or scaled alike: then the format is not what it was "
        f"taken for. From the image with the fewest boxes to the one with most, of both splits.</p>"
        f'{colour_keys(inspection.train.classes)}<div class="images">{"".join(figures)}</div>'
    )


def _findings(inspection: Inspection) -> str:
    sets = {"train": inspection.images.train, "val": inspection.images.val}
    sets = {role: own for role, own in sets.items() if isinstance(own, AnnotatedImages)}
    if not sets:
        return ""
    names = dict(zip(sets, ("Training images", "Validation images"), strict=True))
    if inspection.images.parted:
        names = {"train": "All images, of which the validation images are a part"}
    parts = []
    for role, title in names.items():
        findings = sets[role].findings
        if not findings.notes:
            parts.append(f"<h3>{title}</h3><p>Nothing had to be put right or left out.</p>")
            continue
        drawn = dirty_images(_prepared(inspection, role), f"dirty-{role}")
        shown = (
            f"<h4>The dirtiest files <small>dashed red: as the annotation has it</small></h4>{drawn}" if drawn else ""
        )
        parts.append(f"<h3>{title}</h3>{findings_table(findings)}<p></p>{shown}")
    return (
        "<p>Look for kinds that you did not expect, and for numbers that are more than slips. Every one was put right "
        f"or left out as it says; what cannot be used stops the reading.</p>{''.join(parts)}"
    )


def _without_boxes(inspection: Inspection) -> str:
    parts = []
    for role, boxes in (("train", inspection.train), ("val", inspection.val)):
        empty = np.flatnonzero(boxes.per_image() == 0)
        if not len(empty):
            continue
        data = _prepared(inspection, role)
        figures = [whole_image(data, index, f"empty-{role}-{index}") for index in empty[evenly(len(empty), _EMPTY)]]
        head = f"<h3>{role}: {len(empty):,} of {len(boxes.sizes):,} images</h3>"
        parts.append(f'{head}<div class="images">{"".join(figures)}</div>')
    text = "<p>Look for objects: these images teach the detector that there are none.</p>"
    return text + "".join(parts) if parts else ""


def _shared(inspection: Inspection) -> str:
    if not inspection.shared:
        return ""
    sets = {role: _prepared(inspection, role) for role in ("train", "val")}
    pairs = []
    for number, pair in enumerate(inspection.shared[:_PAIRS]):
        sides = (whole_image(sets[role], getattr(pair, role), f"both-{role}-{number}", f"<br>{role}") for role in sets)
        pairs.append(f"<div>{''.join(sides)}</div>")
    return (
        f"<p>{len(inspection.shared):,} validation images have the content of a training image, byte for byte: AP "
        f'then measures what was learned by heart.</p><div class="pairs">{"".join(pairs)}</div>'
    )


def _settings(inspection: Inspection) -> str:
    if not inspection.choices:
        preset = inspection.config.preset
        return f"<p>Settings of the preset {escape(preset)}; none are chosen from the data.</p>"
    rows = [
        f'<tr><td class="text"><code>{escape(as_options(choice.values))}</code></td>'
        f'<td class="text">{escape(choice.reason)}</td></tr>'
        for choice in inspection.choices
    ]
    return (
        "<p>What training chooses from this data and this device, unless an option says otherwise.</p>"
        f'<div class="wide"><table class="scores"><tr><th class="text">options</th><th class="text">why</th></tr>'
        f"{''.join(rows)}</table></div>"
    )
