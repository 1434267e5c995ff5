"""What a detector shows to distillation, the same for one-stage and two-stage detectors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from gkd_fast.instances import Instances, image_numbers

Target = dict[str, Any]


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
