"""COCO instance annotations: one JSON file for each split, of any name.

Categories become labels 1..K in the order of their ids; one without boxes that is another's supercategory is none.
Crowds are ignored: not in the targets, and in the ground truth with `iscrowd` 1. `area` in the ground truth is that of
the file (the object's, not the box's). Ids may be any numbers or texts. An annotation without a box has that of its
segmentation.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from gkd_fast.data.findings import Findings
from gkd_fast.data.layout import Layout, Reader
from gkd_fast.data.listing import Entry, Listing
from gkd_fast.data.places import ImagePlaces, subfolders, visible
from gkd_fast.errors import InputError

Item = dict[str, Any]
"""An image, an annotation or a category as the file has it."""

_KEYS = ("images", "annotations", "categories")
# Files of COCO that speak of the same images in other ways.
_OTHERS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
_PLAIN_NAMES = ("_annotations.coco", "_annotations", "annotations", "labels", "coco", "instances", "result", "data")


def find(root: Path) -> Layout | None:
    """The COCO layout of a folder: JSON files in it, in ``annotations``, or in the folders of their images."""
    splits: dict[str, Reader] = {}
    what = "COCO"
    for file in _annotation_files(root):
        name = _split_name(root, file)
        name = name if name not in splits else file.stem
        splits[name] = partial(read, file, _image_folders(root, file, name), root)
        if file.name == "_annotations.coco.json":
            what = "COCO as Roboflow exports it"
    return Layout("coco", what, root, splits) if splits else None


def single(annotations: Path, images: Path | None) -> Reader:
    """The reader of a file whose images lie in a given folder, else near it."""
    if images is not None and not images.is_dir():
        raise InputError(f"{images}: expected a folder of images, found {'a file' if images.exists() else 'nothing'}")
    root = images or annotations.parent
    return partial(read, annotations, [images] if images else _image_folders(root, annotations, annotations.stem), root)


def _annotation_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root] if root.suffix.lower() == ".json" else []
    folders = [root, *subfolders(root)]
    files = [file for folder in folders for file in visible(folder, "*.[jJ][sS][oO][nN]")]
    instances = {file.parent for file in files if file.name.startswith("instances_")}
    files = [file for file in files if not (file.parent in instances and file.name.startswith(_OTHERS))]
    return [file for file in files if file.name.startswith("instances_") or _has_keys(file)]


def _has_keys(file: Path) -> bool:
    content = file.read_bytes()
    return all(f'"{key}"'.encode() in content for key in _KEYS)


def _split_name(root: Path, file: Path) -> str:
    if file.parent not in (root, root / "annotations") and file.stem.lower() in _PLAIN_NAMES:
        return file.parent.name
    name = file.stem
    for word in ("instances", "annotations", "coco"):
        name = name.removeprefix(f"{word}_").removesuffix(f"_{word}").removesuffix(f".{word}")
    return "all" if name.lower() in _PLAIN_NAMES else name


def _image_folders(root: Path, file: Path, split: str) -> list[Path]:
    near = [file.parent] if file.parent.name.lower() != "annotations" else []
    inner = [root / split, root / "images" / split, root / split / "images", root / "images", root / "JPEGImages"]
    return [folder for folder in (*inner, *near, root) if folder.is_dir()]


def read(path: Path, folders: Sequence[Path], root: Path, findings: Findings) -> Listing:
    """The listing of an annotation file.

    Args:
        path: the file.
        folders: where the images should be.
        root: below which they are looked for where they are not.
        findings: takes what is put right or wrong.

    Raises:
        InputError: for a file that holds no instance annotations.
    """
    return listing(_read_json(path), path, folders, root, findings)


def listing(content: Item, path: Path | str, folders: Sequence[Path], root: Path, findings: Findings) -> Listing:
    """The listing of the content of an annotation file; `path` names it in messages. Else as `read`."""
    try:
        annotations = content["annotations"]
        used = Counter(_key(item["category_id"]) for item in annotations)
        categories = _categories(content["categories"], used, path, findings)
        images = _images(content["images"], path, findings)
        findings.require()
        grouped = _by_image(annotations, images, categories, path, findings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        what = f"missing key {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: expected COCO instance annotations ({what})") from error
    names = tuple(categories.values())
    position = {key: number for number, key in enumerate(categories)}
    places = ImagePlaces(root, folders, findings)
    entries = []
    for key, image in images.items():
        file = places.by_name(str(image["file_name"]), path)
        entry = _entry(image, file or Path(), grouped[key], position, path, findings)
        if file is not None:
            entries.append(entry)
    _refuse_normalised(entries, path, findings)
    return Listing(names, entries, str(path))


def _read_json(path: Path) -> Item:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: annotations not found ({error.strerror})") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise InputError(f"{path}: expected valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object with {', '.join(_KEYS)}")
    return content


def _key(value: Any) -> str:
    """One form for an id, whether it is written as 7, 7.0 or "7"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _categories(items: list[Item], used: Counter[str], path: Path | str, findings: Findings) -> dict[str, str]:
    """The names of the classes by their key, in the order of the ids."""
    above = {str(item.get("supercategory")) for item in items}
    found: dict[str, str] = {}
    by_name: dict[str, str] = {}
    for item in sorted(items, key=_by_id):
        key, name = _key(item["id"]), str(item["name"])
        if key in found:
            text = f"{path}: expected each category id once, got {key} twice: {found[key]!r} and {name!r}"
            findings.fault("duplicate category ids", text)
        elif not used[key] and name in above and len(items) > 1:
            findings.note(
                "categories without boxes that only group others (supercategory), left out", f"{name} ({key})"
            )
        elif name in by_name:
            text = f"{path}: expected each category name once, got {name!r} twice: ids {by_name[name]} and {key}"
            findings.fault("duplicate category names", text)
        else:
            found[key] = by_name[name] = name
            by_name[name] = key
    return found


def _by_id(item: Item) -> tuple[int, float, str]:
    try:
        return 0, float(item["id"]), ""
    except ValueError:
        return 1, 0.0, str(item["id"])


def _images(items: list[Item], path: Path | str, findings: Findings) -> dict[str, Item]:
    found: dict[str, Item] = {}
    ids: dict[str, str] = {}
    for item in items:
        key, name = _key(item["id"]), str(item["file_name"])
        if key in found:
            text = f"expected each image id once, got {key} twice: {found[key]['file_name']} and {name}"
            findings.fault("duplicate image ids", f"{path}: {text}")
        elif name in ids:
            text = f"expected each image once, got {name} twice: the same file with ids {ids[name]} and {key}"
            findings.fault("duplicate images", f"{path}: {text}")
        found[key], ids[name] = item, key
    return found


def _by_image(
    annotations: list[Item],
    images: dict[str, Item],
    categories: dict[str, str],
    path: Path | str,
    findings: Findings,
) -> defaultdict[str, list[Item]]:
    grouped: defaultdict[str, list[Item]] = defaultdict(list)
    for item in annotations:
        image, category = _key(item["image_id"]), _key(item["category_id"])
        if image not in images:
            findings.fault(
                "annotations of unknown images", f"{path}: annotation {item.get('id')}: unknown image {image}"
            )
        elif category not in categories:
            text = f"unknown class {category}, expected an id of categories"
            findings.fault("annotations of unknown classes", f"{path}: annotation {item.get('id')}: {text}")
        else:
            grouped[image].append(item)
    return grouped


def _entry(
    image: Item,
    path: Path,
    annotations: list[Item],
    position: dict[str, int],
    source: Path | str,
    findings: Findings,
) -> Entry:
    bboxes, kept = [], []
    for item in annotations:
        try:
            bboxes.append(_bbox(item, image, source, findings))
            kept.append(item)
        except (ValueError, TypeError) as error:
            findings.fault("annotations without a box", f"{source}: annotation {item.get('id')}: {error}")
    xywh = np.array(bboxes, dtype=np.float64).reshape(-1, 4)
    own = xywh[:, 2:].prod(1)
    height, width = int(image.get("height") or 0), int(image.get("width") or 0)
    return Entry(
        path=path,
        boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        labels=np.array([position[_key(item["category_id"])] for item in kept], dtype=np.int64),
        source=f"{source}: {path.name}",
        places=[f"annotation {item.get('id')}" for item in kept],
        stated=(height, width) if min(height, width) > 0 else None,
        ignored=np.array([bool(item.get("iscrowd", 0)) for item in kept], dtype=bool),
        area=np.array([float(item.get("area", value)) for item, value in zip(kept, own, strict=True)]),
    )


def _bbox(item: Item, image: Item, source: Path | str, findings: Findings) -> list[float]:
    """x, y, width, height of an annotation, if need be those of its segmentation."""
    bbox = item.get("bbox")
    if bbox is None or len(bbox) == 0:
        if not item.get("segmentation"):
            found = "an empty one" if bbox is not None else "none"
            raise ValueError(f"expected a bbox, or a segmentation around which there is one; got {found}")
        findings.note("boxes taken as the bounds of a segmentation", f"{source}: annotation {item.get('id')}")
        return _around(item["segmentation"], image)
    if len(bbox) != 4:
        raise ValueError(f"bbox: expected x, y, width, height, got {len(bbox)} numbers")
    try:
        return [float(value) for value in bbox]
    except (TypeError, ValueError) as error:
        raise ValueError(f"bbox: expected four numbers, got {bbox!r}") from error


def _around(segmentation: Any, image: Item) -> list[float]:
    """The box of polygons [[x, y, x, y, ...], ...] or of a run-length code."""
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        if isinstance(segmentation["counts"], list):
            segmentation = rle.frPyObjects(segmentation, height, width)
        return [float(value) for value in rle.toBbox(segmentation)]
    rings = segmentation if isinstance(segmentation[0], list) else [segmentation]
    points = np.concatenate([np.asarray(ring, dtype=np.float64).reshape(-1, 2) for ring in rings])
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def _refuse_normalised(entries: list[Entry], path: Path | str, findings: Findings) -> None:
    boxes = np.concatenate([entry.boxes for entry in entries]) if entries else np.zeros((0, 4))
    within = np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= 1.0001).all()
    if within and (boxes[:, :2] < boxes[:, 2:]).any():
        first = next(entry for entry in entries if len(entry.boxes))
        shown = ", ".join(f"{value:g}" for value in first.boxes[0])
        findings.fault(
            "normalised boxes",
            f"{first.place(0)}: expected boxes in pixels, got corners {shown}: all boxes of the file look normalised "
            f"to 0..1",
            len(boxes),
        )
