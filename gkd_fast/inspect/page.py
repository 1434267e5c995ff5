"""One self-contained page about a data set."""

from __future__ import annotations

from html import escape

import numpy as np

from gkd_fast.data import AnnotatedImages
from gkd_fast.inspect import charts
from gkd_fast.inspect import examples as drawn
from gkd_fast.inspect.boxes import SMALL, ordered
from gkd_fast.inspect.charts import Mark, class_bars, histogram
from gkd_fast.inspect.fit import anchor_section
from gkd_fast.inspect.inspection import Inspection
from gkd_fast.inspect.pictures import class_section, empty_section, findings_section, image_section, shared_section
from gkd_fast.inspect.remarks import remarks
from gkd_fast.report.document import document
from gkd_fast.runs.choice import as_options

_STYLE = """
.charts{grid-template-columns:repeat(auto-fill,minmax(440px,1fr));align-items:start}
h4{margin-top:16px}.groups{display:flex;flex-wrap:wrap;gap:14px 28px}
h2+p{margin-top:0;max-width:900px}.card ul{margin:0;padding-left:20px}.card li{margin:4px 0;overflow-wrap:anywhere}
.scores .text{text-align:left;font-size:13px;overflow-wrap:anywhere;max-width:760px}summary{cursor:pointer}
.scores .here{font-weight:700;outline:2px solid var(--accent);outline-offset:-3px}
code{font-size:13px}.scroll{max-height:640px;overflow:auto}nav{margin-top:14px}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(540px,1fr));gap:16px}
.pairs>div{display:grid;grid-template-columns:1fr 1fr;gap:10px}.pairs figure{margin:0}
.pairs figcaption{font-size:12.5px;color:var(--soft)}
"""

_MOST_BARS = 80
_LONG = 20  # rows above which bars take two columns
_MOST_LINES = 400


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
        "Sizes, shapes and anchors": anchor_section(inspection),
        "Boxes in an image": _per_image(inspection),
        "Examples": class_section(inspection, examples),
        "Whole images": image_section(inspection),
        "What reading met": findings_section(inspection),
        "Images without boxes": empty_section(inspection),
        "Images in both splits": shared_section(inspection),
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
    most = max(1, *(max(item.train, item.val) for item in facts))
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
            own: tuple[str, ...] = f"{item.side:.0f}", f"{resized[item.name]:.0f}", f"{item.small:.0%}"
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
