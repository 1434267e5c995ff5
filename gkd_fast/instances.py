"""Instances that are distilled, and their form as users give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FORMATS = ("xyxy", "cxcywh")
_UNIT = 1.5  # no coordinate of a normalised box is greater, and the boxes of no batch of pixels are all smaller
_OUTSIDE = 1.5  # a box may leave its image by as much as half of it


@dataclass(frozen=True)
class Instances:
    """Boxes of a batch with their classes: the ground truth, or the positive proposals of a two-stage detector.

    Attributes:
        boxes: float32 [B,4], x1 y1 x2 y2 in pixels of the padded batch.
        image_index: int64 [B], the image of the batch.
        labels: int64 [B], class from 0 (background has no number here); -1: padding, which counts for nothing.
    """

    boxes: Tensor
    image_index: Tensor
    labels: Tensor


@dataclass(frozen=True)
class SoftPairs:
    """Logits of student and teacher for the same S places, with what their robust weights need.

    Attributes:
        student, teacher: float [S,K'] class logits.
        instance: int64 [S], index into `Instances`; -1: none, the place counts for nothing.
        level: int64 [S], pyramid level.
        student_embedding, teacher_embedding: [S,C_S], [S,C_T] mean RoI features, for a two-stage detector.
        exclusive: whether a place has one class (softmax), where there are no RoI features to tell.
    """

    student: Tensor
    teacher: Tensor
    instance: Tensor
    level: Tensor
    student_embedding: Tensor | None = None
    teacher_embedding: Tensor | None = None
    exclusive: bool = False


def image_numbers(rows: Sequence[Tensor]) -> Tensor:
    """int64 [sum B_i], the number i of the image that each row belongs to, from the B_i rows of every image."""
    return torch.cat([r.new_full((len(r),), number, dtype=torch.int64) for number, r in enumerate(rows)])


def instances_of(
    images: Tensor,
    boxes: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    image_index: Tensor | None,
    box_format: str,
) -> Instances:
    """Boxes as users have them -> instances in pixels of the batch, on its device.

    Args:
        images: [N,C,H,W].
        boxes: one tensor [B_i,4] an image, or all [B,4] with image_index; ``xyxy`` in pixels of the batch, or
            ``cxcywh`` normalised by its sides.
        labels: likewise, [B_i] or [B] (or [B,1]), class from 0.
        image_index: [B], the image of each box; None for lists.
        box_format: one of `FORMATS`.

    Raises:
        TypeError, ValueError: for lists and tensors mixed, or lengths that do not fit together.
    """
    if isinstance(boxes, Tensor) != isinstance(labels, Tensor):
        raise TypeError(
            f"boxes, labels: expected two tensors or two lists, got {type(boxes).__name__} and {type(labels).__name__}"
        )
    if isinstance(boxes, Tensor):
        if image_index is None:
            raise ValueError("image_index: expected the image of each box where boxes are one tensor, got None")
    else:
        if image_index is not None or not len(boxes) == len(labels) == len(images):
            raise ValueError(
                f"boxes, labels: expected a tensor for each of the {len(images)} images and no image_index, got "
                f"{len(boxes)} and {len(labels)}"
            )
        image_index = image_numbers(list(labels))
        boxes, labels = torch.cat(list(boxes)), torch.cat(list(labels))
    assert isinstance(labels, Tensor)  # as boxes are
    device = images.device
    boxes = boxes.as_subclass(Tensor).to(device, torch.float32, non_blocking=True).view(-1, 4)
    labels, image_index = (
        value.to(device, torch.int64, non_blocking=True).reshape(-1) for value in (labels, image_index)
    )
    if not len(boxes) == len(labels) == len(image_index):
        raise ValueError(
            f"boxes: expected as many as labels and image_index, got {len(boxes)}, {len(labels)}, {len(image_index)}"
        )
    if box_format == "cxcywh":
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        height, width = images.shape[-2:]
        boxes = torch.cat([centre - half, centre + half], 1) * boxes.new_tensor([width, height, width, height])
    return Instances(boxes, image_index, labels)


def check_instances(instances: Instances, images: Tensor, classes: Sequence[str], box_format: str) -> None:
    """Look at the values; waits for the device.

    Args:
        instances: from `instances_of`.
        images: [N,C,H,W].
        classes: names.
        box_format: in which the boxes were given.

    Raises:
        ValueError: for what another format of boxes, labels from 1, or boxes of another image size would give.
    """
    boxes, labels = instances.boxes, instances.labels
    if not len(boxes):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        raise ValueError(
            f"labels: expected 0 to {len(classes) - 1} for the {len(classes)} classes, got {low} to {high}"
            + ("; count them from 0" if high == len(classes) and low > 0 else "")
        )
    if int(instances.image_index.min()) < 0 or int(instances.image_index.max()) >= len(images):
        raise ValueError(f"image_index: expected 0 to {len(images) - 1}, got {int(instances.image_index.max())}")
    height, width = images.shape[-2:]
    of = f"{box_format} boxes of images of {height} x {width} pixels"
    if not bool(boxes.isfinite().all()):
        raise ValueError(f"boxes: expected finite numbers, got {boxes[~boxes.isfinite().all(1)][0].tolist()}")
    if bool((boxes[:, 2:] < boxes[:, :2]).any()):
        wrong = boxes[(boxes[:, 2:] < boxes[:, :2]).any(1)][0].tolist()
        raise ValueError(f"boxes: expected {of}, got one of x1 y1 x2 y2 = {_shown(wrong)}")
    sides = boxes.new_tensor([width, height, width, height])
    if box_format == "xyxy" and float(boxes.max()) <= _UNIT:
        raise ValueError(f'boxes: expected {of}, got none above {float(boxes.max()):.3g}; normalised ones are "cxcywh"')
    outside = ((boxes > _OUTSIDE * sides) | (boxes < (1 - _OUTSIDE) * sides)).any(1)
    if bool(outside.any()):
        wrong = boxes[outside][0].tolist()
        raise ValueError(f"boxes: expected {of}, got one of x1 y1 x2 y2 = {_shown(wrong)}, far outside")


def _shown(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
