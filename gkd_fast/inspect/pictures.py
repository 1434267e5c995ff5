"""Drawn boxes and images, as parts of a page."""

from __future__ import annotations

from html import escape

import numpy as np

from gkd_fast.data import AnnotatedImages, PreparedDataset
from gkd_fast.inspect.dirt import dirty_images, findings_table
from gkd_fast.inspect.examples import class_examples, colour_keys, whole_image
from gkd_fast.inspect.inspection import Inspection
from gkd_fast.report.pictures import evenly
from gkd_fast.runs.data import prepared

_MOST_EXAMPLES = 1600  # pictures of all classes together, which keeps the page below some megabytes
_WHOLE = 6  # whole images of a split
_EMPTY = 8
_PAIRS = 6


def _prepared(inspection: Inspection, role: str) -> PreparedDataset:
    return prepared(inspection.config, getattr(inspection.images, role))


def class_section(inspection: Inspection, count: int) -> str:
    """Of every class some boxes, the smallest and the largest among them.

    Args:
        inspection: what was found out.
        count: most examples of a class.
    """
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


def image_section(inspection: Inspection) -> str:
    """Whole images of both splits with all their boxes."""
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


def findings_section(inspection: Inspection) -> str:
    """What reading the files met, and the files in which it met most; nothing for drawn scenes."""
    images = inspection.images
    if not isinstance(images.train, AnnotatedImages) or not isinstance(images.val, AnnotatedImages):
        return ""
    groups: dict[str, tuple[str, ...]] = {"Training images": ("train",), "Validation images": ("val",)}
    if images.parted:
        groups = {"All images, of which the validation images are a part": ("train", "val")}
    parts = []
    for title, roles in groups.items():
        findings = getattr(images, roles[0]).findings
        if not findings.notes:
            parts.append(f"<h3>{title}</h3><p>Nothing had to be put right or left out.</p>")
            continue
        figures = [figure for role in roles for figure in dirty_images(_prepared(inspection, role), f"dirty-{role}")]
        parts.append(f"<h3>{title}</h3>{findings_table(findings)}")
        if figures:
            parts.append("<h4>The dirtiest files <small>dashed: as the annotation has it</small></h4>")
            parts.append(f'<div class="images">{"".join(figures)}</div>')
    return (
        "<p>Look for kinds that you did not expect, and for numbers that are more than slips. Every one was put right "
        f"or left out as it says; what cannot be used stops the reading.</p>{''.join(parts)}"
    )


def empty_section(inspection: Inspection) -> str:
    """Some of the images without boxes; nothing where there are none."""
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


def shared_section(inspection: Inspection) -> str:
    """Some of the images that are in both splits; nothing where there are none."""
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
