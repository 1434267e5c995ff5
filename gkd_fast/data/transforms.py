"""Geometry of a sample: resize by short and long side, horizontal flip."""

import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from gkd_fast.data.annotated import Target


def resized_size(size: tuple[int, int], *, short_side: int, long_side: int) -> tuple[int, int]:
    """(height, width) scaled so that the shorter side is `short_side`, or the longer `long_side` if that is smaller."""
    scale = min(short_side / min(size), long_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize(
    image: tv_tensors.Image, target: Target, *, short_side: int, long_side: int
) -> tuple[tv_tensors.Image, Target]:
    """Resizes image (uint8 [3,H,W], bilinear with antialiasing) and boxes; the aspect ratio stays."""
    size = resized_size(tuple(image.shape[-2:]), short_side=short_side, long_side=long_side)
    if size == tuple(image.shape[-2:]):
        return image, target
    boxes = F.resize(target["boxes"], list(size))
    return F.resize(image, list(size), antialias=True), {**target, "boxes": boxes}


def horizontal_flip(image: torch.Tensor, target: Target) -> tuple[torch.Tensor, Target]:
    """Mirrors image and boxes left to right."""
    return F.horizontal_flip(image), {**target, "boxes": F.horizontal_flip(target["boxes"])}
