"""COCO folders."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gkd_fast.data.annotated import AnnotatedImages, Record
from gkd_fast.data.checks import check_images, fit_boxes, require_boxes, require_folder, select_classes
from gkd_fast.errors import InputError


class CocoDetection(AnnotatedImages):
    """A COCO folder: annotations/instances_SPLIT.json and the images in SPLIT.

    Category ids become labels 1..K in the order of the ids. Crowds are ignored: not in the targets, and in the ground
    truth with `iscrowd` 1. `area` in the ground truth is that of the file (the object's, not the box's). Boxes of zero
    area are left out and counted in `dropped`. Image ids stay those of the file; samples are in their order.

    Args:
        root: the folder.
        split: such as train2017.
        classes: names to detect, in label order; objects of others are left out. None: all categories of the file.

    Raises:
        InputError: a file is missing, broken or contradicts another; names the file.
    """

    def __init__(self, root: str | Path, split: str, *, classes: Sequence[str] | None = None) -> None:
        root = require_folder(Path(root))
        path = require_folder(root / "annotations") / f"instances_{split}.json"
        content = _read_json(path)
        folder = require_folder(root / split)
        try:
            names = {int(item["id"]): str(item["name"]) for item in content["categories"]}
            images = {int(item["id"]): item for item in content["images"]}
            annotations = _by_image(content["annotations"], images, names, path)
            selected = select_classes([names[key] for key in sorted(names)], classes, path)
            label_of = {key: selected.index(name) + 1 for key, name in names.items() if name in selected}
            ids = sorted(images)
            paths = [folder / images[key]["file_name"] for key in ids]
            stated = [(int(images[key]["height"]), int(images[key]["width"])) for key in ids]
            sizes = check_images(paths, stated)
            records, dropped = [], 0
            for key, image_path, size in zip(ids, paths, sizes, strict=True):
                record, empty = _record(key, image_path, size, annotations[key], label_of, path)
                records.append(record)
                dropped += empty
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            what = f"missing key {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path}: expected COCO instance annotations ({what})") from error
        require_boxes(records, path)
        super().__init__(selected, records, dropped=dropped)


def _read_json(path: Path) -> dict:
    if not path.is_file():
        splits = sorted(other.stem.removeprefix("instances_") for other in path.parent.glob("instances_*.json"))
        known = ", ".join(splits) or "instances_*.json, of which there are none"
        raise InputError(f"{path}: annotations not found, expected a split of {known}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise InputError(f"{path}: expected valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object with images, annotations and categories")
    return content


def _by_image(
    annotations: list[dict], images: dict[int, dict], names: dict[int, str], source: Path
) -> defaultdict[int, list[dict]]:
    """The annotations of every image. InputError if one names an image or a class that the file does not define."""
    grouped: defaultdict[int, list[dict]] = defaultdict(list)
    for annotation in annotations:
        image_id, category = int(annotation["image_id"]), int(annotation["category_id"])
        if image_id not in images:
            raise InputError(f"{source}: annotation {annotation.get('id')}: unknown image {image_id}")
        if category not in names:
            raise InputError(
                f"{source}: annotation {annotation.get('id')}: unknown class {category}, expected an id of categories"
            )
        grouped[image_id].append(annotation)
    return grouped


def _record(
    image_id: int,
    path: Path,
    size: tuple[int, int],
    annotations: list[dict],
    label_of: dict[int, int],
    source: Path,
) -> tuple[Record, int]:
    """The image's record and the number of its boxes without area."""
    mine = [annotation for annotation in annotations if int(annotation["category_id"]) in label_of]
    xywh = np.array([_bbox(annotation) for annotation in mine], dtype=np.float64).reshape(-1, 4)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes, keep = fit_boxes(corners, size, source=f"{source}: {path.name}")
    labels = np.array([label_of[int(annotation["category_id"])] for annotation in mine], dtype=np.int64)
    crowd = np.array([bool(annotation.get("iscrowd", 0)) for annotation in mine], dtype=bool)
    own_area = xywh[:, 2:].prod(1)
    area = np.array([float(item.get("area", own)) for item, own in zip(mine, own_area, strict=True)])
    return Record(image_id, path, size, boxes[keep], labels[keep], crowd[keep], area[keep]), int((~keep).sum())


def _bbox(annotation: dict) -> list[float]:
    bbox = annotation["bbox"]
    if len(bbox) != 4:
        raise ValueError(
            f"annotation {annotation.get('id')}: bbox of {len(bbox)} numbers instead of x, y, width, height"
        )
    return bbox
