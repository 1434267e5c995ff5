"""Boxes drawn on their images, at the size that the detector sees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape

import numpy as np
from torch import Tensor

from gkd_fast.data import PreparedDataset
from gkd_fast.inspect.boxes import Boxes
from gkd_fast.predict.drawing import class_colours
from gkd_fast.report.pictures import boxed, corners_around, data_url, evenly, square, symbol

STYLE = """
.cut{display:block;border-radius:4px}.cut rect{fill:none;stroke-width:1.6}
.images{display:grid;grid-template-columns:repeat(auto-fill,minmax(270px,1fr));gap:16px}.images figure{margin:0}
.images figcaption{font-size:12.5px;color:var(--soft);overflow-wrap:anywhere;margin-top:4px}
.keys{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;color:var(--soft);margin-bottom:12px}
.keys i{display:inline-block;width:11px;height:11px;margin-right:6px;border-radius:2px}
.boxed .wrong>*{fill:none;vector-effect:non-scaling-stroke;stroke:#fff;stroke-width:3}
.boxed .wrong+.wrong>*{stroke:#000;stroke-dasharray:4 4}
"""

_SIDE = 108
_MARGIN = 0.4  # of a box's longer side, seen around it: enough to see a box that lies beside its object
_NARROW = 0.06
_LEAST = 24  # pixels that a small box's surroundings are cut from
_MOST_TEXTS = 12  # boxes of an image that are named; of more, the colour and the mouse tell
_MOST_KEYS = 24


def spread(order: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the entries of an order, the first and the last among them."""
    return order[evenly(len(order), count)]


def class_examples(data: PreparedDataset, boxes: Boxes, sides: np.ndarray, count: int) -> dict[str, str]:
    """Of every class up to `count` boxes from the smallest to the largest, each with its surroundings.

    Args:
        data: the images, resized and not flipped.
        boxes: of the same images.
        sides: float64 [B], the side of a square as large as each box, in pixels of the resized image.
        count: examples of a class.

    Returns:
        For every class that has boxes a row of pictures, in label order.
    """
    order = np.lexsort((sides, boxes.label))
    chosen = [spread(own, count) for own in np.split(order, np.cumsum(boxes.per_class())[:-1])]
    pictures = _cut_out(data, boxes, np.concatenate(chosen))
    rows = {}
    for name, own in zip(boxes.classes, chosen, strict=True):
        cells = [f"<figure>{pictures[at]}<figcaption>{sides[at]:.0f} px</figcaption></figure>" for at in own.tolist()]
        if cells:
            rows[name] = f'<div class="strip">{"".join(cells)}</div>'
    return rows


def _cut_out(data: PreparedDataset, boxes: Boxes, chosen: np.ndarray) -> dict[int, str]:
    """The picture of each box; every image is opened once."""
    colours = class_colours(len(boxes.classes))
    by_image: defaultdict[int, list[int]] = defaultdict(list)
    for at in chosen.tolist():
        by_image[int(boxes.image[at])].append(at)
    pictures = {}
    for index, members in by_image.items():
        image, target = data[index]
        first = int(np.searchsorted(boxes.image, index))
        for at in members:
            box = target["boxes"].as_subclass(Tensor)[at - first]
            where = data_place(data, index)
            x1, y1, x2, y2 = boxes.corners[at].tolist()
            note = f"{boxes.classes[boxes.label[at]]}, {where}: x {x1:g} to {x2:g}, y {y1:g} to {y2:g}"
            pictures[at] = _crop(image.as_subclass(Tensor), box, colours[boxes.label[at]], note)
    return pictures


def _crop(image: Tensor, box: Tensor, colour: tuple[int, int, int], note: str) -> str:
    longer = max((box[2:] - box[:2]).max().item(), _LEAST)
    # A box as large as its image needs no more around it than shows that it ends there.
    margin = min(_MARGIN, max(_NARROW, (max(image.shape[-2:]) / longer - 1) / 2))
    shape = {"margin": margin, "least": _LEAST}
    left, top, right, bottom = corners_around(box, **shape)
    across, down = _SIDE / (right - left), _SIDE / (bottom - top)
    x1, y1, x2, y2 = box.tolist()
    return (
        f'<svg class="cut" width="{_SIDE}" height="{_SIDE}" viewBox="0 0 {_SIDE} {_SIDE}">'
        f'<image width="{_SIDE}" height="{_SIDE}" href="{data_url(square(image, box, _SIDE, **shape))}"/>'
        f'<rect x="{(x1 - left) * across:.1f}" y="{(y1 - top) * down:.1f}" width="{(x2 - x1) * across:.1f}" '
        f'height="{(y2 - y1) * down:.1f}" stroke="rgb{colour}"/><title>{escape(note)}</title></svg>'
    )


def whole_image(
    data: PreparedDataset, index: int, key: str, caption: str = "", *, wrong: Sequence[np.ndarray] = ()
) -> str:
    """An image with all its boxes, named where they are few.

    Args:
        data: the images, resized and not flipped.
        index: the image.
        key: of no other picture of the page.
        caption: HTML below the image's name.
        wrong: boxes [n,4] as an annotation has them, in pixels of the original image, to be drawn as such.
    """
    image, target = data[index]
    image = image.as_subclass(Tensor)
    boxes, labels = target["boxes"].as_subclass(Tensor), (target["labels"] - 1).tolist()
    size = tuple(image.shape[-2:])
    scale = np.divide(size[::-1], target["original_size"][::-1])
    drawn = boxed(
        key,
        size,
        boxes,
        labels,
        [data.classes[k] for k in labels],
        class_colours(len(data.classes)),
        named=len(labels) <= _MOST_TEXTS,
        over="".join(_wrong(box * np.tile(scale, 2), size) for own in wrong for box in own),
        beyond=round(0.06 * max(size)) if wrong else 0,
    )
    place = data_place(data, index)
    name = f'<span title="{escape(place)}">{escape(place.rpartition("/")[2])}</span>'
    return f"<figure>{symbol(key, image)}{drawn}<figcaption>{name}{caption}</figcaption></figure>"


def _wrong(box: np.ndarray, size: tuple[int, int]) -> str:
    """A dashed box; a ring around one that is hardly to be seen."""
    x1, y1, x2, y2 = box.tolist()
    shape = f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{max(x2 - x1, 0.5):.1f}" height="{max(y2 - y1, 0.5):.1f}"/>'
    if min(x2 - x1, y2 - y1) < max(size) / 40:
        radius = max(max(size) / 25, 0.6 * max(x2 - x1, y2 - y1))
        shape += f'<circle cx="{(x1 + x2) / 2:.1f}" cy="{(y1 + y2) / 2:.1f}" r="{radius:.1f}"/>'
    return 2 * f'<g class="wrong">{shape}</g>'  # dashes of black on white are seen on any picture


def colour_keys(classes: Sequence[str]) -> str:
    """Which colour is which class."""
    colours = class_colours(len(classes))
    keys = [
        f'<span><i style="background:rgb{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(classes, colours, strict=True)
    ]
    more = len(keys) - _MOST_KEYS
    return f'<div class="keys">{"".join(keys[:_MOST_KEYS])}{f"<span>and {more} more</span>" if more > 0 else ""}</div>'


def data_place(data: PreparedDataset, index: int) -> str:
    """The file of an image, or its number among drawn scenes."""
    records = getattr(data.dataset, "records", None)
    return str(records[index].path) if records else f"scene {index}"
