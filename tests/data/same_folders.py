"""One data set written in every layout that is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from tiny_folders import VOC_OBJECT

Box = tuple[str, int, int, int, int]  # class, x1 y1 x2 y2 in whole pixels from 0
Split = dict[Path, tuple[tuple[int, int], list[Box]]]  # image: (height, width), boxes


def xml(size: tuple[int, int], boxes: Sequence[Box]) -> str:
    objects = "".join(
        VOC_OBJECT.format(name=name, difficult=0, box=(x1 + 1, y1 + 1, x2, y2)) for name, x1, y1, x2, y2 in boxes
    )
    return f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{objects}</annotation>"


def yolo_lines(size: tuple[int, int], boxes: Sequence[Box], names: Sequence[str], digits: int = 6) -> str:
    height, width = size
    return "".join(
        f"{names.index(name)} {(x1 + x2) / 2 / width:.{digits}f} {(y1 + y2) / 2 / height:.{digits}f} "
        f"{(x2 - x1) / width:.{digits}f} {(y2 - y1) / height:.{digits}f}\n"
        for name, x1, y1, x2, y2 in boxes
    )


def coco_content(split: Split, names: Sequence[str], *, first_id: int = 1, folder: str = "") -> dict:
    images, annotations = [], []
    # Ids against the order of the names: the order of a data set does not depend on them.
    for number, (path, (size, boxes)) in enumerate(reversed(list(split.items())), start=7):
        images.append({"id": number, "file_name": folder + path.name, "width": size[1], "height": size[0]})
        for name, x1, y1, x2, y2 in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": names.index(name) + first_id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": name, "supercategory": "things"} for k, name in enumerate(names, start=first_id)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _voc(root: Path, splits: dict[str, Split], names: Sequence[str]) -> None:
    for name, split in splits.items():
        (root / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets/Main" / f"{name}.txt").write_text("".join(f"{path.stem}\n" for path in split))
        _written(split, root / "JPEGImages", root / "Annotations", ".xml", lambda size, boxes: xml(size, boxes))


def _voc_side_by_side(root: Path, splits: dict[str, Split], names: Sequence[str]) -> None:
    for name, split in splits.items():
        _written(split, root / name, root / name, ".xml", lambda size, boxes: xml(size, boxes))


def _yolo(root: Path, splits: dict[str, Split], names: Sequence[str]) -> None:
    for name, split in splits.items():
        folders = root / "images" / name, root / "labels" / name
        _written(split, *folders, ".txt", lambda size, boxes: yolo_lines(size, boxes, names))
    (root / "data.yaml").write_text(
        "".join(f"{name}: images/{name}\n" for name in splits) + f"names: {json.dumps(list(names))}\n"
    )


def _yolo_roboflow(root: Path, splits: dict[str, Split], names: Sequence[str]) -> None:
    for name, split in splits.items():
        folders = root / name / "images", root / name / "labels"
        _written(split, *folders, ".txt", lambda size, boxes: yolo_lines(size, boxes, names, 16))
    (root / "data.yaml").write_text(
        "".join(f"{name}: ../{name}/images\n" for name in splits) + f"nc: {len(names)}\nnames: {list(names)!r}\n"
    )


def _coco(root: Path, splits: dict[str, Split], names: Sequence[str]) -> None:
    (root / "annotations").mkdir(parents=True)
    for name, split in splits.items():
        _written(split, root / name, None)
        (root / f"annotations/instances_{name}.json").write_text(json.dumps(coco_content(split, names)))


def _coco_one_folder(root: Path, splits: dict[str, Split], names: Sequence[str]) -> None:
    for name, split in splits.items():
        _written(split, root / "images", None)
        (root / f"my_{name}.json").write_text(json.dumps(coco_content(split, names, first_id=0)))
    for name in splits:
        (root / f"my_{name}.json").rename(root / f"{name}.json")


def _coco_roboflow(root: Path, splits: dict[str, Split], names: Sequence[str]) -> None:
    for name, split in splits.items():
        _written(split, root / name, None)
        content = coco_content(split, names)
        content["categories"].insert(0, {"id": 0, "name": "things", "supercategory": "none"})
        (root / name / "_annotations.coco.json").write_text(json.dumps(content))


LAYOUTS: dict[str, Callable[[Path, dict[str, Split], Sequence[str]], None]] = {
    "voc": _voc,
    "voc side by side": _voc_side_by_side,
    "yolo": _yolo,
    "yolo of Roboflow": _yolo_roboflow,
    "coco": _coco,
    "coco, one folder": _coco_one_folder,
    "coco of Roboflow": _coco_roboflow,
}


def _written(
    split: Split, images: Path, texts: Path | None, suffix: str = "", text: Callable[..., str] | None = None
) -> None:
    images.mkdir(parents=True, exist_ok=True)
    for path, (size, boxes) in split.items():
        shutil.copy(path, images / path.name)
        if texts is not None and text is not None:
            texts.mkdir(parents=True, exist_ok=True)
            (texts / f"{path.stem}{suffix}").write_text(text(size, boxes))
