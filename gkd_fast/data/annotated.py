"""What every data set shares: the target of a sample, the ground truth in COCO format, images with boxes on disk."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torchvision import tv_tensors

from gkd_fast.data.findings import Findings
from gkd_fast.data.images import read_image

Target = dict[str, Any]


class Detectable(Protocol):
    """A detection data set: label k (1-based; 0 is background) is `classes[k - 1]`."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]: ...

    def ground_truth(self) -> dict[str, Any]: ...


def make_target(boxes: np.ndarray, labels: np.ndarray, *, image_id: int, size: tuple[int, int]) -> Target:
    """boxes float32 [B,4] x1 y1 x2 y2 in pixels of an image of `size` (h, w); labels int64 [B]."""
    as_boxes = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=size)
    return {
        "boxes": as_boxes,
        "labels": torch.from_numpy(labels),
        "image_id": image_id,
        "original_size": size,
    }


def coco_ground_truth(
    classes: Sequence[str],
    images: Iterable[tuple[int, tuple[int, int], str]],
    annotations: Iterable[tuple[np.ndarray, ...]],
) -> dict[str, Any]:
    """Ground truth in COCO format, annotation ids from 1 (the COCO evaluation takes id 0 for "unmatched").

    Args:
        classes: K names.
        images: (id, (height, width), file name) of each image.
        annotations: for each image (boxes [B,4] XYXY, labels [B]) or (boxes, labels, crowd bool [B], area [B]);
            without `area` it is that of the box.
    """
    image_list: list[dict[str, Any]] = []
    annotation_list: list[dict[str, Any]] = []
    for (image_id, (height, width), name), (boxes, labels, *rest) in zip(images, annotations, strict=True):
        image_list.append({"id": image_id, "width": width, "height": height, "file_name": name})
        extent = boxes[:, 2:] - boxes[:, :2]
        crowd, area = rest if rest else (np.zeros(len(boxes), dtype=bool), extent.prod(1))
        bboxes = np.concatenate([boxes[:, :2], extent], axis=1).tolist()
        for bbox, label, is_crowd, size in zip(bboxes, labels.tolist(), crowd.tolist(), area.tolist(), strict=True):
            annotation_list.append(
                {
                    "id": len(annotation_list) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": bbox,
                    "area": size,
                    "iscrowd": int(is_crowd),
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(classes, start=1)]
    return {"images": image_list, "annotations": annotation_list, "categories": categories}


@dataclass(frozen=True)
class Record:
    """One image file and its boxes.

    size: (height, width). boxes: float32 [B,4] XYXY in pixels. labels: int64 [B]. ignored: bool [B], crowds and
    difficult objects, which take no part in training and cost nothing in evaluation. area: float [B] in square
    pixels, of the object's mask where it is known, else of its box. upright: the image is turned as its EXIF data say.
    levels: range of a grey image of more than 8 bits, 0 for others (see `read_image`). content: opens the image where
    it is not a file; `path` is then its name.
    """

    image_id: int
    path: Path
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    area: np.ndarray
    upright: bool = True
    levels: float = 0
    content: Callable[[], Path | BytesIO] | None = None


class AnnotatedImages:
    """A data set of image files whose annotations are already read and checked.

    Args:
        classes: K names.
        records: one per image.
        findings: what reading the annotations and images met.
        levels: range of the set's grey images of more than 8 bits; 0 where it has none.
    """

    def __init__(
        self, classes: Sequence[str], records: Sequence[Record], *, findings: Findings | None = None, levels: float = 0
    ) -> None:
        self.classes, self.records = tuple(classes), list(records)
        self.findings, self.levels = findings or Findings(), levels

    def part(self, indices: Iterable[int]) -> AnnotatedImages:
        """The data set of some of the samples, image ids anew from 0."""
        records = [replace(self.records[index], image_id=number) for number, index in enumerate(indices)]
        return AnnotatedImages(self.classes, records, findings=self.findings, levels=self.levels)

    def relabelled(self, classes: Sequence[str]) -> AnnotatedImages:
        """The same with the labels of other `classes`; boxes of classes that are not among them are left out."""
        label_of = np.array(
            [classes.index(name) + 1 if name in classes else 0 for name in self.classes], dtype=np.int64
        )
        records = []
        for record in self.records:
            labels = label_of[record.labels - 1]
            keep = labels > 0
            if not keep.all():
                self.findings.note("boxes of other classes left out", record.path, int((~keep).sum()))
            kept = {name: getattr(record, name)[keep] for name in ("boxes", "ignored", "area")}
            records.append(replace(record, labels=labels[keep], **kept))
        return AnnotatedImages(classes, records, findings=self.findings, levels=self.levels)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, Target]:
        """The image (uint8 [3,H,W]) and its target without ignored boxes. InputError if the file cannot be decoded."""
        record = self.records[operator.index(index)]
        keep = ~record.ignored
        pixels = read_image(
            record.content() if record.content else record.path, upright=record.upright, levels=record.levels
        )
        image = tv_tensors.Image(pixels)
        target = make_target(record.boxes[keep], record.labels[keep], image_id=record.image_id, size=record.size)
        return image, target

    def ground_truth(self) -> dict[str, Any]:
        """All annotations in COCO format; ignored boxes carry `iscrowd` 1."""
        return coco_ground_truth(
            self.classes,
            [(record.image_id, record.size, record.path.name) for record in self.records],
            [(record.boxes, record.labels, record.ignored, record.area) for record in self.records],
        )
