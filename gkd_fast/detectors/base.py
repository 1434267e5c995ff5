"""What a detector shows to distillation, the same for one-stage and two-stage detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from gkd_fast.detectors.truth import BatchTargets, Target
from gkd_fast.instances import Instances, image_numbers


@dataclass(frozen=True)
class StudentPass:
    """One training pass of a detector.

    Attributes:
        losses: the detector's own loss terms, float32 scalars; where several processes train, the parts that add up
            to the terms of the global batch.
        features: L maps [N,C,H_l,W_l] of the feature pyramid.
        instances: the instances to distil; class -1 marks places without one.
        targets: the ground truth, boxes and labels of each image.
        soft: what it takes to query the teacher about the same places.
    """

    losses: dict[str, Tensor]
    features: list[Tensor]
    instances: Instances
    targets: Sequence[Target]
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


def sizes_of(images: ImageList) -> Tensor:
    """float32 [N,2], heights and widths before padding, on the device."""
    device = images.tensors.device
    sizes = torch.tensor(images.image_sizes, dtype=torch.float32)
    return sizes.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else sizes.to(device)


@lru_cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[3,1,1] on the device; remembered, as every copy to a GPU would wait for it."""
    return torch.tensor(values, device=device)[:, None, None]


def plain_targets(targets: Sequence[Target], device: torch.device, most: int | None = None) -> BatchTargets:
    """Boxes and labels as plain tensors on the device; image_id, flipped and draw, where there, as they are."""
    return targets if isinstance(targets, BatchTargets) else BatchTargets(targets, device, most)


def ground_truth_instances(targets: Sequence[Target]) -> Instances:
    """All ground-truth boxes of a batch as instances."""
    if isinstance(targets, BatchTargets):
        return targets.flat
    return Instances(
        boxes=torch.cat([target["boxes"] for target in targets]),
        image_index=image_numbers([target["labels"] for target in targets]),
        labels=torch.cat([target["labels"] for target in targets]) - 1,
    )


class Grid:
    """The anchors of a detector, computed once for every size of its batches.

    Args:
        generator: the detector's own.
    """

    def __init__(self, generator: AnchorGenerator) -> None:
        self.generator = generator
        self._known: dict[tuple[Any, ...], list[Tensor]] = {}

    def __call__(self, images: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """float32 anchors of each level [H_l*W_l*A_l,4], cell by cell; the same for every image of the batch.

        Args:
            images: [N,3,H,W].
            features: L maps [N,C,H_l,W_l].
        """
        sizes = [tuple(feature.shape[-2:]) for feature in features]
        key = (tuple(images.shape[-2:]), tuple(sizes), images.device)
        if key not in self._known:
            self._known[key] = self._make(images, sizes)
        return self._known[key]

    @torch.no_grad()
    def _make(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        # In float32 whatever the maps are: half types would round the corners.
        maps = [torch.zeros((), device=images.device).expand(1, 1, *size) for size in sizes]
        anchors = self.generator(ImageList(images[:1], [tuple(images.shape[-2:])]), maps)[0]
        per_cell = self.generator.num_anchors_per_location()
        counts = [height * width * number for (height, width), number in zip(sizes, per_cell, strict=True)]
        return list(anchors.split(counts))
