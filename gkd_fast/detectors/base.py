"""What a detector shows to distillation, the same for one-stage and two-stage detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from gkd_fast.detectors.constants import remembered
from gkd_fast.detectors.truth import BatchTargets, Target
from gkd_fast.instances import Instances, image_numbers
from gkd_fast.ops.normalise_images import normalise_images


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


def normalised_batch(
    transform: GeneralizedRCNNTransform, images: list[Tensor], size: tuple[int, int] | None = None
) -> ImageList:
    """One normalised, padded batch in channels_last, as torchvision's transform makes it of images in 0..1.

    Args:
        transform: for the statistics and the multiple of the padded sides.
        images: [3,H,W], uint8, which gives float32, or in 0..1 of any floating dtype; on the device.
        size: padded (height, width); None: the smallest that holds all images.
    """
    sizes = [tuple(image.shape[-2:]) for image in images]
    if size is None:
        multiple = transform.size_divisible
        height, width = (-(-max(sides) // multiple) * multiple for sides in zip(*sizes, strict=True))
        size = height, width
    device, whole = images[0].device, not images[0].is_floating_point()
    if whole and device.type == "cpu":
        statistics = tuple(transform.image_mean), tuple(transform.image_std)
        values = remembered(("bytes", statistics), lambda: _values_of_bytes(*statistics))
        return ImageList(normalise_images(images, values, size), sizes)
    dtype = torch.float32 if whole else images[0].dtype
    batch = torch.empty(len(images), 3, *size, dtype=dtype, device=device, memory_format=torch.channels_last)
    # Images of one size are copied at once. Autograd refuses changes in place of the views that iteration gives.
    own = [(batch[number], image) for number, image in enumerate(images)]
    parts = [(batch, torch.stack(images))] if len(set(sizes)) == 1 else own
    for padded, shown in parts:
        padded[..., : shown.shape[-2], : shown.shape[-1]].copy_(shown)
    # As rows of pixels: three channels at a time would be most of the work.
    rows = batch.permute(0, 2, 3, 1).view(len(batch), size[0], -1)
    if whole:
        rows.div_(255)
    mean, std = (_row(values, size[1], dtype, device) for values in (transform.image_mean, transform.image_std))
    rows.sub_(mean).div_(std)
    for padded, shown in parts:
        height, width = shown.shape[-2:]
        if height < size[0]:
            padded[..., height:, :].zero_()
        if width < size[1]:
            padded[..., :height, width:].zero_()
    return ImageList(batch, sizes)


def _values_of_bytes(mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 [3,256], what torchvision's transform makes of each value of a colour."""
    shares = torch.arange(256, dtype=torch.float32).div(255).expand(3, -1)
    return shares.sub(torch.tensor(mean)[:, None]).div(torch.tensor(std)[:, None])


def sizes_of(images: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """float32 [N,4], width, height, width, height of each image on the device, from heights and widths."""
    sizes = torch.tensor([(width, height) * 2 for height, width in images], dtype=torch.float32)
    return sizes.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else sizes.to(device)


def _row(channels: Sequence[float], width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[3W], the channels' values for so many pixels; remembered, as every copy to a GPU would wait for it."""
    key = "row", *channels, width, dtype, device
    return remembered(key, lambda: torch.tensor(channels, dtype=dtype, device=device).repeat(width))


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


def level_anchors(
    generator: AnchorGenerator, images: Tensor, features: Sequence[Tensor]
) -> tuple[Tensor, tuple[int, ...]]:
    """float32 anchors [A,4] of every image of a batch, level by level, cell by cell, and how many each level has.

    Args:
        generator: the detector's own.
        images: [N,3,H,W].
        features: L maps [N,C,H_l,W_l].
    """
    size, device = (images.shape[-2], images.shape[-1]), images.device
    maps = tuple((feature.shape[-2], feature.shape[-1]) for feature in features)
    key = ("anchors", generator, size, maps, device)
    return remembered(key, lambda: _make_anchors(generator, size, maps, device))


def place_anchors(model: nn.Module, device: torch.device) -> None:
    """Put on the device what a detector makes its anchors from.

    torchvision's generators do so in the first pass, for which a compiled step would be compiled once more.
    """
    for module in model.modules():
        if isinstance(module, AnchorGenerator):
            module.set_cell_anchors(torch.float32, device)


def _make_anchors(
    generator: AnchorGenerator, size: tuple[int, int], maps: Sequence[tuple[int, int]], device: torch.device
) -> tuple[Tensor, tuple[int, ...]]:
    # In float32 whatever the maps are: half types would round the corners.
    blank = torch.zeros((), device=device)
    images = ImageList(blank.expand(1, 3, *size), [size])
    anchors = generator(images, [blank.expand(1, 1, *cells) for cells in maps])[0]
    per_cell = generator.num_anchors_per_location()
    return anchors, tuple(h * w * number for (h, w), number in zip(maps, per_cell, strict=True))
