"""Data set objects of torchvision and of Hugging Face's datasets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torchvision

from gkd_fast.data import coco, voc
from gkd_fast.data.annotated import AnnotatedImages
from gkd_fast.data.assembling import assemble
from gkd_fast.data.findings import Findings
from gkd_fast.data.images import ImageFacts, look_at
from gkd_fast.data.listing import Entry, Listing

_CATEGORY = ("category", "categories", "label", "labels")


def as_dataset(
    source: Any, *, classes: Sequence[str] = (), boxes: Literal["auto", "xywh", "xyxy"] = "auto", levels: float = 0
) -> AnnotatedImages:
    """A data set object of another library, checked like a folder.

        train = as_dataset(datasets.load_dataset("cppe-5", split="train"))
        gkd_fast.train(train_data=train, val_data=...)

    Args:
        source: torchvision's `CocoDetection` or `VOCDetection` (its transforms are left out), a split of Hugging
            Face's datasets with the columns image and objects (bbox in pixels, category), or one that is read already.
        classes: names to detect, in label order. Empty: all of the data. Where a Hugging Face data set has no names
            for its categories: all names, by index.
        boxes: what a Hugging Face data set's bbox holds; auto: x, y, width, height, unless only corners fit the images.
        levels: range of grey images of more than 8 bits (see `read_image`); 0: found from the images.

    Raises:
        TypeError: for an object of another kind.
        InputError: a ValueError, for everything in it that cannot be used, at once.
    """
    findings = Findings()
    if isinstance(source, AnnotatedImages):
        return source.relabelled(classes) if classes and tuple(classes) != source.classes else source
    if isinstance(source, torchvision.datasets.CocoDetection):
        content, own = source.coco.dataset, set(source.ids)
        content = {**content, "images": [image for image in content["images"] if image["id"] in own]}
        content["annotations"] = [item for item in content["annotations"] if item["image_id"] in own]
        listing = coco.listing(content, "CocoDetection", [Path(source.root)], Path(source.root), findings)
    elif isinstance(source, torchvision.datasets.VOCDetection):
        listing = voc.listing([(Path(xml), Path(image)) for xml, image in _pairs(source)], findings)
    elif hasattr(source, "column_names") and hasattr(source, "features"):
        return _from_rows(source, classes, boxes, levels, findings)
    else:
        kind = type(source).__name__
        raise TypeError(
            "expected torchvision's CocoDetection or VOCDetection, a split of Hugging Face's datasets or what "
            f"open_dataset returns, got a {kind}"
        )
    return assemble(listing, findings, classes=classes or None, levels=levels)


def _pairs(source: torchvision.datasets.VOCDetection) -> list[tuple[str, str]]:
    return list(zip(source.annotations, source.images, strict=True))


def _from_rows(rows: Any, classes: Sequence[str], boxes: str, levels: float, findings: Findings) -> AnnotatedImages:
    missing = [name for name in ("image", "objects") if name not in rows.column_names]
    if missing:
        raise TypeError(f"expected the columns image and objects, got {', '.join(rows.column_names)}")
    import datasets  # rows are of this library, so it is there

    stored = rows.cast_column("image", datasets.Image(decode=False))
    column = next((name for name in _CATEGORY if name in rows.features["objects"]), None)
    if column is None or "bbox" not in rows.features["objects"]:
        raise TypeError(f"objects: expected bbox and category, got {', '.join(rows.features['objects'])}")
    names = _names(rows.features["objects"][column], classes, rows, column)
    contents = [partial(_content, stored, index) for index in range(len(stored))]
    facts = [look_at(content()) for content in contents]
    objects = rows.select_columns(["objects"])[:]["objects"]
    given = [np.array(item["bbox"], dtype=np.float64).reshape(-1, 4) for item in objects]
    as_corners = boxes == "xyxy" or (boxes == "auto" and _are_corners(given, facts))
    findings.note(f"boxes read as {'x1, y1, x2, y2' if as_corners else 'x, y, width, height'}", "image 0", len(given))
    entries = []
    for index, (item, own) in enumerate(zip(objects, given, strict=True)):
        corners = own if as_corners else np.concatenate([own[:, :2], own[:, :2] + own[:, 2:]], axis=1)
        entries.append(
            Entry(
                path=Path(f"image {index:09d}"),
                boxes=corners,
                labels=np.array([names.index(_name(names, label)) for label in item[column]], dtype=np.int64),
                source=f"image {index}",
                places=[f"object {number}" for number in range(len(own))],
                content=contents[index],
            )
        )
    chosen = tuple(classes) if classes else names
    return assemble(Listing(names, entries, "objects"), findings, classes=chosen, levels=levels, facts=facts)


def _names(feature: Any, classes: Sequence[str], rows: Any, column: str) -> tuple[str, ...]:
    inner = feature
    while hasattr(inner, "feature"):
        inner = inner.feature
    if hasattr(inner, "names"):
        return tuple(inner.names)
    if classes:
        return tuple(classes)
    labels = {label for item in rows.select_columns(["objects"])[:]["objects"] for label in item[column]}
    if all(isinstance(label, str) for label in labels):
        return tuple(sorted(labels))
    return tuple(f"class {index}" for index in range(max(labels, default=-1) + 1))


def _name(names: Sequence[str], label: int | str) -> str:
    if isinstance(label, str):
        return label
    if not 0 <= label < len(names):
        raise ValueError(f"objects: expected a category of 0 to {len(names) - 1}, got {label}")
    return names[label]


def _content(rows: Any, index: int) -> Path | BytesIO:
    image = rows[index]["image"]
    return BytesIO(image["bytes"]) if image["bytes"] is not None else Path(image["path"])


def _are_corners(given: Sequence[np.ndarray], facts: Sequence[ImageFacts]) -> bool:
    """Whether every box is inside its image as two corners, and not every one is as a corner and a size."""
    corners_fit, sizes_fit = True, True
    for boxes, own in zip(given, facts, strict=True):
        limit = np.array(own.upright_size[::-1]) + 1.0
        corners_fit &= bool((boxes[:, :2] <= boxes[:, 2:]).all() and (boxes[:, 2:] <= limit).all())
        sizes_fit &= bool((boxes[:, :2] + boxes[:, 2:] <= limit).all())
    return corners_fit and not sizes_fit
