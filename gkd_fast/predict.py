"""``python -m gkd_fast.predict``: detections in images, as JSON and drawn."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

from gkd_fast.cli.command import parse, run_command
from gkd_fast.config import from_dict
from gkd_fast.data.images import check_image, read_image
from gkd_fast.detectors import adapt
from gkd_fast.errors import InputError
from gkd_fast.evaluation.detect import detect_image
from gkd_fast.files import write_json, writing
from gkd_fast.runs.detector_file import load_detector
from gkd_fast.training.precision import resolve_device

_DESCRIPTION = """Find objects in images with a trained detector. OUTPUT/predictions.json holds all boxes, in pixels of
the original images; beside it lie the images with the boxes drawn."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Prediction with one checkpoint."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Images, or folders of images (with their subfolders)."""
    checkpoint: Path | None = None
    """Trained detector: model.pt of a run's teacher, student or distilled folder."""
    output: Path = Path("predictions")
    """Folder for predictions.json and the drawn images."""
    score: float = 0.5
    """Least score of a detection, from 0 to 1."""
    draw: bool = True
    """Write the images with the boxes drawn."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto: the GPU where one is there."""


def main(arguments: Sequence[str]) -> None:
    """Parse, check all images, predict, write."""
    options = parse(PredictConfig, arguments, "gkd_fast.predict", _DESCRIPTION, PredictConfig())
    if options.checkpoint is None:
        raise InputError("--checkpoint: expected a detector's file, got nothing; --help shows all options")
    if not 0 <= options.score <= 1:
        raise InputError(f"--score: expected a number from 0 to 1, got {options.score}")
    images = find_images(options.images)
    for path in images:
        check_image(path)
    checkpoint = load_detector(options.checkpoint)
    data = from_dict(checkpoint.config).data
    model = adapt(checkpoint.build().eval().to(resolve_device(options.device))).opened()
    colours = class_colours(len(checkpoint.classes))
    records: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": name} for k, name in enumerate(checkpoint.classes, start=1)],
    }
    with writing(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    names = drawn_names(images)
    for number, path in enumerate(images, start=1):
        image = read_image(path)
        found = detect_image(model, image, short_side=data.short_side, long_side=data.long_side, score=options.score)
        height, width = image.shape[-2:]
        records["images"].append({"id": number, "file_name": str(path), "width": width, "height": height})
        records["annotations"] += coco_records(found, number, checkpoint.classes, first=len(records["annotations"]) + 1)
        if options.draw:
            target = options.output / names[path]
            with writing(target):
                draw(image, found, checkpoint.classes, colours).save(target)
        print(f"{path}: {_counts(found['labels'], checkpoint.classes)}")
    write_json(options.output / "predictions.json", records)
    print(f"{len(records['annotations'])} boxes in {len(images)} images: {options.output / 'predictions.json'}")


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The image files among and below the paths, each once, in the order given, folders sorted.

    Raises:
        InputError: for no path, a path that does not exist, or a folder without images.
    """
    if not paths:
        raise InputError("IMAGES: expected at least one image or folder, got none")
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
            if not inside:
                raise InputError(f"{path}: expected a folder with images ({' '.join(sorted(_SUFFIXES))}), found none")
            found |= dict.fromkeys(inside)
        elif path.is_file():
            found[path] = None
        else:
            raise InputError(f"{path}: image file not found")
    return list(found)


def drawn_names(images: Sequence[Path]) -> dict[Path, str]:
    """A name of its own for each drawn image: the image's, as PNG, numbered where several have the same."""
    names: dict[Path, str] = {}
    for path in images:
        name, number = f"{path.stem}.png", 2
        while name in names.values():
            name, number = f"{path.stem}-{number}.png", number + 1
        names[path] = name
    return names


def coco_records(found: dict[str, Tensor], image_id: int, classes: Sequence[str], *, first: int) -> list[dict]:
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


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """RGB colours 0..255 around the circle of hues, neighbours far apart."""
    turns = [(k * 0.618034) % 1.0 for k in range(count)]  # the golden ratio spreads any number of points evenly
    return [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(turn, 0.75, 0.95)) for turn in turns]


def draw(
    image: Tensor, found: dict[str, Tensor], classes: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """The image uint8 [3,H,W] with its detections."""
    if not len(found["labels"]):
        return to_pil_image(image)
    labels = [label - 1 for label in found["labels"].tolist()]
    texts = [f"{classes[k]} {score:.2f}" for k, score in zip(labels, found["scores"].tolist(), strict=True)]
    side = min(image.shape[-2:])
    own = [colours[k] for k in labels]
    return to_pil_image(
        draw_bounding_boxes(image, found["boxes"], texts, own, width=max(1, side // 200), label_colors=own)
    )


def _counts(labels: Tensor, classes: Sequence[str]) -> str:
    counts = torch.bincount(labels, minlength=len(classes) + 1)[1:].tolist()
    present = [f"{count} {name}" for count, name in zip(counts, classes, strict=True) if count]
    return ", ".join(present) or "nothing"


if __name__ == "__main__":
    run_command(main)
