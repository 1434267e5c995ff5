"""PASCAL VOC folders.

VOC counts pixels from 1 and includes the last one. Boxes become continuous coordinates from 0, [xmin - 1, xmax], for
training and for evaluation alike: their width is the development kit's xmax - xmin + 1, and so is their overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from gkd_fast.data.annotated import AnnotatedImages, Record
from gkd_fast.data.checks import check_images, fit_boxes, require_boxes, require_folder, select_classes
from gkd_fast.errors import InputError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".bmp", ".webp", ".tif", ".tiff")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocDetection(AnnotatedImages):
    """Annotations/NAME.xml and JPEGImages/NAME.jpg of the names in ImageSets/Main/SPLIT.txt.

    `difficult` objects are not in the targets and carry `iscrowd` 1 in the ground truth. Boxes of zero area as written
    (xmin = xmax or ymin = ymax) are dropped and counted in `dropped`. Image ids are positions in the split. Several
    folders make one data set: ``VOC2007/trainval+VOC2012/trainval`` of the folder VOCdevkit.

    Args:
        root: the folder, such as VOCdevkit/VOC2012.
        split: such as trainval; FOLDER/trainval for a folder in `root`; several joined by "+".
        classes: names to detect, in label order; objects of other classes are left out. Default: all names found in
            Annotations, sorted, whatever split they occur in.

    Raises:
        InputError: a file is missing, broken or contradicts another; names the file.
    """

    def __init__(self, root: str | Path, split: str, *, classes: Sequence[str] | None = None) -> None:
        parts = [_Part.read(Path(root), name) for name in split.split("+")]
        annotations = [annotation for part in parts for annotation in part.annotations]
        found = sorted({item.name for annotation in annotations for item in annotation.objects})
        classes = select_classes(found, classes, parts[0].folder / "Annotations")
        label_of = {name: label for label, name in enumerate(classes, start=1)}

        listed = [annotation for part in parts for annotation in part.listed]
        paths = [path for part in parts for path in part.paths]
        sizes = check_images(paths, [annotation.size for annotation in listed])
        records, dropped = [], 0
        for index, (annotation, path, size) in enumerate(zip(listed, paths, sizes, strict=True)):
            record, empty = _record(index, annotation, path, size, label_of)
            records.append(record)
            dropped += empty
        require_boxes(records, parts[0].split_file)
        super().__init__(classes, records, dropped=dropped)


@dataclass(frozen=True)
class _Object:
    """corners: xmin, ymin, xmax, ymax as written."""

    name: str
    corners: tuple[float, ...]
    difficult: bool


@dataclass(frozen=True)
class _Annotation:
    """size: (height, width), None where the file does not say."""

    path: Path
    size: tuple[int, int] | None
    objects: list[_Object]


@dataclass(frozen=True)
class _Part:
    """One folder and a split of it. annotations: all that the folder has; listed, paths: those of the split."""

    folder: Path
    split_file: Path
    annotations: list[_Annotation]
    listed: list[_Annotation]
    paths: list[Path]

    @classmethod
    def read(cls, root: Path, split: str) -> _Part:
        inner, _, name = split.strip().rpartition("/")
        root = require_folder(root / inner)
        folder, images = require_folder(root / "Annotations"), require_folder(root / "JPEGImages")
        split_file = root / "ImageSets" / "Main" / f"{name}.txt"
        names = _read_split(split_file)
        annotations = {path.stem: _read_annotation(path) for path in sorted(folder.glob("*.xml"))}
        for name in names:
            if name not in annotations:
                raise InputError(f"{folder / name}.xml: annotation file not found, {split_file} names it")
        listed = [annotations[name] for name in names]
        return cls(root, split_file, list(annotations.values()), listed, [_image_path(images, name) for name in names])


def _read_split(path: Path) -> list[str]:
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        splits = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        raise InputError(f"{path}: expected a list of image names, found none (splits there: {splits})") from error
    if not names:
        raise InputError(f"{path}: expected at least one image name, the file is empty")
    return names


def _read_annotation(path: Path) -> _Annotation:
    try:
        tree = ElementTree.parse(path).getroot()
        height, width = (int(tree.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: expected well-formed XML ({error})") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected an annotation with whole numbers as size ({error})") from error
    objects = [_read_object(path, number, item) for number, item in enumerate(tree.findall("object"), start=1)]
    # Some tools write 0 x 0 for a size they do not know; the image's own header then decides.
    return _Annotation(path, (height, width) if min(height, width) > 0 else None, objects)


def _read_object(path: Path, number: int, item: ElementTree.Element) -> _Object:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise InputError(f"{path}: expected a name in object {number}, found none")
    try:
        corners = tuple(float(item.findtext(f"bndbox/{corner}") or "") for corner in _CORNERS)
        difficult = int(item.findtext("difficult") or 0) != 0
    except ValueError as error:
        raise InputError(
            f"{path}: expected numbers as {', '.join(_CORNERS)} and difficult of object {number} ({error})"
        ) from error
    return _Object(name, corners, difficult)


def _image_path(folder: Path, name: str) -> Path:
    """The image of that name with the first suffix that exists, else with the usual one."""
    candidates = [folder / f"{name}{suffix}" for suffix in _SUFFIXES]
    return next((path for path in candidates if path.exists()), candidates[0])


def _record(
    image_id: int, annotation: _Annotation, path: Path, size: tuple[int, int], label_of: dict[str, int]
) -> tuple[Record, int]:
    """The record of one image and the number of zero-area boxes left out."""
    items = [item for item in annotation.objects if item.name in label_of]
    corners = np.array([item.corners for item in items], dtype=np.float64).reshape(-1, 4)
    boxes, keep = fit_boxes(corners - (1, 1, 0, 0), size, source=annotation.path)
    keep &= (corners[:, :2] < corners[:, 2:]).all(1)
    labels = np.array([label_of[item.name] for item in items], dtype=np.int64)
    difficult = np.array([item.difficult for item in items], dtype=bool)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    record = Record(image_id, path, size, boxes[keep], labels[keep], difficult[keep], area[keep])
    return record, int((~keep).sum())
