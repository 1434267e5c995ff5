"""What a detector shows to distillation, the same for one-stage and two-stage detectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

Target = dict[str, Any]


@dataclass(frozen=True)
class Instances:
    """The instances that are distilled: the student's positive proposals, or the ground truth.

    Attributes:
        boxes: float32 [B,4], x1 y1 x2 y2 in pixels of the padded batch.
        image_index: int64 [B], the image of the batch.
        labels: int64 [B], class from 0 (background has no number here).
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
    """

    student: Tensor
    teacher: Tensor
    instance: Tensor
    level: Tensor
    student_embedding: Tensor | None = None
    teacher_embedding: Tensor | None = None

    def of_instances(self) -> SoftPairs:
        """The places of an instance alone, for losses that depend on their order; waits for the device."""
        chosen = torch.where(self.instance >= 0)[0]
        rows = (value if value is None else value[chosen] for value in vars(self).values())
        return SoftPairs(*rows)


@dataclass(frozen=True)
class StudentPass:
    """One training pass of a detector.

    Attributes:
        losses: the detector's own loss terms, float32 scalars; where several processes train, the parts that add up
            to the terms of the global batch.
        features: L maps [N,C,H_l,W_l] of the feature pyramid.
        instances: the instances to distil.
        targets: the ground truth, boxes and labels of each image.
        soft: what it takes to query the teacher about the same places.
    """

    losses: dict[str, Tensor]
    features: list[Tensor]
    instances: Instances
    targets: list[dict[str, Tensor]]
    soft: dict[str, Any]


def normalised_batch(model: nn.Module, images: list[Tensor], size: tuple[int, int] | None = None) -> ImageList:
    """uint8 images [3,H,W] -> one normalised, padded float32 batch in channels_last, as the detector's own transform.

    Args:
        model: for the statistics and the multiple of the padded sides.
        images: on the device.
        size: padded (height, width); None: the smallest that holds all images.
    """
    transform = model.transform
    sizes = [tuple(image.shape[-2:]) for image in images]
    if size is None:
        multiple = transform.size_divisible
        size = tuple(-(-max(sides) // multiple) * multiple for sides in zip(*sizes, strict=True))
    batch = torch.zeros(len(images), 3, *size, device=images[0].device).to(memory_format=torch.channels_last)
    mean, std = (_channels(tuple(values), batch.device) for values in (transform.image_mean, transform.image_std))
    for image, padded, (height, width) in zip(images, batch, sizes, strict=True):
        padded[:, :height, :width].copy_(image).div_(255).sub_(mean).div_(std)
    return ImageList(batch, sizes)


@lru_cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[3,1,1] on the device; remembered, as every copy to a GPU would wait for it."""
    return torch.tensor(values, device=device)[:, None, None]


def plain_targets(targets: list[Target], device: torch.device) -> list[dict[str, Any]]:
    """Boxes and labels as plain tensors on the device; image_id, flipped and draw, where there, as they are."""
    return [
        {
            "boxes": target["boxes"].as_subclass(Tensor).to(device, torch.float32, non_blocking=True),
            "labels": target["labels"].to(device, non_blocking=True),
            **{name: target[name] for name in ("image_id", "flipped", "draw") if name in target},
        }
        for target in targets
    ]


def image_numbers(rows: list[Tensor]) -> Tensor:
    """int64 [sum B_i], the number i of the image that each row belongs to, from the B_i rows of every image."""
    return torch.cat([r.new_full((len(r),), number, dtype=torch.int64) for number, r in enumerate(rows)])


def ground_truth_instances(targets: list[dict[str, Tensor]]) -> Instances:
    """All ground-truth boxes of a batch as instances."""
    return Instances(
        boxes=torch.cat([target["boxes"] for target in targets]),
        image_index=image_numbers([target["labels"] for target in targets]),
        labels=torch.cat([target["labels"] for target in targets]) - 1,
    )


def level_anchors(generator: AnchorGenerator, images: ImageList, features: list[Tensor]) -> list[Tensor]:
    """Anchors of each level [H_l*W_l*A_l,4], cell by cell; the same for every image of the batch."""
    per_cell = generator.num_anchors_per_location()
    counts = [f.shape[-2] * f.shape[-1] * number for f, number in zip(features, per_cell, strict=True)]
    return list(generator(images, features)[0].split(counts))


def pyramid_strides(batch_shape: torch.Size, features: list[Tensor]) -> list[int]:
    """Strides of the levels from the padded batch [N,3,H,W] and its features.

    The last levels halve the map before them with rounding up, so that the quotient is no power of two.
    """
    side = 2 if batch_shape[2] > batch_shape[3] else 3
    strides: list[int] = []
    for feature in features:
        quotient = batch_shape[side] / feature.shape[side]
        exact = quotient == 2 ** round(math.log2(quotient)) and feature.shape[side] > 1
        strides.append(int(quotient) if exact or not strides else 2 * strides[-1])
    return strides
