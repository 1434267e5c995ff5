"""What a trained detector finds in images: COCO records, and the images with the boxes drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd_fast.config import from_dict
from gkd_fast.data.image_check import look_at_images
from gkd_fast.data.images import read_image
from gkd_fast.detectors import adapt
from gkd_fast.errors import InputError
from gkd_fast.evaluation.one_image import detect_image
from gkd_fast.files import write_json, writing
from gkd_fast.predict.drawing import class_colours, draw
from gkd_fast.predict.files import find_images
from gkd_fast.runs.detector_file import load_detector


def predict_images(
    checkpoint: Path,
    images: Sequence[Path],
    output: Path,
    *,
    score: float = 0.5,
    drawn: bool = True,
    short_side: int | None = None,
    long_side: int | None = None,
    device: torch.device,
    told: Callable[[str], None] = print,
) -> dict[str, list[dict[str, Any]]]:
    """Find objects in images and write ``predictions.json``, and the images with the boxes drawn, to a folder.

    Args:
        checkpoint: model.pt of a run.
        images: files and folders.
        output: the folder, made here.
        score: least score of a detection, from 0 to 1.
        drawn: whether images are drawn.
        short_side, long_side: to which images are resized, in pixels; None: as the checkpoint says.
        device: to run on.
        told: takes a line about each image.

    Returns:
        The content of ``predictions.json``: images, annotations and categories as in a COCO file, boxes in pixels of
        the original images.

    Raises:
        InputError: for a checkpoint or an image that cannot be read, before anything is written.
    """
    images = find_images(images)
    facts = look_at_images(images)
    broken = [f"{path}: {own.fault}" for path, own in zip(images, facts, strict=True) if own.fault]
    if broken:
        raise InputError(broken[0] + (f" (the first of {len(broken)} of {len(images)} images)" if broken[1:] else ""))
    trained = load_detector(checkpoint)
    data = from_dict(trained.config).data
    short_side, long_side = short_side or data.short_side, long_side or data.long_side
    if long_side < short_side:
        raise InputError(f"--long-side: expected at least the short side {short_side}, got {long_side}")
    rule = trained.spec.conventions.resize
    turned = sum(own.orientation != 1 for own in facts)
    if turned:
        told(f"{turned} images turned as their EXIF orientation says")
    model = adapt(trained.build().eval().to(device)).opened()
    colours = class_colours(len(trained.classes))
    records: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": name} for k, name in enumerate(trained.classes, start=1)],
    }
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    names = drawn_names(images)
    for number, path in enumerate(images, start=1):
        image = read_image(path, levels=data.grey_levels)
        found = detect_image(model, image, short_side=short_side, long_side=long_side, score=score, rule=rule)
        height, width = image.shape[-2:]
        records["images"].append({"id": number, "file_name": str(path), "width": width, "height": height})
        records["annotations"] += coco_records(found, number, trained.classes, first=len(records["annotations"]) + 1)
        if drawn:
            with writing(output / names[path]):
                draw(image, found, trained.classes, colours).save(output / names[path])
        told(f"{path}: {_counts(found['labels'], trained.classes)}")
    write_json(output / "predictions.json", records)
    return records


def drawn_names(images: Sequence[Path]) -> dict[Path, str]:
    """A name of its own for each drawn image: the image's, as PNG, numbered where several have the same."""
    names: dict[Path, str] = {}
    for path in images:
        name, number = f"{path.stem}.png", 2
        while name in names.values():
            name, number = f"{path.stem}-{number}.png", number + 1
        names[path] = name
    return names


def coco_records(
    found: dict[str, Tensor], image_id: int, classes: Sequence[str], *, first: int
) -> list[dict[str, Any]]:
    """One record a box: id (from `first`), image_id, category_id, category, bbox [x, y, width, height], score."""
    boxes = found["boxes"].double()
    bboxes = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).round(decimals=2)
    rows = zip(bboxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True)
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": label,
            "category": classes[label - 1],
            "bbox": bbox,
            "score": round(score, 4),
        }
        for number, (bbox, score, label) in enumerate(rows, start=first)
    ]


def _counts(labels: Tensor, classes: Sequence[str]) -> str:
    counts = torch.bincount(labels, minlength=len(classes) + 1)[1:].tolist()
    present = [f"{count} {name}" for count, name in zip(counts, classes, strict=True) if count]
    return ", ".join(present) or "nothing"
